"""Grammars for DSPy's stock adapters: that their prompts are recognised, and what is written for them.

That answers under these grammars parse is seen in ``test_never_fails``; here is what needs no model.
"""

# Both spellings of a union are types of their own.
# ruff: noqa: UP045

from __future__ import annotations

import datetime
import decimal
import enum
import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal, Optional

import pydantic
import pytest

from conftest import needed

dspy = needed("dspy")
from dspy import lm15  # noqa: E402
from dspy.adapters.baml_adapter import BAMLAdapter  # noqa: E402

import signatures  # noqa: E402
from tallow.dspy import formats  # noqa: E402
from tallow.dspy.formats import chat, xml  # noqa: E402
from tallow.dspy.formats.types import from_signature  # noqa: E402
from tallow.schemas import patterns  # noqa: E402
from tallow.schemas.bounded import STYLE, Bounded  # noqa: E402

ADAPTERS = {
    "chat": dspy.ChatAdapter(),
    "json": dspy.JSONAdapter(),
    "xml": dspy.XMLAdapter(),
    "baml": BAMLAdapter(),
}


class Color(enum.Enum):
    RED = "light red"
    BLUE = "blue"


class Level(enum.Enum):
    LOW = 1
    HIGH = 2


class Pet(pydantic.BaseModel):
    name: str = pydantic.Field(min_length=2, max_length=9)
    tags: list[str]


class Node(pydantic.BaseModel):
    value: int
    next: Optional[Node] = None


class Small(dspy.Signature):
    """Answer."""

    question: str = dspy.InputField()
    n: int = dspy.OutputField(ge=0, le=9)
    label: Literal["pos", 'say "hi"', 3] = dspy.OutputField()


def prompt(adapter, signature, *, config=None, history=(), **inputs):
    """The request that an adapter makes of a signature, as the engine gets it."""
    system, *turns = adapter.format(signature, [], inputs or {"question": "?"})
    made = [lm15.Message.user(turn["content"]) for turn in [*history, *turns]]
    return lm15.Request(
        model="m", system=system["content"], messages=tuple(made), config=lm15.Config(**config or {})
    )


def signature(annotation: Any, **rules: Any) -> Any:
    return dspy.Signature(
        {"question": (str, dspy.InputField()), "value": (annotation, dspy.OutputField(**rules))}
    )


def found(kind: str, made: Any) -> Any:
    return formats.find(prompt(ADAPTERS[kind], made), made)


# What is written

STYLED = '"x-guidance": ' + json.dumps(STYLE)
DIGIT = '%json {"type": "integer", "minimum": 0, "maximum": 9, ' + STYLED + "}"
SMALL = {
    "chat": f"""\
start: "[[ ## n ## ]]\\n" field-0 field-1
field-0: field-0-json "\\n\\n[[ ## label ## ]]\\n"
field-0-json: {DIGIT}
field-1: ("pos" | "say \\"hi\\"" | "3") "\\n\\n[[ ## completed ## ]]"
""",
    "xml": f"""\
start: "<n>\\n" field-0 "</n>" "\\n\\n<label>\\n" field-1 "</label>"
field-0-json: {DIGIT}
field-0: field-0-json "\\n"
field-1: ("pos" | "say \\"hi\\"" | "3") "\\n"
""",
}


@pytest.mark.parametrize("kind", SMALL)
def test_the_whole_grammar(kind):
    assert found(kind, Small) == formats.Format(kind, {"grammar": SMALL[kind]})


@pytest.mark.parametrize("kind", ["json", "baml"])
def test_the_whole_schema(kind):
    properties = {
        "n": {"type": "integer", "minimum": 0, "maximum": 9},
        "label": {"enum": ["pos", 'say "hi"', 3]},
    }
    schema = {"type": "object", "properties": properties, "required": ["n", "label"]}
    made = found(kind, Small)
    assert made.name == kind and made.why is None
    assert made.constraint == {"json_schema": {**schema, "additionalProperties": False, "x-guidance": STYLE}}
    assert list(made.constraint["json_schema"]["properties"]) == ["n", "label"]


def test_a_text_ends_where_the_next_header_begins():
    made = dspy.Signature("question -> answer, reason: str")
    grammar = found("chat", made).constraint["grammar"]
    assert "field-0[lazy]: FIELD_0" in grammar
    assert r"FIELD_0: TEXT /\n{1,3}\[\[ \#\# reason \#\# \]\]\n/" in grammar
    assert r"FIELD_1: TEXT /\n{1,3}\[\[ \#\# completed \#\# \]\]/" in grammar


