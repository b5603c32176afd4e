"""What a request may hold: each field is used, changes nothing, or is refused by name. Needs no model."""

from __future__ import annotations

import json

import pytest

from conftest import needed

needed("starlette")
needed("msgspec")

from tallow.serve import chat, completions, errors, generation, wire  # noqa: E402

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def read(body, shape=chat.ChatRequest, **options):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return wire.read(data, shape, **options)


def refusal(body, shape=chat.ChatRequest):
    with pytest.raises(errors.Refused) as error:
        read(body, shape)
    assert error.value.status == 400
    return error.value


#: A body that is no request, and what its message says.
UNREADABLE = [
    (b"", "not JSON"),
    (b"{", "not JSON"),
    (b"\xff\xfe{}", "not JSON"),
    (b'{"messages": "\xff"}', "not JSON"),
    (b"[" * 10_000 + b"]" * 10_000, "too many levels"),
    (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "too many levels"),
    (b"[1]", "a JSON list"),
    (b"null", "a JSON null"),
    (b'"x"', "a JSON string"),
    (b"3", "a JSON number"),
    (b'{"temperature": NaN}', "not JSON"),
    (b'{"temperature": 1e999}', "not JSON"),
    (b'{"messages": "\\ud800"}', "not JSON"),
    (b'{"a": 1} x', "not JSON"),
]


@pytest.mark.parametrize(("body", "says"), UNREADABLE, ids=range(len(UNREADABLE)))
def test_a_body_that_is_no_request(body, says):
    assert says in str(refusal(body))


#: A field that is wrong, what its message says, and ``param``.
WRONG = [
    ({"max_token": 5}, "did you mean 'max_tokens'?", "max_token"),
    ({"n_predict": 5}, "did you mean 'max_tokens'?", "n_predict"),
    ({"prompt": "hi"}, "did you mean 'messages'?", "prompt"),
    ({"echo": True}, "to /completions", "echo"),
    ({"mirostat": 2}, "there are temperature", "mirostat"),
    ({"temprature": 1}, "did you mean 'temperature'?", "temprature"),
    ({"zzzz": 1}, "there are ", "zzzz"),
    ({"temperature": "hot"}, "temperature: expected float, got str", "temperature"),
    ({"messages": "hi"}, "messages: expected array, got str", "messages"),
    ({"messages": [1]}, "messages[0]: expected object, got int", "messages"),
    ({"max_tokens": 1.5}, "max_tokens: ", "max_tokens"),
    ({"stream": "yes"}, "stream: expected bool, got str", "stream"),
    ({"stream_options": {"usage": True}}, "unknown field usage", "stream_options"),
    ({"stream_options": {"continuous_usage_stats": True}}, "is not supported", "stream_options"),
    ({"store": True}, "nothing is kept here", "store"),
    ({"modalities": ["audio"]}, "answers are text", "modalities"),
    ({"functions": [{}]}, "as tools", "functions"),
    ({"min_tokens": False}, "not supported", "min_tokens"),
]


@pytest.mark.parametrize(("more", "says", "param"), WRONG, ids=lambda _: "")
def test_what_is_wrong_is_named(more, says, param):
    refused = refusal({**CHAT, **more})
    assert says in str(refused) and refused.param == param


def test_what_asks_for_nothing_is_taken():
    fields = wire.fields(chat.ChatRequest)
    assert read(CHAT | dict.fromkeys(fields - {"messages"})) == read(CHAT)
    harmless = {name: values[0] for name, (values, _) in wire.REFUSED.items() if values}
    assert read(CHAT | harmless | dict.fromkeys(wire.NOTHING, "x")) == read(CHAT)


def test_what_is_unknown_may_be_left_out():
    assert read(CHAT | {"zzzz": 1}, allow_unknown=True) == read(CHAT)


def test_no_field_is_both_used_and_refused():
    """Where it is a field of another route alone, that route is named."""
    for shape in (chat.ChatRequest, completions.CompletionRequest):
        assert wire.fields(shape) & (wire.NOTHING | set(wire.REFUSED)) <= {"echo"}
    assert "/completions" in wire.REFUSED["echo"][1]


# Forms

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
HELD = {"json_schema": SCHEMA}
#: Every way to ask for a form, and what of ``Model.generate`` it is.
FORMS = [
    ({"response_format": {"type": "text"}}, {}),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}}, HELD),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": True}}},
        HELD,
    ),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, HELD),
    ({"response_format": {"type": "json_object"}}, {"json_schema": generation.any_object()}),
    ({"structured_outputs": {"json_object": True}}, {"json_schema": generation.any_object()}),
    ({"json_schema": SCHEMA}, HELD),
    ({"guided_json": SCHEMA}, HELD),
    ({"guided_json": json.dumps(SCHEMA)}, HELD),
    ({"structured_outputs": {"json": SCHEMA}}, HELD),
    ({"regex": "a+"}, {"regex": "a+"}),
    ({"guided_regex": "a+"}, {"regex": "a+"}),
    ({"structured_outputs": {"regex": "a+"}}, {"regex": "a+"}),
    ({"grammar": "start: A"}, {"grammar": "start: A"}),
    ({"guided_grammar": "start: A"}, {"grammar": "start: A"}),
    ({"structured_outputs": {"grammar": "start: A"}}, {"grammar": "start: A"}),
    ({"choices": ["a", "b"]}, {"choices": ["a", "b"]}),
    ({"guided_choice": ["a", "b"]}, {"choices": ["a", "b"]}),
    ({"structured_outputs": {"choice": ["a", "b"]}}, {"choices": ["a", "b"]}),
    ({"choices": []}, {}),
]


