"""``Model.save_merged``: a model of its own out of a base and an adapter, which answers as the base does with
the adapter; what it costs is told. That the numbers are peft's is held in Rust (``tests/merge.rs``)."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import tallow
from conftest import FAMILIES, copy_family
from test_adapters import shapes_of, write

IDS = [5, 9, 17, 3, 40, 8]


@pytest.fixture
def model(tmp_path):
    """A tiny model of its own, whose engine no other test shares."""
    return tallow.Model(copy_family("llama-gqa-tied", tmp_path / "tiny"), dtype="float32")


@pytest.fixture
def support(model, tmp_path):
    config = model.config
    folder = write(tmp_path / "adapter", shapes_of(config), config["num_layers"], seed=1)
    return model.load_adapter(folder, name="support")


@pytest.mark.parametrize(("dtype", "off"), [("float32", 1e-4), ("float16", 0.02), ("bfloat16", 0.2)])
def test_the_merged_model_answers_as_the_base_does_with_the_adapter(model, support, tmp_path, dtype, off):
    report = model.save_merged(tmp_path / "merged", "support", dtype=dtype)
    merged = tallow.Model(tmp_path / "merged", dtype="float32")
    served, base = model.logits(IDS, adapter=support), model.logits(IDS)
    assert np.abs(served - base).max() > 0.5
    assert np.abs(merged.logits(IDS) - served).max() < off
    assert merged.tokenize("the tea") == model.tokenize("the tea")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == dtype
    assert report.path == str(tmp_path / "merged") and report.size > 1000
    assert len(report.tensors) == 7 * model.config["num_layers"]
    names = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
    assert {tensor.dtype for tensor in report.tensors} == {names[dtype]}
    assert all(tensor.delta > 0.1 for tensor in report.tensors)


def test_the_scale_of_an_adapter_is_merged_with_it(model, support, tmp_path):
    half = model.load_adapter(support.path, name="half", scale=0.5)
    model.save_merged(tmp_path / "merged", half, dtype="float32", progress=False)
    merged = tallow.Model(tmp_path / "merged", dtype="float32")
    assert np.abs(merged.logits(IDS) - model.logits(IDS, adapter=half)).max() < 1e-4


def test_a_gguf_file_stays_one(tmp_path):
    config = tallow.Model(copy_family("llama-gqa-tied", tmp_path / "hf")).config
    source = shutil.copytree(tmp_path / "hf", tmp_path / "base")
    (source / "model.safetensors").unlink()
    shutil.copy(FAMILIES / "llama-gqa-tied" / "model.gguf", source / "model.gguf")
    model = tallow.Model(source / "model.gguf", dtype="float32")
    folder = write(tmp_path / "adapter", shapes_of(config), config["num_layers"], seed=1)
    support = model.load_adapter(folder)
    model.save_merged(source / "merged.gguf", support, dtype="float32")
    merged = tallow.Model(source / "merged.gguf", dtype="float32")
    assert np.abs(merged.logits(IDS) - model.logits(IDS, adapter=support)).max() < 1e-4


def test_what_was_lost_is_told(model, support, tmp_path):
    small = model.load_adapter(support.path, name="small", scale=0.003)
    report = model.save_merged(tmp_path / "merged", small, dtype="bfloat16")
    assert report.lost > 0.1 and "rounding takes more than 10 %" in report.notes[0]
    lines = report.table().splitlines()
    assert len(lines) == 1 + len(report.tensors) and "q_proj" in report.table()
    assert repr(report).startswith(f"<tallow.Merged {str(tmp_path / 'merged')!r}: ")
    assert report.notes[0] in repr(report)


def test_what_cannot_be_merged_is_said_before_anything_is_written(model, support, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("x")
    before = sorted(tmp_path.iterdir())
    for error, match, path, adapter, options in (
        (tallow.InvalidRequestError, "is there already", taken, support, {}),
        (tallow.InvalidRequestError, "is there already", tmp_path / "tiny", support, {}),
        (tallow.InvalidRequestError, 'no adapter "suport"', tmp_path / "new", "suport", {}),
        (tallow.ArgumentTypeError, "adapter is None", tmp_path / "new", None, {}),
        (tallow.InvalidRequestError, "safetensors do not hold", tmp_path / "new", support, {"dtype": "q8_0"}),
        (tallow.InvalidRequestError, "unknown weight type", tmp_path / "new", support, {"dtype": "half"}),
        (tallow.UnsupportedModelError, "convert_hf_to_gguf", tmp_path / "new", support, {"format": "gguf"}),
        (tallow.InvalidRequestError, "format is", tmp_path / "new", support, {"format": "onnx"}),
        (tallow.InvalidRequestError, "a folder is written", tmp_path / "new.gguf", support, {}),
        (tallow.ArgumentTypeError, "force is 1", tmp_path / "new", support, {"force": 1}),
        (tallow.ArgumentTypeError, "progress is 1", tmp_path / "new", support, {"progress": 1}),
    ):
        with pytest.raises(error, match=match):
            model.save_merged(path, adapter, **options)
    assert sorted(tmp_path.iterdir()) == before


def test_a_model_whose_files_changed_is_not_merged(model, support, tmp_path):
    weights = tmp_path / "tiny" / "model.safetensors"
    copy = tmp_path / "copy"
    shutil.copy(weights, copy)
    copy.replace(weights)
    with pytest.raises(tallow.ModelFileError, match="has changed since it was loaded"):
        model.save_merged(tmp_path / "merged", support)
    assert not (tmp_path / "merged").exists()


def test_whoever_watches_sees_it_and_may_end_it(model, support, tmp_path):
    seen = []
    model.save_merged(tmp_path / "merged", support, progress=lambda *report: seen.append(report))
    assert seen[0][0] == "merging" and seen[-1][2] == -1

    def ends(*report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.save_merged(tmp_path / "other", support, progress=ends)


def test_four_bits_keep_an_adapter_that_is_served_and_lose_one_that_is_merged(tmp_path):
    """The same small change of the same base of 4 bits: beside it, and added before all was rounded again."""
    folder = copy_family("llama-mha", tmp_path / "base")
    shapes, layers = shapes_of(tallow.Model(folder).config), 2
    (folder / "model.safetensors").unlink()
    shutil.copy(FAMILIES / "llama-mha" / "model.gguf", folder / "model.gguf")
    source = tallow.Model(folder / "model.gguf", dtype="float32")
    small = write(tmp_path / "adapter", shapes, layers, seed=1, size=0.005)

    def merged(model, scale, dtype):
        adapter = model.load_adapter(small, name=f"x{scale}", scale=scale)
        path = folder / f"{dtype}-{scale}.gguf"
        model.save_merged(path, adapter, dtype=dtype, force=True)
        return tallow.Model(path, dtype="float32")

    base = merged(source, 0.0, "q4_0")
    without = base.logits(IDS)
    wanted = merged(base, 1.0, "float32").logits(IDS) - without
    served = base.logits(IDS, adapter=base.load_adapter(small)) - without
    rounded = merged(base, 1.0, "q4_0").logits(IDS) - without
    size = np.linalg.norm(wanted)
    assert np.linalg.norm(served - wanted) < 0.01 * size
    assert np.linalg.norm(rounded - wanted) > 0.7 * size
