"""DSPy's contract for an engine, beyond plain answers: what is refused, what is told, what a copy shares, how
streams, failures and cancelled calls end."""

from __future__ import annotations

import asyncio
import copy
import json
import threading
import time

import pytest

import tallow
from conftest import assert_idle, copy_family, needed, python

dspy = needed("dspy")
cloudpickle = needed("cloudpickle")
lm15 = dspy.lm15

from scripted import both, call, request, scripted  # noqa: E402
from tallow.dspy import AsyncEngine, Engine, formats  # noqa: E402


@pytest.fixture(scope="module")
def lm(tiny):
    return tallow.LM(tiny, max_tokens=12, cache=False)


# What is accepted, and what is refused


def test_the_pair_is_what_dspy_takes(tiny):
    assert dspy.LM("own/name", engine=Engine(tiny), async_engine=AsyncEngine(tiny), cache=False)("hello")
    with pytest.raises(TypeError, match="not a coroutine function"):
        dspy.LM("own/name", engine=Engine(tiny), async_engine=Engine(tiny))
    with pytest.raises(TypeError, match="is a coroutine function"):
        dspy.LM("own/name", engine=AsyncEngine(tiny))


CLIENT = {
    **{"api_key": "k", "api_base": "http://x/v1", "base_url": "http://x/v1", "headers": {"a": "b"}},
    **{"extra_headers": {"a": "b"}, "api_version": "1", "organization": "o", "project": "p"},
    **{"extra_query": {"a": "b"}, "custom_llm_provider": "x"},
}


@pytest.mark.parametrize("name", CLIENT)
def test_settings_of_a_client_are_refused_everywhere(lm, tiny, name):
    given = {name: CLIENT[name]}
    before = len(lm.history)
    ways = (
        lambda: tallow.LM(tiny, **given),
        lambda: lm.copy(**given),
        lambda: lm("hello", **given),
        lambda: asyncio.run(lm.acall("hello", **given)),
        lambda: lm.forward("hello", **given),
    )
    for way in ways:
        with pytest.raises(ValueError, match=name):
            way()
    assert len(lm.history) == before


def test_a_timeout_belongs_to_the_lm(lm):
    for way in (lm.copy, lambda **given: lm("hello", **given)):
        with pytest.raises(ValueError, match="timeout"):
            way(timeout=1)


def test_none_is_no_setting(tiny):
    assert tallow.LM(tiny, cache=False, max_tokens=3, timeout=None, **dict.fromkeys(CLIENT))("hello")


def test_a_copy_keeps_the_pair(lm, tiny):
    same = lm.copy(temperature=0.5, min_p=0.1)
    assert same.engine is lm.engine and same._async_engine_spec is lm._async_engine_spec
    assert same.kwargs["temperature"] == 0.5 and "temperature" not in {k for k, v in lm.kwargs.items() if v}
    assert same.history == [] and same.copy(min_p=None).kwargs.get("metadata") is None
    for given in ({"engine": Engine(tiny)}, {"async_engine": AsyncEngine(tiny)}, {"model": "tallow/other"}):
        with pytest.raises(tallow.InvalidRequestError, match=next(iter(given))):
            lm.copy(**given)


def test_capabilities(lm, thinker, tmp_path):
    assert lm.supports_response_schema and "response_format" in lm.supported_params
    assert lm.supports_function_calling and "tools" in lm.supported_params
    assert not lm.supports_reasoning and "reasoning_effort" not in lm.supported_params
    thoughtful = tallow.LM(thinker)
    assert thoughtful.supports_reasoning and "reasoning_effort" in thoughtful.supported_params
    mute = tallow.LM(tallow.Model(copy_family("llama-gqa-tied", tmp_path / "plain", template=None)))
    assert not mute.supports_function_calling and not mute.supports_reasoning


# Values


