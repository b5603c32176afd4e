"""What goes to the ``logging`` module, and what a bug report is made of."""

from __future__ import annotations

import json
import logging

import pytest

import tallow
from conftest import python
from tallow import _log, versions


@pytest.fixture
def lines(caplog, monkeypatch):
    monkeypatch.setattr(_log, "_told", set())
    caplog.set_level(logging.INFO, "tallow")
    return lambda: [(record.levelname, record.getMessage()) for record in caplog.records]


def test_a_load_is_a_line(tiny_folder, lines):
    tallow.Model(str(tiny_folder), progress=False)
    assert [level for level, _ in lines()] == ["INFO"]
    assert lines()[0][1].startswith(f"loaded <tallow.Model {tiny_folder.name!r}")


def test_work_that_takes_time_is_a_line_with_its_bytes(lines):
    from tallow.progress import reporter

    calls = []
    report = reporter(lambda *call: calls.append(call))
    sent = [("model.gguf (org/name)", 3 << 20, 0), ("model.gguf (org/name)", 3 << 20, 3 << 20)]
    sent.append(("model.gguf (org/name)", 3 << 20, -1))
    for call in sent:
        report(*call)
    assert calls == sent
    assert lines() == [("INFO", "model.gguf (org/name): 3.0 MiB in 0.0 s")]


def test_a_format_that_is_not_enforced_is_a_warning_once(lines):
    pytest.importorskip("dspy")
    from tallow.dspy import constraints
    from tallow.dspy.formats import CALL_ALONE, Format

    for chosen in [Format("chat", why="ValueError: no"), Format("chat", why="ValueError: no")]:
        constraints.told(chosen, False)
    for silent in [Format("chat", why=CALL_ALONE), Format("none", why="no adapter's format in the prompt")]:
        constraints.told(silent, False)
    constraints.told(Format("json", {"json_schema": {}}, notes=("bounds of a date are not enforced",)), True)
    assert lines() == [
        ("WARNING", "the format chat is not enforced: ValueError: no"),
        ("INFO", "the format json: bounds of a date are not enforced"),
    ]


def test_nothing_is_said_and_nothing_is_imported_unless_asked(tiny_folder):
    done = python(f"import sys, tallow; tallow.Model({str(tiny_folder)!r}); print('logging' in sys.modules)")
    assert (done.stdout.strip(), done.stderr) == ("False", "")


SIZES = [
    (0, "0 bytes"),
    (1023, "1023 bytes"),
    (1024, "1.0 KiB"),
    (85_000_000, "81.1 MiB"),
    (5 << 40, "5.0 TiB"),
]


@pytest.mark.parametrize(("count", "text"), SIZES)
def test_sizes_are_for_people(count, text):
    assert _log.size(count) == text


def test_versions_say_what_a_bug_report_needs_and_no_secret(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://name:secret@proxy:3128")
    tallow.show_versions()
    text = capsys.readouterr().out
    features = tallow.features()
    for wanted in (tallow.__version__, features["isa"], "numpy", "logical cpus", "HF_TOKEN", "proxy:3128"):
        assert wanted in text, wanted
    assert "secret" not in text
    tallow.show_versions(as_json=True)
    assert json.loads(capsys.readouterr().out) == versions.collect()