def test_xml_nests_models_and_writes_the_rest_as_json():
    grammar = found("xml", signature(Optional[Pet])).constraint["grammar"]
    for part in ('"<name>"', '"</tags>"', '"<item>"', "/(?s:.{2,9})/", '| ""'):
        assert part in grammar
    assert "%json" in found("xml", signature(dict[str, Pet])).constraint["grammar"]


# Types and constraints, as the JSON schema of the only field

SCHEMAS: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
    (str, {}, {"type": "string", "minLength": 1}),
    (str, {"max_length": 5}, {"type": "string", "minLength": 1, "maxLength": 5}),
    (str, {"pattern": r"^\d+$"}, {"type": "string", "minLength": 1, "pattern": "^[0-9]+$"}),
    (int, {}, {"type": "integer", "minimum": -999_999_999_999_999, "maximum": 999_999_999_999_999}),
    (
        int,
        {"gt": 3, "multiple_of": 4},
        {"exclusiveMinimum": 3, "maximum": 999_999_999_999_999, "multipleOf": 4},
    ),
    (float, {"ge": 0, "lt": 1}, {"minimum": 0, "maximum": 0.999999999, "multipleOf": 1e-9}),
    (bool, {}, {"enum": [True, False]}),
    (
        Optional[int],
        {"ge": 1, "le": 2},
        {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 2}, {"type": "null"}]},
    ),
    (Color, {}, {"enum": ["light red", "blue"]}),
    (Level, {}, {"enum": [1, 2]}),
    (Literal["a", 1, None], {}, {"enum": ["a", 1, None]}),
    (
        list[bool],
        {"min_length": 1, "max_length": 2},
        {"type": "array", "items": {"type": "boolean"}, "minItems": 1},
    ),
    (
        tuple[bool, None],
        {},
        {"prefixItems": [{"type": "boolean"}, {"type": "null"}], "minItems": 2, "items": False},
    ),
    (
        dict[int, bool],
        {},
        {"patternProperties": {patterns.INTEGER_KEY: {"type": "boolean"}}, "maxProperties": 8},
    ),
    (dict[Literal["x", "y"], bool], {"min_length": 1}, {"required": ["x"], "additionalProperties": False}),
    (
        Annotated[decimal.Decimal, pydantic.Field(max_digits=4, decimal_places=2)],
        {},
        {"maximum": 99, "multipleOf": 0.01},
    ),
    (datetime.date, {}, {"type": "string", "pattern": f"^(?:{patterns.FORMATS['date']})$"}),
]


@pytest.mark.parametrize(("annotation", "rules", "expected"), SCHEMAS, ids=lambda one: str(one)[:40])
def test_types_and_constraints(annotation, rules, expected):
    schema = found("json", signature(annotation, **rules)).constraint["json_schema"]["properties"]["value"]
    assert {name: schema.get(name) for name in expected} == expected


def test_properties_are_all_written_in_declared_order():
    schema = found("json", signature(Node)).constraint["json_schema"]
    node = schema["$defs"]["Node"]
    assert list(node["properties"]) == node["required"] == ["value", "next"]
    assert node["properties"]["next"] == {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}


def test_an_open_dict_has_an_end():
    schema = found("json", signature(dict[str, Any])).constraint["json_schema"]
    seen = schema["properties"]["value"]
    for depth in (1, 0):
        assert seen["maxProperties"] == 8
        (inner,) = seen["patternProperties"].values()
        assert inner == {"$ref": f"#/$defs/any-{depth}"}
        seen = next(
            (one for one in schema["$defs"][f"any-{depth}"]["anyOf"] if one["type"] == "object"), None
        )
    assert seen is None


def test_two_models_of_one_name_stay_two():
    other = pydantic.create_model("Pet", age=(int, ...))
    made = dspy.Signature(
        {
            "q": (str, dspy.InputField()),
            "a": (list[Pet], dspy.OutputField()),
            "b": (list[other], dspy.OutputField()),
        }
    )
    schema = formats.find(prompt(ADAPTERS["json"], made, q="?"), made).constraint["json_schema"]
    names = [one["items"]["$ref"].rsplit("/", 1)[-1] for one in schema["properties"].values()]
    assert [list(schema["$defs"][name]["properties"]) for name in names] == [["name", "tags"], ["age"]]