def test_a_saved_program_loads_in_a_fresh_process(lm, tmp_path):
    program = dspy.Predict("question -> answer")
    program.set_lm(lm)
    program.save(tmp_path / "program.json")
    with pytest.raises(ValueError, match="allow_unsafe_lm_state"):
        dspy.Predict("question -> answer").load(tmp_path / "program.json")
    program.save(tmp_path / "whole", save_program=True)
    code = (
        "import sys, dspy, tallow\n"
        "one = dspy.Predict('question -> answer')\n"
        "one.load(sys.argv[1], allow_unsafe_lm_state=True)\n"
        "two = dspy.load(sys.argv[2], allow_pickle=True)\n"
        "for lm in (one.lm, two.lm):\n"
        "    assert isinstance(lm, tallow.LM), lm\n"
        "    print(lm.model, lm('hello')[0], sep='|')\n"
    )
    done = python(code, str(tmp_path / "program.json"), str(tmp_path / "whole"))
    assert done.returncode == 0, done.stderr
    said = lm("hello")[0]
    assert done.stdout == f"{lm.model}|{said}\n" * 2


def test_programs_are_copied_with_their_lm(lm):
    program = dspy.ChainOfThought("question -> answer")
    program.set_lm(lm)
    for twin in (program.deepcopy(), copy.deepcopy(program), cloudpickle.loads(cloudpickle.dumps(program))):
        assert twin.get_lm().model == lm.model and twin.get_lm()("hello") == lm("hello")
    assert program.deepcopy().get_lm().engine is lm.engine
    assert {lm: 1}[lm] == 1  # BootstrapFinetune keys dicts by it


def test_state_is_json(tiny):
    lm = tallow.LM(tiny, constrain=False, choices=["a", "b"], prompt_cache=lm15.CacheConfig(prefix="stable"))
    state = json.loads(json.dumps(lm.dump_state()))
    again = dspy.BaseLM.load_state(state, allow_custom_lm_class=True)
    assert again.kwargs == lm.kwargs and again.model == lm.model


# What is told


def test_max_tokens_beyond_the_context_is_clamped_and_told(lm, tiny):
    whole = lm.engine.complete(request(lm, max_tokens=10_000))
    room = tiny.context_length - whole.usage.input_tokens
    (adapted,) = whole.adaptations
    assert (adapted.field, adapted.action) == ("config.max_tokens", "clamped")
    assert (adapted.asked, adapted.applied) == (10_000, room)
    first, *_ = lm.engine.stream(request(lm, max_tokens=10_000))
    assert first.adaptations == whole.adaptations
    assert lm.engine.complete(request(lm, max_tokens=room)).adaptations == ()
    assert lm.engine.complete(request(lm, max_tokens=room + 1)).adaptations[0].applied == room
    lm("hello", max_tokens=10_000)
    assert lm.history[-1]["adaptations"] == (adapted,)


CACHES = [
    ({"prefix": "stable"}, "satisfied"),
    ({"retention": "long"}, "dropped"),
    ({"mode": "off"}, "dropped"),
]


@pytest.mark.parametrize(("config", "action"), CACHES)
def test_prompt_cache_hints(tiny, config, action):
    lm = tallow.LM(tiny, max_tokens=3, cache=False, prompt_cache=lm15.CacheConfig(**config))
    lm("hello")
    (adapted,) = lm.history[-1]["adaptations"]
    assert (adapted.field, adapted.action) == ("config.cache", action)


def test_a_stream_tells_what_the_whole_tells(lm):
    asked = request(lm, max_tokens=6, logprobs=2, service_tier="flex")
    whole = lm.engine.complete(asked)
    assembled = lm15.materialize_response(lm.engine.stream(asked), asked)
    for name in ("message", "finish_reason", "logprobs", "adaptations", "model"):
        assert getattr(assembled, name) == getattr(whole, name), name
    assert assembled.provider_data.keys() == whole.provider_data.keys()
    assert assembled.provider_data["format"] == whole.provider_data["format"]


@both
def test_logprobs_reach_the_prediction(tiny, is_async):
    lm = tallow.LM(tiny, max_tokens=3, cache=False)
    (output,) = call(lm, is_async, "hello", logprobs=True, top_logprobs=2)
    entries = output["logprobs"]["content"]
    assert len(entries) == 3 and all(len(entry["top_logprobs"]) == 2 for entry in entries)


