"""Calls of tools that an answer holds as text: each names a tool of the prompt, with its arguments."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, Literal

import pydantic
import pytest

from conftest import needed

dspy = needed("dspy")
from dspy import lm15  # noqa: E402
from dspy.adapters.baml_adapter import BAMLAdapter  # noqa: E402

import tallow  # noqa: E402
from tallow.dspy import formats  # noqa: E402
from tallow.schemas import patterns  # noqa: E402

ADAPTERS = {
    "chat": dspy.ChatAdapter(),
    "json": dspy.JSONAdapter(use_native_function_calling=False),
    "xml": dspy.XMLAdapter(),
    "baml": BAMLAdapter(use_native_function_calling=False),
}


class Place(pydantic.BaseModel):
    city: str
    near: list[Place] = []


def add(a: int, b: int = 2) -> int:
    """Adds
    two "numbers". It takes arguments {}."""
    return a + b


def look_up(word: str, kind: Literal["noun", "verb"]) -> str:
    return word


def stop() -> str:
    return "stopped"


def starred(x: float, *args: Any, **kwargs: Any) -> float:
    return x


CALLS = dspy.Signature("question, tools: list[dspy.Tool] -> thought: dspy.Reasoning, calls: dspy.ToolCalls")


def asked(kind, tools, made=CALLS, **inputs):
    offered = [tool if isinstance(tool, dspy.Tool) else dspy.Tool(tool) for tool in tools]
    given = {"question": "?", "tools": offered, **inputs}
    system, *turns = ADAPTERS[kind].format(made, [], given)
    return lm15.Request(
        model="m",
        system=system["content"],
        messages=tuple(lm15.Message.user(one["content"]) for one in turns),
    )


def documents(made: formats.Format) -> list[dict[str, Any]]:
    """The JSON schemas in a constraint."""
    if "json_schema" in made.constraint:
        return [made.constraint["json_schema"]]
    return [json.loads(one) for one in re.findall(r"%json (\{.*\})", made.constraint["grammar"])]


def options(made: formats.Format) -> dict[str, Any]:
    """Each tool that may be called, with the schema of its arguments."""
    (schema,) = documents(made)
    schema = schema["properties"].get("calls", schema)
    calls = schema["properties"]["tool_calls"]
    assert calls["minItems"] == 1 and calls["maxItems"] <= 8
    given = calls["items"].get("anyOf", [calls["items"]])
    return {one["properties"]["name"]["enum"][0]: one["properties"]["args"] for one in given}


#: BAMLAdapter's notes are no schema: without the Signature they tell nothing.
KNOWN = [(kind, known) for kind in ADAPTERS for known in (True, False) if known or kind != "baml"]


@pytest.mark.parametrize(("kind", "known"), KNOWN)
def test_calls_name_a_tool_with_its_arguments(kind, known):
    made = formats.find(asked(kind, [add, look_up, stop]), CALLS if known else None)
    found = options(made)
    assert made.name == kind and made.notes == () and list(found) == ["add", "look_up", "stop"]
    assert list(found["add"]["properties"]) == found["add"]["required"] == ["a", "b"]
    assert found["add"]["properties"]["a"]["maximum"] == 999_999_999_999_999
    assert found["look_up"]["properties"]["kind"] == {"enum": ["noun", "verb"]}
    assert found["stop"] == {"type": "object", "additionalProperties": False}


def test_other_tools_are_another_format():
    one, other = (options(formats.find(asked("chat", [tool]), CALLS)) for tool in (add, stop))
    assert list(one) == ["add"] and list(other) == ["stop"]
    single = dspy.Signature("question, tool: dspy.Tool -> calls: dspy.ToolCalls")
    request = asked("chat", [], single, tool=dspy.Tool(stop))
    assert list(options(formats.find(request, single))) == ["stop"]


def test_the_last_message_counts():
    before = asked("chat", [stop]).messages
    request = asked("chat", [add])
    both = lm15.Request(model="m", system=request.system, messages=(*before, *request.messages))
    assert list(options(formats.find(both, CALLS))) == ["add"]


def test_a_callers_own_tools_are_exact():
    made = dspy.Signature(
        {
            "question": (str, dspy.InputField()),
            "score": (int, dspy.OutputField(ge=0, le=9)),
            "place": (Place, dspy.OutputField()),
            "names": (dict[int, str], dspy.OutputField()),
        }
    )
    agent = dspy.ReActV2(made, tools=[starred])
    request = asked("chat", agent.tools.values(), agent.react.signature)
    with dspy.context(caller_modules=[agent, agent.react]):
        found = formats.find(request, agent.react.signature)
    calls = options(found)
    assert list(calls["starred"]["properties"]) == ["x"]  # and it has no other names
    assert calls["submit"]["properties"]["score"] == {"type": "integer", "minimum": 0, "maximum": 9}
    assert calls["submit"]["properties"]["place"] == {"$ref": "#/$defs/Place"}
    assert list(calls["submit"]["properties"]["names"]["patternProperties"]) == [patterns.INTEGER_KEY]
    assert list(documents(found)[0]["$defs"]["Place"]["properties"]) == ["city", "near"]


ODD = [
    "N/A",
    "[]",
    "[1]",
    '["f"]',
    "[",
    "{}",
]


@pytest.mark.parametrize("text", ODD)
def test_tools_that_cannot_be_read_leave_the_schema_of_toolcalls(text):
    request = asked("chat", [add])
    (message,) = request.messages
    shown = re.sub(r"(## tools ## \]\]\n).*", lambda found: found[1] + text, message.parts[0].text)
    made = formats.find(
        lm15.Request(model="m", system=request.system, messages=(lm15.Message.user(shown),)), CALLS
    )
    assert made.constraint and "tools cannot be read" in " ".join(made.notes)
    assert "ToolCall" in documents(made)[0]["$defs"]


@pytest.mark.parametrize("arguments", ["{1}.", "{"])
def test_a_tool_whose_arguments_cannot_be_read_keeps_its_name(arguments):
    request = asked("chat", [add])
    (message,) = request.messages
    text = json.dumps([str(dspy.Tool(add)), f"f. It takes arguments {arguments}"])
    shown = re.sub(r"(## tools ## \]\]\n).*", lambda found: found[1] + text, message.parts[0].text)
    made = formats.find(
        lm15.Request(model="m", system=request.system, messages=(lm15.Message.user(shown),)), CALLS
    )
    assert set(options(made)) == {"add", "f"} and "arguments of f" in " ".join(made.notes)


def test_a_tool_whose_arguments_no_grammar_holds_stays():
    code = dspy.Tool(stop, name="code", args={"value": {"type": "string", "pattern": "(?=a)b"}})
    made = formats.find(asked("chat", [add, code]), CALLS)
    assert options(made)["code"]["maxProperties"] == 8 and "arguments of code" in " ".join(made.notes)


class Scripted:
    """An engine that calls ``add`` and then submits, and records what an answer may call."""

    supported_params = frozenset()

    def __init__(self):
        self.seen = []

    def complete(self, request):
        found = formats.find(request, formats.caller_signature())
        self.seen.append(list(options(found)))
        call = {"name": "submit", "args": {"n": 3}} if self.seen[1:] else {"name": "add", "args": {"a": 1}}
        text = (
            f"[[ ## next_thought ## ]]\nHm.\n\n[[ ## tool_calls ## ]]\n{json.dumps({'tool_calls': [call]})}"
        )
        return lm15.Response(
            id=None, model="m", message=lm15.Message.assistant((lm15.TextPart(text),)),
            finish_reason="stop", usage=lm15.Usage(input_tokens=1, output_tokens=1),
        )  # fmt: skip


class AsyncScripted(Scripted):
    async def complete(self, request):
        return super().complete(request)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(("turns", "last"), [(1, ["submit"]), (2, ["add", "submit"])])
def test_the_last_turn_submits(is_async, turns, last):
    engines = Scripted(), AsyncScripted()
    lm = dspy.LM("own/m", engine=engines[0], async_engine=engines[1], cache=False)
    agent = dspy.ReActV2("q -> n: int", tools=[add], max_iters=turns)
    with dspy.context(lm=lm, adapter=ADAPTERS["chat"]):
        done = asyncio.run(agent.acall(q="?")) if is_async else agent(q="?")
    assert done.n == 3
    assert engines[is_async].seen == [["add", "submit"], last]


# ReAct


@pytest.mark.parametrize("kind", ADAPTERS)
def test_react_gives_the_arguments_of_the_tool_that_it_names(kind):
    agent = dspy.ReAct("question -> answer", tools=[add, look_up])
    made = agent.react.signature
    request = asked(kind, [], made, trajectory="")
    with dspy.context(caller_modules=[agent, agent.react]):
        found = formats.find(request, made)
    open_ended = formats.find(request, made)  # nobody knows the tools
    assert found.name == kind and found.constraint != open_ended.constraint != {}
    if "json_schema" in found.constraint:
        pairs = [one["properties"] for one in documents(found)[0]["anyOf"]]
        given = {one["next_tool_name"]["enum"][0]: one["next_tool_args"] for one in pairs}
        assert all(list(one) == list(made.output_fields) for one in pairs)
    else:
        given = dict(zip(["add", "look_up", "finish"], documents(found), strict=True))
        assert re.search(r'look_up\\n.*?" field-2-json-1\b', found.constraint["grammar"])
    arguments = {name: list(one.get("properties", ())) for name, one in given.items()}
    assert arguments == {"add": ["a", "b"], "look_up": ["word", "kind"], "finish": []}


#: Names that a tool may have and a header, a tag or a regex may not.
ODD_NAMES = [
    "get weather",
    "Größe",
    "a<b>&c",
    "[[ ## x ## ]]",
    "(x|y)*",
    'say "hi"',
    "new\nline",
    "it's",
    "天気",
]


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("name", ODD_NAMES)
def test_an_odd_name_leaves_the_other_tools_enforced(wide, kind, name):
    """Random weights call tools that there are, with arguments that they take, whatever one is called."""
    odd = dspy.Tool(stop, name=name)
    agent = dspy.ReAct("q -> n: int", tools=[add, odd], max_iters=1)
    request = asked(kind, [], agent.react.signature, trajectory="")
    with dspy.context(caller_modules=[agent, agent.react]):
        found = formats.find(request, agent.react.signature)
    assert found.constraint, found.why
    for seed in range(3):
        lm = tallow.LM(wide, max_tokens=400, cache=False, temperature=1.0, seed=seed)
        with dspy.context(lm=lm, adapter=ADAPTERS[kind]):
            trajectory = agent(q="?").trajectory
        assert trajectory["tool_name_0"] in ("add", name, "finish")
        assert "rror" not in str(trajectory["observation_0"])


def test_a_tool_that_cannot_be_shown_leaves_the_others_enforced():
    class Unshown(dspy.Tool):
        def __str__(self):
            raise ValueError("not today")

    shown = 'odd, whose description is <desc>x</desc>. It takes arguments {"a": {"default": <object>}}.'
    request = asked("chat", [add])
    (message,) = request.messages
    both = json.dumps([str(dspy.Tool(add)), shown])
    text = re.sub(r"(## tools ## \]\]\n).*", lambda found: found[1] + both, message.parts[0].text)
    asks = lm15.Request(model="m", system=request.system, messages=(lm15.Message.user(text),))
    module = type("Module", (), {"tools": [Unshown(stop, name="unshown"), dspy.Tool(add)]})()
    with dspy.context(caller_modules=[module]):
        made = formats.find(asks, CALLS)
    assert set(options(made)) == {"add", "odd"} and "arguments of odd" in " ".join(made.notes)


# What a model writes, so hot that it does what the grammar lets it


def test_an_agent_calls_tools_that_there_are_and_submits(smollm2):
    lm = tallow.LM(smollm2, max_tokens=64, cache=False, temperature=2.0, seed=7)
    with dspy.context(lm=lm, adapter=ADAPTERS["chat"]):
        done = dspy.ReActV2("q -> n: int", tools=[add, stop], max_iters=1)(q="?")
    assert isinstance(done.n, int) and done.termination_reason in ("submit", "forced_submit")
    turns = [turn["tool_calls"].tool_call_results.tool_call_results for turn in done.history.messages]
    assert len(turns) == len(lm.history) and all(turns)
    assert not [one for turn in turns for one in turn if one.is_error]


def test_react_calls_tools_that_there_are(smollm2):
    lm = tallow.LM(smollm2, max_tokens=64, cache=False, temperature=2.0, seed=7)
    with dspy.context(lm=lm, adapter=ADAPTERS["json"]):
        done = dspy.ReAct("q -> n: int", tools=[add, stop], max_iters=1)(q="?")
    assert "tool_name_0" in done.trajectory and "rror" not in str(done.trajectory["observation_0"])
