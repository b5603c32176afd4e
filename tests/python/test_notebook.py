"""Cells of a real kernel: what they show, a stream that grows in place, bars, and the stop button."""

from __future__ import annotations

import itertools
import sys

import pytest

from conftest import needed
from notebook import kernel

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no signals of its own to send")


@pytest.fixture(scope="module")
def cell(tmp_path_factory, smollm2):
    """Runs a cell of one kernel, which has loaded the model."""
    with kernel(tmp_path_factory.mktemp("kernel")) as running:
        code = (
            "import asyncio, tallow; model = tallow.Model('smollm2')\n"
            "endless = {'temperature': 0, 'logit_bias': dict.fromkeys(model.eos_ids, -100.0)}"
        )
        assert running.cell(code) == []
        yield running.cell


SHOWN = {
    "model": ["<b>smollm2", "8,192 tokens"],
    "model.generate('Snow is', max_tokens=3, temperature=0)": ["2 + 3 tokens", "that"],
    "model.generate('Snow is', max_tokens=3, temperature=0, logprobs=2)": ["title=", "rgba("],
    "model.score('Snow is', [' white', ' black'])": [" white", "%", "log likelihood"],
}


@pytest.mark.parametrize("code", SHOWN)
def test_values_have_html(cell, code):
    (shown,) = cell(code)
    assert shown["type"] == "execute_result"
    assert all(part in shown["data"]["text/html"] for part in SHOWN[code]), shown["data"]


def test_a_judge_shows_bars(cell):
    needed("dspy")
    code = (
        "from dspy.experimental import Choice, Noul, Score\n"
        "judge = tallow.Judge(model, cache=False)\n"
        "judge(state='The tea was cold.', questions={'happy': {'type': 'noul'}})"
    )
    shown = cell(code)[-1]
    assert all(part in shown["data"]["text/html"] for part in ("happy", "true", "false", "width:")), shown
    (shown,) = cell("Noul(value=True, confidence=0.5, probability=0.75)")
    assert "75.0%" in shown["data"]["text/html"]
    (shown,) = cell("Choice[('tea', None), ('milk', None)](value='tea', confidence=0.5)")
    assert "text/html" not in shown["data"], "no probabilities, no bars"


@pytest.mark.parametrize(
    "code",
    [
        "model.stream('Once upon a time', max_tokens=60, temperature=0).show()",
        "await model.astream('Once upon a time', max_tokens=60, temperature=0).show()",
        "answer = model.stream('Once upon a time', max_tokens=60, temperature=0).show()",
    ],
)
def test_a_stream_grows_in_one_output(cell, code, smollm2):
    first, *updates = cell(code)
    whole = smollm2.generate("Once upon a time", max_tokens=60, temperature=0)
    assert first["type"] == "display_data"
    assert {update["type"] for update in updates} == {"update_display_data"}, "and not once more as the value"
    assert {update["transient"]["display_id"] for update in updates} == {first["transient"]["display_id"]}
    texts = [update["data"]["text/plain"] for update in updates]
    assert all(later.startswith(text) for text, later in itertools.pairwise(texts))
    assert texts[-1] == whole.text and "+ 60 tokens" in updates[-1]["data"]["text/html"]
    (seconds,) = cell("print(_.timings.total if 'answer' not in globals() else answer.timings.total)")
    assert 2 <= len(updates) <= 3 + 10 * float(seconds["text"]), "ten updates a second at most"
    if code.startswith("answer"):
        (again,) = cell("answer")
        assert again["type"] == "execute_result", "in another cell it is shown"


LONG = "'word ' * 4000"
WAITING = {
    "generate": "model.generate('once', **endless)",
    "show": "model.stream('once', **endless).show()",
    "agenerate": "await model.agenerate('once', **endless)",
    "gather": "await asyncio.gather(*(model.agenerate(f'{i}', **endless) for i in range(8)))",
    "astream": "async for _ in model.astream('once', **endless): pass",
    "astream.show": "await model.astream('once', **endless).show()",
    "judge": f"await judge.acall(state={LONG}, questions={{'happy': {{'type': 'noul'}}}})",
    "timeout": "await asyncio.wait_for(model.agenerate('once', **endless), 60)",
}


@pytest.mark.parametrize("way", WAITING)
def test_the_stop_button_ends_a_cell_at_once(cell, way):
    if way == "judge":
        needed("dspy")
        cell("judge = tallow.Judge(model, cache=False)")
    latencies = []
    while len(latencies) < 3 and min(latencies, default=1) >= 0.2:  # a busy machine may keep anybody waiting
        shown = cell(f"print('go', flush=True)\n{WAITING[way]}", interrupt_after=0.15)
        (error,) = (message for message in shown if message["type"] == "error")
        assert error["ename"] in ("KeyboardInterrupt", "CancelledError"), error
        latencies.append(error["after"])
    assert min(latencies) < 0.2, latencies
    (idle,) = cell(
        "while model.stats()['running']: await asyncio.sleep(0.01)\n"
        "model.generate('Snow is', max_tokens=1, temperature=0).finish_reason"
    )
    assert idle["data"]["text/plain"] == "'length'"


def test_without_ipywidgets_bars_are_plain_and_nobody_warns(cell):
    shown = cell(
        "import sys; sys.modules['ipywidgets'] = None\n"
        "from tallow.progress import Bars\n"
        "bars = Bars(patience=0.0)\n"
        "for done in (10, 60, -1): bars('model.gguf', 100, done)"
    )
    assert {(message["type"], message.get("name")) for message in shown} == {("stream", "stdout")}, shown
    assert "model.gguf" in shown[0]["text"] and "IProgress" not in str(shown)
