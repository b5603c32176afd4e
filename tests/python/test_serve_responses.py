"""``/responses``: what OpenAI's own client expects, whole and streamed, and the same answers as a chat."""

from __future__ import annotations

import json

import pytest

import tallow
from conftest import THINKER, copy_family, needed, widen
from tallow.serve import app, items

testclient = needed("starlette.testclient")
openai = needed("openai")
pydantic = needed("pydantic")

from openai.types.responses import Response, ResponseStreamEvent  # noqa: E402

EVENT = pydantic.TypeAdapter(ResponseStreamEvent)
RESPONSES, CHAT = "/v1/responses", "/v1/chat/completions"
SEEDED = {"seed": 3, "temperature": 1.0}
PARAMETERS = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
TOOL = {"type": "function", "name": "note", "description": "", "parameters": PARAMETERS, "strict": True}
FORMS = {
    "text": {"max_output_tokens": 20},
    "logprobs": {
        "max_output_tokens": 20,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    },
    "schema": {"text": {"format": {"type": "json_schema", "name": "x", "schema": PARAMETERS}}},
    "object": {"text": {"format": {"type": "json_object"}}, "max_output_tokens": 300},
    "call": {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
}


@pytest.fixture(scope="module")
def thinking(tmp_path_factory):
    folder = copy_family("llama-gqa-tied", tmp_path_factory.mktemp("models") / "thinking")
    widen(folder, 104)
    return tallow.Model(folder, chat_template=THINKER)


@pytest.fixture(scope="module")
def client(wide, thinking):
    with testclient.TestClient(app({"wide": wide, "thinking": thinking}, log=None)) as found:
        yield found


def whole(client, **body):
    response = client.post(RESPONSES, json={"model": "wide", "input": "Hello", **SEEDED, **body})
    assert response.status_code == 200, response.text
    Response.model_validate(response.json())
    return response.json()


def streamed(client, **body):
    body = {"model": "wide", "input": "Hello", **SEEDED, **body, "stream": True}
    response = client.post(RESPONSES, json=body)
    assert response.status_code == 200, response.text
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    found = []
    for number, block in enumerate(blocks):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        EVENT.validate_python(event)
        assert name == f"event: {event['type']}" and event["sequence_number"] == number
        found.append(event)
    return found


def without_ids(value):
    if isinstance(value, dict):
        fresh = ("id", "created_at", "call_id")
        return {key: without_ids(one) for key, one in value.items() if key not in fresh}
    return [without_ids(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("form", FORMS)
def test_a_stream_comes_to_the_whole_response(client, form):
    expected = whole(client, **FORMS[form])
    events = streamed(client, **FORMS[form])
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == f"response.{expected['status']}"
    last = events[-1]["response"]
    # What was computed before is found in the cache.
    for one in (expected, last):
        one["usage"]["input_tokens_details"].pop("cached_tokens")
    assert without_ids(last) == without_ids(expected)
    assert {event["response"]["id"] for event in events if "response" in event} == {last["id"]}
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == last["output"]
    for at, item in enumerate(last["output"]):
        told = [event for event in events if event.get("output_index") == at]
        assert told[0]["type"] == "response.output_item.added" and told[0]["item"]["id"] == item["id"]
        pieces = "".join(event["delta"] for event in told if event["type"].endswith(".delta"))
        assert pieces == (item["arguments"] if form == "call" else item["content"][0]["text"])


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_answer_of_a_chat(client, form):
    found = whole(client, **FORMS[form])
    given = dict(FORMS[form])
    body = {"model": "wide", "messages": [{"role": "user", "content": "Hello"}], **SEEDED}
    if "max_output_tokens" in given:
        body["max_tokens"] = given["max_output_tokens"]
    if form in ("schema", "object"):
        kind = given["text"]["format"]
        body["response_format"] = {"type": kind["type"], "json_schema": {"schema": kind.get("schema")}}
        if form == "object":
            body["response_format"] = {"type": "json_object"}
    if form == "call":
        function = {key: value for key, value in TOOL.items() if key != "type"}
        body |= {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
        body["parallel_tool_calls"] = False
    if form == "logprobs":
        body |= {"logprobs": True, "top_logprobs": 2}
    choice = client.post(CHAT, json=body).json()["choices"][0]
    (item,) = found["output"]
    if form == "call":
        function = choice["message"]["tool_calls"][0]["function"]
        assert {"name": item["name"], "arguments": item["arguments"]} == function
        assert json.loads(item["arguments"]).keys() == {"ok"} and found["status"] == "completed"
    else:
        assert item["content"][0]["text"] == choice["message"]["content"]
    if form == "logprobs":
        assert item["content"][0]["logprobs"] == choice["logprobs"]["content"]
        assert found["incomplete_details"] == {"reason": "max_output_tokens"}
        assert item["status"] == found["status"] == "incomplete"


def test_thoughts_are_an_item_of_their_own(client):
    body = {"model": "thinking", "regex": "yes", "max_output_tokens": 200, "reasoning": {"effort": "low"}}
    found = whole(client, **body)
    thought, message = found["output"]
    assert thought["type"] == "reasoning" and thought["content"][0]["text"]
    assert message["content"][0]["text"] == "yes"
    assert found["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    events = streamed(client, **body)
    assert without_ids(events[-1]["response"]["output"]) == without_ids(found["output"])
    text = "".join(one["delta"] for one in events if one["type"] == "response.reasoning_text.delta")
    assert text == thought["content"][0]["text"]
    quiet = whole(client, **{**body, "reasoning": {"effort": "none"}})
    assert [item["type"] for item in quiet["output"]] == ["message"]


# Reading

CALLED = {"type": "function_call", "call_id": "c1", "name": "note", "arguments": '{"ok": true}'}
RETURNED = {"type": "function_call_output", "call_id": "c1", "output": "done"}
THOUGHT = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": "t"}],
}
SAID = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "Hi", "annotations": []}],
}
CALLS = [{"id": "c1", "type": "function", "function": {"name": "note", "arguments": '{"ok": true}'}}]
ITEMS = [
    ("Hello", [{"role": "user", "content": "Hello"}]),
    ([{"role": "developer", "content": "Hi"}], [{"role": "developer", "content": "Hi"}]),
    (
        [{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}]}],
        [{"role": "user", "content": "ab"}],
    ),
    ([SAID], [{"role": "assistant", "content": "Hi"}]),
    (
        [THOUGHT, SAID, CALLED, RETURNED],
        [
            {"role": "assistant", "content": "Hi", "reasoning_content": "t", "tool_calls": CALLS},
            {"role": "tool", "tool_call_id": "c1", "content": "done"},
        ],
    ),
    ([CALLED, CALLED], [{"role": "assistant", "content": None, "tool_calls": [*CALLS, *CALLS]}]),
    (
        [CALLED, SAID],
        [
            {"role": "assistant", "content": None, "tool_calls": CALLS},
            {"role": "assistant", "content": "Hi"},
        ],
    ),
    (
        [SAID, THOUGHT],
        [
            {"role": "assistant", "content": "Hi"},
            {"role": "assistant", "content": None, "reasoning_content": "t"},
        ],
    ),
]


