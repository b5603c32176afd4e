"""What an answer is held to and what it is made of: constraints and formats, thoughts, tool calls,
probabilities."""

from __future__ import annotations

import asyncio
import re
from typing import Literal

import pydantic
import pytest

import tallow
from conftest import THINKER, needed

dspy = needed("dspy")
lm15 = dspy.lm15

from scripted import both, bound, call, request, scripted, streamed, told  # noqa: E402
from tallow.answers import after_thought  # noqa: E402
from tallow.dspy import constraints, formats  # noqa: E402
from tallow.dspy.formats import Format  # noqa: E402
from tallow.thinking import Tags, split  # noqa: E402


@pytest.fixture(scope="module")
def lm(tiny):
    return tallow.LM(tiny, max_tokens=12, cache=False)


# Constraints


@both
def test_an_adapters_format_is_enforced_and_told(roomy, options, monkeypatch, is_async):
    asked = []

    def find(request, signature, **more):
        asked.append(signature)
        return Format("chat", {"regex": "a+"})

    monkeypatch.setattr(formats, "find", find)
    lm = scripted(roomy, "[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]")
    program = dspy.Predict("question -> answer: bool")
    with dspy.context(lm=lm):
        given = {"question": "Is it?"}
        done = asyncio.run(program.acall(**given)) if is_async else program(**given)
    assert done.answer is True and asked == [program.signature]
    assert bound(options[-1]) == {"regex": "a+"}
    assert told(lm) == {"name": "chat", "constrained": True, "why": None}
    call(lm, is_async, "hello", constrain=False)
    assert bound(options[-1]) == {} and len(asked) == 1
    assert told(lm) == {"name": "none", "constrained": False, "why": "constrain=False"}


@both
def test_a_constraint_of_the_callers_own_wins(roomy, options, is_async):
    lm = scripted(roomy, "yes")
    for given in (
        {"choices": ["yes", "no"]},
        {"regex": "yes|no"},
        {"grammar": 'start: "yes"'},
        {"json_schema": {"type": "object"}},
    ):
        call(lm, is_async, "hello", **given, constrain=False)
        assert bound(options[-1]) == given
        assert told(lm) == {"name": next(iter(given)), "constrained": True, "why": None}
    call(lm.copy(choices=["a"]), is_async, "hello", regex="b")
    assert bound(options[-1]) == {"regex": "b"}
    lm.engine.complete(request(lm, extensions={"choices": ["a"]}))
    assert bound(options[-1]) == {"choices": ["a"]}


WRONG = [
    ({"choices": ["a"], "regex": "b"}, "regex and choices"),
    ({"choices": ["a"], "response_format": {"type": "json_object"}}, "response_format"),
    ({"constrain": "yes"}, "constrain"),
    ({"constrain": True}, "constrain"),
    ({"choices": "yes"}, "choices"),
    ({"json_schema": "{}"}, "json_schema"),
    ({"constrian": False}, "constrian"),
]


@pytest.mark.parametrize(("given", "part"), WRONG, ids=[part for _, part in WRONG])
def test_wrong_constraints(lm, tiny, given, part):
    with pytest.raises((tallow.InvalidRequestError, dspy.LMError), match=part):
        lm("hello", **given)
    if "response_format" not in given:
        with pytest.raises(tallow.InvalidRequestError, match=part):
            tallow.LM(tiny, **given)
        with pytest.raises(tallow.InvalidRequestError, match=part):
            lm.copy(**given)


def test_the_switch_is_in_the_cache_key(tiny):
    lm = tallow.LM(tiny, max_tokens=4)
    text = "is the switch in the key?"
    for given in ({}, {"constrain": False}):
        lm(text, **given)
        assert lm.history[-1]["usage"], given  # computed
    lm(text, constrain="auto")
    assert not lm.history[-1]["usage"]  # the default by its name
    off = tallow.LM(tiny, max_tokens=4, constrain=False)
    off(text)
    assert not off.history[-1]["usage"] and off.model == lm.model
    off(text, constrain="auto")
    assert told(off)["why"] != "constrain=False"
    assert f"+f{constraints.VERSION}" in lm.model


