"""What llama.cpp's and vLLM's servers are held to by their own tests, as cases of ours: a row is a behaviour,
a request, and what must be true of the answer. ``docs/serving.md`` lists which do not hold here, and why;
those stand in ``OTHERWISE``, with what happens instead."""

from __future__ import annotations

import base64
import json
import math
from concurrent.futures import ThreadPoolExecutor

import pytest

import tallow
from conftest import ROOT, needed
from tallow.serve import app

testclient = needed("starlette.testclient")
applications = needed("starlette.applications")
routing = needed("starlette.routing")

CHAT, TEXT, EMBED, RERANK = "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank"
USER = [{"role": "user", "content": "What is the best book"}]
BOOK = [{"role": "system", "content": "Book"}, *USER]
ASK = {"messages": BOOK, "max_tokens": 8, "seed": 42}
LINE = "I believe the meaning of life is"
CONTINUE = {"prompt": LINE, "max_tokens": 8, "seed": 42}
PARTS = [{"type": "text", "text": "What is"}, {"type": "text", "text": "the best book"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "test",
        "description": "",
        "parameters": {
            "type": "object",
            "properties": {"success": {"type": "boolean", "const": True}},
            "required": ["success"],
        },
    },
}
CODE = {
    "type": "function",
    "function": {
        "name": "python",
        "parameters": {"type": "object", "properties": {"code": {"type": "string", "maxLength": 20}}},
    },
}


@pytest.fixture(scope="module")
def embedder():
    return tallow.Model(ROOT / "tests" / "golden" / "embed" / "qwen3")


@pytest.fixture(scope="module")
def client(wide, embedder):
    with testclient.TestClient(app({"wide": wide, "embedder": embedder}, log=None)) as found:
        yield found


def post(client, path, body):
    return client.post(path, json={"model": "embedder" if path in (EMBED, RERANK) else "wide", **body})


def events(response):
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]


def content(body):
    return body["choices"][0]["message"]["content"]


def is_object(text):
    return isinstance(json.loads(text), dict)


def length(vector):
    return math.sqrt(sum(value * value for value in vector))