NOTED = [
    (Annotated[list[Annotated[str, pydantic.AfterValidator(str.upper)]], None], {}, "validator"),
    (str, {"pattern": r"\bword\b"}, "pattern"),
    (Annotated[set[int], pydantic.Field(min_length=2)], {}, "set"),
]


@pytest.mark.parametrize(("annotation", "rules", "word"), NOTED, ids=lambda one: str(one)[:30])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_what_cannot_be_enforced_is_said(kind, annotation, rules, word):
    made = found(kind, signature(annotation, **rules))
    assert made.constraint and word in " ".join(made.notes)


# Members

SPELLED = [
    (Literal["a", " b ", "", 'x "y"', "1", 2, True, None], ["a", '" b "', '""', 'x "y"', "1", "2", "None"]),
    (Literal["a\nb", "[[ ## x ## ]]", "\u2028"], ["a\nb", '"[[ ## x ## ]]"', "'\"\\u2028\"'"]),
    (Color, ["light red", "blue"]),
    (Level, ["LOW", "HIGH"]),
    (bool, ["True", "False"]),
]


@pytest.mark.parametrize("annotation", [one for one, _ in SPELLED], ids=str)
def test_members_read_back(annotation):
    made = signature(annotation)
    field = from_signature("value", made.output_fields["value"])
    for text in field.texts(chat.read):
        answer = f"[[ ## value ## ]]\n{text}\n\n[[ ## completed ## ]]"
        value = ADAPTERS["chat"].parse(made, answer)["value"]
        assert value in field.members
    for value in field.constants():
        assert ADAPTERS["json"].parse(made, json.dumps({"value": value}))["value"] in field.members


@pytest.mark.parametrize(("annotation", "expected"), [SPELLED[0], *SPELLED[2:]], ids=str)
def test_spellings(annotation, expected):
    field = from_signature("value", signature(annotation).output_fields["value"])
    spelled = field.texts(chat.read)
    assert [text for text in expected if text in spelled] == expected


# Texts (the grammar's regexes are also Python's, but for the flags)

CHAT_TEXTS = {
    "yes": [
        "a",
        "a\nb",
        "a\n\n\nb",
        "[x]",
        "[[",
        "[[ #",
        "[[x]]",
        "a [[ ## b ## ]]",
        "日本",
        "x = 1\n    y",
        "[[ #x",
        "a ",
    ],
    "no": [
        "",
        " a",
        "\na",
        "[[ ## b ## ]]",
        "a\n[[ ## b ## ]]",
        "a\n \u3000[[ ## b ## ]]",
        "a\n\n\n\nb",
        "a\n",
        "a\rb",
        "a\u2028b",
        "[[ ##",
    ],
}
XML_TEXTS = {
    "yes": ["a", "a\nb\n", "a > b", "&lt;b&gt; &amp;", "]]", "a]] >", "]", "]x]", "a]\n>"],
    "no": ["", " a", "<b>", "a & b", "&nbsp;", "]]>", "a]>", "a\x00", "a\ufffe"],
}


@pytest.mark.parametrize(
    ("pattern", "texts"), [(chat.TEXT, CHAT_TEXTS), (xml.TEXT, XML_TEXTS)], ids=["chat", "xml"]
)
def test_texts(pattern, texts):
    assert [text for text in texts["yes"] if not re.fullmatch(pattern, text)] == []
    assert [text for text in texts["no"] if re.fullmatch(pattern, text)] == []


PATTERNS = [
    ("cat|^dog$", ["cat", "a cat", "dog"], ["dogs", "ca"]),
    (r"^[a-z]+\d{2}", ["ab12", "ab12x"], ["12", "ab1"]),
    (r"a\|b", ["xa|b"], ["a", "b"]),
    (r"[|)]$", ["x|", ")"], ["x"]),
    (r"(a|b)c", ["xbc"], ["ab"]),
]


@pytest.mark.parametrize(("pattern", "matches", "others"), PATTERNS)
def test_a_searched_pattern_as_a_whole(pattern, matches, others):
    whole = patterns.whole(pattern)
    for text in [*matches, *others]:
        assert bool(re.fullmatch(whole, text)) == bool(re.search(pattern, text)) == (text in matches)


@pytest.mark.parametrize(
    "pattern", [r"(?=a)b", r"(?<!a)b", r"\bx", r"(a)\1", "(?P=a)", "a(^b)", "a++", "(?x) a"]
)
def test_patterns_that_no_grammar_knows(pattern):
    with pytest.raises(ValueError, match=r"grammar|anchor"):
        patterns.checked(pattern)