@both
def test_a_response_format_reaches_the_formats(roomy, options, monkeypatch, is_async):
    asked = []

    def find(request, signature, **more):
        asked.append(request.config.response_format)
        return Format("json", {}, why="too deep")

    monkeypatch.setattr(formats, "find", find)
    lm = scripted(roomy, '{"answer": "Paris"}')
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        program, given = dspy.Predict("question -> answer"), {"question": "?"}
        done = asyncio.run(program.acall(**given)) if is_async else program(**given)
    assert done.answer == "Paris" and len(lm.scripts) == 1
    assert asked[0]["type"] == "json_schema" and "answer" in asked[0]["schema"]["properties"]
    adapted = lm.history[-1]["response"].adaptations
    assert [(a.field, a.action, a.reason) for a in adapted] == [
        ("config.response_format", "dropped", "too deep")
    ]


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=8)
    age: int = pydantic.Field(ge=0, le=120)


HELD = [
    ({"choices": ["yes", "no"]}, lambda text: text in ("yes", "no")),
    ({"regex": "[0-9]{3}/[a-z]"}, lambda text: re.fullmatch("[0-9]{3}/[a-z]", text)),
    ({"grammar": 'start: "<" /[a-z]{2,3}/ ">"'}, lambda text: re.fullmatch("<[a-z]{2,3}>", text)),
    (
        {"json_schema": {**Person.model_json_schema(), "additionalProperties": False}},
        Person.model_validate_json,
    ),
    ({"response_format": Person}, Person.model_validate_json),
]


@both
@pytest.mark.parametrize(("given", "holds"), HELD, ids=[next(iter(given)) for given, _ in HELD])
def test_the_answer_is_held_to_it(smollm2, given, holds, is_async):
    lm = tallow.LM(smollm2, temperature=1.0, max_tokens=60, cache=False)
    texts = call(lm, is_async, "Somebody, please.", n=3, **given)
    assert len(texts) == 3 and all(holds(text) for text in texts), texts