@pytest.mark.parametrize(("given", "expected"), ITEMS)
def test_items_are_the_messages_of_a_chat(given, expected):
    assert items.messages(given, None) == expected
    assert items.messages(given, "Be brief") == [{"role": "system", "content": "Be brief"}, *expected]


def test_an_answer_goes_back_as_it_came(client):
    """What came out is taken as input, as clients without a server that keeps it send it."""
    found = whole(client, tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
    result = {"type": "function_call_output", "call_id": found["output"][0]["call_id"], "output": "done"}
    conversation = [{"role": "user", "content": "Hello"}, *found["output"], result]
    assert whole(client, input=conversation, tools=[TOOL], max_output_tokens=5)["output"]


REFUSED = [
    ({"input": None}, "input", "missing"),
    ({"input": []}, "input", "list of items"),
    ({"input": 3}, "input", "text or a list"),
    ({"input": ["a"]}, "input", "input[0] must be an object"),
    ({"input": [{"type": "web_search_call"}]}, "input", "'web_search_call'"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input", "send the item itself"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input", "only text"),
    ({"input": [{"type": "reasoning", "encrypted_content": "x"}]}, "input", "another server"),
    ({"input": [{"type": "function_call", "name": "f"}]}, "input", "arguments"),
    ({"previous_response_id": "resp_1"}, "previous_response_id", "whole conversation"),
    ({"store": True}, "store", "nothing is kept"),
    ({"background": True}, "background", "who waits"),
    ({"truncation": "auto"}, "truncation", "nothing is cut"),
    ({"tools": [{"type": "web_search"}]}, "tools", "'function'"),
    ({"include": ["file_search_call.results"]}, "include", "there are"),
    ({"text": {"format": {"type": "xml"}}}, "text", "json_schema"),
    ({"text": {"format": "json_object"}}, "text", "must be one of"),
    ({"text": {"format": {"type": "json_schema"}}}, "text", "no schema"),
    ({"text": {"format": {"type": "text", "schema": {}}}}, "text", "schema"),
    ({"stream_options": {"include_obfuscation": True}}, "stream_options", "not supported"),
    ({"tools": [{"type": "function", "name": "f", "defer_loading": True}]}, "tools", "defer_loading"),
    ({"text": {"formats": {}}}, "text", "there are format"),
    ({"text": {"verbosity": "low"}}, "text", "verbosity"),
    ({"max_tokens": 5}, "max_tokens", "max_output_tokens"),
    ({"response_format": {}}, "response_format", "field"),
    ({"reasoning": {"effort": "some"}}, "reasoning", "some"),
]


@pytest.mark.parametrize(("body", "param", "says"), REFUSED)
def test_what_cannot_be_honoured_is_refused(client, body, param, says):
    response = client.post(RESPONSES, json={"model": "wide", "input": "Hello", **body})
    found = response.json()["error"]
    assert response.status_code == 400 and says in found["message"], found
    assert found["param"] == param


NOTHING = {
    "store": False,
    "truncation": "disabled",
    "background": False,
    "previous_response_id": None,
    "include": ["reasoning.encrypted_content"],
    "user": "u",
    "metadata": {"a": "b"},
    "service_tier": "auto",
    "tools": [],
    "tool_choice": None,
    "text": {"verbosity": "medium"},
    "reasoning": {"effort": None, "summary": "auto"},
    "stream_options": {"include_obfuscation": False},
}


def test_what_changes_nothing_is_taken(client):
    assert whole(client, max_output_tokens=4, **NOTHING)["metadata"] == {"a": "b"}


# OpenAI's client


@pytest.fixture(scope="module")
def remote(wide):
    from served import running

    with (
        running(app({"wide": wide}, log=None)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="-") as one,
    ):
        yield one


class Note(pydantic.BaseModel):
    ok: bool


def test_openais_client_reads_it(remote):
    given = {"model": "wide", "input": "Hello", "extra_body": {"seed": 3}, "temperature": 1.0}
    parsed = remote.responses.parse(**given, text_format=Note)
    assert isinstance(parsed.output_parsed, Note) and parsed.output_text
    with remote.responses.stream(**given, text_format=Note) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_parsed == parsed.output_parsed
    assert kinds[-1] == "response.completed"
    pieces = remote.responses.create(**given, max_output_tokens=8, stream=True)
    text = "".join(event.delta for event in pieces if event.type == "response.output_text.delta")
    assert text == remote.responses.create(**given, max_output_tokens=8).output_text
    vectors = remote.embeddings.create(model="wide", input=["a", "b"])
    assert len(vectors.data) == 2 and isinstance(vectors.data[0].embedding[0], float)
    with pytest.raises(openai.BadRequestError, match="whole conversation"):
        remote.responses.create(model="wide", input="a", previous_response_id="resp_1")


def test_what_fails_on_the_way_is_raised_by_openais_client(remote, monkeypatch):
    seen = []

    def events(self, chunk):
        seen.append(chunk)
        if len(seen) > 2:
            raise tallow.OutOfMemoryError("no room")
        yield "a"

    monkeypatch.setattr(tallow.answers.Reader, "events", events)
    stream, found = remote.responses.create(model="wide", input="a", stream=True), []
    with pytest.raises(openai.APIError, match="no room"):
        found.extend(event.type for event in stream)
    assert found[0] == "response.created" and "response.output_text.delta" in found
