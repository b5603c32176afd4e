"""Native tool calls: every format is told apart, shown, written under its grammar, read in any pieces."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tallow import InvalidRequestError, tools
from tallow.tools import FORMATS, Call, writing
from tallow.tools.functions import bounded

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "chat" / "cases.json"
WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 6},
            "days": {"type": "integer"},
            "at": {"$ref": "#/$defs/Point"},
        },
        "required": ["city"],
        "$defs": {
            "Point": {
                "type": "object",
                "properties": {
                    "x": {"type": "number"},
                    "next": {"anyOf": [{"$ref": "#/$defs/Point"}, {"type": "null"}]},
                },
                "required": ["x"],
            }
        },
    },
}
#: Its name begins with the other's; its arguments are as open as they get.
WEATHER_ALL = {
    "type": "function",
    "function": {
        "name": "weather_all",
        "parameters": {
            "type": "object",
            "properties": {"unit": {"enum": ["C", "F"]}, "any": {}, "more": {"type": "object"}},
            "required": ["unit", "any"],
        },
    },
}
STOP = {"name": "stop"}
TOOLS = [WEATHER, WEATHER_ALL, STOP]
#: Names that rows of ``READ`` call, where a format calls no others without a marker.
SCHEMAS = {tool.name: tool.parameters for tool in tools.functions([*TOOLS, {"name": "f"}])}
ROME = ("weather", {"city": "Rome"})
PARIS = ("weather", {"city": "Paris", "days": 2})


# Which format

XML_TOOLS = '{% for t in xml_tools %}{{ t }}{% endfor %}{{ "<tool_call>" }}'
TEMPLATES = [
    (None, "prompted"),
    ("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}", "prompted"),
    ('{% if tools %}{{ tools }}{% endif %}{{ "<tool_call>" }}', "hermes"),
    (XML_TOOLS, "hermes"),
    # "tools" is only a word of the text, a key, an attribute or a comment: it shows none.
    ("{% if m.tools %}the tools: <tool_call>{{ 'tools' }}{# tools #}{% endif %}", "prompted"),
    ("{{ tools }}{{ '<|start_header_id|>ipython<|end_header_id|>' }}", "llama"),
    ("{{ tools }}[TOOL_CALLS] [{{ m.tool_calls }}]", "mistral"),
    ("{{ tools }}{{ '[TOOL_CALLS]' + name + '[ARGS]' + arguments }}", "mistral_args"),
    ("{{ m['tools'] }}<|tool|><|/tool|>", "phi"),
    ("<start_of_turn>model", "gemma"),
    ("{{ tools }}", "prompted"),  # how its calls look is not to be seen
]


@pytest.mark.parametrize(("template", "name"), TEMPLATES)
def test_a_template_tells_its_format(template: str | None, name: str) -> None:
    assert tools.detect(template).name == name


def test_the_golden_templates_tell_their_formats() -> None:
    templates = json.loads(GOLDEN.read_text())["templates"]
    formats = {name: tools.detect(text).name for name, text in templates.items()}
    known = {"llama3": "llama", "mistral": "mistral", "qwen25": "hermes", "qwen3": "hermes", "phi4": "phi"}
    known |= {"gemma": "gemma", "gemma3": "gemma"}
    assert {name: form for name, form in formats.items() if form != "prompted"} == known


def test_details_of_a_template() -> None:
    assert tools.detect(XML_TOOLS).variable == "xml_tools"
    assert tools.detect("{{ tools }}[TOOL_CALLS] [").before == " "
    assert tools.detect("{{ tools }}[TOOL_CALLS][").before == ""
    assert [form.name for form in FORMATS.values() if not form.renders] == ["phi", "gemma", "prompted"]


# Reading calls

R, P = (
    '{"name": "weather", "%s": {"city": "Rome"}}',
    '{"name": "weather", "%s": {"city": "Paris", "days": 2}}',
)
RA, PA, RP, PP = R % "arguments", P % "arguments", R % "parameters", P % "parameters"
BOTH = [ROME, PARIS]
ROME_JSON = '{"city": "Rome"}'
LFM, OLMO = "<|tool_call_start|>[", "<function_calls>\n"
LITERALS = {"a": [1, "b", {"c": None}, [2]], "b": True, "c": -1500.0, "d": {}}
ESCAPED = {"a": "it's\n\U0001f980", "b": True, "c": None}
XML = "<tool_call>\n<function=weather>%s</function>\n</tool_call>"
SEED = "<seed:tool_call>\n<function=weather>\n%s\n</function>\n</seed:tool_call>"
PARIS_TAGS = "<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n</parameter>"
GLM_ROME = "<arg_key>city</arg_key><arg_value>Rome</arg_value>"
GLM_PARIS = (
    "<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key><arg_value>2</arg_value>"
)
MUSE = (
    '<atem:function_calls>\n<atem:invoke name="weather">\n'
    '<atem:parameter name="city">%s</atem:parameter>\n</atem:invoke>\n'
)
MUSE_AGAIN = (
    '<atem:invoke name="weather"><atem:parameter name="city">Paris</atem:parameter>'
    '<atem:parameter name="days">2</atem:parameter></atem:invoke></atem:function_calls>'
)
GEMMA, Q = "<|tool_call>call:", '<|"|>'
BRACES = {"a": ["},"], "b c": {"d": None}, "e": {"f": -1.5}}
HARMONY = "<|channel|>commentary to=functions."
READ: list[tuple[str, str, str, list[tuple[str, dict[str, Any]]]]] = [
    ("hermes", f"<tool_call>\n{RA}\n</tool_call>", "", [ROME]),
    (
        "hermes",
        f"Let me see.\n\n<tool_call>\n{RA}\n</tool_call>\n<tool_call>{PA}</tool_call>\n",
        "Let me see.",
        [ROME, PARIS],
    ),
    ("hermes", f"a <tool_call>{RA}</tool_call> b", "ab", [ROME]),
    ("hermes", f"<tool_call>[{RA}, {PA}]</tool_call>", "", [ROME, PARIS]),
    ("hermes", f"<tool_call>{RA}<tool_call>{PA}", "", [ROME, PARIS]),  # no closing markers
    ("hermes", f"<tool_call>{RA}</tool_ca", "", [ROME]),  # cut off
    ("hermes", '<tool_call>{"name": "stop"}</tool_call>', "", [("stop", {})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("f", {"a": 1})]),
    ("hermes", '<tool_call>{"function": {"name": "f", "arguments": {}}}</tool_call>', "", [("f", {})]),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": "}</tool_call>\\""}}</tool_call>',
        "",
        [("f", {"a": '}</tool_call>"'})],
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": "1\n2"}}</tool_call>',
        "",
        [("f", {"a": "1\n2"})],
    ),
    ("prompted", f"<tool_call>\n{RA}\n</tool_call>", "", [ROME]),
    ("llama", RP, "", [ROME]),
    ("llama", f" <|python_tag|>{RP}", "", [ROME]),
    ("llama", f"{RP}; {PP}", "", [ROME, PARIS]),
    ("llama", f"[{RP}]", "", [ROME]),
    ("llama", '{"type": "function", "name": "weather", "parameters": {"city": "Rome"}}', "", [ROME]),
    ("mistral", f"[TOOL_CALLS] [{RA}, {PA}]", "", [ROME, PARIS]),
    ("mistral", f"[{RA}]", "", [ROME]),  # no marker
    ("mistral", '[TOOL_CALLS]weather[ARGS]{"city": "Rome"}', "", [ROME]),
    (
        "mistral_args",
        '[TOOL_CALLS]weather[CALL_ID]abc[ARGS]{"city": "Rome"}[TOOL_CALLS]stop{}',
        "",
        [ROME, ("stop", {})],
    ),
    ("phi", f"<|tool_call|>[{RA}, {PA}]<|/tool_call|>", "", [ROME, PARIS]),
    ("phi", f"<|tool_call|>{RA}<|/tool_call|>", "", [ROME]),
    ("gemma", f"Yes.\n```tool_code\n{RP}\n```\n```tool_code\n{PP}\n```", "Yes.", [ROME, PARIS]),
    ("gemma", RP, "", [ROME]),
    (
        "lfm",
        f"{LFM}weather(city='Rome'), weather(city=\"Paris\", days=2)]<|tool_call_end|>Now.",
        "Now.",
        BOTH,
    ),
    ("lfm", f"Hm. {LFM}weather(city='Ro\\x6de')]", "Hm.", [ROME]),
    ("lfm", f"{LFM}f(a=[1, 'b', {{'c': None}}, (2,)], b=True, c=-1.5e3, d={{}})]", "", [("f", LITERALS)]),
    ("lfm", f'{LFM}f(a="it\'s\\n\\ud83e\\udd80", b=true, c=null)]', "", [("f", ESCAPED)]),
    ("lfm", f"{LFM}stop()]<|tool_call_e", "", [("stop", {})]),
    ("olmo", f"{OLMO}weather(city='Rome')\nweather(city='Paris', days=2)\n</function_calls>", "", BOTH),
    ("olmo", f"{OLMO}stop()", "", [("stop", {})]),
    ("olmo", f"So: {OLMO}[stop()]</function_calls>", "So:", [("stop", {})]),
    ("xml", XML % "\n<parameter=city>\nRome\n</parameter>\n", "", [ROME]),
    ("xml", XML % "<parameter=city>Rome</parameter>" + "\n" + XML % PARIS_TAGS, "", BOTH),
    (
        "xml",
        XML % "<parameter=city>\n\na <b>\n{\n\n</parameter>",
        "",
        [("weather", {"city": "\na <b>\n{\n"})],
    ),
    ("xml", XML % "<parameter=city>\n12\n</parameter>", "", [("weather", {"city": "12"})]),
    ("xml", XML % '<parameter=at>\n{"x": 1}\n</parameter>', "", [("weather", {"at": {"x": 1}})]),
    ("xml", XML % "<parameter=days>\n2.0\n</parameter>", "", [("weather", {"days": 2})]),
    ("xml", XML % "<parameter=days>\nsome\n</parameter>", "", [("weather", {"days": "some"})]),
    ("xml", XML % "<parameter=other>\nTrue\n</parameter>", "", [("weather", {"other": True})]),
    ("xml", f"{XML % ''}"[:-12], "", [("weather", {})]),  # no closing marker
    ("xml", f"{XML % ''}"[:-24] + "</tool_call>", "", [("weather", {})]),  # no end of the function
    ("seed", SEED % "<parameter=city>Rome</parameter>", "", [ROME]),
    (
        "glm",
        f"Now.<tool_call>weather{GLM_ROME}</tool_call><tool_call>weather{GLM_PARIS}</tool_call>",
        "Now.",
        BOTH,
    ),
    (
        "glm",
        f"<tool_call>weather\n{GLM_ROME}\n</tool_call>\n<tool_call>stop</tool_call>",
        "",
        [ROME, ("stop", {})],
    ),
    ("muse", f"{MUSE % 'Rome'}</atem:function_calls>", "", [ROME]),
    ("muse", MUSE % "Rome" + MUSE_AGAIN, "", BOTH),
    ("gemma4", f"Yes.{GEMMA}weather{{city:{Q}Rome{Q}}}<tool_call|>", "Yes.", [ROME]),
    (
        "gemma4",
        f"{GEMMA}weather{{city:{Q}Rome{Q}}}<tool_call|>{GEMMA}weather{{city:{Q}Paris{Q},days:2}}",
        "",
        BOTH,
    ),
    (
        "gemma4",
        f"{GEMMA}f{{a:[{Q}}},{Q}],{Q}b c{Q}:{{d:null}},e:{{f:-1.5}}}}<tool_call|>",
        "",
        [("f", BRACES)],
    ),
    ("gemma4", f"{GEMMA}weather{{city:Rome}}<tool_call|>", "", [ROME]),
    (
        "function_gemma",
        "<start_function_call>call:weather{city:<escape>Rome<escape>}<end_function_call>",
        "",
        [ROME],
    ),
    ("harmony", f"{HARMONY}weather <|constrain|>json<|message|>{ROME_JSON}<|call|>", "", [ROME]),
    ("harmony", f"{HARMONY}weather<|message|>{ROME_JSON}", "", [ROME]),
    ("harmony", f"{HARMONY}weather json<|message|>{ROME_JSON}", "", [ROME]),
    ("granite", f"<|tool_call|>[{RA}, {PA}]", "", BOTH),
    (
        "cohere",
        f'<|START_ACTION|>[\n{{"tool_call_id": "0", "tool_name": "weather", "parameters": {ROME_JSON}}}\n]',
        "",
        [ROME],
    ),
    (
        "apertus",
        f'<|tools_prefix|>[{{"weather": {ROME_JSON}}}, {{"stop": {{}}}}]<|tools_suffix|>',
        "",
        [ROME, ("stop", {})],
    ),
    ("nemotron", f"<TOOLCALL>[{RA}, {PA}]</TOOLCALL>", "", BOTH),
    ("hunyuan", f"<tool_calls>[{RA}]</tool_calls>", "", [ROME]),
]
#: Text, character for character.
PLAIN = [
    ("hermes", ""),
    ("hermes", " \n"),
    ("hermes", "Hello <tool_cal"),
    ("hermes", "Write <tool_call> around it.  "),
    ("hermes", f"<tool_call>{RA[:-1]}"),  # cut off
    ("hermes", f"a\n<tool_call>{RA[:-2]},}}</tool_call>"),
    ("hermes", '<tool_call>{"name": 3}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>'),
    ("hermes", RA),  # no marker, and this format always has one
    ("llama", '{"name": "Bob", "age": 3}'),
    ("llama", '{"answer": {"name": "weather", "parameters": {}}}'),
    ("llama", "[[ ## answer ## ]]\n{"),
    ("llama", f"As JSON: {RP}"),
    ("llama", '  {"na'),
    ("mistral", "[TOOL_CALLS]what now? {}"),
    ("mistral", "[1, 2]"),
    ("gemma", "```python\nx\n```"),
    ("lfm", f"{LFM}1, 2]"),
    ("lfm", f"{LFM}f(1)]"),
    ("lfm", f"{LFM}f(a=b)]"),
    ("lfm", f"{LFM}f(a=1"),
    ("lfm", f"{LFM}f(a={'[' * 100}"),
    ("olmo", f"{OLMO}what now"),
    ("xml", "<tool_call>\n<function=weather>\n<parameter=city>\nRome"),
    ("xml", f"<tool_call>{RA}</tool_call>"),
    ("glm", "<tool_call>the weather of Rome</tool_call>"),
    ("gemma4", f"{GEMMA}weather(city:1)"),
    ("gemma4", f"{GEMMA}weather{{city:{Q}Rome}}"),
    ("harmony", f"{HARMONY}weather what?<|message|>{ROME_JSON}"),
    ("cohere", '<|START_ACTION|>["weather"]'),
    ("apertus", "<|tools_prefix|>[]<|tools_suffix|>"),
]


def pairs(calls: list[Call]) -> list[tuple[str, dict[str, Any]]]:
    return [(call.name, call.arguments) for call in calls]


@pytest.mark.parametrize(("name", "text", "rest", "calls"), READ)
def test_calls_are_read(name: str, text: str, rest: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    got = tools.parse(FORMATS[name], text, SCHEMAS)
    assert (got[0], pairs(got[1])) == (rest, calls)


@pytest.mark.parametrize(("name", "text"), PLAIN)
def test_what_is_no_call_stays_text(name: str, text: str) -> None:
    assert tools.parse(FORMATS[name], text) == (text, [])


def test_a_name_that_is_no_tool_makes_no_call_where_there_is_no_marker() -> None:
    bob = '{"name": "Bob", "parameters": {}}'
    assert tools.parse(FORMATS["llama"], bob, names={"weather"}) == (bob, [])
    assert pairs(tools.parse(FORMATS["llama"], RP, names={"weather"})[1]) == [ROME]


def test_ids_follow_from_the_place() -> None:
    text = f"<tool_call>{RA}</tool_call><tool_call>{PA}</tool_call>"
    assert [call.id for call in tools.parse(FORMATS["hermes"], text)[1]] == ["call_0", "call_1"]
    assert [call.id for call in tools.parse(FORMATS["hermes"], text, first=3)[1]] == ["call_3", "call_4"]
    (call,) = tools.parse(FORMATS["mistral"], f"[TOOL_CALLS][{RA}]")[1]
    assert (call.id, call.index, call.arguments_json) == ("call00000", 0, '{"city": "Rome"}')


def pieces(text: str, rng: random.Random) -> list[str]:
    size = rng.choice((1, 2, 5, 30))
    result = []
    while text:
        cut = rng.randint(1, size)
        result.append(text[:cut])
        text = text[cut:]
    return result


def streamed(name: str, chunks: list[str], names: Any) -> tuple[str, list[Call]]:
    splitter = tools.Splitter(FORMATS[name], names)
    events = [event for chunk in chunks for event in splitter.push(chunk)] + splitter.finish()
    return "".join(e for e in events if isinstance(e, str)), [e for e in events if isinstance(e, Call)]


FRAGMENTS = [
    RA,
    PA,
    RP,
    "{",
    "}",
    "[",
    "]",
    " ",
    "\n",
    "; ",
    '"',
    "\\",
    '{"name": "f"',
    '"arguments"',
    "x",
    "[[ ##",
    "é",
]
FRAGMENTS += [
    "[ARGS]",
    "[CALL_ID]",
    "weather",
    "weather[ARGS]{}",
    "weather",
    "(",
    ")",
    "=",
    ":",
    ",",
    "stop",
    "stop()",
    "call:stop{}",
    ">",
    "<",
    '{"name": "f", "arguments": {}}',
    "</tool",
    "```",
]


@pytest.mark.parametrize("name", FORMATS)
def test_pieces_make_no_difference(name: str) -> None:
    form = FORMATS[name]
    rng = random.Random(name)
    marks = [*form.literals] * 2 + [form.open] * 3
    whole = [writing.written(form, calls) for calls in ([ROME], [PARIS], [ROME, ("stop", {})])]
    parts = [
        text[at:end] for text in whole for at in range(0, len(text), 7) for end in (at + 7, at + 21, at + 99)
    ]
    marks += [*whole, *rng.sample(parts, 12)]
    texts = [text for which, text, *_ in READ if which == name] + [
        text for which, text in PLAIN if which == name
    ]
    texts += ["".join(rng.choices(FRAGMENTS + marks, k=rng.randint(1, 12))) for _ in range(1500)]
    found = 0
    for text in texts:
        names = rng.choice((None, {"weather"}, SCHEMAS))
        whole = tools.parse(form, text, names)
        found += len(whole[1])
        assert streamed(name, pieces(text, rng), names) == whole, text
        assert whole[1] or whole[0] == text
    assert found > 50


def test_text_is_shown_at_once_and_a_call_when_it_closes() -> None:
    splitter = tools.Splitter(FORMATS["hermes"])
    assert splitter.push("One moment") == ["One moment"]
    assert splitter.push(". <") == ["."]
    assert splitter.push("b> \n<tool_") == [" <b>"]
    assert splitter.push(f"call>\n{RA}\n</tool") == []
    assert splitter.push("_call>") == [Call("call_0", *ROME)]
    assert splitter.finish() == []


def test_a_long_call_in_small_pieces_is_read_once() -> None:
    text = f'<tool_call>{{"name": "f", "arguments": {{"a": "{"x" * 200_000}"}}}}</tool_call>'
    splitter = tools.Splitter(FORMATS["hermes"])
    events = [event for at in range(0, len(text), 50) for event in splitter.push(text[at : at + 50])]
    assert [len(event.arguments["a"]) for event in events if isinstance(event, Call)] == [200_000]


# Showing tools


def conversation() -> list[dict[str, Any]]:
    calls = [
        {"id": "call_0", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}},
        {"id": "call_1", "type": "function", "function": {"name": "stop", "arguments": {}}},
    ]
    return [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_0", "content": "21"},
        {"role": "tool", "tool_call_id": "call_1", "content": "ok"},
    ]


@pytest.mark.parametrize("name", ["prompted", "gemma", "phi"])
def test_a_template_without_tools_gets_them_as_text(name: str) -> None:
    form = FORMATS[name]
    given = conversation()
    turns, arguments = tools.prepare(form, given, TOOLS)
    assert given == conversation() and arguments == {}
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
    assert not any("tool_calls" in turn for turn in turns)
    shown = turns[0]["content"] + turns[0].get("tools", "")
    assert all(f'"name": "{tool}"' in shown for tool in ("weather", "weather_all", "stop"))
    assert turns[3]["content"].count("<tool_response>") == 2
    assert pairs(tools.parse(form, turns[2]["content"])[1]) == [ROME, ("stop", {})]  # in its own words
    assert tools.prepare(form, given, [])[0][0] == given[0]


def test_the_system_message_keeps_its_own_text() -> None:
    system = {"role": "system", "content": "Be brief."}
    (turn, _), _ = tools.prepare(FORMATS["prompted"], [system, {"role": "user", "content": "x"}], [STOP])
    assert turn["content"].startswith("Be brief.\n\nYou can call functions.") and '"stop"' in turn["content"]


def test_a_template_with_tools_gets_them_in_openais_shape() -> None:
    turns, arguments = tools.prepare(tools.detect(XML_TOOLS), conversation(), TOOLS)
    assert turns == conversation()
    assert [tool["type"] for tool in arguments["xml_tools"]] == ["function"] * 3
    assert [tool["function"]["name"] for tool in arguments["xml_tools"]] == ["weather", "weather_all", "stop"]


def test_llama_gets_one_call_a_turn() -> None:
    turns, _ = tools.prepare(FORMATS["llama"], conversation(), TOOLS)
    assert [turn["role"] for turn in turns] == ["user", "assistant", "tool", "assistant", "tool"]
    assert [call["id"] for turn in turns for call in turn.get("tool_calls", [])] == ["call_0", "call_1"]
    assert [turn["tool_call_id"] for turn in turns if turn["role"] == "tool"] == ["call_0", "call_1"]


def test_mistral_gets_ids_of_nine_characters() -> None:
    turns, _ = tools.prepare(FORMATS["mistral"], conversation(), TOOLS)
    written = [call["id"] for call in turns[1]["tool_calls"]]
    assert written == [turn["tool_call_id"] for turn in turns[2:]]
    assert all(len(name) == 9 and name.isalnum() for name in written) and len(set(written)) == 2


# Lists of tools


class Tool:
    name, description, parameters = "f", None, {"type": "object", "properties": {"a": {"type": "string"}}}


def test_spellings_of_a_tool() -> None:
    plain = {"name": "f", "parameters": Tool.parameters}
    spelt = [tools.functions([tool])[0] for tool in (Tool(), plain, {"type": "function", "function": plain})]
    assert spelt[0] == spelt[1] == spelt[2]
    assert tools.functions(spelt[:1])[0].openai() == {"type": "function", "function": plain}


BAD_TOOLS = [
    ({"name": "f"}, "tools must be a list"),
    ([{"description": "x"}], r"tools\[0\] has no name"),
    ([STOP, {"name": "a b"}], r"tools\[1\] is named 'a b'"),
    ([STOP, WEATHER, STOP], r"tools\[2\] is named 'stop' as tools\[0\]"),
    ([STOP, {"name": "f", "parameters": "x"}], r"tools\[1\] \(f\) has parameters that are no JSON schema"),
    ([{"name": "f", "parameters": {"type": "string"}}], "arguments are always an 'object'"),
    ([{"name": "f", "parameters": {"properties": {"a": 1}}}], r"parameters\['properties'\]"),
    ([{"name": "f", "description": 3}], "description"),
    ([{"function": 3}], r"tools\[0\]\['function'\]"),
]


@pytest.mark.parametrize(("given", "message"), BAD_TOOLS)
def test_bad_tools_are_named(given: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        tools.call_grammar(FORMATS["hermes"], given)


@pytest.mark.parametrize(
    ("given", "choice", "message"),
    [
        (TOOLS, "maybe", "'auto', 'required', 'none'"),
        (TOOLS, ["f"], "names 'f'"),
        (TOOLS, [], "no tool"),
        ([], "required", "no tool"),
    ],
)
def test_bad_choices_are_named(given: Any, choice: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        tools.call_grammar(FORMATS["hermes"], given, choice)


FIFTEEN = 10**15 - 1
BOUNDED = [
    ({"type": "string"}, {"type": "string"}),
    ({"type": "integer"}, {"type": "integer", "minimum": -FIFTEEN, "maximum": FIFTEEN}),
    (
        {"type": "integer", "exclusiveMinimum": 0, "maximum": 5},
        {"type": "integer", "exclusiveMinimum": 0, "maximum": 5},
    ),
    ({"type": "integer", "minimum": 10**20}, {"type": "integer", "minimum": 10**20, "maximum": 10**20}),
    ({"enum": [1, 2]}, {"enum": [1, 2]}),
    ({"properties": {}}, {"properties": {}, "additionalProperties": False}),
    (
        {"type": "object", "additionalProperties": {"type": "string"}},
        {"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 16},
    ),
    ({"type": "array", "items": {"type": "boolean"}}, {"type": "array", "items": {"type": "boolean"}}),
]


@pytest.mark.parametrize(("schema", "result"), BOUNDED)
def test_open_ends_get_a_limit(schema: Any, result: Any) -> None:
    assert bounded(schema) == result