def test_constraints_travel_as_json(lm):
    assert lm.copy(choices=("a", "b")).kwargs["metadata"] == {"choices": ["a", "b"]}
    name, age = {"type": "string", "maxLength": 8}, {"type": "integer", "minimum": 0, "maximum": 120}
    schema = {
        "type": "object",
        "properties": {"name": name, "age": age},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    assert lm.copy(json_schema=Person).kwargs["metadata"] == {"json_schema": schema}


class Verdict(dspy.Signature):
    """Judges a claim."""

    claim: str = dspy.InputField()
    verdict: Literal["true", "false", "unclear"] = dspy.OutputField()
    certainty: int = dspy.OutputField(ge=0, le=9)


@both
@pytest.mark.parametrize("adapter", ["ChatAdapter", "JSONAdapter", "XMLAdapter"])
def test_a_small_model_parses_at_the_first_call(smollm2, adapter, is_async):
    lm = tallow.LM(smollm2, temperature=1.0, max_tokens=100, cache=False)
    with dspy.context(lm=lm, adapter=getattr(dspy, adapter)()):
        program, given = dspy.Predict(Verdict), {"claim": "Snow is warm."}
        done = asyncio.run(program.acall(**given)) if is_async else program(**given)
    assert done.verdict in ("true", "false", "unclear") and 0 <= done.certainty <= 9
    assert len(lm.history) == 1 and told(lm)["constrained"]


# Thoughts

THOUGHT = "<think>\nIs it?\n</think>\n\nyes"


@both
def test_thoughts_are_a_part_of_their_own(thinker, is_async):
    lm = scripted(thinker, THOUGHT)
    asked = request(lm, reasoning=lm15.Reasoning("high"))
    whole = asyncio.run(lm._async_engine_spec.complete(asked)) if is_async else lm.engine.complete(asked)
    assert whole.message.parts == (lm15.ThinkingPart("Is it?"), lm15.TextPart("yes"))
    assert 0 < whole.usage.reasoning_tokens < whole.usage.output_tokens
    assembled, events = streamed(lm, asked, is_async)
    assert (assembled.message, assembled.usage) == (whole.message, whole.usage)
    assert {event.delta.type for event in events[1:-1]} == {"thinking", "text"}
    (output,) = call(lm, is_async, "hello", reasoning_effort="low")
    assert (output["text"], output["reasoning_content"]) == ("yes", "Is it?")
    assert lm.history[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


def test_a_reasoning_field_is_filled_by_the_thought(thinker):
    lm = scripted(thinker, "<think>\nIs it?\n</think>\n\n[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]")

    class Ask(dspy.Signature):
        question: str = dspy.InputField()
        why: dspy.Reasoning = dspy.OutputField()
        answer: str = dspy.OutputField()

    with dspy.context(lm=lm):
        done = dspy.Predict(Ask)(question="?")
    assert (str(done.why), done.answer, len(lm.scripts)) == ("Is it?", "yes", 1)


def rendered(monkeypatch):
    """The template's arguments and the text of every prompt."""
    seen, real = [], tallow.prompts.rendered

    def spy(*given, **named):
        prompt = real(*given, **named)
        seen.append((named["template_arguments"], prompt.text))
        return prompt

    monkeypatch.setattr(tallow.prompts, "rendered", spy)
    return seen


#: reasoning_effort, whether a format bounds the answer, template_arguments -> what the template gets.
SWITCHES = [
    (None, False, {}, None),
    (None, True, {}, False),
    ("low", True, {}, True),
    ("none", False, {}, False),
    (None, True, {"enable_thinking": True}, True),
    ("high", False, {"enable_thinking": False}, False),
]


@pytest.mark.parametrize(("effort", "is_bound", "own", "expected"), SWITCHES)
def test_when_it_thinks(thinker, options, monkeypatch, effort, is_bound, own, expected):
    found = Format("chat", {"choices": ["yes"]} if is_bound else {}, None if is_bound else "free")
    monkeypatch.setattr(formats, "find", lambda *_, **__: found)
    lm = scripted(thinker, "yes")
    shown = rendered(monkeypatch)
    lm("hello", reasoning_effort=effort, template_arguments=own)
    assert shown[-1][0].get("enable_thinking") is expected
    bounds = bound(options[-1])
    if is_bound:
        assert ("THOUGHT" in bounds.get("grammar", "")) is bool(expected), bounds
    else:
        assert bounds == {}


AFTER = [*HELD[:4], ({"grammar": "start: answer\nanswer: /[0-9]{1,4}/"}, str.isdecimal)]


@pytest.mark.parametrize(("given", "holds"), AFTER)
@pytest.mark.parametrize("opened", [False, True])
def test_the_constraint_comes_after_the_thought(smollm2, given, holds, opened):
    tags = Tags("<think>", "</think>")
    thought = smollm2.tokenize(("" if opened else "<think>") + "a < b, so</think>\n\n")

    def think(logits, tokens):
        at = len(tokens) - len(smollm2.tokenize("A number:"))
        if at < len(thought):
            logits[thought[at]] += 1000

    bounds = after_thought(given, tags, opened)
    done = smollm2.generate("A number:", **bounds, filters=[think], max_tokens=100)
    said, text = split(done.text, tags, opened)
    assert said == "a < b, so" and holds(text), done.text


def test_what_cannot_be_had_of_thoughts_is_told(thinker, lm):
    thoughtful = scripted(thinker, THOUGHT)
    asked = request(thoughtful, reasoning=lm15.Reasoning("medium", thinking_budget=9))
    told = {adapted.field: adapted for adapted in thoughtful.engine.complete(asked).adaptations}
    assert told["config.reasoning.effort"].applied == "on"
    assert told["config.reasoning.thinking_budget"].action == "dropped"
    with pytest.raises(dspy.LMUnsupportedFeatureError, match="reasoning"):
        lm("hello", reasoning_effort="high")
    always = tallow.Model(
        thinker.to_state()["source"], chat_template=THINKER.split("{% if enable")[0] + "<think>\n{% endif %}"
    )
    never_off = scripted(always, "Is it?</think>yes")
    response = never_off.engine.complete(request(never_off, reasoning=lm15.Reasoning("off")))
    assert [adapted.field for adapted in response.adaptations] == ["config.reasoning"]
    assert response.message.parts == (lm15.ThinkingPart("Is it?"), lm15.TextPart("yes"))


# Tools

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
ADD = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}


def with_tools(lm, **config):
    return lm15.Request(
        model=lm.model,
        messages=(lm15.Message.user("1 + 2?"),),
        tools=(lm15.FunctionTool("add", "adds", ADD), lm15.FunctionTool("stop")),
        config=lm15.Config(**config),
    )


@both
def test_calls_are_parts_of_their_own(roomy, options, is_async):
    lm = scripted(roomy, f"Let me see.\n{CALL}")
    asked = with_tools(lm)
    whole = asyncio.run(lm._async_engine_spec.complete(asked)) if is_async else lm.engine.complete(asked)
    text, made = whole.message.parts
    assert (text.text, made.name, made.input) == ("Let me see.", "add", {"a": 1, "b": 2})
    assert whole.finish_reason == "tool_call" and made.id and "tools" in whole.provider_data["format"]
    assembled, events = streamed(lm, asked, is_async)
    assert (assembled.message, assembled.finish_reason) == (whole.message, "tool_call")
    first = next(event.delta for event in events if event.type == "delta" and event.delta.type == "tool_call")
    assert first.name == "add" and first.id == made.id
    assert "calls" in bound(options[-1])["grammar"]


def test_an_answer_without_a_call_is_an_answer(roomy):
    lm = scripted(roomy, "Three.")
    whole = lm.engine.complete(with_tools(lm))
    assert (whole.message.text, whole.finish_reason) == ("Three.", "stop")


#: tool_choice -> whether the prompt shows tools, whether a call must come.
CHOICES = [
    (None, True, False),
    (lm15.ToolChoice("auto"), True, False),
    (lm15.ToolChoice("required"), True, True),
    (lm15.ToolChoice("none"), False, False),
    (lm15.ToolChoice("required", ("stop",)), True, True),
]


@pytest.mark.parametrize(("choice", "shown", "must"), CHOICES)
def test_tool_choice(roomy, options, monkeypatch, choice, shown, must):
    monkeypatch.setattr(formats, "find", lambda *_, **__: Format("none", {}, "free"))
    lm = scripted(roomy, CALL if must else "Three.")
    prompts = rendered(monkeypatch)
    lm.engine.complete(with_tools(lm, tool_choice=choice))
    assert ("add" in prompts[-1][1]) is shown
    grammar = bound(options[-1]).get("grammar", "")
    assert ("start: calls" in grammar) is must and bool(grammar) is shown
    if choice is not None and choice.allowed:
        assert '"add"' not in grammar and '"stop"' in grammar


def test_required_without_tools(lm):
    with pytest.raises(lm15.InvalidRequestError, match="tool_choice"):
        lm.engine.complete(request(lm, tool_choice=lm15.ToolChoice("required")))


def test_an_agent_calls_tools_natively(roomy):
    def add(a: int, b: int) -> int:
        """Adds two numbers."""
        return a + b

    submit = '<tool_call>\n{"name": "submit", "arguments": {"answer": "3"}}\n</tool_call>'
    lm = scripted(roomy, CALL, submit)
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter(use_native_function_calling=True)):
        done = dspy.ReActV2("question -> answer", tools=[add])(question="1 + 2?")
    assert done.answer == "3" and len(lm.scripts) == 2
    roles = [message["role"] for message in lm.history[-1]["messages"]]
    assert "tool" in roles  # the second call saw the result