#: A behaviour -> the route, the body, and what must be true of the answer's JSON.
HOLD = {
    # Chats
    "an id and what the model is": (
        CHAT,
        ASK,
        lambda a: a["id"].startswith("chatcmpl-") and a["model"] == "wide",
    ),
    "an answer is cut at max_tokens": (CHAT, ASK, lambda a: a["choices"][0]["finish_reason"] == "length"),
    "tokens are counted": (CHAT, ASK, lambda a: a["usage"]["completion_tokens"] == 8),
    "the role is told": (CHAT, ASK, lambda a: a["choices"][0]["message"]["role"] == "assistant"),
    "content in parts": (CHAT, {**ASK, "messages": [{"role": "user", "content": PARTS}]}, content),
    "a system message in parts": (
        CHAT,
        {**ASK, "messages": [{"role": "system", "content": PARTS}, *USER]},
        content,
    ),
    "an answer's beginning is continued": (
        CHAT,
        {
            **ASK,
            "messages": [*BOOK, {"role": "assistant", "content": "An apple"}],
            "continue_final_message": True,
            "add_generation_prompt": False,
        },
        content,
    ),
    "two answers in a row": (
        CHAT,
        {**ASK, "messages": [*USER, *[{"role": "assistant", "content": "test"}] * 2]},
        content,
    ),
    "a schema beside json_object": (
        CHAT,
        {**ASK, "response_format": {"type": "json_object", "schema": {"const": "42"}}},
        lambda a: content(a) == '"42"',
    ),
    "json_schema": (
        CHAT,
        {
            **ASK,
            "max_tokens": 10,
            "response_format": {"type": "json_schema", "json_schema": {"schema": {"const": "foo"}}},
        },
        lambda a: content(a) == '"foo"',
    ),
    "json_object": (
        CHAT,
        {**ASK, "max_tokens": 60, "response_format": {"type": "json_object"}},
        lambda a: is_object(content(a)),
    ),
    "a schema on its own": (CHAT, {**ASK, "json_schema": {"const": "42"}}, lambda a: content(a) == '"42"'),
    "a grammar": (CHAT, {**ASK, "grammar": 'start: "a"{5}'}, lambda a: content(a) == "aaaaa"),
    "log probabilities are of the text": (
        CHAT,
        {**ASK, "logprobs": True, "top_logprobs": 10},
        lambda a: (
            "".join(one["token"] for one in a["choices"][0]["logprobs"]["content"]) == content(a)
            and all(
                len(one["top_logprobs"]) == 10 and one["logprob"] <= 0
                for one in a["choices"][0]["logprobs"]["content"]
            )
        ),
    ),
    "a token is forbidden": (
        CHAT,
        {**ASK, "logit_bias": {str(id): -100 for id in range(7, 33)}, "max_tokens": 60},
        lambda a: not any(letter in content(a) for letter in "abcdefghijklmnopqrstuvwxyz"),
    ),
    # Tools
    "a call that is required is made": (
        CHAT,
        {"messages": BOOK, "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
        lambda a: (
            [json.loads(one["function"]["arguments"]) for one in a["choices"][0]["message"]["tool_calls"]]
            == [{"success": True}]
            and not content(a)
        ),
    ),
    "a call of text": (
        CHAT,
        {"messages": BOOK, "tools": [TOOL, CODE], "parallel_tool_calls": False}
        | {"tool_choice": {"type": "function", "function": {"name": "python"}}},
        lambda a: (
            a["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "python"
            and a["choices"][0]["finish_reason"] == "tool_calls"
        ),
    ),
    "no call without tools": (
        CHAT,
        {**ASK, "tools": []},
        lambda a: "tool_calls" not in a["choices"][0]["message"],
    ),
    "no call where none is wanted": (
        CHAT,
        {**ASK, "tools": [CODE], "tool_choice": "none"},
        lambda a: "tool_calls" not in a["choices"][0]["message"],
    ),
    "a choice of null, with a form": (
        CHAT,
        {**ASK, "tool_choice": None, "structured_outputs": {"json": {"type": "boolean"}}},
        lambda a: content(a) in ("true", "false"),
    ),
    "a choice among no tools": (CHAT, {**ASK, "tool_choice": "auto"}, content),
    "an empty salt": (CHAT, {**ASK, "cache_salt": ""}, content),
    # Texts
    "a text is continued": (
        TEXT,
        CONTINUE,
        lambda a: a["choices"][0]["text"] and a["usage"]["completion_tokens"] == 8,
    ),
    "texts and ids together": (
        TEXT,
        {**CONTINUE, "prompt": [[7, 8, 9], "abc"], "temperature": 0},
        lambda a: a["choices"][0]["text"] == a["choices"][1]["text"] and a["choices"][1]["index"] == 1,
    ),
    "the likeliest tokens of a text": (
        TEXT,
        {**CONTINUE, "logprobs": 5},
        lambda a: all(5 <= len(one) <= 6 for one in a["choices"][0]["logprobs"]["top_logprobs"]),
    ),
    "given tokens are measured": (
        TEXT,
        {
            **CONTINUE,
            "max_tokens": 1,
            "logprobs": 0,
            "logprob_token_ids": [10, 20],
            "return_tokens_as_token_ids": True,
        },
        lambda a: {"token_id:10", "token_id:20"} <= a["choices"][0]["logprobs"]["top_logprobs"][0].keys(),
    ),
    # Tokens
    "the text of each token": (
        "/tokenize",
        {"prompt": "a b", "return_token_strs": True},
        lambda a: a["token_strs"] == ["a", " ", "b"] and a["count"] == 3,
    ),
    "messages as tokens": (
        "/tokenize",
        {"messages": BOOK},
        lambda a: a["count"] > len("What is the best book"),
    ),
    # Vectors
    "a vector has unit length": (
        EMBED,
        {"input": LINE, "pooling": "last"},
        lambda a: math.isclose(length(a["data"][0]["embedding"]), 1, abs_tol=1e-5),
    ),
    "a mean has unit length": (
        EMBED,
        {"input": [LINE, "This is a test"], "pooling": "mean"},
        lambda a: all(math.isclose(length(one["embedding"]), 1, abs_tol=1e-5) for one in a["data"]),
    ),
    "equal texts have equal vectors": (
        EMBED,
        {"input": [LINE] * 5},
        lambda a: all(one["embedding"] == a["data"][0]["embedding"] for one in a["data"]),
    ),
    "tokens of vectors are counted": (
        EMBED,
        {"input": [LINE] * 2},
        lambda a: a["usage"]["prompt_tokens"] == a["usage"]["total_tokens"] == 2 * (len(LINE) + 1),
    ),
    "vectors in base64": (
        EMBED,
        {"input": LINE, "encoding_format": "base64"},
        lambda a: len(base64.b64decode(a["data"][0]["embedding"])) == 4 * 16,
    ),
    # Reranking
    "the best document comes first": (
        RERANK,
        {"query": "abc", "documents": ["xyz", "abc", "?!"]},
        lambda a: (
            a["results"][0]["index"] == 1
            and a["results"] == sorted(a["results"], key=lambda one: -one["relevance_score"])
        ),
    ),
    "a few of the documents": (
        RERANK,
        {"query": "a", "documents": ["b", "c", "d"], "top_n": 2},
        lambda a: len(a["results"]) == 2,
    ),
    "more than there are": (
        RERANK,
        {"query": "a", "documents": ["b", "c"], "top_n": 99},
        lambda a: len(a["results"]) == 2,
    ),
    "tokens of documents are counted": (
        RERANK,
        {"query": "ab", "documents": ["c", "de"]},
        lambda a: a["usage"]["prompt_tokens"] == a["usage"]["total_tokens"] == 3 + 2 + 3,
    ),
}


@pytest.mark.parametrize("name", HOLD)
def test_it_holds_here_too(client, name):
    path, body, is_true = HOLD[name]
    response = post(client, path, body)
    assert response.status_code == 200 and is_true(response.json()), response.text


#: A behaviour -> the route, the body, and the field that is wrong. All are errors of the client's.
REFUSED = {
    **{
        f"messages are {json.dumps(given)}": (CHAT, {"messages": given}, "messages")
        for given in (
            *(None, "string", [123], [{}], [{"role": 123}], [{"role": "system", "content": 123}]),
            *([{"content": "hello"}], [{"role": "system", "content": "test"}, {}], []),
        )
    },
    **{
        f"a form is {json.dumps(given)}": (CHAT, {**ASK, "response_format": given}, param)
        for given, param in (
            ({"type": "sound"}, "response_format"),
            ({"type": "json_object", "schema": 123}, "response_format"),
            ({"type": "json_object", "schema": {"type": 123}}, "response_format"),
            ({"type": "json_object", "schema": {"type": "hiccup"}}, "response_format"),
            ({"type": "json_schema"}, "response_format"),
        )
    },
    "a picture": (
        CHAT,
        {**ASK, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages",
    ),
    "a file of the server's": (
        CHAT,
        {
            **ASK,
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}
            ],
        },
        "messages",
    ),
    "sound in a system message": (
        CHAT,
        {**ASK, "messages": [{"role": "system", "content": [{"type": "input_audio"}]}]},
        "messages",
    ),
    "a bias of no token": (CHAT, {**ASK, "logit_bias": {"1000000": 5}}, "logit_bias"),
    "a bias of no number": (CHAT, {**ASK, "logit_bias": {"one": 5}}, "logit_bias"),
    "a choice that there is not": (CHAT, {**ASK, "tools": [TOOL], "tool_choice": "bogus"}, "tool_choice"),
    "a call without tools": (CHAT, {**ASK, "tool_choice": "required"}, "tool_choice"),
    "too many alternatives": (CHAT, {**ASK, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    "a key of a message that nobody reads": (
        CHAT,
        {**ASK, "messages": [{"role": "user", "content": "a", "zzz": 1}]},
        "messages",
    ),
    "a tool of the server's": (CHAT, {**ASK, "tools": [{"type": "web_search"}]}, "tools"),
    "a tool that is none": (CHAT, {**ASK, "tools": ["look"]}, "tools"),
    "no tokens, by the new name": (
        CHAT,
        {"messages": BOOK, "max_completion_tokens": 0},
        "max_completion_tokens",
    ),
    "no tokens, as items": ("/v1/responses", {"input": "a", "max_output_tokens": 0}, "max_output_tokens"),
    "a schema of items that is none": (
        "/v1/responses",
        {"input": "a", "text": {"format": {"type": "json_schema", "schema": {"type": "hiccup"}}}},
        "text",
    ),
    "messages among the template's arguments": (
        CHAT,
        {**ASK, "chat_template_kwargs": {"messages": []}},
        "chat_template_kwargs",
    ),
    "text of ids that there are not": ("/detokenize", {"tokens": [10**9]}, "tokens"),
    "a document with a title": (
        RERANK,
        {"query": "a", "documents": [{"text": "b", "title": "c"}]},
        "documents",
    ),
    "stops as ids": (CHAT, {**ASK, "stop_token_ids": [5]}, "stop_token_ids"),
    "a prompt that does not fit": (TEXT, {"prompt": LINE * 200}, None),
    "no prompts": (TEXT, {"prompt": []}, "prompt"),
    "an empty prompt among others": (TEXT, {"prompt": ["a", ""]}, "prompt"),
    "no tokens to measure": (TEXT, {**CONTINUE, "logprob_token_ids": []}, "logprob_token_ids"),
    "tokens to measure that are no list": (TEXT, {**CONTINUE, "logprob_token_ids": 123}, "logprob_token_ids"),
    "no texts": (EMBED, {"input": []}, "input"),
    "an object for a text": (EMBED, {"input": {"content": "string"}}, "input"),
    "vectors of each token": (EMBED, {"input": "a", "pooling": "none"}, "pooling"),
    "no documents": (RERANK, {"query": "a", "documents": []}, "documents"),
    "documents of null": (RERANK, {"query": "a", "documents": None}, "documents"),
    "documents that are no list": (RERANK, {"query": "a", "documents": 123}, "documents"),
    "documents that are no texts": (RERANK, {"query": "a", "documents": [1, 2]}, "documents"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_here_too(client, name):
    path, body, param = REFUSED[name]
    response = post(client, path, body)
    assert response.status_code == 400 and response.json()["error"]["param"] == param, response.text


#: What those servers do, and here is done otherwise: the status and a word of the answer.
OTHERWISE = {
    "vectors of ids": (EMBED, {"input": [12, 34, 56]}, 400, "send texts"),
    "an empty text": (EMBED, {"input": ""}, 400, "empty"),
    "TEI's form of reranking": (RERANK, {"query": "a", "texts": ["b"]}, 400, "'texts'"),
    "a grammar in GBNF": (CHAT, {**ASK, "grammar": 'root ::= "a"'}, 400, "grammar"),
    "timings in a response": (CHAT, {**ASK, "timings_per_token": True}, 400, "timings_per_token is"),
    "a seed of -1": (TEXT, {**CONTINUE, "seed": -1}, 400, "seed is -1"),
    "given tokens measured in a chat": (CHAT, {**ASK, "logprob_token_ids": [5]}, 400, "'logprob_token_ids'"),
    "ids and text in one prompt": (TEXT, {**CONTINUE, "prompt": [5, "a", 6]}, 400, "prompt"),
    "a text as content": ("/tokenize", {"content": "a"}, 400, "'content'"),
    "another model's name": (CHAT, {**ASK, "model": "gpt-4"}, 404, "not served"),
    "a prompt as the template writes it": ("/apply-template", {"messages": USER}, 404, "no route"),
    "llama.cpp's own completion": ("/completion", {"prompt": "a", "n_predict": 4}, 404, "no route"),
    "filling in": ("/infill", {"input_prefix": "a", "input_suffix": "b"}, 404, "no route"),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_it_is_otherwise_here(client, name):
    path, body, status, says = OTHERWISE[name]
    response = post(client, path, body)
    assert response.status_code == status and says in response.json()["error"]["message"], response.text


# Streams


@pytest.mark.parametrize(("path", "body"), [(CHAT, ASK), (TEXT, CONTINUE)])
def test_a_stream_is_the_whole_answer(client, path, body):
    found = events(post(client, path, {**body, "stream": True, "stream_options": {"include_usage": True}}))
    whole = post(client, path, body).json()
    *pieces, usage = found
    assert len({one["id"] for one in found}) == 1 and {one["model"] for one in found} == {"wide"}
    choices = [one["choices"][0] for one in pieces]
    assert [one["finish_reason"] for one in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 8
    if path == CHAT:
        assert "".join(one["delta"].get("content", "") for one in choices) == content(whole)
        assert choices[0]["delta"]["role"] == "assistant" and "role" not in choices[1]["delta"]
        assert "content" not in choices[-1]["delta"]
    else:
        assert "".join(one["text"] for one in choices) == whole["choices"][0]["text"]


def test_usage_comes_where_it_is_asked_for(client):
    assert post(client, CHAT, ASK).json()["usage"]["prompt_tokens"] > 0
    assert not any("usage" in one for one in events(post(client, CHAT, {**ASK, "stream": True})))
    *pieces, last = events(
        post(client, CHAT, {**ASK, "stream": True, "stream_options": {"include_usage": True}})
    )
    assert all(one["usage"] is None for one in pieces) and last["usage"]["prompt_tokens"] > 0


def test_a_stream_has_log_probabilities(client):
    found = events(post(client, CHAT, {**ASK, "stream": True, "logprobs": True, "top_logprobs": 3}))
    tokens = [
        one for event in found for one in (event["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in found)
    assert "".join(one["token"] for one in tokens) == text and len(tokens) == 8
    assert all(len(one["top_logprobs"]) == 3 for one in tokens), tokens


def test_seeds_decide(client):
    same = {post(client, TEXT, CONTINUE).json()["choices"][0]["text"] for _ in range(3)}
    many = {post(client, TEXT, {**CONTINUE, "seed": seed, "temperature": 1.0}).text for seed in range(4)}
    assert len(same) == 1 and len(many) == 4


def test_requests_side_by_side_have_the_answers_that_they_have_alone(client):
    bodies = [{**CONTINUE, "prompt": f"{LINE} {number}", "temperature": 1.0} for number in range(6)]
    alone = [post(client, TEXT, body).json()["choices"] for body in bodies]
    with ThreadPoolExecutor(6) as pool:
        beside = pool.map(lambda body: post(client, TEXT, body).json()["choices"], bodies)
        assert list(beside) == alone


# Bodies, keys and paths


@pytest.mark.parametrize(
    "path", [CHAT, TEXT, EMBED, RERANK, "/v1/responses", "/v1/score", "/tokenize", "/detokenize"]
)
@pytest.mark.parametrize("body", [b'"no json{{{"', b'["not", "an", "object"]', b"42", b"null", b"{", b""])
def test_a_body_that_is_no_object(client, path, body):
    response = client.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400 and response.json()["error"]["message"].startswith("the body is")


def test_tokens_and_back(client):
    ids = post(client, "/tokenize", {"prompt": LINE}).json()["tokens"]
    assert post(client, "/detokenize", {"tokens": ids}).json() == {"prompt": LINE}


def test_a_last_message_is_continued_only_where_that_is_asked(client):
    body = {"messages": [*USER, {"role": "assistant", "content": "It is"}]}
    plain = post(client, "/tokenize", body).json()["tokens"]
    body |= {"continue_final_message": True, "add_generation_prompt": False}
    assert len(plain) > len(post(client, "/tokenize", body).json()["tokens"])


@pytest.mark.parametrize("prefix", ["", "/llm"])
@pytest.mark.parametrize(("key", "status"), [(None, 401), ("wrong", 401), ("secret", 200)])
def test_keys_hold_at_every_path(wide, prefix, key, status):
    """Also where the app is a part of another."""
    served = app({"wide": wide}, api_keys=["secret"], log=None)
    whole = applications.Starlette(routes=[routing.Mount(prefix, served)]) if prefix else served
    headers = {"authorization": f"Bearer {key}"} if key else {}
    client = testclient.TestClient(whole, headers=headers)
    for path in (f"{prefix}{TEXT}", f"{prefix}/completions", f"{prefix}/v1//completions"):
        response = client.post(path, json=CONTINUE)
        assert response.status_code == status
        if status == 401:
            assert response.json()["error"]["type"] == "authentication_error"
    assert client.get(f"{prefix}/v1/models").status_code == status
    assert client.get(f"{prefix}/health").status_code == 200


def test_a_key_is_taken_from_one_header(wide):
    client = testclient.TestClient(app({"wide": wide}, api_keys=["secret"], log=None))
    assert client.post(TEXT, json=CONTINUE, headers={"x-api-key": "secret"}).status_code == 401


def test_pages_of_an_origin_that_is_named_may_ask(wide):
    client = testclient.TestClient(
        app({"wide": wide}, api_keys=["secret"], cors=["https://a.example"], log=None)
    )
    wanted = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    for origin, status in (("https://a.example", 200), ("https://b.example", 400)):
        response = client.options(TEXT, headers={"origin": origin, **wanted})
        assert response.status_code == status
        allowed = response.headers.get("access-control-allow-origin")
        assert allowed == (origin if status == 200 else None)
