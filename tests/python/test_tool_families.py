"""A template of each family: its format is told, tools, calls and results are shown, and a program of DSPy
that calls them runs to its end."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import pytest

from conftest import copy_family, needed, widen

dspy = needed("dspy")

import tallow  # noqa: E402
from families import TEMPLATES  # noqa: E402
from scripted import both, lm15, scripted, streamed  # noqa: E402
from tallow import prompts, thinking, tools  # noqa: E402
from tallow.tools import FORMATS, writing  # noqa: E402
from test_parts import with_tools  # noqa: E402
from test_tools import TOOLS, conversation  # noqa: E402


@pytest.fixture(scope="module")
def family(roomy):
    return lambda name: tallow.Model(roomy.to_state()["source"], chat_template=TEMPLATES[name])


def test_there_is_a_template_of_every_format() -> None:
    assert set(TEMPLATES) == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_a_conversation_is_shown(family, name: str) -> None:
    model, form = family(name), tools.detect(TEMPLATES[name])
    assert form.name == name
    text = prompts.rendered(model._native, conversation(), tools=TOOLS).text
    assert all(word in text for word in ("Tells the weather.", "weather_all", "Rome", "21", "ok"))


def answer(name: str, *calls: tuple[str, dict[str, Any]]) -> str:
    """What a model writes: a thought, if its family thinks, and calls."""
    form, tags = FORMATS[name], thinking.detect(TEMPLATES[name])
    text = writing.written(form, calls)
    if form.addressed:
        text = f"{form.addressed.format(calls[0][0])}{text}<|eot|>"
    return text if tags is None else f"{tags.open}I call it.{tags.close}{tags.between}{text}"


@both
@pytest.mark.parametrize("name", FORMATS)
def test_an_agent_calls_tools_natively(family, name: str, is_async: bool) -> None:
    def add(a: int, b: int) -> int:
        """Adds two numbers."""
        return a + b

    lm = scripted(family(name), answer(name, ("add", {"a": 1, "b": 2})), answer(name, ("submit", {"sum": 3})))
    agent = dspy.ReActV2("question -> sum: int", tools=[add])
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter(use_native_function_calling=True)):
        done = asyncio.run(agent.acall(question="1 + 2?")) if is_async else agent(question="1 + 2?")
    assert done.sum == 3 and len(lm.scripts) == 2
    (result,) = [turn for turn in lm.history[-1]["messages"] if turn["role"] == "tool"]
    assert "3" in str(result)  # the second call saw the result


@both
@pytest.mark.parametrize("name", FORMATS)
def test_a_thought_and_a_call_are_parts_of_their_own(family, name: str, is_async: bool) -> None:
    lm = scripted(family(name), answer(name, ("add", {"a": 1})))
    asked = with_tools(lm)
    whole = asyncio.run(lm._async_engine_spec.complete(asked)) if is_async else lm.engine.complete(asked)
    thoughts = [part.text for part in whole.message.parts if isinstance(part, lm15.ThinkingPart)]
    calls = [(part.name, part.input) for part in whole.message.parts if isinstance(part, lm15.ToolCallPart)]
    assert calls == [("add", {"a": 1})] and whole.finish_reason == "tool_call"
    assert len(whole.message.parts) == 1 + len(thoughts)
    assert thoughts == (["I call it."] if thinking.detect(TEMPLATES[name]) else [])
    assembled, _ = streamed(lm, asked, is_async)
    assert assembled.message == whole.message


TEXTS = [
    ("harmony", "<|channel|>final<|message|>Three."),
    ("muse", " to=user<|message|>Three.<|eot|>"),
    ("cohere", "<|START_RESPONSE|>Three.<|END_RESPONSE|>"),
]


@pytest.mark.parametrize(("name", "text"), TEXTS)
def test_what_stands_around_an_answer_is_not_shown(family, name: str, text: str) -> None:
    lm = scripted(family(name), text)
    for asked in (with_tools(lm), lm15.Request(model=lm.model, messages=(lm15.Message.user("1 + 2?"),))):
        (part,) = lm.engine.complete(asked).message.parts
        assert part.text == "Three."


#: Formats whose markers are control tokens.
MARKED = ["lfm", "gemma4", "harmony", "muse", "cohere", "apertus", "granite", "mistral_args"]
CONTROLS = sorted(
    {
        *(
            "<|tool_call_start|>",
            "<|tool_call_end|>",
            "<|tool_call>",
            "<tool_call|>",
            '<|"|>',
            "<|tool_call|>",
        ),
        *("<|channel|>", "<|message|>", "<|constrain|>", "<|start|>", "<|end|>", "<|call|>", "<|eom|>"),
        *("<|channel>", "<channel|>", "<|tools_prefix|>", "<|tools_suffix|>", "[TOOL_CALLS]", "[ARGS]"),
        *("<|START_ACTION|>", "<|END_ACTION|>", "<|START_THINKING|>", "<|END_THINKING|>"),
        *("<|START_RESPONSE|>", "<|END_RESPONSE|>", "[THINK]", "[/THINK]"),
    }
)


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """A model with a token for every character, and the markers as control tokens."""
    folder = copy_family("llama-gqa-tied", tmp_path_factory.mktemp("models") / "marked")
    widen(folder, 160)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    for token in CONTROLS:
        vocab[token] = len(vocab)
        tokenizer["added_tokens"].append(
            {**tokenizer["added_tokens"][-1], "id": vocab[token], "content": token, "special": True}
        )
    path.write_text(json.dumps(tokenizer))
    return lambda name: tallow.Model(folder, chat_template=TEMPLATES[name])


@pytest.mark.parametrize("name", MARKED)
def test_control_tokens_make_calls(marked, name: str) -> None:
    """Random weights, held to calls: the markers come as control tokens, and the calls are read."""
    lm = tallow.LM(marked(name), max_tokens=400, cache=False, temperature=1.0)
    ended = 0
    for seed in range(4):
        asked = with_tools(lm, tool_choice=lm15.ToolChoice("required"), seed=seed)
        whole = lm.engine.complete(asked)
        calls = [part for part in whole.message.parts if isinstance(part, lm15.ToolCallPart)]
        if whole.finish_reason == "length":
            continue
        ended += 1
        assert calls and whole.finish_reason == "tool_call", whole.message
        assert all(call.name in ("add", "stop") for call in calls)
        assert not any(isinstance(part, lm15.TextPart) and part.text.strip() for part in whole.message.parts)
    assert ended


@pytest.mark.parametrize("name", MARKED)
def test_control_tokens_stand_around_an_answer(marked, name: str) -> None:
    """The same, held to a format: nothing of what stands around the answer shows."""
    lm = tallow.LM(marked(name), max_tokens=200, cache=False, temperature=1.0)
    schema = {"type": "object", "properties": {"n": {"type": "boolean"}}, "required": ["n"]}
    response_format = {"type": "json_schema", "schema": {**schema, "additionalProperties": False}}
    for tools_too in (False, True):
        asked = with_tools(lm, seed=1, response_format=response_format)
        asked = asked if tools_too else dataclasses.replace(asked, tools=())
        whole = lm.engine.complete(asked)
        (part,) = whole.message.parts if not tools_too else [whole.message.parts[-1]]
        assert isinstance(part, lm15.ToolCallPart) or json.loads(part.text)["n"] in (True, False)


@pytest.mark.parametrize(("name", "end"), [("harmony", "final<|message|>"), ("muse", "assistant<|message|>")])
def test_probabilities_are_those_of_an_answer(family, monkeypatch, name: str, end: str) -> None:
    """The prompt ends with the header of a message to the user: without one no answer would be likely."""
    seen = []
    real = prompts.rendered
    monkeypatch.setattr(prompts, "rendered", lambda *a, **k: seen.append(real(*a, **k)) or seen[-1])
    lm = tallow.LM(family(name), cache=False)
    schema = {"type": "object", "properties": {"fits": {"type": "boolean"}}, "required": ["fits"]}
    config = {"response_format": {"type": "json_schema", "schema": schema}, "probabilities": "required"}
    asked = lm15.Request(
        model=lm.model, messages=(lm15.Message.user("Does it fit?"),), config=lm15.Config(**config)
    )
    lm.engine.complete(asked)
    assert seen and all(prompt.text.endswith(end) for prompt in seen)
