"""tallow.LM in DSPy: the engine protocol, candidates, rollouts, streams, saving, and DSPy's errors."""

from __future__ import annotations

import asyncio
import copy
import json
import warnings

import pytest

import tallow
from conftest import needed

dspy = needed("dspy")
cloudpickle = needed("cloudpickle")
lm15 = dspy.lm15

TEMPERED = {"temperature": 1.0, "max_tokens": 12, "cache": False}


@pytest.fixture(scope="module")
def lm(tiny):
    return tallow.LM(tiny, max_tokens=12, cache=False)


@pytest.fixture(scope="module")
def real(smollm2):
    return tallow.LM(smollm2, max_tokens=200, temperature=0.0, cache=False)


def request(lm, text="hello", **config):
    return lm15.Request(model=lm.model, messages=(lm15.Message.user(text),), config=lm15.Config(**config))


# The engine protocol


def test_complete(lm, tiny):
    response = lm.engine.complete(request(lm, max_tokens=5))
    own = tiny.generate([{"role": "user", "content": "hello"}], max_tokens=5)
    assert response.message.text == own.text and response.finish_reason == own.finish_reason
    assert response.usage.input_tokens == own.usage.prompt_tokens
    assert response.usage.output_tokens == 5
    # The second one finds what the first has computed, but for the last token at least.
    again = lm.engine.complete(request(lm, max_tokens=5))
    assert again.usage.cache_read_tokens == own.usage.cached_tokens > 0
    assert {"queue_s", "prefill_s", "decode_s"} == response.provider_data["timings"].keys()
    assert lm("hello", max_tokens=5) == [own.text]


def test_stream_is_complete(lm):
    events = list(lm.engine.stream(request(lm, max_tokens=9, logprobs=1)))
    whole = lm.engine.complete(request(lm, max_tokens=9, logprobs=1))
    assert [events[0].type, events[-1].type] == ["start", "end"]
    deltas = [event.delta for event in events[1:-1]]
    assert "".join(delta.text for delta in deltas) == whole.message.text
    assert tuple(entry for delta in deltas for entry in delta.logprobs) == whole.logprobs
    assert events[-1].usage == whole.usage and events[-1].finish_reason == whole.finish_reason


def test_the_async_twins_agree(lm):
    async def both():
        stream = [event async for event in lm._async_engine_spec.stream(request(lm, max_tokens=9))]
        return await lm._async_engine_spec.complete(request(lm, max_tokens=9)), stream

    whole, events = asyncio.run(both())
    assert whole.message == lm.engine.complete(request(lm, max_tokens=9)).message
    assert "".join(event.delta.text for event in events[1:-1]) == whole.message.text


def test_a_closed_stream_ends_its_request(real):
    stream = real.engine.stream(request(real, "Tell a long story.", temperature=1.0, seed=1))
    next(stream)
    next(stream)
    stream.close()
    assert real("Hi", max_tokens=2)


