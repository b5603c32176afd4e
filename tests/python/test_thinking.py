"""Thoughts are found in the template, split off an answer in any pieces, and allowed before a constraint."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tallow import thinking
from tallow.thinking import Tags
from test_tools import pieces

THINK = Tags("<think>", "</think>")
GEMMA4 = Tags("<|channel>thought", "<channel|>", between="")
SEED = Tags("<seed:think>", "</seed:think>", off=0, on=-1)
GRANITE = Tags("<think>", "</think>", answer=("<response>", "</response>"))
HUNYUAN = Tags("<think>", "</think>", answer=("<answer>\n", "\n</answer>"))
_RESPONSE = ("<|START_RESPONSE|>", "<|END_RESPONSE|>")
COHERE = Tags("<|START_THINKING|>", "<|END_THINKING|>", between="", answer=_RESPONSE)
_HARMONY = thinking.detect("{{ reasoning_effort }}<|channel|>analysis<|message|>")
_MUSE = thinking.detect("{{ reasoning_strength }} to=self<|message|>")
assert _HARMONY is not None and _MUSE is not None
HARMONY, MUSE = _HARMONY, _MUSE
PROMPT = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n"
QWEN3 = (
    PROMPT + "' }}{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
TEMPLATES = [
    (None, None),
    ("{{ messages }}", None),
    ("{{ content.split('</think>')[-1] }}" + PROMPT + "' }}{% endif %}", THINK),
    (QWEN3, Tags("<think>", "</think>", switch="enable_thinking")),
    ("{{ '</think>' }}" + PROMPT + "<think>\\n' }}{% endif %}", Tags("<think>", "</think>", opened=True)),
    (
        "</think>{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}",
        Tags("<think>", "</think>", opened=True),
    ),
    ("<thinking></thinking>", Tags("<thinking>", "</thinking>")),
    (
        "{{ reasoning_effort }}[THINK]{{ t }}[/THINK]",
        Tags("[THINK]", "[/THINK]", switch="reasoning_effort", off="none", on=None, between=""),
    ),
    ("{{ enable_thinking }}<|channel>thought\n{{ t }}<channel|>", replace(GEMMA4, switch="enable_thinking")),
    ("{{ thinking_budget }}{{ '</seed:think>' }}", replace(SEED, switch="thinking_budget")),
    ("{{ thinking }}<think></think><response></response>", replace(GRANITE, switch="thinking")),
    ("{{ '<think></think><answer>' }}", HUNYUAN),
    ("<|START_THINKING|><|END_THINKING|>", COHERE),
    ("<|inner_prefix|><|inner_suffix|>", Tags("<|inner_prefix|>", "<|inner_suffix|>", between="")),
    # A comment and an attribute are no switch.
    ("{# enable_thinking #}{{ m.thinking }}</think>", THINK),
]


@pytest.mark.parametrize(("template", "tags"), TEMPLATES)
def test_a_template_tells_its_tags(template: str | None, tags: Tags | None) -> None:
    assert thinking.detect(template) == tags


def test_a_prompt_tells_whether_the_thought_is_open() -> None:
    assert THINK.opened_by("<|im_start|>assistant\n<think>\n")
    assert not THINK.opened_by("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not THINK.opened_by("<|im_start|>assistant\n")


#: (opened, answer, thought, text)
SPLIT = [
    (False, "", "", ""),
    (False, "Hello", "", "Hello"),
    (False, "  Hello \n", "", "  Hello \n"),
    (False, "<think>\nHm.\n\nSo.\n</think>\n\nHello\n", "Hm.\n\nSo.", "Hello\n"),
    (False, "\n<think>Hm.</think>Hello", "Hm.", "Hello"),
    (False, "<think>\n\n</think>\n\nHello", "", "Hello"),
    (False, "<think>Hm. </thin", "Hm. </thin", ""),
    (False, "<think>Hm.\n", "Hm.\n", ""),
    (False, "<thin", "", "<thin"),
    (False, "<think>", "", ""),
    # Further on it is text.
    (False, "Write <think>x</think>", "", "Write <think>x</think>"),
    (False, "<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
    (False, "a</think>b", "", "a</think>b"),
    # A thought that quotes the opening tag.
    (False, "<think>the tag <think></think>b", "the tag <think>", "b"),
    (True, "Hm.\n</think>\n\nHello", "Hm.", "Hello"),
    (True, "\nHm.", "Hm.", ""),
    (True, "</think>Hello", "", "Hello"),
    # Some models write the tag again.
    (True, "<think>\nHm.</think>Hello", "Hm.", "Hello"),
    (True, "<thin", "<thin", ""),
    (True, "", "", ""),
]


@pytest.mark.parametrize(("opened", "answer", "thought", "text"), SPLIT)
def test_thought_and_text(opened: bool, answer: str, thought: str, text: str) -> None:
    assert thinking.split(answer, THINK, opened) == (thought, text)


ANALYSIS = "<|channel|>analysis<|message|>Hm.<|end|>"
CALL = "<|start|>assistant to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>"
CALLED = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}"
#: (tags, answer, thought, text)
FRAMED = [
    (GRANITE, "<think>Hm.</think>\n<response>Hi</response>", "Hm.", "Hi"),
    (GRANITE, "<response>Hi</respo", "", "Hi</respo"),
    (GRANITE, "Hi</response>", "", "Hi</response>"),  # nothing began it
    (GRANITE, "<resp", "", "<resp"),
    (HUNYUAN, "<think>\nHm.\n</think>\n<answer>\nHi\n</answer>", "Hm.", "Hi"),
    (COHERE, "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Hi<|END_RESPONSE|>", "Hm.", "Hi"),
    (COHERE, "<|START_ACTION|>[]", "", "<|START_ACTION|>[]"),
    (GEMMA4, "<|channel>thought\nHm.\n<channel|>Hi", "Hm.", "Hi"),
    (HARMONY, "<|channel|>final<|message|>Hi", "", "Hi"),
    (HARMONY, f"{ANALYSIS}<|start|>assistant<|channel|>final<|message|>Hi<|return|>", "Hm.", "Hi"),
    (HARMONY, f"{ANALYSIS}<|channel|>commentary<|message|>Well<|end|>{CALL}", "Hm.", f"Well\n{CALLED}"),
    (HARMONY, f"{ANALYSIS}<|start|>assistant{ANALYSIS}", "Hm.\nHm.", ""),
    (HARMONY, " to=functions.f<|channel|>commentary json<|message|>{}", "", CALLED),
    (HARMONY, "<|channel|>analysis to=functions.f<|message|>{}<|call|>", "", CALLED),
    (HARMONY, "Hi <|x|>", "", "Hi <|x|>"),  # no message
    (HARMONY, "<|channel|>anal", "", "<|channel|>anal"),
    (HARMONY, "<|channel|>" + "x" * 300, "", "<|channel|>" + "x" * 300),
    (MUSE, " to=self<|message|>Hm.<|eom|><|start|>assistant to=user<|message|>Hi<|eot|>", "Hm.", "Hi"),
    (MUSE, " to=f<|message|><atem:function_calls>", "", "<atem:function_calls>"),
    (MUSE, "<|message|>Hi", "", "Hi"),
]


@pytest.mark.parametrize(("tags", "answer", "thought", "text"), FRAMED)
def test_what_stands_around_an_answer(tags: Tags, answer: str, thought: str, text: str) -> None:
    assert thinking.split(answer, tags) == (thought, text)


def streamed(chunks: list[str], tags: Tags, opened: bool) -> tuple[str, str]:
    splitter = thinking.splitter(tags, opened)
    found = [piece for chunk in chunks for piece in splitter.push(chunk)] + splitter.finish()
    kinds = [kind for kind, _ in found]
    assert tags.messages or kinds == sorted(kinds, reverse=True), "a thought comes before the text"
    assert all(text for _, text in found)
    return "".join(t for k, t in found if k == "thinking"), "".join(t for k, t in found if k == "text")


@pytest.mark.parametrize(
    "tags",
    [THINK, Tags("[THINK]", "[/THINK]"), GRANITE, HUNYUAN, COHERE, GEMMA4, HARMONY, MUSE],
    ids=lambda tags: tags.open,
)
def test_pieces_make_no_difference(tags: Tags) -> None:
    rng = random.Random(tags.open)
    parts = [tags.open, tags.close, tags.open[:3], tags.close[:4], "\n", "\n\n", " ", "Hm.", "é", "<", "["]
    parts += [*filter(None, tags.answer), *(mark[:5] for mark in tags.answer if mark)]
    if tags.messages:
        parts += [*tags.messages.ends, *tags.messages.headers, "<|message|>", "to=functions.f", "x" * 150]
    answers = [answer for _, answer, *_ in SPLIT] + [answer for _, answer, *_ in FRAMED]
    answers += ["".join(rng.choices(parts, k=rng.randint(1, 8))) for _ in range(3000)]
    thoughts = 0
    for answer in answers:
        opened = rng.random() < 0.5
        whole = thinking.split(answer, tags, opened)
        thoughts += bool(whole[0])
        assert streamed(pieces(answer, rng), tags, opened) == whole, (answer, opened)
    assert thoughts > 100


def test_a_thought_is_shown_as_it_comes() -> None:
    splitter = thinking.Splitter(THINK)
    assert splitter.push("<th") == []
    assert splitter.push("ink>\nHm, ") == [("thinking", "Hm, ")]
    assert splitter.push("well\n</thi") == [("thinking", "well")]
    assert splitter.push("nk>\n") == []
    assert splitter.push("\nHi") == [("text", "Hi")]
    assert splitter.finish() == []
