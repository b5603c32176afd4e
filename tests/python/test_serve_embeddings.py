"""Vectors, reranking and scores over HTTP are those of ``Model``."""

from __future__ import annotations

import asyncio
import base64
import json
import threading

import numpy as np
import pytest

import tallow
from conftest import ROOT, needed
from tallow.serve import app, batches, rerank

testclient = needed("starlette.testclient")

EMBED, RERANK, SCORE = "/v1/embeddings", "/v1/rerank", "/v1/score"
TEXTS = ["one text", "another", "one text"]


@pytest.fixture(scope="module")
def embedder():
    return tallow.Model(ROOT / "tests" / "golden" / "embed" / "qwen3")


@pytest.fixture(scope="module")
def client(embedder, wide, tiny):
    with testclient.TestClient(app({"embedder": embedder, "writer": wide, "small": tiny}, log=None)) as found:
        yield found


def answer(response):
    assert response.status_code == 200, response.text
    return response.json()


def vectors(found):
    return np.array([one["embedding"] for one in found["data"]], np.float32)


@pytest.mark.parametrize("name", ["embedder", "writer"])
@pytest.mark.parametrize("given", [TEXTS, TEXTS[0]], ids=["texts", "text"])
def test_vectors_are_those_of_the_model(client, embedder, wide, name, given):
    model = {"embedder": embedder, "writer": wide}[name]
    expected = model.embed([given] if isinstance(given, str) else given)
    plain = answer(client.post(EMBED, json={"model": name, "input": given}))
    assert (vectors(plain) == expected).all() and plain["model"] == name
    assert [one["index"] for one in plain["data"]] == list(range(len(expected)))
    packed = answer(client.post(EMBED, json={"model": name, "input": given, "encoding_format": "base64"}))
    read = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in packed["data"]]
    assert (np.stack(read) == expected).all() and packed["usage"] == plain["usage"]


def test_all_tokens_are_counted(client, embedder):
    """Also those that the tokenizer puts around a text, and what stands before it."""
    found = answer(client.post(EMBED, json={"model": "embedder", "input": TEXTS, "prompt": "as: "}))
    expected = [len(embedder.tokenize(f"as: {text}")) for text in TEXTS]
    around = found["usage"]["prompt_tokens"] - sum(expected)
    assert around == len(TEXTS) and found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"]
    assert (vectors(found) == embedder.embed(TEXTS, prompt="as: ")).all()


def test_many_texts_go_in_batches(embedder):
    texts = [f"text {number}" for number in range(70)]
    narrow = tallow.Model(ROOT / "tests" / "golden" / "embed" / "qwen3", queue=4)
    with testclient.TestClient(app({"narrow": narrow}, log=None)) as client:
        found = answer(client.post(EMBED, json={"input": texts}))
    assert (vectors(found) == embedder.embed(texts)).all()
    narrow.close()


@pytest.mark.parametrize("dimensions", [16, None])
def test_dimensions_that_are_there_are_taken(client, dimensions):
    found = answer(client.post(EMBED, json={"model": "embedder", "input": "a", "dimensions": dimensions}))
    assert vectors(found).shape == (1, 16)


IDS = "check_embedding_ctx_length=False"
REFUSED = [
    (EMBED, {"input": [1, 2]}, "input", IDS),
    (EMBED, {"input": [[1, 2], [3]]}, "input", IDS),
    (EMBED, {"input": []}, "input", "empty"),
    (EMBED, {"input": ["a", ""]}, "input", "input[1] is empty"),
    (EMBED, {"input": ["a", {"text": "b"}]}, "input", "input[1]"),
    (EMBED, {}, "input", "missing"),
    (EMBED, {"input": "a", "dimensions": 8}, "dimensions", "have 16"),
    (EMBED, {"input": "a", "encoding_format": "hex"}, "encoding_format", "'float', 'base64'"),
    (EMBED, {"input": "a", "pooling": "mode"}, "pooling", "mean"),
    (EMBED, {"input": "a", "truncate_prompt_tokens": 3}, "truncate_prompt_tokens", "nothing is cut"),
    (EMBED, {"input": ["a"] * 2049}, "input", "2048"),
    (EMBED, {"input": "a b" * 2000}, None, "tokens"),
    (RERANK, {"query": "q", "documents": []}, "documents", "1 to"),
    (RERANK, {"query": "q", "documents": [1]}, "documents", "documents[0]"),
    (RERANK, {"query": "q", "documents": ["a"], "top_n": 0}, "top_n", "at least 1"),
    (RERANK, {"query": "q", "documents": ["a"], "instruction": "i"}, "instruction", "models that judge"),
    (RERANK, {"documents": ["a"]}, "query", "missing"),
    (RERANK, {"query": "q", "texts": ["a"]}, "texts", "field"),
    (SCORE, {"text_1": "a"}, "text_2", "missing"),
    (SCORE, {"text_1": ["a", "b"], "text_2": ["c"]}, "text_1", "as many"),
    (SCORE, {"text_1": "a", "text_2": "b", "prompt": "p"}, "prompt", "candidates"),
    (SCORE, {"candidates": ["a"]}, "prompt", "one of them"),
    (SCORE, {"candidates": ["a"], "prompt": "p", "text_1": "t"}, "text_1", "leave text_1 out"),
]


@pytest.mark.parametrize(("path", "body", "param", "says"), REFUSED)
def test_what_cannot_be_honoured_is_refused(client, path, body, param, says):
    response = client.post(path, json={"model": "embedder", **body})
    found = response.json()["error"]
    assert response.status_code == 400 and found["param"] == param and says in found["message"]