def test_candidates_are_one_call(lm, tiny):
    renders = tiny.stats()["requests"]
    with dspy.track_usage() as tracker:
        assert len(lm("hello", n=3, temperature=1.0)) == 3
    assert tiny.stats()["requests"] - renders == 3
    (usage,) = tracker.get_total_tokens().values()
    assert usage["completion_tokens"] <= 36 and usage["prompt_tokens_details"]["cached_tokens"] >= 0
    assert len(lm.history[-1]["outputs"]) == 3


@both
def test_openais_prediction(lm, is_async):
    asked = {"prediction": {"type": "content", "content": "abc"}}
    assert call(lm, is_async, "hello", **asked) == lm("hello")


# Streams with listeners

ANSWERS = {
    "ChatAdapter": "[[ ## reason ## ]]\nbecause\n\n[[ ## answer ## ]]\nBlue, or red\n\n[[ ## completed ## ]]",
    "JSONAdapter": '{"reason": "because", "answer": "Blue, or red"}',
    "XMLAdapter": "<reason>\nbecause\n</reason>\n\n<answer>\nBlue, or red\n</answer>",
}


async def listened(program, names, **given):
    listeners = [dspy.streaming.StreamListener(name) for name in names]
    stream = dspy.streamify(program, stream_listeners=listeners, **given)
    heard, last = dict.fromkeys(names, ""), None
    async for item in stream(question="?"):
        if isinstance(item, dspy.streaming.StreamResponse):
            heard[item.signature_field_name] += item.chunk
        elif isinstance(item, dspy.Prediction):
            last = item
    return heard, last


@both
@pytest.mark.parametrize("adapter", ANSWERS)
def test_listeners(roomy, monkeypatch, adapter, is_async):
    lm, asked = scripted(roomy, ANSWERS[adapter]), []
    real = formats.find
    monkeypatch.setattr(
        formats, "find", lambda request, caller: asked.append(caller) or real(request, caller)
    )
    with dspy.context(lm=lm, adapter=getattr(dspy, adapter)(), track_usage=True):
        program = dspy.Predict("question -> reason, answer")
        # Of JSON, DSPy's listener lets quotes pass, and after other fields than the last more than that.
        names = ("answer",) if adapter == "JSONAdapter" else ("reason", "answer")
        heard, last = asyncio.run(listened(program, names, is_async_program=is_async))
    expected = {"reason": "because", "answer": "Blue, or red"}
    assert {name: text.strip(' \n"') for name, text in heard.items()} == {
        name: expected[name] for name in names
    }
    assert (last.reason, last.answer) == ("because", "Blue, or red") and len(lm.scripts) == 1
    assert last.get_lm_usage()[lm.model]["prompt_tokens_details"]["cached_tokens"] == 2
    assert asked == [program.signature]  # seen from the worker thread, too


@both
def test_a_stream_that_dspy_has_no_listener_for(roomy, is_async):
    from dspy.adapters.baml_adapter import BAMLAdapter

    lm = scripted(roomy, ANSWERS["JSONAdapter"])
    with dspy.context(lm=lm, adapter=BAMLAdapter()):
        heard, last = asyncio.run(
            listened(dspy.Predict("question -> reason, answer"), (), is_async_program=is_async)
        )
    assert last.answer == "Blue, or red" and heard == {} and len(lm.scripts) == 1


def test_a_listener_in_a_plain_loop(roomy):
    lm = scripted(roomy, ANSWERS["ChatAdapter"])
    listener = dspy.streaming.StreamListener("answer")
    with dspy.context(lm=lm):
        program = dspy.streamify(
            dspy.Predict("question -> reason, answer"), stream_listeners=[listener], async_streaming=False
        )
        heard = [
            item.chunk for item in program(question="?") if isinstance(item, dspy.streaming.StreamResponse)
        ]
    assert "".join(heard).strip() == "Blue, or red"  # 3.4.0 leaves the line breaks


# Failures, and calls that nobody waits for


class Trace(dspy.utils.callback.BaseCallback):
    def __init__(self):
        self.ends = []

    def on_lm_end(self, call_id, outputs, exception):
        self.ends.append(exception)


