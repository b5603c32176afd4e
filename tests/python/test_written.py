"""What is written here is read elsewhere: peft loads the adapters that are trained here, transformers the
models that adapters are merged into, and both give our logits.

Neither is at hand in the tests, so ``tests/golden/written`` has what they made of such folders, and what is
written now is held to the form that they have read and to the logits that they gave. ``python
tests/python/test_written.py FOLDER`` writes the adapters anew, and the models into FOLDER;
``scripts/golden/written.py FOLDER`` has them read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tallow
from conftest import FAMILIES, copy_family

GOLDEN = FAMILIES.parent / "written"
ADAPTERS = FAMILIES.parent / "adapters"
#: The largest difference of a logit: sums of another order.
NEAR = 1e-4

#: Checkpoints whose adapters have something of their own: fused projections, norms of heads, windows, other
#: names, neighbours that are turned.
TRAINED = (
    *("llama-gqa-tied", "qwen2-tied", "qwen3-tied", "gemma3-layers", "phi3-partial", "phi-parallel"),
    *("starcoder2-bias", "cohere2-parallel"),
)
WORDS = (("tea", "hot"), ("ice", "cold"), ("coal", "black"))


def trained(model: tallow.Model, folder: Path) -> tallow.Adapter:
    rows = [{"prompt": f"{thing} is", "completion": f" {word}"} for thing, word in WORDS]
    job = model.train(
        rows,
        rank=2,
        alpha=3,
        epochs=8,
        learning_rate=0.05,
        precision="float32",
        output=folder,
        progress=False,
    )
    adapter = job.result()
    shutil.rmtree(next(folder.glob("checkpoint-*")))  # for going on; an adapter like the one beside it
    return adapter


def opened(name: str, folder: Path) -> tallow.Model:
    return tallow.Model(copy_family(name, folder), dtype="float32")


def header(path: Path) -> dict[str, Any]:
    """Types and shapes of a safetensors file, by name."""
    data = path.read_bytes()
    said = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {
        name: it if name == "__metadata__" else [it["dtype"], it["shape"]]
        for name, it in sorted(said.items())
    }


def arrays(path: Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    types, found = {"I64": "<i8", "F32": "<f4"}, {}
    for name, it in json.loads(data[8:begin]).items():
        if name != "__metadata__":
            start, end = (begin + at for at in it["data_offsets"])
            found[name] = np.frombuffer(data[start:end], types[it["dtype"]]).reshape(it["shape"])
    return found


def form(folder: Path, config: str, tensors: str) -> dict[str, Any]:
    """All of a folder but its numbers."""
    settings = json.loads((folder / config).read_text())
    return {
        "files": sorted(it.name for it in folder.iterdir()),
        config: settings,
        tensors: header(folder / tensors),
    }


def adapters_form(folder: Path) -> dict[str, Any]:
    return form(folder, "adapter_config.json", "adapter_model.safetensors")


@pytest.mark.parametrize("name", TRAINED)
def test_peft_reads_what_is_trained(name, tmp_path):
    golden = tmp_path / "golden"
    shutil.copytree(GOLDEN / name, golden)
    wanted = arrays(golden / "reference.safetensors")
    (golden / "reference.safetensors").unlink()
    ids = wanted["tokens"].tolist()
    model = opened(name, tmp_path / "base")
    found = model.logits(ids, adapter=model.load_adapter(golden))
    assert np.abs(found - wanted["logits"]).max() < NEAR
    assert np.abs(found - model.logits(ids)).max() > 0.1, "the adapter changes something"

    adapter = trained(model, tmp_path / "now")
    assert adapters_form(tmp_path / "now") == adapters_form(golden)
    # Read from its files, as the golden was, it is what it is in memory.
    other = opened(name, tmp_path / "other")
    again = other.logits(ids, adapter=other.load_adapter(tmp_path / "now"))
    assert (again == model.logits(ids, adapter=adapter)).all()


# Merged models


def rows() -> dict[str, dict[str, Any]]:
    """The adapters of peft that are merged; how far theirs are from transformers' logits is in the golden."""
    lines = json.loads((ADAPTERS / "manifest.json").read_text())
    return {row["name"]: row for row in lines if row["adapter"] == row["name"] and not row["refused"]}


#: A bias beside B has no place in a model.
MERGED = sorted(set(rows()) - {"lora-bias"})


def merged(name: str, folder: Path, base: Path) -> Path:
    model = opened(rows()[name]["base"], base)
    adapter = model.load_adapter(ADAPTERS / name)
    model.save_merged(folder, adapter, dtype="float32", progress=False)
    return folder


def digest(folder: Path) -> str:
    """Of the form of a merged model."""
    return hashlib.sha256(json.dumps(form(folder, "config.json", "model.safetensors")).encode()).hexdigest()[
        :16
    ]


@pytest.mark.parametrize("name", MERGED)
def test_transformers_reads_what_is_merged(name, tmp_path):
    read = json.loads((GOLDEN / "merged.json").read_text())[name]
    folder = merged(name, tmp_path / "merged", tmp_path / "base")
    assert digest(folder) == read["form"], (
        "of another form than what transformers has read; let it read it anew"
    )
    wanted = arrays(ADAPTERS / rows()[name]["reference"])
    found = tallow.Model(folder, dtype="float32").logits(wanted["tokens"].tolist())
    scale = max(rows()[name]["bite"], 1.0)
    assert np.abs(found - wanted["logits"]).max() < NEAR * scale > read["apart"]


if __name__ == "__main__":
    out = Path(sys.argv[1])
    for name in TRAINED:
        shutil.rmtree(GOLDEN / name, ignore_errors=True)
        trained(opened(name, out / "trained" / name / "base"), GOLDEN / name)
    forms = {
        name: {"form": digest(merged(name, out / "merged" / name, out / "bases" / name / "base"))}
        for name in MERGED
    }
    (out / "merged.json").write_text(json.dumps(forms))