@pytest.mark.parametrize("name", ["date", "date-time", "time", "duration", "uuid", "ipv4", "uri"])
def test_formats_are_anchored_by_parts(name):
    """Each format is a regex that Python compiles and that the empty text does not match."""
    assert not re.fullmatch(patterns.FORMATS[name], "")


# Which prompt it is


def test_an_earlier_reminder_does_not_count():
    old = ADAPTERS["chat"].user_message_output_requirements(dspy.Signature("q -> other: int"))
    made = dspy.Signature("question -> flag: bool")
    request = prompt(ADAPTERS["chat"], made, question=f"Why? {old}", history=[{"content": old}])
    assert '"[[ ## flag ## ]]\\n"' in formats.find(request, made).constraint["grammar"]


def test_fields_that_an_adapter_took_away():
    """With native features DSPy renders a Signature without some of its output fields."""
    made = dspy.Signature("question -> reasoning, n: int, flag: bool")
    shown = made.delete("n")
    grammar = formats.find(prompt(ADAPTERS["chat"], shown), made).constraint["grammar"]
    assert "flag" in grammar and "## n ##" not in grammar


@pytest.mark.parametrize("kind", ["chat", "json", "xml"])
@pytest.mark.parametrize(
    "caller", [None, dspy.Signature("question -> n: str, label: str"), dspy.Signature("a -> b")]
)
def test_without_the_signature_the_prompt_says_it(kind, caller):
    """The caller's Signature may be another: a ``signature=`` for one call."""
    made = dspy.Signature("question -> n: int, label: Literal['x', 'y'], flag: bool, score: float")
    here, elsewhere = (formats.find(prompt(ADAPTERS[kind], made), one) for one in (made, caller))
    assert here.constraint == elsewhere.constraint != {}


@pytest.mark.parametrize("kind", ["chat", "json"])
def test_types_that_only_the_notes_describe(kind):
    made = dspy.Signature(
        {
            "question": (str, dspy.InputField()),
            "pet": (Pet, dspy.OutputField()),
            "c": (Color, dspy.OutputField()),
        }
    )
    constraint = formats.find(prompt(ADAPTERS[kind], made), None).constraint
    text = json.dumps(constraint)
    assert "maxLength" in text and "light red" in text


@pytest.mark.parametrize("annotation", [dict[int, list], list[dict[float, Pet]], int | str, dict[str, Pet]])
@pytest.mark.parametrize("kind", ["chat", "json"])
def test_what_a_prompts_schema_leaves_out(kind, annotation):
    """Keys that are numbers; and that DSPy reads the text of ``int | str`` once more, as JSON."""
    made = dspy.Signature({"question": (str, dspy.InputField()), "value": (annotation, dspy.OutputField())})
    here, elsewhere = (formats.find(prompt(ADAPTERS[kind], made), one) for one in (made, None))
    assert here.constraint == elsewhere.constraint != {}


@pytest.mark.parametrize(
    "annotation",
    [
        *(list[str], list[list[int]], dict[str, float], Optional[bool], list[Literal["a", "it's"]]),
        *(dict[str, list[Optional[int]]],),
    ],
)
def test_elements_whose_types_only_the_list_of_fields_names(annotation):
    """XMLAdapter shows these as elements without types."""
    made = dspy.Signature({"question": (str, dspy.InputField()), "value": (annotation, dspy.OutputField())})
    here, elsewhere = (formats.find(prompt(ADAPTERS["xml"], made), one) for one in (made, None))
    assert here.constraint == elsewhere.constraint != {}


@pytest.mark.parametrize("annotation", [Pet, list[Pet], dict[str, Optional[Pet]]])
def test_elements_of_a_class_run_free_without_the_signature(annotation):
    made = dspy.Signature({"question": (str, dspy.InputField()), "value": (annotation, dspy.OutputField())})
    assert not formats.find(prompt(ADAPTERS["xml"], made), None).constraint


def test_what_the_notes_do_not_tell_runs_free():
    made = signature(Level)  # the prompt lists 1 and 2, and DSPy reads LOW and HIGH
    free = formats.find(prompt(ADAPTERS["chat"], made), None)
    assert free.constraint == {} and "Enum" in free.why
    wanted = {
        "type": "json_schema",
        "schema": {"type": "object", "properties": {"value": {"type": "boolean"}}},
    }
    asked = formats.find(prompt(ADAPTERS["baml"], made, config={"response_format": wanted}), None)
    assert asked.name == "json_schema" and asked.constraint["json_schema"]["required"] == ["value"]


