"""The notebooks as they are committed, and the script that runs and compares them."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from conftest import ROOT, needed

nbformat = needed("nbformat")
needed("nbclient")
sys.path.insert(0, str(ROOT / "scripts"))

import notebooks  # noqa: E402

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_it_is_committed_as_it_was_run(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = list(notebooks.code_cells(notebook))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert notebook.metadata == notebooks.METADATA
    assert list(notebooks.faults(notebook)) == []
    assert sum(bool(cell.outputs) for cell in cells) >= 5
    assert notebook.cells[0].source.startswith("# "), "it begins with a title"


def test_each_is_linked_from_the_first():
    first = nbformat.read(PATHS[0], as_version=4).cells[-1].source
    assert len(PATHS) == 7 and all(path.name in first for path in PATHS[1:])


def cell(*outputs: dict, tags: tuple[str, ...] = ()):
    made = nbformat.v4.new_code_cell("answer", outputs=list(map(nbformat.from_dict, outputs)))
    made.metadata.tags = list(tags)
    return made


def printed(text: str, name: str = "stdout") -> dict:
    return {"output_type": "stream", "name": name, "text": text}


def displayed(**data: str) -> dict:
    data = {name.replace("_", "/"): text for name, text in data.items()}
    return {"output_type": "display_data", "metadata": {}, "data": data}


#: What two runs show, and whether that counts as the same.
RUNS = {
    "equal": (cell(printed("Paris")), cell(printed("Paris")), True),
    "another answer": (cell(printed("Paris")), cell(printed("Rome")), False),
    "another time": (cell(printed("2 + 3 tokens, 1.25 s")), cell(printed("2 + 3 tokens, 0.3 s")), True),
    "another speed": (cell(printed("1,024.5 tokens/s")), cell(printed("7 tokens/s")), True),
    "other tokens": (cell(printed("2 + 3 tokens, 1.25 s")), cell(printed("2 + 4 tokens, 1.25 s")), False),
    "timings": (cell(printed("Timings(queue=1e-05)")), cell(printed("Timings(queue=2.0)")), True),
    "html": (cell(displayed(text_html="<b>a</b>")), cell(displayed(text_html="<b>b</b>")), False),
    "nothing": (cell(printed("Paris")), cell(), False),
    "varies": (cell(printed("a"), tags=("varies",)), cell(printed("b"), tags=("varies",)), True),
}


@pytest.mark.parametrize("name", RUNS)
def test_what_counts_as_the_same(name):
    one, other, same = RUNS[name]
    shown = [notebooks.shown(nbformat.v4.new_notebook(cells=[each])) for each in (one, other)]
    assert (shown[0] == shown[1]) == same


FAULTS = {
    "a failure": (
        {"output_type": "error", "ename": "KeyError", "evalue": "'x'", "traceback": []},
        "KeyError",
    ),
    "a warning": (printed("TqdmWarning", "stderr"), "stderr"),
    "a home": (printed(f"{Path.home()}/models"), "a path of this machine"),
    "a temporary folder": (
        displayed(text_html=f"<b>{tempfile.gettempdir()}/x</b>"),
        "a path of this machine",
    ),
    "nothing": (printed("Paris"), None),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_no_notebook_may_show(name):
    output, part = FAULTS[name]
    found = list(notebooks.faults(nbformat.v4.new_notebook(cells=[cell(output)])))
    assert len(found) == (part is not None) and all(part in line for line in found)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Processed 6 / 6 examples: 100%|██████████| 6/6 [00:00<00:00,  8.84it/s]\nParis\n", "Paris\n"),
        ("smollm2:  60%|██████    | 55.0M/92.0M [00:01<00:01, 40.0MB/s]", ""),
        ("            ", ""),
        ("  Paris\n", "  Paris\n"),
        ("a\n\n", "a\n\n"),
    ],
)
def test_bars_are_no_output(text, left):
    assert notebooks.tidy(nbformat.from_dict(printed(text))).text == left
