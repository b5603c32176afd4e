"""DSPy against a server of ours over HTTP: what it finds, what is enforced, and how failures reach it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Literal

import numpy as np
import pytest

import tallow
from conftest import needed, python
from tallow import answers

dspy = needed("dspy")
needed("starlette")
lm15 = dspy.lm15

import served  # noqa: E402
import signatures  # noqa: E402
from tallow.serve import app, dspy_provider  # noqa: E402

#: Which does not ask again, as JSONAdapter, what it cannot read.
ONCE = dspy.ChatAdapter(use_json_adapter_fallback=False)
ADAPTERS = {"chat": dspy.ChatAdapter(), "json": dspy.JSONAdapter(), "xml": dspy.XMLAdapter()}


class Review(dspy.Signature):
    """Judge a review."""

    review: str = dspy.InputField()
    mood: Literal["good", "bad"] = dspy.OutputField()
    stars: int = dspy.OutputField()


@pytest.fixture(scope="module")
def url(wide):
    with served.running(app({"wide": wide}, log=None)) as address:
        yield address


@pytest.fixture(scope="module")
def lm(url):
    dspy_provider(url)
    yield dspy.LM("tallow/wide", cache=False, max_tokens=150, num_retries=0)
    lm15.unregister_provider("tallow")


def told(lm):
    """What the server told of the last answer's format."""
    return lm.history[-1]["response"].provider_data["format"]


# Found


REGISTERED = "print([(one.id, one.definition.access.base_url) for one in dspy.lm15.registered_providers()])"


@pytest.mark.parametrize(
    ("program", "given", "expected"),
    [
        ("import dspy, tallow", {}, "http://127.0.0.1:8000/v1"),
        (
            "import sys, tallow\n"
            "assert 'dspy' not in sys.modules; before = len(sys.meta_path)\n"
            "import dspy; assert len(sys.meta_path) == before - 1",
            {"TALLOW_BASE_URL": "http://gpu:9000/"},
            "http://gpu:9000/v1",
        ),
    ],
)
def test_importing_both_is_enough(program, given, expected):
    done = python(f"{program}\n{REGISTERED}", env={**os.environ, **given})
    assert done.stdout.strip() == f"[('tallow', '{expected}')]", done.stderr


def test_what_the_address_may_be():
    with pytest.raises(tallow.InvalidRequestError, match="url is 'localhost:8000'; it must be the address"):
        dspy_provider("localhost:8000")
    with pytest.raises(tallow.InvalidRequestError, match="format is 'on'; it must be one of 'auto', 'none'"):
        dspy_provider(format="on")


def test_an_address_of_its_own(lm, url):
    """``api_base`` counts more than what is registered, with "/v1" and without."""
    dspy_provider("http://127.0.0.1:9")
    try:
        for base in (url, f"{url}/v1"):
            other = dspy.LM("tallow/wide", api_base=base, cache=False, max_tokens=3)
            assert other("hello") == lm("hello", max_tokens=3, temperature=0) or other.history
    finally:
        dspy_provider(url)


def test_an_lm_in_this_process_is_none_of_it(wide, lm):
    """``tallow.LM`` has a string that begins the same, and no server."""
    own = tallow.LM(wide, max_tokens=5, cache=False)
    before = wide.stats()["requests"]
    assert own("hello") and wide.stats()["requests"] == before + 1
    assert "format" in own.history[-1]["response"].provider_data


# Formats


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_every_adapter_gets_its_format(lm, name, is_async):
    own = lm.copy()
    with dspy.context(lm=own, adapter=ADAPTERS[name]):
        judge = dspy.Predict(Review)
        found = asyncio.run(judge.acall(review="Fine.")) if is_async else judge(review="Fine.")
    assert found.mood in ("good", "bad") and isinstance(found.stars, int)
    assert len(own.history) == 1
    assert told(own) == {
        "name": "json_schema" if name == "json" else name,
        "constrained": True,
        "why": None,
    }