def request(text, **fields):
    return lm15.Request(model="m", messages=(lm15.Message.user(text),), **fields)


CHAT = "Respond with the corresponding output fields, starting with the field "
END = ", and then ending with the marker for `[[ ## completed ## ]]`."
ODD = [
    ("hello", "none"),
    (CHAT, "none"),
    (CHAT + "`[[ ## a ## ]]` (must be formatted as a valid Python Widget)" + END, "chat"),
    (CHAT + "`[[ ## a ## ]]` (must be formatted as a valid Python Literal[)" + END, "chat"),
    (CHAT + END, "chat"),
    ("Respond with a JSON object in the following order of fields: nothing.", "json"),
    ("Respond with the corresponding output fields wrapped in XML tags", "none"),
    ("Respond with the corresponding output fields wrapped in XML tags `<a>`.", "xml"),
]


@pytest.mark.parametrize(("text", "name"), ODD)
@pytest.mark.parametrize("caller", [None, Small])
def test_odd_prompts_run_free(text, name, caller):
    made = formats.find(request(text), caller)
    assert (made.name, made.constraint) == (name, {}) and made.why


@pytest.mark.parametrize("text", [CHAT + END, ODD[5][0]])
def test_a_prompt_without_fields_says_so(text):
    """As where a native call of a tool is the one output."""
    assert formats.find(request(text), None).why == "the prompt names no output fields"


def test_own_response_formats():
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 1, "maximum": 2}},
        "$comment": "x",
    }
    config = lm15.Config(response_format={"type": "json_schema", "schema": schema})
    given = formats.find(request("hello", config=config), None)
    assert given.name == "json_schema"
    assert given.constraint["json_schema"]["properties"] == schema["properties"]
    anything = formats.find(
        request("hello", config=lm15.Config(response_format={"type": "json_object"})), None
    )
    assert anything.name == "json_object" and anything.constraint["json_schema"]["type"] == "object"


def test_the_callers_signature():
    seen = []

    class Engine:
        supported_params = frozenset()

        def complete(self, request):
            seen.append(formats.caller_signature())
            text = "[[ ## reasoning ## ]]\nx\n\n[[ ## answer ## ]]\ny"
            return lm15.Response(
                id=None, model="m", message=lm15.Message.assistant((lm15.TextPart(text),)),
                finish_reason="stop", usage=lm15.Usage(input_tokens=1, output_tokens=1),
            )  # fmt: skip

    lm = dspy.LM("own/m", engine=Engine(), cache=False)
    with dspy.context(lm=lm):
        dspy.ChainOfThought("question -> answer")(question="?")
        lm("hello")
    assert list(seen[0].output_fields) == ["reasoning", "answer"] and seen[1] is None


# As a function


@pytest.mark.parametrize("kind", ADAPTERS)
def test_every_signature_has_a_grammar(kind):
    """And the same one each time it is made, since grammars are known by their text."""
    for seed in range(60):
        made = signatures.make(seed)
        try:
            asked = prompt(ADAPTERS[kind], made)
        except Exception:  # BAMLAdapter refuses recursive models
            continue
        first = formats.find(asked, made)
        assert first.name == kind and first.constraint, (seed, first.why)
        formats._CACHE._found.clear()
        assert json.dumps(formats.find(asked, made).constraint) == json.dumps(first.constraint)


def test_threads_share_what_is_found():
    asked = prompt(ADAPTERS["chat"], Small)
    twin = dspy.Signature(dict(Small.fields.items()), "Other words.")  # as optimizers make them
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda at: formats.find(asked, (Small, twin)[at % 2]), range(64)))
    assert all(one == made[0] for one in made)
    assert formats.find(asked, Small) is formats.find(asked, twin)


def test_the_cache_is_bounded():
    cache = formats._Cache(3)
    assert [cache.get(at % 5, lambda at=at: at) for at in range(10)] == list(range(10))
    assert len(cache._found) == 3 and cache.get(9 % 5, lambda: "new") == 9


def test_a_schema_is_not_changed():
    schema = {"type": "object", "properties": {"a": {"type": ["integer", "null"]}}, "title": "T"}
    before = json.dumps(schema)
    assert Bounded()(schema)["required"] == ["a"]
    assert json.dumps(schema) == before
