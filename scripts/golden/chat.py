"""Renders templates with transformers' own Jinja2 environment and writes what they give.

    pip install transformers jinja2 gguf
    python scripts/golden/chat.py [folder with SmolLM2-135M-Instruct.Q4_1.gguf]

Reads templates.json-like tables below (our own wording, in the manner of the families) and writes
tests/golden/chat/{cases,continued,micro,real}.json. Real templates are never copied: only their output is kept.
"""

import json
import pathlib
import sys

import jinja2
import transformers
from chat_templates import MICRO, TEMPLATES
from transformers.utils.chat_template_utils import render_jinja_template

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden" / "chat"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def render(
    template,
    messages,
    tools=None,
    documents=None,
    add_generation_prompt=False,
    continue_final_message=False,
    **arguments,
):
    """What `apply_chat_template(tokenize=False)` gives, or the error."""
    try:
        text, _ = render_jinja_template(
            conversations=[messages],
            tools=tools,
            documents=documents,
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **(TOKENS | arguments),
        )
        return {"text": text[0]}
    except Exception as error:
        raised = type(error) is jinja2.exceptions.TemplateError
        return {"error": type(error).__name__, "raised": str(error) if raised else None}


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather <of> a 'city' – today & later.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": 'Größe "x"'},
                "days": {"type": "array", "items": {"type": "integer"}, "default": [1, 2.0, None, True]},
            },
            "required": ["city"],
        },
    },
}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
            "required": ["a", "b"],
        },
    },
}

U = lambda text: {"role": "user", "content": text}
A = lambda text: {"role": "assistant", "content": text}
S = lambda text: {"role": "system", "content": text}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "abc123def",
            "type": "function",
            "function": {"name": "weather", "arguments": {"city": "Zürich", "days": [1, 2]}},
        },
        {
            "id": "xyz789uvw",
            "type": "function",
            "function": {"name": "add", "arguments": {"a": 1.5, "b": -2}},
        },
    ],
}
RESULTS = [
    {"role": "tool", "tool_call_id": "abc123def", "name": "weather", "content": '{"t": 21}'},
    {"role": "tool", "tool_call_id": "xyz789uvw", "name": "add", "content": "-0.5"},
]
THINK = A("<think>\nfirst I add\n</think>\n\nIt is 4.")

CONVERSATIONS = {
    "one": dict(messages=[U("Hello!")], add_generation_prompt=True),
    "system": dict(
        messages=[S("  Be brief. "), U("Hi\n"), A(" Hello "), U("Bye?")], add_generation_prompt=True
    ),
    "closed": dict(messages=[U("a"), A("b")]),
    "unicode": dict(messages=[U("„Grüße“ 你好 🦀 \\ \" ' <b>&amp;"), A("\ttab\r\nline")]),
    "tools": dict(
        messages=[S("Use tools."), U("Weather?"), CALL, *RESULTS, A("Warm."), U("Thanks")],
        tools=[TOOL, ADD],
        add_generation_prompt=True,
    ),
    "tools_first": dict(messages=[U("Weather?")], tools=[TOOL], add_generation_prompt=True),
    "thinking": dict(messages=[U("2+2?"), THINK, U("3+3?"), THINK, U("sure?")], add_generation_prompt=True),
    "no_thinking": dict(
        messages=[U("2+2?"), THINK, U("x")], add_generation_prompt=True, enable_thinking=False
    ),
    "reasoning": dict(messages=[U("q"), {"role": "assistant", "content": "a", "reasoning_content": "r\n"}]),
    "documents": dict(
        messages=[U("What do they say?")],
        add_generation_prompt=True,
        documents=[{"title": "One", "text": "First."}, {"title": "Two", "text": "Second: ä"}],
    ),
    "date": dict(messages=[U("Which day?")], date_string="26 Jul 2024", add_generation_prompt=True),
    "wrong_order": dict(messages=[U("a"), U("b")]),
    "assistant_first": dict(messages=[A("Welcome"), U("a")]),
    "long": dict(
        messages=[S("s")] + [m for i in range(12) for m in (U(f"q{i}"), A(f"a{i}"))],
        add_generation_prompt=True,
    ),
}