@both
def test_a_failure_is_not_kept(tiny, is_async):
    trace = Trace()
    lm = tallow.LM(tiny, callbacks=[trace])
    for _ in range(2):
        with pytest.raises(dspy.ContextWindowExceededError):
            call(lm, is_async, "too long" * 100)
    assert [type(end) for end in trace.ends] == [dspy.ContextWindowExceededError] * 2
    assert lm.history == []
    assert_idle(tiny)


class Sink:
    """What ``streamify`` puts into DSPy's settings."""

    def __init__(self, after=10**9):
        self.got = []
        self.after = after

    async def send(self, chunk):
        self.got.append(chunk)
        if len(self.got) > self.after:
            raise RuntimeError("the listener failed")


def long_lm(smollm2, **given):
    never = dict.fromkeys(map(str, smollm2.eos_ids), -100)
    return tallow.LM(smollm2, cache=False, logit_bias=never, temperature=0.0, **given)


@both
def test_a_stream_ends_when_its_reader_fails(smollm2, is_async):
    import anyio

    lm, sink = long_lm(smollm2), Sink(after=3)

    async def run():
        with dspy.context(send_stream=sink):
            if is_async:
                await lm.acall("Tell a long story.")
            else:
                await anyio.to_thread.run_sync(lambda: lm("Tell a long story."))

    with pytest.raises(Exception, match="listener failed"):
        asyncio.run(run())
    assert len(sink.got) == 4 and lm.history == []
    assert_idle(smollm2)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_cancelled_task_ends_its_requests(smollm2, streaming, n):
    trace = Trace()
    lm = long_lm(smollm2, callbacks=[trace])

    async def run():
        with dspy.context(send_stream=Sink() if streaming else None):
            task = asyncio.create_task(lm.acall("Tell a long story.", n=n))
            while not smollm2.stats()["running"]:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())
    assert lm.history == [] and [type(end) for end in trace.ends] == [asyncio.CancelledError]
    assert_idle(smollm2)


@pytest.mark.parametrize("taken", [0, 1, 3])
@both
def test_a_stream_that_is_dropped_ends_its_request(smollm2, is_async, taken):
    lm = long_lm(smollm2)
    asked = request(lm, "Tell a long story.", extensions={"logit_bias": lm.kwargs["logit_bias"]})

    async def later():
        stream = lm._async_engine_spec.stream(asked)
        for _ in range(taken):
            await anext(stream)
        await stream.aclose()

    if is_async:
        asyncio.run(later())
    else:
        stream = lm.engine.stream(asked)
        for _ in range(taken):
            next(stream)
        stream.close()
    assert_idle(smollm2)


def test_a_slow_reader_holds_up_nobody(smollm2):
    lm = long_lm(smollm2)
    stream = lm.engine.stream(request(lm, "Tell a long story.", max_tokens=64))
    next(stream)
    started = threading.Thread(target=lm, args=("Hi",), kwargs={"max_tokens": 4})
    started.start()
    started.join(60)
    assert not started.is_alive()
    time.sleep(0.05)
    assert sum(1 for event in stream if event.type == "end") == 1


# DSPy 3.5: a second way in


def test_generate_of_a_later_dspy_has_a_plan():
    code = (
        "import dspy\n"
        "dspy.LM.generate = lambda self, request, n=1: [request, n]\n"
        "async def agenerate(self, request, n=1): return [request, n]\n"
        "dspy.LM.agenerate = agenerate\n"
        "import asyncio\n"
        "from tallow.dspy import lm, plan\n"
        "def spy(self, request, n=1): return plan.running(self.model).n\n"
        "dspy.LM.generate = spy\n"
        "made = object.__new__(lm.LM); made.model, made.kwargs, made.cache = 'tallow/x', {}, False\n"
        "assert made.generate('r', n=3) == 3 and made.generate('r') == 1\n"
        "with plan.planned(plan.Plan('tallow/x', n=5)):\n"
        "    assert made.generate('r') == 5\n"
        "assert asyncio.run(made.agenerate('r', n=2)) == ['r', 2]\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
