"""The OpenAPI document says what the server does: requests that are made of it, right and wrong ones, are
answered as it declares, and none is a defect."""

from __future__ import annotations

import logging

import pytest

from conftest import needed

testclient = needed("starlette.testclient")
schemathesis = needed("schemathesis")
hypothesis = needed("hypothesis")

from tallow.serve import app, openapi  # noqa: E402
from tallow.serve.routes import ROUTES  # noqa: E402

RIGHT, WRONG = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
OPERATIONS = [(one.method, openapi.shown_path(one.path)) for one in ROUTES]


@pytest.fixture(scope="module")
def served(tiny):
    return app({"tiny": tiny}, log=None, max_n=2, timeout=20)


@pytest.fixture(scope="module")
def document(served):
    return schemathesis.openapi.from_asgi("/openapi.json", served)


@pytest.mark.parametrize("mode", [RIGHT, WRONG], ids=["right", "wrong"])
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_answer_is_declared(document, method, path, mode, caplog):
    operation = document[path][method]

    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    @hypothesis.settings(
        max_examples=12,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    def each(case):
        case.call_and_validate()

    with caplog.at_level(logging.ERROR, "tallow"):
        each()
    assert not caplog.records