def test_a_provider_that_leaves_formats_alone(url, lm):
    dspy_provider(url, name="free", format="none")
    free = dspy.LM("free/wide", cache=False, max_tokens=20, num_retries=0)
    with dspy.context(lm=free, adapter=ONCE), pytest.raises(dspy.utils.exceptions.AdapterParseError):
        dspy.Predict(Review)(review="Fine.")
    assert "format" not in free.history[0]["response"].provider_data
    lm15.unregister_provider("free")


def plain(url, **given):
    """What everybody has: OpenAI's provider, which is told nothing of the server."""
    given = {"cache": False, "max_tokens": 700, "num_retries": 0, "temperature": 1.0, **given}
    return dspy.LM("openai/wide", api_base=f"{url}/v1", api_key="none", **given)


@pytest.mark.parametrize("name", ADAPTERS)
def test_with_the_setting_no_answer_of_any_client_fails_to_parse(wide, name):
    """Random Signatures on random weights: what the server says it has enforced parses at the first call."""
    enforced = 0
    with served.running(app({"wide": wide}, log=None, dspy=True)) as url:
        for seed in range(12):
            signature = signatures.make(seed)
            own = plain(url, seed=seed)
            found = None
            with dspy.context(lm=own, adapter=ADAPTERS[name]), contextlib.suppress(Exception):
                found = dspy.Predict(signature)(question="?")  # where nothing is enforced, it may fail
            first = own.history[0]["response"].provider_data["format"]
            assert first["constrained"] or first["why"], f"seed {seed}"
            if first["constrained"]:
                enforced += 1
                # DSPy would have asked again.
                assert found is not None and len(own.history) == 1, f"seed {seed}"
    assert enforced >= 5, enforced


def test_without_the_setting_nothing_is_enforced(url):
    own = plain(url, max_tokens=20)
    with dspy.context(lm=own, adapter=ONCE), pytest.raises(dspy.utils.exceptions.AdapterParseError):
        dspy.Predict(Review)(review="Fine.")
    assert "format" not in own.history[0]["response"].provider_data


# Streams


def test_a_field_is_streamed(lm):
    class Say(dspy.Signature):
        question: str = dspy.InputField()
        answer: str = dspy.OutputField()

    program = dspy.streamify(
        dspy.Predict(Say), stream_listeners=[dspy.streaming.StreamListener(signature_field_name="answer")]
    )

    async def read():
        return [piece async for piece in program(question="?")]

    with dspy.context(lm=lm.copy(max_tokens=60)):
        *pieces, last = asyncio.run(read())
    assert len(pieces) > 2 and "".join(piece.chunk for piece in pieces).strip() == last.answer.strip()


# Probabilities


def test_probabilities_are_measured_exactly(lm, wide):
    shape = {
        "type": "json_schema",
        "schema": {
            "type": "object",
            "properties": {"mood": {"enum": ["good", "bad", "odd"], "description": "The mood?"}},
            "required": ["mood"],
        },
    }
    config = lm15.Config(response_format=shape, probabilities="required")
    request = lm15.Request(model=lm.model, messages=(lm15.Message.user("Fine."),), config=config)
    response = lm.copy()(request)
    (part,) = response.message.parts
    assert part.method == "candidate_sequence_likelihood"
    turns = [
        {"role": "user", "content": "Fine."},
        {
            "role": "user",
            "content": "The mood?\nOptions:\n- good\n- bad\n- odd\n"
            "Answer with the option only, spelled exactly as listed.",
        },
    ]
    expected = {key: likelihood(wide, turns, f" {key}") for key in ("good", "bad", "odd")}
    total = sum(expected.values())
    assert part.probabilities["mood"] == pytest.approx(
        {key: one / total for key, one in expected.items()}, rel=1e-4
    )
    assert response.provider_data["coverage"]["mood"] == pytest.approx(total, rel=1e-4)