MICRO_VARIABLES = {
    "s": "Hello, World",
    "e": "",
    "pad": "  x y  ",
    "n": 7,
    "f": 2.5,
    "neg": -3,
    "t": True,
    "z": None,
    "l": [3, 1, 2],
    "d": {"b": 1, "a": {"x": [1, "two", None]}, "items": "own"},
    "u": "Ä ß 🦀 \u2028",
    "rows": [
        {"name": "Ann", "age": 30, "tags": ["x"]},
        {"name": "bob", "age": 25, "tags": []},
        {"name": "Cy", "age": 30},
    ],
    "multi": "one\ntwo\n\nthree\n",
}


def micro():
    rows = []
    for template in MICRO:
        found = render(template, [U("m")], **MICRO_VARIABLES)
        rows.append({"template": template} | found)
    return {"variables": MICRO_VARIABLES, "rows": rows}


def cases():
    rows = []
    for name, template in TEMPLATES.items():
        for key, conversation in CONVERSATIONS.items():
            rows.append({"template": name, "conversation": key} | render(template, **conversation))
    return {"templates": TEMPLATES, "conversations": CONVERSATIONS, "rows": rows}


#: Conversations whose last message is to be continued, and the field of it.
CONTINUED = {
    "open": dict(messages=[U("Hi"), A("Sure, ")]),
    "closed": dict(messages=[U("Hi"), A("Sure,")]),
    "lines": dict(messages=[U("Hi"), A("\n1. a\n2. b\n\n")]),
    "twice": dict(messages=[U("Sure"), A("Sure"), U("x"), A("Sure")]),
    "system": dict(messages=[S("Be brief."), U("Hi"), A("It is")]),
    "user": dict(messages=[U("Tell me, ")]),
    "empty": dict(messages=[U("Hi"), A("")]),
    "thought": dict(messages=[U("Hi"), A("<think>\nhm\n</think>\n\nWell, ")]),
    "parts": dict(messages=[U("Hi"), {"role": "assistant", "content": [{"type": "text", "text": "Sure, "}]}]),
    "reasoning": dict(
        messages=[U("Hi"), {"role": "assistant", "content": "", "reasoning_content": "First, "}],
        continue_final_message="reasoning_content",
    ),
    "call": dict(messages=[U("Weather?"), {**CALL, "content": None}]),
    "both": dict(messages=[U("Hi"), A("Sure")], add_generation_prompt=True),
}


def continued():
    rows = []
    for name, template in TEMPLATES.items():
        for key, conversation in CONTINUED.items():
            given = {"continue_final_message": True} | conversation
            rows.append({"template": name, "conversation": key} | render(template, **given))
    return {"conversations": CONTINUED, "rows": rows}


def real(folder):
    from gguf import GGUFReader

    rows = {}
    for file in ["SmolLM2-135M-Instruct.Q4_1.gguf"]:
        field = GGUFReader(folder / file).get_field("tokenizer.chat_template")
        template = field.contents()
        rows[file] = {key: render(template, **c) for key, c in CONVERSATIONS.items()}
    return {"conversations": CONVERSATIONS, "rows": rows}


def write(name, value):
    versions = {"jinja2": jinja2.__version__, "transformers": transformers.__version__}
    (OUT / name).write_text(json.dumps({"made_with": versions} | value, ensure_ascii=False, indent=1) + "\n")


OUT.mkdir(parents=True, exist_ok=True)
write("micro.json", micro())
write("cases.json", cases())
write("continued.json", continued())
if len(sys.argv) > 1:
    write("real.json", real(pathlib.Path(sys.argv[1])))
