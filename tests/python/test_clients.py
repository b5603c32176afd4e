"""Real clients against a server of ours. Here those that the other tests need anyway; ``make clients`` runs
all."""

from __future__ import annotations

import runpy
from collections.abc import Iterator

import pytest

from conftest import ROOT, needed

for package in ("starlette", "dspy", "openai", "llm"):
    needed(package)

import served  # noqa: E402
from tallow.serve import app  # noqa: E402

CLIENTS = runpy.run_path(str(ROOT / "scripts" / "clients.py"))


@pytest.fixture(scope="module")
def url(smollm2) -> Iterator[str]:
    with served.running(app({"smollm2": smollm2}, log=None, dspy=True)) as address:
        yield f"{address}/v1"


# LiteLLM takes as long to import as the others together.
@pytest.mark.parametrize("name", [name for name in CLIENTS["GROUPS"][""][1] if name != "litellm"])
def test_a_client(name, url):
    assert CLIENTS["works"](name, CLIENTS["environment"]("", ()), url)


def test_every_script_is_run():
    scripts = {path.stem.removeprefix("with_") for path in (ROOT / "tests" / "clients").glob("with_*")}
    assert scripts == {name for _, clients in CLIENTS["GROUPS"].values() for name in clients}