def likelihood(model, turns, text):
    """Of a text and the end of the turn behind "Answer:"."""
    begin = model.tokenize(
        "".join(f"<|im_start|>{turn['role']} {turn['content']}<|im_end|>" for turn in turns)
        + "<|im_start|>assistant Answer:",
        special=True,
    )
    rest = model.tokenize(f"{text}<|im_end|>", special=True)
    rows = np.asarray(model.logits([*begin, *rest]), dtype=np.float64)[len(begin) - 1 : -1]
    rows -= np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1, keepdims=True)) + rows.max(
        1, keepdims=True
    )
    return float(np.exp(sum(row[id] for row, id in zip(rows, rest, strict=True))))


# Failures


def test_a_prompt_that_is_too_long(lm):
    with pytest.raises(dspy.ContextWindowExceededError):
        lm("x" * 5000)


def test_what_the_server_refuses(lm):
    with pytest.raises(dspy.utils.exceptions.LMInvalidRequestError, match="seed"):
        lm("hello", seed=-1)
    other = dspy.LM("tallow/nobody", cache=False, num_retries=0)
    with pytest.raises(dspy.utils.exceptions.LMError, match="there are wide"):
        other("hello")


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_is_busy_is_asked_again(wide, status, monkeypatch):
    application = app({"wide": wide}, log=None)
    busy = [True, True]
    real = answers.prepare

    def prepare(*given, **options):
        if busy and busy.pop():
            full = "the queue is full" if status == 429 else "there are no pages"
            raise tallow.OutOfMemoryError(full)
        return real(*given, **options)

    monkeypatch.setattr(answers, "prepare", prepare)
    monkeypatch.setattr(application.state.tallow, "retry_after", lambda: 0)
    kind = dspy.utils.exceptions
    with served.running(application) as url:
        given = {"api_base": url, "cache": False, "max_tokens": 3}
        with pytest.raises(kind.LMRateLimitError if status == 429 else kind.LMServerError):
            dspy.LM("tallow/wide", num_retries=0, **given)("hello")
        assert dspy.LM("tallow/wide", num_retries=1, **given)("hello")
    assert not busy


def test_a_key(wide, monkeypatch):
    with served.running(app({"wide": wide}, log=None, api_keys=["right"])) as url:
        given = {"cache": False, "max_tokens": 3, "num_retries": 0}
        with pytest.raises(dspy.utils.exceptions.LMAuthError):
            dspy.LM("tallow/wide", api_base=url, api_key="wrong", **given)("hello")
        assert dspy.LM("tallow/wide", api_base=url, api_key="right", **given)("hello")
        monkeypatch.setenv("TALLOW_API_KEY", "right")
        dspy_provider(url, name="kept")
        assert dspy.LM("kept/wide", **given)("hello")
    lm15.unregister_provider("kept")


@pytest.mark.parametrize("native", [False, True])
def test_calls_name_the_tools_that_there_are(lm, native):
    """As DSPy sends tools, and as an adapter writes them into its prompt."""

    class Act(dspy.Signature):
        question: str = dspy.InputField()
        tools: list[dspy.Tool] = dspy.InputField()
        calls: dspy.ToolCalls = dspy.OutputField()

    def weather(city: str, days: int) -> str:
        """The weather."""
        return "fine"

    own = lm.copy(max_tokens=300, tool_choice="required") if native else lm.copy(max_tokens=300)
    adapter = dspy.ChatAdapter(use_native_function_calling=native, use_json_adapter_fallback=False)
    with dspy.context(lm=own, adapter=adapter):
        found = dspy.Predict(Act)(question="?", tools=[dspy.Tool(weather)])
    (call, *more) = found.calls.tool_calls
    assert {one.name for one in (call, *more)} == {"weather"}
    assert set(call.args) == {"city", "days"} and isinstance(call.args["days"], int)