def test_messages_of_every_role(lm, tiny):
    call = lm15.ToolCallPart(id="c1", name="add", input={"a": 1})
    asked = lm15.Request(
        model=lm.model,
        system="be brief",
        messages=(
            lm15.Message.developer("no jokes"),
            lm15.Message.user("add"),
            lm15.Message(role="assistant", parts=(lm15.TextPart("so"), call)),
            lm15.Message.tool("c1", "2"),
        ),
    )
    from tallow.dspy.convert import messages

    assert messages(asked) == [
        {"role": "system", "content": "be brief"},
        {"role": "developer", "content": "no jokes"},
        {"role": "user", "content": "add"},
        {
            "role": "assistant",
            "content": "so",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]


def test_config_reaches_the_sampler(lm, tiny):
    config = {"max_tokens": 10, "temperature": 0.9, "top_k": 7, "seed": 11, "frequency_penalty": 0.5}
    extra = {"metadata": {"min_p": 0.05, "repetition_penalty": 1.2}, "logit_bias": {"10": 1.5}}
    response = lm.engine.complete(request(lm, extensions=extra, stop=("zz",), **config))
    own = tiny.generate(
        [{"role": "user", "content": "hello"}],
        **config,
        stop=["zz"],
        min_p=0.05,
        repetition_penalty=1.2,
        logit_bias={10: 1.5},
    )
    assert response.message.text == own.text
    assert lm("hello", min_p=0.05, repetition_penalty=1.2, logit_bias={"10": 1.5}, stop="zz", **config) == [
        own.text
    ]


def test_hints_without_meaning_are_noted(lm):
    response = lm.engine.complete(request(lm, service_tier="flex", user_id="me", max_tokens=2))
    assert {a.field for a in response.adaptations} == {"config.service_tier", "config.user_id"}


IMAGE = lm15.ImagePart(url="https://example.org/cat.png")
REFUSED = [
    ({"reasoning_effort": "high"}, "reasoning"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": IMAGE.url}}]}]},
        "image",
    ),
]


@pytest.mark.parametrize(("given", "part"), REFUSED, ids=[part for _, part in REFUSED])
def test_what_is_not_done_is_refused(lm, given, part):
    with pytest.raises(dspy.LMUnsupportedFeatureError, match=part), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lm(None if "messages" in given else "hello", **given)


def test_thinking_can_be_switched_off(lm):
    assert lm("hello", reasoning_effort="none") == lm("hello")


# Candidates and rollouts


def test_candidates_come_together(lm, tiny):
    before = tiny.stats()
    texts = lm("hello", n=3, temperature=1.0)
    after = tiny.stats()
    assert len(set(texts)) == 3
    assert after["requests"] - before["requests"] == 3
    assert asyncio.run(lm.acall("hello", n=3, temperature=1.0, seed=5)) == lm(
        "hello", n=3, temperature=1.0, seed=5
    )


def test_rollouts_differ_and_can_be_repeated(tiny):
    def rollout(**options):
        return tuple(tallow.LM(tiny, **TEMPERED).copy(**options)("hello"))

    texts = [rollout(rollout_id=i) for i in range(4)]
    assert len(set(texts)) == 4
    assert texts == [rollout(rollout_id=i) for i in range(4)]
    assert len({rollout() for _ in range(4)}) > 1  # without rollout or seed: fresh ones
    assert rollout(seed=1) == rollout(seed=1) != rollout(seed=1, rollout_id=1)
    assert len(set(tallow.LM(tiny, n=4, rollout_id=1, **TEMPERED)("hello"))) == 4


def test_the_cache_never_mixes_models(tiny, tiny_folder):
    other = tallow.LM(tallow.Model(tiny_folder, context_length=64), max_tokens=12)
    one = tallow.LM(tiny, max_tokens=12)
    assert one.model != other.model and one.model.startswith("tallow/")
    text = "does the cache know?"
    assert one(text) == one(text)
    assert one.history[-1]["usage"] == {} != one.history[-2]["usage"]  # the second came from the cache
    assert one(text, min_p=0.5) and one.history[-1]["usage"]  # another sampler is another question
    assert other(text) and other.history[-1]["usage"]


# Values


def test_copies_share_and_pickles_rebuild(lm):
    assert copy.deepcopy(lm).engine is lm.engine and lm.copy().engine is lm.engine
    again = cloudpickle.loads(cloudpickle.dumps(lm))
    assert again.model == lm.model and again.engine.model == lm.engine.model
    assert again("hello") == lm("hello")


def test_state_is_json_and_comes_back(tiny):
    lm = tallow.LM(tiny, max_tokens=7, min_p=0.1, cache=False, timeout=60)
    state = json.loads(json.dumps(lm.dump_state()))
    again = dspy.BaseLM.load_state(state, allow_custom_lm_class=True)
    assert isinstance(again, tallow.LM)
    assert (again.model, again.kwargs, again.cache) == (lm.model, lm.kwargs, False)
    assert again.engine.timeout == 60 and again("hello") == lm("hello")


def test_a_program_is_saved_and_loaded(lm, tmp_path):
    program = dspy.Predict("question -> answer")
    program.set_lm(lm)
    program.save(tmp_path / "program.json")
    fresh = dspy.Predict("question -> answer")
    fresh.load(tmp_path / "program.json", allow_unsafe_lm_state=True)
    assert fresh.lm.model == lm.model and fresh.lm("hello") == lm("hello")


def test_folding(tiny):
    lm = tallow.LM(tiny, min_p=0.1, metadata={"typical_p": 0.9})
    assert lm.kwargs["metadata"] == {"typical_p": 0.9, "min_p": 0.1}
    assert lm.copy(min_p=0.2).kwargs["metadata"] == {"typical_p": 0.9, "min_p": 0.2}
    assert lm.kwargs["metadata"] == {"typical_p": 0.9, "min_p": 0.1}


def test_engine_options_and_predictions(tiny, tiny_folder):
    lm = tallow.LM(tiny_folder, kv_memory="1MiB", queue=9, prefix_cache=False, cache=False, max_tokens=9)
    assert lm.model == tallow.LM(tiny, cache=False).model and lm.engine.model == tiny
    assert lm.engine.model.to_state()["queue"] == 9
    assert lm("hello")  # the engine starts
    assert lm.stats()["kv_bytes"] <= 2**20
    assert lm("hello", prediction="abc") == lm("hello", metadata={"prediction": "abc"}) == lm("hello")
    assert asyncio.run(lm.acall("hello", prediction="abc")) == lm("hello")
    assert lm.copy(prediction="abc").kwargs["metadata"] == {"prediction": "abc"}
    with pytest.raises(dspy.LMInvalidRequestError, match="prediction"):
        lm("hello", prediction=3)
    with pytest.raises(tallow.InvalidRequestError, match="queue"):
        tallow.LM(tiny, queue=9)


def test_repr_and_stats(lm):
    assert lm.model in repr(lm) and "max_tokens=12" in repr(lm)
    assert lm.stats()["requests"] > 0


def test_close_and_go_on(tiny_folder):
    lm = tallow.LM(tallow.Model(tiny_folder, context_length=100), cache=False, max_tokens=4)
    before = lm("hello")
    lm.close()
    lm.close()
    assert lm("hello") == before and lm.stats()["requests"] == 1


# Errors


def test_a_prompt_too_long_is_a_context_window_error(lm):
    with pytest.raises(dspy.ContextWindowExceededError, match="128"):
        lm("x" * 500)
    with pytest.raises(dspy.ContextWindowExceededError):
        asyncio.run(lm.acall("x" * 500))


ERRORS = [
    ({"top_k": 0}, Exception, "top_k"),
    ({"metadata": {"minp": 1}}, dspy.LMInvalidRequestError, "'min_p'?"),
    ({"min_p": -1.0}, dspy.LMInvalidRequestError, "min_p"),
    ({"seed": -1}, dspy.LMInvalidRequestError, "seed"),
    ({"logprobs": True, "top_logprobs": 21}, dspy.LMInvalidRequestError, "logprobs"),
    ({"logit_bias": {"x": 1}}, dspy.LMInvalidRequestError, "logit_bias"),
    ({"temprature": 1}, Exception, "temprature"),
    ({"n": 1000}, ValueError, "n is 1000"),
]


@pytest.mark.parametrize(("given", "error", "part"), ERRORS, ids=[str(given) for given, _, _ in ERRORS])
def test_wrong_arguments_of_a_call(lm, given, error, part):
    with pytest.raises(error) as caught:
        lm("hello", **given)
    assert part in str(caught.value)


CONSTRUCTION = [
    ({"temprature": 1}, "'temperature'?"),
    ({"model_type": "text"}, "model_type"),
    ({"filters": [print]}, "filters"),
    ({"sampler": tallow.Sampler()}, "sampler"),
    ({"engine": object()}, "engine"),
    ({"quantize": "q8_0"}, "quantize"),
    ({"timeout": -1}, "timeout"),
]


@pytest.mark.parametrize(("given", "part"), CONSTRUCTION, ids=[part for _, part in CONSTRUCTION])
def test_wrong_arguments_of_the_lm(tiny, given, part):
    with pytest.raises(tallow.InvalidRequestError) as caught:
        tallow.LM(tiny, **given)
    assert part in str(caught.value)


def test_a_deadline_is_a_timeout(smollm2):
    lm = tallow.LM(smollm2, timeout=0.05, cache=False)
    with pytest.raises(dspy.LMTimeoutError):
        lm("Tell a very long story.", logit_bias=dict.fromkeys(map(str, smollm2.eos_ids), -100))


def test_without_a_template_it_says_what_to_do(tmp_path):
    from conftest import copy_family

    lm = tallow.LM(str(copy_family("llama-gqa-tied", tmp_path / "plain", template=None)), cache=False)
    with pytest.raises(dspy.LMConfigurationError, match="chat_template"):
        lm("hello")


# Programs, on the real model. It is so small that it keeps to a format only after two answers in it.

DEMOS = [
    {
        "question": "Which planet is closest to the Sun?",
        "reasoning": "The planets in order from the Sun begin with Mercury.",
        "answer": "Mercury",
    },
    {
        "question": "Who wrote Hamlet?",
        "reasoning": "Hamlet is a play of Shakespeare.",
        "answer": "William Shakespeare",
    },
]
QUESTION = "What is the capital of France?"


def program(kind=dspy.Predict, **options):
    made = kind("question -> answer", **options)
    for predictor in made.predictors():
        predictor.demos = [dspy.Example(**demo) for demo in DEMOS]
    return made


def setting(lm, **more):
    return dspy.context(lm=lm, adapter=dspy.XMLAdapter(use_json_adapter_fallback=False), **more)


def test_predict_and_usage(real):
    with setting(real, track_usage=True):
        prediction = program()(question=QUESTION)
    assert "Paris" in prediction.answer
    usage = prediction.get_lm_usage()[real.model]
    assert usage["prompt_tokens"] > 50 and usage["completion_tokens"] > 1


def test_chain_of_thought(real):
    with setting(real):
        prediction = program(dspy.ChainOfThought)(question=QUESTION)
    assert prediction.reasoning.strip() and "Paris" in prediction.answer


def test_async_programs(real):
    async def run():
        own = program()
        with setting(real):
            several = await asyncio.gather(*(own.acall(question=QUESTION) for _ in range(4)))
            return [*several, await dspy.asyncify(own)(question=QUESTION)]

    assert all("Paris" in prediction.answer for prediction in asyncio.run(run()))


@pytest.mark.parametrize("is_async", [False, True])
def test_streamify(real, is_async):
    async def run():
        listener = dspy.streaming.StreamListener(signature_field_name="answer")
        streamed = dspy.streamify(program(), stream_listeners=[listener], is_async_program=is_async)
        pieces, last = [], None
        with setting(real):
            async for item in streamed(question=QUESTION):
                if isinstance(item, dspy.streaming.StreamResponse):
                    pieces.append(item.chunk)
                elif isinstance(item, dspy.Prediction):
                    last = item
        return "".join(pieces), last

    text, prediction = asyncio.run(run())
    assert prediction is not None and "Paris" in prediction.answer
    assert text.strip() == prediction.answer.strip()


def test_candidates_of_a_predict(real):
    with setting(real.copy(min_p=0.9)):  # so near to greedy that all of them keep to the format
        prediction = program(n=3, temperature=1.0)(question=QUESTION)
    assert len(prediction.completions.answer) == 3


def test_eight_threads_evaluate(real):
    examples = [dspy.Example(question=f"What is {i} plus 1?").with_inputs("question") for i in range(8)]

    def answered(example, prediction, trace=None):
        return bool(prediction.answer)

    with setting(real.copy(max_tokens=60)):
        evaluate = dspy.Evaluate(devset=examples, metric=answered, num_threads=8, display_progress=False)
        result = evaluate(program())
    assert len(result.results) == 8
