"""Tool grammars: every answer that one allows is well-formed, and read back as what it is.

Random walks over a tokenizer of bytes, with llguidance's own Python package (the version that is built in).
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from conftest import needed
from tallow import answers, thinking, tools
from tallow.tools import FORMATS, Call, writing
from test_tools import ROME, STOP, TOOLS, pairs

SPECIALS = ["<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "<|tool_call_start|>", "<|tool_call_end|>"]
SPECIALS += ["<|channel|>", "<|constrain|>", "<|message|>", "<|tool_call>", "<tool_call|>", '<|"|>']
SPECIALS += ["<|START_ACTION|>", "<|END_ACTION|>", "<|tools_prefix|>", "<|tools_suffix|>"]
SPECIALS += ["<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"]
SPECIALS += ["<|start|>", "<|end|>", "<|eom|>", "<|channel>", "<channel|>"]
MERGES = ["<tool_call>", "</tool_call>", '{"', '", "', '": ', "<|tool_call|>", "```tool_code", "\n```", ">\n"]
MERGES += ["</parameter>", "\n</parameter>", "</arg_value>", "<escape>", "</atem:parameter>", '"|>']


class Bytes:
    """A tokenizer of bytes, a few longer tokens and control tokens, as llguidance takes one."""

    def __init__(self) -> None:
        named = [*MERGES, *SPECIALS, "<eos>"]
        self.tokens = [bytes([at]) for at in range(256)] + [token.encode() for token in named]
        self.special_token_ids = list(range(256 + len(MERGES), len(self.tokens)))
        self.eos_token_id, self.bos_token_id = len(self.tokens) - 1, None

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())

    def ids(self) -> dict[str, int]:
        return {name: 256 + len(MERGES) + at for at, name in enumerate(SPECIALS)}


def matcher(lark: str) -> Any:
    llguidance = needed("llguidance")
    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()))
    result = llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_lark(lark))
    assert not result.is_error(), result.get_error()
    return result


def accepts(lark: str, text: str) -> bool:
    found = matcher(lark)
    ids = list(text.encode())
    return found.try_consume_tokens(ids) == len(ids) and found.is_accepting()


def walk(lark: str, rng: random.Random, steps: int = 500) -> str | None:
    """A random answer under a grammar; None if it did not end in time."""
    state, vocabulary, written = matcher(lark), Bytes(), []
    for _ in range(steps):
        if state.is_stopped():
            break
        bits = state.compute_bitmask()
        allowed = [at for at in range(len(vocabulary.tokens)) if bits[at // 8] >> (at % 8) & 1]
        assert allowed, "no token may follow"
        likely = [at for at in allowed if at >= 256 or at in b'{}[]"'] if rng.random() < 0.3 else []
        token = rng.choice(likely or [at for at in allowed if 32 <= at < 127 or at >= 256] or allowed)
        if token == vocabulary.eos_token_id:
            break
        assert state.consume_token(token)
        written.append(vocabulary.tokens[token])
    else:
        return None
    return b"".join(written).decode()


JSON_TEXT = (
    'start: %json {"x-guidance": {"whitespace_flexible": false}, "type": "object", '
    '"properties": {"nix": {"type": "boolean"}}, "required": ["nix"], "additionalProperties": false}'
)
SCHEMAS = {tool.name: tool.parameters for tool in tools.functions(TOOLS)}
MODES: list[dict[str, Any]] = [
    {},
    {"text_format": JSON_TEXT},
    {"text_format": 'start: "[[ ## a ## ]]\\n" TEXT "]"\nTEXT: /[a-z]*/'},
    {"choice": "required"},
    {"choice": "required", "parallel": False},
    {"choice": ["stop"]},
    {"allowed": ["weather_all"]},
    {"choice": "none"},
]


def well_formed(name: str, arguments: dict[str, Any]) -> bool:
    if name == "weather":
        at = arguments.get("at", {"x": 0})
        few = len(arguments["city"]) <= 6 and isinstance(arguments.get("days", 0), int)
        return set(arguments) <= {"city", "days", "at"} and few and isinstance(at["x"], (int, float))
    if name == "weather_all":
        return {"unit", "any"} <= set(arguments) <= {"unit", "any", "more"} and arguments["unit"] in (
            "C",
            "F",
        )
    return name == "stop" and arguments == {}


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_every_answer_under_the_grammar_is_read_back(name: str, mode: dict[str, Any]) -> None:
    form, rng = FORMATS[name], random.Random(f"{name}{mode}")
    ended = 0
    for specials in ({}, Bytes().ids()):
        lark = tools.call_grammar(form, TOOLS, specials=specials, **mode)["grammar"]
        for _ in range(5):
            answer = walk(lark, rng)
            if answer is None:
                continue
            ended += 1
            text, calls = tools.parse(form, answer, SCHEMAS)
            assert all(well_formed(call.name, call.arguments) for call in calls), answer
            check_mode(mode, text, calls)
    assert ended >= 5


def check_mode(mode: dict[str, Any], text: str, calls: list[Call]) -> None:
    choice = mode.get("choice", "auto")
    if choice == "none":
        assert not calls
    elif choice != "auto":
        assert calls and not text
    if "text_format" in mode:
        assert bool(text) != bool(calls)
    if not mode.get("parallel", True):
        assert len(calls) == 1
    for names in (mode.get("allowed"), choice if isinstance(choice, list) else None):
        assert names is None or all(call.name in names for call in calls)


@pytest.mark.parametrize("name", FORMATS)
def test_both_a_call_and_a_text_format_can_be_written(name: str) -> None:
    form = FORMATS[name]
    lark = tools.call_grammar(form, TOOLS, text_format=JSON_TEXT)["grammar"]
    assert accepts(lark, '{"nix":true}')
    written = writing.written(form, [ROME])
    if form.optional:
        written = written.removeprefix(form.open)
    if form.ends:
        written = written.removesuffix(form.close)
    assert accepts(lark, written)
    assert pairs(tools.parse(form, written, SCHEMAS)[1]) == [ROME]
    assert not accepts(lark, written.replace("weather", "whether"))
    assert not accepts(lark, written.replace("Rome", "Constantinople"))


def test_free_text_may_not_pass_for_a_call() -> None:
    for name, text in [("hermes", "a <tool_call> b"), ("llama", ' {"name'), ("mistral", '[{"name": 1}]')]:
        lark = tools.call_grammar(FORMATS[name], TOOLS, "none")["grammar"]
        assert accepts(lark, "a < b") and not accepts(lark, text)


_TEXT = {"type": "string"}
#: Arguments that are spelt differently from the common ones, and those that must be there.
ODD: list[tuple[dict[str, Any], set[str]]] = [
    ({"p": {**_TEXT, "pattern": "^[a-z]{2,4}$"}, "q": {**_TEXT, "minLength": 2, "maxLength": 3}}, {"p", "q"}),
    ({"d": {**_TEXT, "format": "date"}, "u": {"type": ["string", "null"]}}, {"u"}),
    ({"a": {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 2}}, {"a"}),
    ({"m": {"type": "object", "additionalProperties": {"type": "integer"}}}, {"m"}),
    ({"n": {"anyOf": [{"type": "integer"}, {"type": "boolean"}, {"type": "null"}]}}, {"n"}),
    ({"e": {"enum": ["a b", 1, None, True]}, "c": {"const": "k"}}, {"e", "c"}),
    ({"weird key/~": _TEXT, "ünï": {"type": "number"}}, {"weird key/~"}),
    ({"x": True, "y": {"allOf": [{"type": "integer"}]}}, {"x"}),
    ({"t": {"$ref": "#/$defs/T"}}, {"t"}),
    ({"o1": {"type": "integer"}, "o2": {"type": "boolean"}, "o3": _TEXT}, set()),
    ({}, set()),
]
TREE = {"type": "array", "items": {"$ref": "#/$defs/T"}, "maxItems": 1}


@pytest.mark.parametrize(("properties", "must"), ODD, ids=lambda row: ",".join(row))
@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name].body != "json"])
def test_odd_arguments_are_read_back(name: str, properties: dict[str, Any], must: set[str]) -> None:
    node = {"type": "object", "properties": {"v": {"type": "integer"}, "k": TREE}, "required": ["v"]}
    schema: dict[str, Any] = {"type": "object", "$defs": {"T": node}, "required": sorted(must)}
    if properties:
        schema["properties"] = properties
    form, rng = FORMATS[name], random.Random(name)
    offered = [{"name": "f", "parameters": schema}, STOP]
    lark = tools.call_grammar(form, offered, ["f"], specials=Bytes().ids())["grammar"]
    answers = [answer for _ in range(4) if (answer := walk(lark, rng, 400)) is not None]
    assert answers
    for answer in answers:
        text, calls = tools.parse(form, answer, {"f": schema})
        assert calls and not text and all(must <= set(call.arguments) for call in calls), answer
        for call in calls:
            if not properties:  # any
                continue
            assert set(call.arguments) <= set(properties), answer
            assert (
                call.arguments.get("e", 1) in ("a b", 1, None, True) and call.arguments.get("c", "k") == "k"
            )
            assert 2 <= len(call.arguments.get("q", "aa")) <= 3, answer


#: Formats whose thoughts and answers stand between control tokens, with words of a template of theirs.
AROUND = {
    "harmony": "<|channel|>analysis<|message|>",
    "muse": "to=self<|message|>",
    "gemma4": "<|channel>thought<channel|>",
    "cohere": "<|START_THINKING|><|END_THINKING|>",
}


@pytest.mark.parametrize("may", [False, True])
@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("text_format", [None, JSON_TEXT])
@pytest.mark.parametrize("name", AROUND)
def test_thoughts_and_messages_around_calls(
    name: str, text_format: str | None, choice: str, may: bool
) -> None:
    form, tags, ids = FORMATS[name], thinking.detect(AROUND[name]), Bytes().ids()
    assert tags is not None
    inner = tools.call_grammar(form, TOOLS, choice, True, text_format, around=tags.answer, specials=ids)
    lark = answers.after_thought(inner, tags, False, ids, may=may)["grammar"]
    rng, ended = random.Random(name + choice), 0
    for _ in range(4):
        answer = walk(lark, rng)
        if answer is None:
            continue
        ended += 1
        assert may or answer.startswith(tags.open)
        rest, calls = tools.parse(form, thinking.split(answer, tags)[1], SCHEMAS)
        assert all(well_formed(call.name, call.arguments) for call in calls), answer
        assert choice == "auto" or (calls and not rest), answer
        assert text_format is None or bool(rest) != bool(calls), answer
        assert not any(mark in rest for mark in ("<|message|>", "<|START_RESPONSE|>")), answer
    assert ended >= 2
