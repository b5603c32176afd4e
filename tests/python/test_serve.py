"""The routes, in one process with the client: answers are those of ``Model``, byte for byte, and everything
that goes wrong comes in one form."""

from __future__ import annotations

import json
import logging
import math

import pytest

import tallow
from command import in_pieces
from conftest import assert_idle, needed, python
from tallow.serve import app
from test_adapters import shapes_of, write

testclient = needed("starlette.testclient")

ASK = [{"role": "user", "content": "Why is the sky blue?"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def client(models, **options):
    return testclient.TestClient(app(models, **options))


@pytest.fixture(scope="module")
def wide_client(wide):
    with client({"wide": wide}) as found:
        yield found


@pytest.fixture(scope="module")
def lora_folder(wide, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "fine"
    return write(folder, shapes_of(wide.config), wide.config["num_layers"], seed=1)


def events(response):
    """The data of a stream, which ends as one must."""
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    blocks = response.text.split("\n\n")
    assert blocks.pop() == "" and blocks.pop() == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def error(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    found = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"} and found["message"]
    return found


# The same answers

SEEDED = {"seed": 5, "temperature": 1.0, "max_tokens": 40}


def test_a_chat_is_what_the_model_says(wide, wide_client):
    expected = wide.generate(ASK, **SEEDED)
    whole = wide_client.post(CHAT, json={"messages": ASK, **SEEDED}).json()
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": expected.text, "refusal": None}
    assert whole["choices"][0]["finish_reason"] == expected.finish_reason
    assert whole["usage"]["prompt_tokens"] == expected.usage.prompt_tokens
    assert whole["usage"]["completion_tokens"] == expected.usage.completion_tokens
    assert whole["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert whole["system_fingerprint"].startswith(wide.fingerprint) and whole["model"] == "wide"
    options = {"stream": True, "stream_options": {"include_usage": True}}
    found = events(wide_client.post(CHAT, json={"messages": ASK, **SEEDED, **options}))
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in found[:-1]) == expected.text
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [one["choices"][0]["finish_reason"] for one in found[-3:-1]] == [None, expected.finish_reason]
    assert found[-1]["choices"] == [] and found[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    assert all(one["usage"] is None for one in found[:-1]) and len({one["id"] for one in found}) == 1


def test_several_answers_are_those_of_the_model(wide, wide_client):
    expected = [one.text for one in wide.generate(ASK, n=3, **SEEDED)]
    body = {"messages": ASK, "n": 3, **SEEDED}
    whole = wide_client.post(CHAT, json=body).json()
    assert [one["message"]["content"] for one in whole["choices"]] == expected and len(set(expected)) == 3
    texts = ["", "", ""]
    for one in events(wide_client.post(CHAT, json={**body, "stream": True})):
        texts[one["choices"][0]["index"]] += one["choices"][0]["delta"].get("content", "")
    assert texts == expected
    assert whole["usage"]["prompt_tokens"] == wide.generate(ASK, max_tokens=1).usage.prompt_tokens


def test_without_a_seed_equal_requests_differ(wide_client):
    body = {"messages": ASK, "temperature": 1.0, "max_tokens": 30}
    texts = {wide_client.post(CHAT, json=body).json()["choices"][0]["message"]["content"] for _ in range(3)}
    assert len(texts) == 3


def test_texts_and_ids_are_continued(wide, wide_client):
    ids = wide.tokenize("once upon")
    expected = [wide.generate(prompt, **SEEDED).text for prompt in ("a dog", "once upon")]
    body = {"prompt": ["a dog", ids], **SEEDED}
    found = wide_client.post(TEXT, json=body).json()
    assert [one["text"] for one in found["choices"]] == expected
    echoed = wide_client.post(TEXT, json={**body, "echo": True, "prompt": ids, "n": 2}).json()
    assert echoed["choices"][0]["text"] == "once upon" + expected[1]
    texts = ["", ""]
    for one in events(wide_client.post(TEXT, json={**body, "stream": True, "echo": True})):
        texts[one["choices"][0]["index"]] += one["choices"][0]["text"]
    assert texts == ["a dog" + expected[0], "once upon" + expected[1]]


def test_log_probabilities(wide, wide_client):
    expected = wide.generate(ASK, logprobs=2, **SEEDED).logprobs
    body = {"messages": ASK, "logprobs": True, "top_logprobs": 2, **SEEDED}
    whole = wide_client.post(CHAT, json=body).json()["choices"][0]["logprobs"]["content"]
    assert [one["logprob"] for one in whole] == [one.logprob for one in expected]
    assert [bytes(one["bytes"]) for one in whole] == [one.bytes for one in expected]
    assert [[top["logprob"] for top in one["top_logprobs"]] for one in whole] == [
        [top.logprob for top in one.top] for one in expected
    ]
    streamed = events(wide_client.post(CHAT, json={**body, "stream": True}))
    pieces = [one["choices"][0]["logprobs"] for one in streamed]
    assert [entry for piece in pieces if piece for entry in piece["content"]] == whole


def test_log_probabilities_of_texts(wide, wide_client):
    expected = wide.generate("a dog", logprobs=1, **SEEDED)
    body = {"prompt": "a dog", "logprobs": 1, **SEEDED}
    found = wide_client.post(TEXT, json=body).json()["choices"][0]["logprobs"]
    assert found["token_logprobs"] == [one.logprob for one in expected.logprobs]
    places = zip(found["tokens"], found["text_offset"], strict=True)
    shown = [(token, at) for token, at in places if token not in ("<s>", "<unk>")]
    assert all(expected.text[at : at + len(token)] == token for token, at in shown)
    assert len(shown) < len(found["tokens"])  # control tokens are no part of the text
    assert all(
        max(top.values()) == max(one.top[0].logprob, one.logprob)
        for top, one in zip(found["top_logprobs"], expected.logprobs, strict=True)
    )


def test_given_tokens_are_measured(wide, wide_client):
    """What DSPy asks for its judgments: the model's own distribution, before any sampler."""
    ids, prompts = list(range(7, 60)), [wide.tokenize("a dog is"), wide.tokenize("ice is")]
    body = {"prompt": prompts, "max_tokens": 1, "temperature": 1.0, "logprobs": 0}
    asked = {"return_tokens_as_token_ids": True, "logprob_token_ids": ids}
    found = wide_client.post(TEXT, json={**body, **asked}).json()["choices"]
    for prompt, choice in zip(prompts, found, strict=True):
        row = wide.logits(prompt)[-1].astype("float64")
        total = math.log(sum(math.exp(value) for value in row))
        top = choice["logprobs"]["top_logprobs"][0]
        assert [top[f"token_id:{id}"] for id in ids] == pytest.approx([row[id] - total for id in ids])
        assert all(name.startswith("token_id:") for name in top)


def test_tokens(wide, wide_client):
    ids = wide._native.prompt_ids("a dog")
    whole = {"count": len(ids), "max_model_len": wide.context_length, "tokens": ids}
    assert wide_client.post("/tokenize", json={"prompt": "a dog"}).json() == whole
    assert wide_client.post("/v1/detokenize", json={"tokens": ids}).json() == {"prompt": "a dog"}
    rendered = wide.render(ASK, add_generation_prompt=False)
    body = {"messages": ASK, "add_generation_prompt": False, "return_token_strs": True}
    found = wide_client.post("/tokenize", json=body).json()
    assert "".join(found["token_strs"]) == rendered
    begun = [*ASK, {"role": "assistant", "content": "Answer:"}]
    body = {"messages": begun, "add_generation_prompt": False, "continue_final_message": True}
    text = wide_client.post(
        "/detokenize", json={"tokens": wide_client.post("/tokenize", json=body).json()["tokens"]}
    )
    assert text.json()["prompt"].endswith("Answer:")


# Forms, thoughts and tools


def test_a_form_is_enforced(wide, wide_client):
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    found = wide_client.post(CHAT, json={"messages": ASK, "response_format": form, **SEEDED}).json()
    text = found["choices"][0]["message"]["content"]
    assert (
        json.loads(text)["a"] in ("x", "y") and text == wide.generate(ASK, json_schema=schema, **SEEDED).text
    )
    body = {"prompt": "ice is", "guided_choice": ["cold", "hot"]}
    assert wide_client.post(TEXT, json=body).json()["choices"][0]["text"] in ("cold", "hot")


LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "strict": True,
        "parameters": {"type": "object", "properties": {"at": {"enum": ["up", "down"]}}, "required": ["at"]},
    },
}
OTHER = {"type": "function", "function": {"name": "other"}}


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_wanted_is_made(wide_client, stream):
    choice = {"type": "function", "function": {"name": "look"}}
    body = {"messages": ASK, "tools": [LOOK, OTHER], "tool_choice": choice, "parallel_tool_calls": False}
    response = wide_client.post(CHAT, json={**body, **SEEDED, "max_tokens": 200, "stream": stream})
    if stream:
        deltas = [one["choices"][0] for one in events(response)]
        (calls,) = [one["delta"]["tool_calls"] for one in deltas if "tool_calls" in one["delta"]]
        assert calls[0].pop("index") == 0
        reason = deltas[-1]["finish_reason"]
    else:
        choice = response.json()["choices"][0]
        calls, reason = choice["message"]["tool_calls"], choice["finish_reason"]
        assert choice["message"]["content"] is None
    (call,) = calls
    assert call["type"] == "function" and call["function"]["name"] == "look" and reason == "tool_calls"
    assert json.loads(call["function"]["arguments"])["at"] in ("up", "down")


def test_tools_that_must_not_be_called_are_not_shown(wide_client):
    costs = [
        wide_client.post(CHAT, json={"messages": ASK, "max_tokens": 1, **more}).json()["usage"][
            "prompt_tokens"
        ]
        for more in ({}, {"tools": [LOOK], "tool_choice": "none"}, {"tools": []}, {"tools": [LOOK]})
    ]
    assert costs[0] == costs[1] == costs[2] < costs[3]


def test_a_call_may_follow_a_call(wide_client):
    call = {"id": "call_0", "type": "function", "function": {"name": "look", "arguments": '{"at": "up"}'}}
    turns = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_0", "content": [{"type": "text", "text": "blue"}]},
    ]
    body = {"messages": turns, "tools": [LOOK], "max_tokens": 5}
    assert wide_client.post(CHAT, json=body).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_thought_is_apart(thinker, monkeypatch, stream):
    in_pieces(monkeypatch, "<think>", "it is", " so</think>", "yes", "")
    body = {
        "messages": ASK,
        "max_tokens": 5,
        "stream": stream,
        "chat_template_kwargs": {"enable_thinking": True},
    }
    with client(thinker) as found:
        response = found.post(CHAT, json=body)
    if stream:
        deltas = [one["choices"][0]["delta"] for one in events(response)]
        thought, text = (
            "".join(one.get(key, "") for one in deltas) for key in ("reasoning_content", "content")
        )
    else:
        message = response.json()["choices"][0]["message"]
        thought, text = message["reasoning_content"], message["content"]
    assert (thought, text) == ("it is so", "yes")


def test_how_much_to_think(thinker, wide_client):
    with client({"t": thinker}) as found:
        for effort in ("none", "minimal", "low", "high"):
            body = {"messages": ASK, "max_tokens": 1, "reasoning_effort": effort}
            assert found.post(CHAT, json=body).status_code == 200
        both = {**body, "chat_template_kwargs": {"enable_thinking": False}}
        assert "both given" in error(found.post(CHAT, json=both), 400)["message"]
    assert "no thoughts" in error(wide_client.post(CHAT, json=body), 400)["message"]


# Which model


def test_what_is_served(wide, tiny):
    with client({"wide": wide, "org/tiny": tiny}) as found:
        listed = found.get("/v1/models").json()["data"]
        assert [one["id"] for one in listed] == ["wide", "org/tiny"]
        one = found.get("/models/org/tiny").json()
        assert one == listed[1] and one["fingerprint"] == tiny.fingerprint and one["parent"] is None
        assert (
            found.post(TEXT, json={"model": "org/tiny", "prompt": "a", "max_tokens": 1}).json()["model"]
            == "org/tiny"
        )
        missing = error(found.post(TEXT, json={"prompt": "a"}), 400)
        assert missing["param"] == "model" and "wide, org/tiny" in missing["message"]
        unknown = error(found.post(TEXT, json={"model": "gpt-5", "prompt": "a"}), 404)
        assert unknown["code"] == "model_not_found" and "wide, org/tiny" in unknown["message"]
        assert error(found.get("/v1/models/gpt"), 404)["code"] == "model_not_found"


def test_an_adapter_is_a_model(wide_folder, lora_folder):
    with client({"base": str(wide_folder)}, adapters={"fine": str(lora_folder)}, load_adapters=True) as found:
        listed = found.get("/v1/models").json()["data"]
        assert [(one["id"], one["parent"]) for one in listed] == [("base", None), ("fine", "base")]
        body = {"prompt": "a dog", **SEEDED}
        texts = {
            name: found.post(TEXT, json={**body, "model": name}).json()["choices"][0]["text"]
            for name in ("base", "fine", "base:fine")
        }
        assert texts["base"] != texts["fine"] == texts["base:fine"]
        more = {"lora_name": "again", "lora_path": str(lora_folder)}
        assert found.post("/v1/load_lora_adapter", json=more).status_code == 200
        assert found.post(TEXT, json={**body, "model": "again"}).json()["choices"][0]["text"] == texts["fine"]
        assert found.post("/v1/unload_lora_adapter", json={"lora_name": "again"}).status_code == 200
        error(found.post(TEXT, json={**body, "model": "again"}), 404)
        error(found.post("/v1/unload_lora_adapter", json={"lora_name": "base"}), 400)
        taken = {"lora_name": "base", "lora_path": str(lora_folder)}
        assert error(found.post("/v1/load_lora_adapter", json=taken), 400)["param"] == "lora_name"


def test_what_is_no_adapter_is_the_requests_fault(wide, tmp_path):
    (tmp_path / "file").write_bytes(b"no adapter")
    with client({"wide": wide}, load_adapters=True) as found:
        for path in ("/nope", tmp_path, tmp_path / "file"):
            body = {"lora_name": "a", "lora_path": str(path)}
            refused = error(found.post("/v1/load_lora_adapter", json=body), 400)
            assert refused["param"] == "lora_path" and refused["code"] == "invalid_adapter"
        body = {"lora_name": "", "lora_path": "/nope"}
        assert error(found.post("/v1/load_lora_adapter", json=body), 400)["param"] == "lora_name"


def test_a_name_means_one_thing(wide, wide_folder, lora_folder):
    """Of two bases, one could not be asked with its own adapter."""
    both = {"one": wide, "two": str(wide_folder)}
    for adapters in (
        {"one:fine": str(lora_folder), "two:fine": str(lora_folder)},
        {"one:two": str(lora_folder)},
    ):
        with pytest.raises(Exception, match="choose another"), client(both, adapters=adapters, log=None):
            pass


def test_adapters_are_loaded_only_where_that_is_allowed(wide_client, lora_folder):
    body = {"lora_name": "x", "lora_path": str(lora_folder)}
    error(wide_client.post("/v1/load_lora_adapter", json=body), 403)


# Errors

#: A route, what is sent, the status, and what the message or code says.
REFUSED = [
    (CHAT, {}, 400, "messages"),
    (CHAT, {"messages": []}, 400, "messages is empty"),
    (CHAT, {"messages": [{"role": "user"}]}, 400, 'messages[0] has no "content"'),
    (CHAT, {"messages": [{"role": "king", "content": "a"}]}, 400, "role"),
    (CHAT, {"messages": ASK, "n": 0}, 400, "n is 0"),
    (CHAT, {"messages": ASK, "n": 17}, 400, "from 1 to 16"),
    (CHAT, {"messages": ASK, "temperature": -1}, 400, "temperature"),
    (CHAT, {"messages": ASK, "top_logprobs": 3}, 400, "logprobs: true"),
    (CHAT, {"messages": ASK, "seed": -1}, 400, "seed"),
    (CHAT, {"messages": ASK, "stream_options": {"include_obfuscation": True}}, 400, "not supported"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "image_url"),
    (CHAT, {"messages": ASK, "tools": [{}]}, 400, "tools[0]"),
    (CHAT, {"messages": ASK, "tools": [OTHER], "tool_choice": {"type": "function", "name": "x"}}, 400, "'x'"),
    (CHAT, {"messages": ASK, "json_schema": {"type": "nothing"}}, 400, "nothing"),
    (CHAT, {"messages": ASK, "stream": True, "regex": "("}, 400, "regex"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": "a" * 9000}], "stream": True},
        400,
        "context_length_exceeded",
    ),
    (TEXT, {"prompt": []}, 400, "prompt"),
    (TEXT, {"prompt": [[1], "a", {}]}, 400, "prompt"),
    (TEXT, {"prompt": [1, "a"]}, 400, "prompt"),
    (TEXT, {"prompt": [10**9]}, 400, "vocabulary"),
    (TEXT, {"prompt": "a", "suffix": "b"}, 400, "filled in"),
    (TEXT, {"prompt": "a", "echo": True, "logprobs": 1}, 400, "echo"),
    (TEXT, {"prompt": "a", "logprob_token_ids": [10**6]}, 400, "no token"),
    (TEXT, {"prompt": "a", "logprob_token_ids": [5], "n": 2}, 400, "one answer"),
    (TEXT, {"prompt": "a", "logprob_token_ids": [5], "presence_penalty": 1}, 400, "presence_penalty"),
    (TEXT, {"prompt": "a", "logit_bias": {"x": 1}}, 400, "token ids"),
    (TEXT, {"prompt": "a", "timeout": 1e-6, "max_tokens": 4000}, 408, "timeout"),
    ("/tokenize", {}, 400, "prompt or messages"),
    ("/tokenize", {"prompt": "a", "tools": [OTHER]}, 400, "tools is for messages"),
    ("/detokenize", {"tokens": [10**6]}, 400, "vocabulary"),
    ("/v1/nothing", {}, 404, "no route"),
    ("/v1/models", {}, 405, "does not take POST"),
]


@pytest.mark.parametrize(("path", "body", "status", "says"), REFUSED, ids=lambda _: "")
def test_what_is_refused(wide_client, path, body, status, says):
    found = error(wide_client.post(path, json=body), status)
    assert says in found["message"] or says == found["code"]


@pytest.mark.parametrize("depth", [50, 200, 400])
def test_what_is_deep_is_refused_or_taken(wide_client, depth):
    schema, listed = {"type": "string"}, 1
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
        listed = [listed]
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    for more in (
        {"json_schema": schema},
        {"tools": [tool]},
        {"chat_template_kwargs": {"x": listed}},
        {"messages": [{"role": "user", "content": listed}]},
        {"prediction": listed},
    ):
        error(wide_client.post(CHAT, json={"messages": ASK, **more}), 400)
    flat = wide_client.post(CHAT, json={"messages": ASK, "max_tokens": 1, "metadata": {"x": listed}})
    assert flat.status_code == 200


def test_a_defect_has_no_traceback(wide, wide_client, monkeypatch, caplog):
    def broken(*_, **__):
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(tallow.answers, "prepare", broken)
    found = error(wide_client.post(TEXT, json={"prompt": "a"}), 500)
    assert "secret" not in found["message"] and "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("answered", [0, 2])
def test_what_goes_wrong_in_a_stream_is_an_event(wide_client, monkeypatch, answered):
    """Before the first piece it is a status of its own."""
    seen = []

    def events(self, chunk):
        seen.append(chunk)
        if len(seen) > answered:
            raise tallow.OutOfMemoryError("no room")
        yield "a"

    monkeypatch.setattr(tallow.answers.Reader, "events", events)
    response = wide_client.post(CHAT, json={"messages": ASK, "stream": True, "max_tokens": 9})
    if answered == 0:
        assert error(response, 503)["code"] == "out_of_memory" and response.headers["retry-after"]
    else:
        *_, last, end = response.text.split("\n\n")
        assert end == "" and json.loads(last.removeprefix("data: "))["error"]["code"] == "out_of_memory"


# Who may ask, and how


def test_keys(wide):
    with client(wide, api_keys=["one", "two"]) as found:
        for key, status in ((None, 401), ("three", 401), ("", 401), ("one", 200), ("two", 200)):
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            assert found.get("/v1/models", headers=headers).status_code == status
        wrong = found.get("/v1/models", headers={"authorization": "Basic one"})
        assert error(wrong, 401)["code"] == "invalid_api_key"
        assert {found.get(path).status_code for path in ("/health", "/v1/health", "/ready")} == {200}
        assert error(found.post("/nothing", json={}), 401)


@pytest.mark.parametrize(
    ("host", "options", "status"),
    [
        ("localhost:8000", {}, 200),
        ("127.0.0.1", {}, 200),
        ("[::1]:8000", {}, 200),
        ("evil.example", {}, 403),
        ("localhost.evil.example:8000", {}, 403),
        ("", {}, 403),
        ("box.example", {"hosts": ["box.example"]}, 200),
        ("evil.example", {"hosts": ["box.example"]}, 403),
        ("any.example", {"hosts": ["*"]}, 200),
    ],
)
def test_the_name_that_is_called(wide, host, options, status):
    with testclient.TestClient(app(wide, **options), base_url="http://127.0.0.1:8000") as found:
        assert found.get("/health", headers={"host": host}).status_code == status


def test_a_page_in_a_browser_cannot_ask(wide, wide_client):
    body = json.dumps({"prompt": "a", "max_tokens": 1})
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        error(wide_client.post(TEXT, content=body, headers={"content-type": kind}), 415)
    typed = {"content-type": "application/json; charset=utf-8"}
    assert wide_client.post(TEXT, content=body, headers=typed).status_code == 200
    assert (
        "access-control-allow-origin"
        not in wide_client.get("/health", headers={"origin": "http://a"}).headers
    )
    with client(wide, cors=["http://a"], api_keys=["k"]) as found:
        asks = {
            "origin": "http://a",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization",
        }
        assert found.options(CHAT, headers=asks).headers["access-control-allow-origin"] == "http://a"
        refused = found.post(CHAT, json={}, headers={"origin": "http://a"})
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "http://a"


def test_a_body_is_counted_while_it_is_read(wide):
    with client(wide, max_body=1000) as found:

        def pieces():
            for _ in range(100):
                yield b" " * 100

        sent = found.post(TEXT, content=pieces(), headers={"content-type": "application/json"})
        assert error(sent, 413)["code"] == "request_too_large"
        assert found.post(TEXT, json={"prompt": "a", "max_tokens": 1}).status_code == 200


def test_paths_are_taken_as_clients_write_them(wide_client):
    body = {"messages": ASK, "max_tokens": 1}
    for path in ("/chat/completions", "//chat/completions", "/v1//chat/completions", "/v1/chat/completions"):
        assert wide_client.post(f"http://testserver{path}", json=body).status_code == 200
    assert wide_client.get("http://testserver//models").status_code == 200


def test_an_id_goes_with_a_request(wide_client):
    assert wide_client.get("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = wide_client.get("/health", headers={"x-request-id": "a b\x7f"}).headers["x-request-id"]
    assert len(made) == 32


def test_a_request_is_a_line_without_its_words(wide, caplog):
    caplog.set_level(logging.INFO, "tallow")
    with client({"w": wide}, log="json") as found:
        found.post(CHAT, json={"messages": [{"role": "user", "content": "a secret"}], "max_tokens": 3})
        found.post(TEXT, json={"prompt": "a secret", "max_tokens": 3, "stream": True})
        found.post(TEXT, json={"prompt": "a secret", "max_tokens": 0})
    told = [json.loads(record.getMessage()) for record in caplog.records if record.name == "tallow"]
    assert [(one["endpoint"], one["outcome"], one["status"]) for one in told] == [
        ("/chat/completions", "length", 200),
        ("/completions", "length", 200),
        ("/completions", "error", 400),
    ]
    assert told[0]["completion_tokens"] == 3 and told[0]["model"] == "w" and told[0]["first_token"] > 0
    assert "secret" not in caplog.text


# The app


def test_an_app_loads_and_closes_what_is_ours(wide_folder):
    made = app(str(wide_folder), queue=7)
    server = made.state.tallow
    assert not server.is_ready
    for _ in range(2):  # an app may be started again
        with testclient.TestClient(made) as found:
            assert found.get("/ready").json()["status"] == "ready"
            assert found.post(TEXT, json={"prompt": "a", "max_tokens": 1}).status_code == 200
        assert server.draining
        (model,) = server._own
        assert model._shared.running_stats() is None


def test_an_app_within_another_loads_with_its_first_request(wide_folder):
    from starlette.applications import Starlette
    from starlette.routing import Mount

    inner = app({"m": str(wide_folder)})
    outer = testclient.TestClient(Starlette(routes=[Mount("/llm", inner)]))
    assert error(outer.get("/llm/ready"), 503)["code"] == "loading"
    assert outer.post("/llm/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200
    assert outer.get("/llm/ready").status_code == 200
    inner.state.tallow.close()


def test_a_server_that_ends_begins_nothing_new(wide):
    with client(wide) as found:
        found.app.state.tallow.drain()
        refused = found.post(TEXT, json={"prompt": "a"})
        assert error(refused, 503)["code"] == "shutting_down" and refused.headers["retry-after"]
        assert error(found.get("/ready"), 503) and found.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("missing", "code"),
    [
        ("starlette", "import tallow.serve; tallow.serve.app('smollm2')"),
        ("msgspec", "import tallow.serve; tallow.serve.app('smollm2')"),
        ("uvicorn", "import tallow.cli; sys.exit(tallow.cli.main(['serve', 'smollm2']))"),
    ],
)
def test_what_is_not_installed_is_said(missing, code):
    done = python(f"import sys; sys.modules[{missing!r}] = None; {code}")
    assert done.returncode == 1 and 'pip install "tallow[serve]"' in done.stderr.splitlines()[-1]


def test_starlette_is_loaded_by_an_app_alone():
    done = python("import sys, tallow.serve, tallow.cli; print({'starlette', 'msgspec'} & set(sys.modules))")
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"time_out": 5}, "did you mean 'timeout'?"),
        ({"contxt_length": 5}, "did you mean 'context_length'?"),
        ({"dsp": True}, "did you mean 'dspy'?"),
        ({"api_keys": "secret"}, "a list of"),
        ({"max_body": "8"}, "a unit"),
        ({"timeout": 0}, "timeout"),
        ({"log": "xml"}, "'json'"),
    ],
)
def test_an_app_that_is_wrong(options, says):
    with pytest.raises(tallow.InvalidRequestError, match=says):
        app("smollm2", **options)


def test_nothing_is_left_in_work(wide, wide_client):
    """After all of the above."""
    assert_idle(wide)
