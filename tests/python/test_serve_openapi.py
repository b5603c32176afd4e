"""The OpenAPI document says what the server does: requests that are made of it, right and wrong ones, are
answered as it declares, and none is a defect."""

from __future__ import annotations

import logging

import pytest

from conftest import needed
from test_adapters import shapes_of, write

testclient = needed("starlette.testclient")
msgspec = needed("msgspec")
schemathesis = needed("schemathesis")
hypothesis = needed("hypothesis")

from schemathesis.specs.openapi.checks import positive_data_acceptance  # noqa: E402

from tallow.serve import app, openapi  # noqa: E402
from tallow.serve.routes import ROUTES  # noqa: E402

RIGHT, WRONG = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
EXAMPLES = 20
OPERATIONS = [(one, RIGHT) for one in ROUTES] + [(one, WRONG) for one in ROUTES if one.shape is not None]


@pytest.fixture(scope="module")
def document(tiny):
    served = app({"tiny": tiny}, log=None, max_n=2, timeout=20)
    return schemathesis.openapi.from_asgi("/openapi.json", served)


@pytest.mark.parametrize(
    ("route", "mode"), OPERATIONS, ids=[f"{one.path[1:]}-{mode.value}" for one, mode in OPERATIONS]
)
def test_every_answer_is_declared(document, route, mode, caplog):
    operation = document[openapi.shown_path(route.path)][route.method]

    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    @hypothesis.settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    def each(case):
        # What a field may be is more than a schema says: a model's vectors have so many dimensions.
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    with caplog.at_level(logging.ERROR, "tallow"):
        each()
    assert not caplog.records


ASK = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "boolean"}}}}
CALL = {"tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 200}
#: Requests that are answered, with as much in the answer as there may be.
GOOD = [
    ("/health", None),
    ("/ready", None),
    ("/metrics", None),
    ("/openapi.json", None),
    ("/models", None),
    ("/models/{name:path}", None),
    ("/chat/completions", ASK),
    ("/chat/completions", {**ASK, "logprobs": True, "top_logprobs": 2, "n": 2}),
    ("/chat/completions", {**ASK, **CALL, "tools": [{"type": "function", "function": FUNCTION}]}),
    ("/chat/completions", {**ASK, "stream": True}),
    ("/completions", {"prompt": "Hi", "max_tokens": 3}),
    ("/completions", {"prompt": ["a", "b"], "max_tokens": 3, "logprobs": 2, "echo": False}),
    ("/completions", {"prompt": [[5], [6]], "max_tokens": 1, "logprobs": 0, "logprob_token_ids": [7]}),
    ("/responses", {"input": "Hi", "max_output_tokens": 3, "include": ["message.output_text.logprobs"]}),
    ("/responses", {"input": "Hi", "tools": [{"type": "function", **FUNCTION}], "tool_choice": "required"}),
    ("/embeddings", {"input": ["a", "b"]}),
    ("/embeddings", {"input": "a", "encoding_format": "base64"}),
    ("/rerank", {"query": "a", "documents": ["b", {"text": "c"}], "return_documents": True}),
    ("/score", {"text_1": "a", "text_2": ["b", "c"]}),
    ("/score", {"prompt": "a", "candidates": ["b", "c"]}),
    ("/tokenize", {"prompt": "Hi", "return_token_strs": True}),
    ("/detokenize", {"tokens": [5, 6]}),
    ("/load_lora_adapter", {"lora_name": "fine", "lora_path": "FOLDER"}),
    ("/unload_lora_adapter", {"lora_name": "fine"}),
]


@pytest.fixture(scope="module")
def client(wide, tmp_path_factory):
    folder = write(
        tmp_path_factory.mktemp("lora") / "fine", shapes_of(wide.config), wide.config["num_layers"]
    )
    with testclient.TestClient(app({"wide": wide}, log=None, load_adapters=True)) as found:
        found.folder = str(folder)
        yield found


@pytest.mark.parametrize(("path", "body"), GOOD)
def test_an_answer_is_what_the_document_says(client, path, body):
    (route,) = [one for one in ROUTES if one.path == path]
    if body is None:
        response = client.get(path.replace("{name:path}", "wide"))
    else:
        body = {**body, **({"lora_path": client.folder} if "lora_path" in body else {})}
        response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    declared = document_of(client)["paths"][openapi.shown_path(path)][route.method.lower()]["responses"][
        "200"
    ]
    assert response.headers["content-type"].partition(";")[0] in declared["content"]
    if response.headers["content-type"] == "application/json":
        msgspec.convert(response.json(), route.answer, strict=True)


def document_of(client):
    return client.get("/openapi.json").json()


def test_the_document_is_complete(client):
    document = document_of(client)
    for one in ROUTES:
        operation = document["paths"][openapi.shown_path(one.path)][one.method.lower()]
        assert operation["summary"] and "200" in operation["responses"]
        assert ("requestBody" in operation) == (one.shape is not None)
    assert {path for path, _ in GOOD} == {one.path for one in ROUTES}
    names = [one["operationId"] for path in document["paths"].values() for one in path.values()]
    assert len(names) == len(set(names)) == len(ROUTES)


def test_a_key_is_declared_where_one_is_needed(wide):
    with testclient.TestClient(app({"wide": wide}, api_keys=["k"], log=None)) as client:
        document = client.get("/openapi.json", headers={"authorization": "Bearer k"}).json()
    assert document["security"] == [{"key": []}] and document["paths"]["/health"]["get"]["security"] == []
    assert "key" in document["components"]["securitySchemes"]