# Probabilities

YES_NO = {"type": "json_schema", "schema": {"type": "object", "properties": {"fits": {"type": "boolean"}}}}


@both
def test_probabilities_are_measured_and_not_written(roomy, is_async):
    lm = scripted(roomy, "{}")
    asked = request(lm, response_format=YES_NO, probabilities="required")
    engine = lm._async_engine_spec
    response = asyncio.run(engine.complete(asked)) if is_async else lm.engine.complete(asked)
    (part,) = response.message.parts
    assert sum(part.probabilities["fits"].values()) == pytest.approx(1) and not lm.scripts
    with pytest.raises(lm15.UnsupportedFeatureError, match="stream"):
        streamed(lm, asked, is_async)
    wanted = request(lm, response_format=YES_NO, probabilities="if_available")
    (start, *_) = streamed(lm, wanted, is_async)[1]
    assert "config.probabilities" in {adapted.field for adapted in start.adaptations}


def test_a_format_that_no_answer_fits_is_free_and_says_why(smollm2):
    lm = tallow.LM(smollm2, max_tokens=30, cache=False)

    class Impossible(dspy.Signature):
        """Count."""

        question: str = dspy.InputField()
        number: int = dspy.OutputField(ge=5, le=3)

    with dspy.context(lm=lm), pytest.raises(Exception, match=r"(?i)pars"):
        dspy.Predict(Impossible)(question="How many?")
    first = lm.history[0]["response"].provider_data["format"]
    assert not first["constrained"] and "no grammar can be made" in first["why"]