@pytest.mark.parametrize(("given", "held"), FORMS, ids=lambda _: "")
def test_a_form(given, held):
    assert generation.constraint(read(CHAT | given)) == held


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"response_format": {"type": "json_schema"}}, "has no schema"),
        ({"response_format": {"type": "xml"}}, "'text', 'json_object' or 'json_schema'"),
        ({"response_format": {}}, "'text', 'json_object' or 'json_schema'"),
        ({"regex": "a", "choices": ["a"]}, "exclude each other"),
        ({"guided_json": "{"}, "no JSON"),
        ({"response_format": {"type": "json_object", "shema": {}}}, "did you mean 'schema'"),
        ({"response_format": {"type": "text", "schema": SCHEMA}}, "has no 'schema'"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schma": {}}}}, "did you mean 'schema'"),
    ],
)
def test_a_form_that_is_none(given, says):
    with pytest.raises(errors.Refused, match=says):
        generation.constraint(read(CHAT | given))


# Tools

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
ONE = {"type": "function", "function": {"name": "look"}}
CHOICES = [
    (None, ("auto", [])),
    ("none", ("none", [])),
    ("auto", ("auto", [])),
    ("required", ("required", [])),
    ("any", ("required", [])),
    (ONE, ("required", ["look"])),
    ({"type": "function", "name": "look"}, ("required", ["look"])),
    (
        {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [ONE]}},
        ("required", ["look"]),
    ),
    ({"type": "allowed_tools", "mode": "auto", "tools": [ONE]}, ("auto", ["look"])),
]


@pytest.mark.parametrize(("choice", "means"), CHOICES, ids=lambda _: "")
def test_a_choice_of_tools(choice, means):
    assert chat._tool_choice(read(CHAT | {"tools": [TOOL], "tool_choice": choice})) == means


@pytest.mark.parametrize("choice", ["required", "always", {"type": "x"}, {"type": "function"}, {}])
def test_a_choice_that_is_none(choice):
    with pytest.raises((errors.Refused, ValueError), match="tool_choice"):
        chat._tool_choice(read(CHAT | {"tool_choice": choice}))


def test_the_options_of_a_request():
    given = read(
        CHAT
        | {"top_k": -1, "logit_bias": {"5": -1}, "timeout": 3, "prediction": {"content": "x"}, "stop": None}
    )
    options = generation.options(given, 600.0)
    assert options["top_k"] > 10**6 and options["logit_bias"] == {5: -1}
    assert (options["timeout"], options["prediction"], options["stop"]) == (3, "x", ())
    assert generation.options(read(CHAT | {"timeout": 9999}), 600.0)["timeout"] == 600.0


#: Options that are none, and what is said of them.
NO_OPTIONS = [
    ({"logit_bias": {"9" * 5000: 1}}, "keys are token ids"),
    ({"logit_bias": {"5": 1, "05": 2}}, "'05'"),
    ({"logit_bias": {"-5": 1}}, "'-5'"),
    ({"top_k": -2}, "top_k is -2"),
    ({"prediction": {"content": [{"type": "image_url", "text": "a"}]}}, "prediction must be a text"),
    ({"prediction": {"content": [{"type": "text"}]}}, "prediction must be a text"),
]


@pytest.mark.parametrize(("given", "says"), NO_OPTIONS, ids=lambda _: "")
def test_options_that_are_none(given, says):
    with pytest.raises(errors.Refused, match=says):
        generation.options(read(CHAT | given), 600.0)


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 7, "max_completion_tokens": 7}, 7),
    ],
)
def test_two_names_of_one_limit(given, count):
    assert chat._max_tokens(read(CHAT | given)) == count


def test_two_limits_that_differ():
    with pytest.raises(errors.Refused, match="give one of them"):
        chat._max_tokens(read(CHAT | {"max_tokens": 5, "max_completion_tokens": 6}))


# Errors


def test_every_error_of_ours_has_a_status():
    import tallow

    expected = {
        "InvalidRequestError": (400, "invalid_value"),
        "ArgumentTypeError": (400, "invalid_value"),
        "ContextLengthError": (400, "context_length_exceeded"),
        "ConstraintError": (400, "invalid_constraint"),
        "TemplateError": (400, "invalid_messages"),
        "UnsupportedModelError": (400, "unsupported"),
        "Timeout": (408, "timeout"),
        "OutOfMemoryError": (503, "out_of_memory"),
        "Cancelled": (503, "closed"),
        **dict.fromkeys(("Error", "DeviceError", "HubError", "ModelFileError"), (500, "internal")),
    }
    found = {}
    for name in tallow.errors.__all__:
        refused = errors.of(getattr(tallow, name)("why"))
        found[name] = (refused.status, refused.code)
        assert set(refused.body()["error"]) == {"message", "type", "param", "code"}
    assert found == expected


def test_a_defect_tells_an_id_and_nothing_else(caplog):
    refused = errors.of(ZeroDivisionError("secret"))
    number = str(refused).rsplit(" ", 1)[1]
    assert refused.status == 500 and "secret" not in str(refused)
    assert number in caplog.text and "ZeroDivisionError" in caplog.text