# Reranking

DOCUMENTS = ["first", {"text": "second"}, "third"]


def test_a_model_that_was_made_for_vectors_is_known_by_its_files(wide, embedder):
    golden = ROOT / "tests" / "golden" / "embed"
    made = [embedder, tallow.Model(golden / "llama"), tallow.Model(golden / "gemma3" / "model.gguf")]
    assert all(one._native.is_embedder for one in made) and not wide._native.is_embedder


def ranked(client, **body):
    body = {"query": "which", "documents": DOCUMENTS, **body}
    return answer(client.post(RERANK, json=body))


def test_vectors_are_compared_by_their_angle(client, embedder):
    query, *documents = embedder.embed(["which", "first", "second", "third"]).astype(np.float64)
    expected = [float(query @ one / np.linalg.norm(query) / np.linalg.norm(one)) for one in documents]
    results = ranked(client, model="embedder")["results"]
    assert [one["index"] for one in results] == sorted(range(3), key=lambda at: -expected[at])
    assert [one["relevance_score"] for one in results] == pytest.approx(sorted(expected, reverse=True))
    scores = answer(client.post(SCORE, json={"model": "embedder", "text_1": "which", "text_2": "first"}))
    assert scores["data"][0]["score"] == pytest.approx(expected[0])
    prefixed = ranked(client, model="embedder", query_prefix="query: ", document_prefix="text: ")["results"]
    assert {one["index"]: one["relevance_score"] for one in prefixed} != {
        one["index"]: one["relevance_score"] for one in results
    }


def test_a_model_that_writes_is_asked(client, wide):
    """The score is the exact probability of yes against no."""
    found = ranked(client, model="writer", return_documents=True, top_n=2)["results"]
    texts = ["first", "second", "third"]
    expected = []
    for text in texts:
        ask = f"<Instruct>: {rerank.INSTRUCTION}\n<Query>: which\n<Document>: {text}"
        system = rerank._SYSTEM
        prompt = [{"role": "system", "content": system}, {"role": "user", "content": ask}]
        expected.append(wide.score(prompt, ["yes", "no"])[0].probability)
    order = sorted(range(3), key=lambda at: -expected[at])[:2]
    assert [one["index"] for one in found] == order
    assert [one["relevance_score"] for one in found] == [expected[at] for at in order]
    assert [one["document"] for one in found] == [{"text": texts[at]} for at in order]
    pairs = {"model": "writer", "text_1": ["which"] * 3, "text_2": texts}
    scores = answer(client.post(SCORE, json=pairs))
    assert [one["score"] for one in scores["data"]] == expected


def test_candidates_have_their_likelihood(client, wide):
    ask = [{"role": "user", "content": "Is it?"}]
    for given, prompt in (({"prompt": "It is"}, "It is"), ({"messages": ask}, ask)):
        expected = wide.score(prompt, ["yes", "no"])
        found = answer(client.post(SCORE, json={"model": "writer", "candidates": ["yes", "no"], **given}))
        assert [one["logprob"] for one in found["data"]] == [one.logprob for one in expected]
        assert [one["score"] for one in found["data"]] == [one.probability for one in expected]
        assert [one["tokens"] for one in found["data"]] == [list(one.tokens) for one in expected]


def test_scores_come_from_the_adapter_that_is_named(wide, tmp_path):
    from test_adapters import shapes_of, write

    folder = write(tmp_path / "fine", shapes_of(wide.config), wide.config["num_layers"], seed=1)
    with testclient.TestClient(app({"writer": wide}, adapters={"fine": folder}, log=None)) as client:
        body = {"prompt": "It is", "candidates": ["yes", "no"]}
        base, fine = (answer(client.post(SCORE, json={"model": name, **body})) for name in ("writer", "fine"))
        assert base["data"] != fine["data"]
        base, fine = (
            answer(client.post(EMBED, json={"model": name, "input": "a"})) for name in ("writer", "fine")
        )
        assert base["data"] != fine["data"]
    wide.unload_adapter("fine")


def test_who_leaves_is_computed_for_no_longer(embedder, monkeypatch):
    """The batch that is at work ends; no other begins."""
    begun = []
    real = tallow.Model.embed

    def embed(self, texts, *rest, **options):
        begun.append(len(texts))
        left.set()
        return real(self, texts, *rest, **options)

    monkeypatch.setattr(tallow.Model, "embed", embed)
    body = [{"type": "http.request", "body": json.dumps({"input": ["a b c"] * 2000}).encode()}]
    left, sent = threading.Event(), []

    async def receive():
        if body:
            return body.pop()
        await asyncio.to_thread(left.wait)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
    scope = {"type": "http", "method": "POST", "path": EMBED, "headers": headers, "query_string": b""}
    scope |= {"root_path": "", "http_version": "1.1", "scheme": "http", "raw_path": EMBED.encode()}
    asyncio.run(app({"embedder": embedder}, log=None)(scope, receive, send))
    assert sent[0]["status"] == 499 and sum(begun) < 2000


def test_what_takes_too_long_or_waits_too_long_is_told(embedder, monkeypatch):
    body = {"input": ["a b c"] * 2000}
    with testclient.TestClient(app({"embedder": embedder}, log=None, timeout=0.05)) as client:
        late = client.post(EMBED, json=body)
        assert late.status_code == 408 and late.json()["error"]["code"] == "timeout"
        monkeypatch.setattr(batches, "_running", 2000)
        full = client.post(EMBED, json=body)
        assert full.status_code == 429 and full.headers["retry-after"]
