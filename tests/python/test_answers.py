"""A conversation's answer, taken apart, as the command line and the plugin for ``llm`` have it."""

from __future__ import annotations

import json

import pytest

import tallow
from conftest import THINKER
from tallow import answers
from tallow.thinking import Tags

HI = [{"role": "user", "content": "hi"}]
SWITCHED = Tags("<think>", "</think>", switch="enable_thinking")
EFFORT = Tags("<think>", "</think>", switch="reasoning_effort", off="none", on=None)
ALWAYS = Tags("<think>", "</think>", opened=True)
LOOSE = Tags("<think>", "</think>")

#: What the template knows, what is asked for and whether a form bounds the answer; whether it thinks, and the
#: template's variable for that, or what is wrong with it.
THINKS = [
    (None, None, False, (False, {})),
    (None, False, False, (False, {})),
    (None, True, False, "knows no thoughts"),
    (SWITCHED, None, False, (None, {})),
    (SWITCHED, None, True, (False, {"enable_thinking": False})),
    (SWITCHED, True, True, (True, {"enable_thinking": True})),
    (SWITCHED, False, False, (False, {"enable_thinking": False})),
    (SWITCHED, "low", False, "only on or off"),
    (EFFORT, "low", False, (True, {"reasoning_effort": "low"})),
    (EFFORT, True, False, (True, {"reasoning_effort": "medium"})),
    (EFFORT, None, True, (False, {"reasoning_effort": "none"})),
    (EFFORT, "lots", False, "'low', 'medium', 'high'"),
    (ALWAYS, None, True, (False, {})),
    (ALWAYS, True, False, (True, {})),
    (ALWAYS, False, False, "no switch"),
    (LOOSE, True, False, "no switch"),
]


@pytest.mark.parametrize(("tags", "think", "bounded", "expected"), THINKS)
def test_when_it_thinks(tags, think, bounded, expected):
    if isinstance(expected, str):
        with pytest.raises(tallow.InvalidRequestError, match=expected):
            answers._thinks(tags, think, bounded)
    else:
        assert answers._thinks(tags, think, bounded) == expected


SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
TOOL = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "boolean"}}}}


@pytest.fixture(scope="module")
def always(wide_folder):
    """Begins every answer inside of a thought, as DeepSeek-R1's template has it."""
    return tallow.Model(wide_folder, chat_template=THINKER.split("{% if enable")[0] + "<think>\n{% endif %}")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("offered", [(), (TOOL,)], ids=["text", "tools"])
def test_the_form_comes_after_the_thought(always, seed, offered):
    """Random weights think at length; the thought is brought to its end within ``max_tokens``."""
    given = {"max_tokens": 80, "temperature": 1.0, "seed": seed, "json_schema": SCHEMA}
    asked = answers.prepare(always, HI, offered=offered, **given)
    with asked.stream() as reply:
        events = list(reply)
    assert isinstance(events[0], answers.Thought)
    assert 0 < reply.thought_tokens < reply.usage.completion_tokens <= 80
    text = "".join(event for event in events if isinstance(event, str))
    calls = [event for event in events if isinstance(event, tallow.tools.Call)]
    assert [call.name for call in calls] == ["add"] * len(calls) and (calls or offered == () or text)
    if text:
        assert isinstance(json.loads(text)["a"], bool)


def test_a_text_is_continued_as_it_is(tiny):
    with answers.prepare(tiny, "once", max_tokens=8, temperature=0).stream() as reply:
        assert "".join(reply) == tiny.generate("once", max_tokens=8, temperature=0).text
    assert (reply.finish_reason, reply.usage.completion_tokens, reply.notes) == ("length", 8, ())
