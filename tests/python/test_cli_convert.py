"""``tallow convert``: what is written answers as its source does, and says what it is."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import tallow
from command import run
from conftest import ROOT, SPECIALS, copy_family, needed, widen, write_tokenizer

IDS = [5, 9, 17, 3, 40, 8]
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


MERGES = ["t e", "te a", "Ġ t", "Ġ 1", "h e", "l l"]


def split_as_qwen(folder):
    """Gives the tokenizer of a folder a rule of splitting words that llama.cpp has a name for."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": QWEN}, "behavior": "Isolated", "invert": False}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, tokenizer["pre_tokenizer"]]}
    tokenizer["model"]["unk_token"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def checkpoint(family, folder):
    """A golden checkpoint with tied embeddings and a whole byte-level tokenizer, as Qwen has them."""
    copy_family(family, folder)
    widen(folder, 300)
    split_as_qwen(folder)
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    alphabet = [*map(chr, plain), *(chr(256 + at) for at in range(len(others)))]
    tokens = [*SPECIALS, *alphabet, *(merge.replace(" ", "") for merge in MERGES)]
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"] |= {"vocab": {token: id for id, token in enumerate(tokens)}, "merges": MERGES}
    tokenizer["normalizer"] = {"type": "NFC"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.mark.parametrize("family", ["llama-gqa-tied", "qwen3-tied", "gemma3-classic"])
def test_a_folder_becomes_a_file_with_the_same_numbers(tmp_path, family):
    folder, file = checkpoint(family, tmp_path / "hf"), tmp_path / "made" / "tiny.gguf"
    done = run("convert", folder, file, "--type", "f32", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert set(told["types"]) == {"F32"} and "NFC" in told["notes"][0]
    before, after = tallow.Model(folder, dtype="float32"), tallow.Model(file, dtype="float32")
    assert np.array_equal(before.logits(IDS), after.logits(IDS))
    text = "The tea, it's 12 o'clock.\n"
    assert before.tokenize(text) == after.tokenize(text)
    chat = [{"role": "user", "content": "hello"}]
    assert before.render(chat) == after.render(chat)
    assert set(before.eos_ids) <= set(after.eos_ids)
    read = needed("gguf").GGUFReader(file)
    assert read.fields["tokenizer.ggml.pre"].contents() == "qwen2"
    assert len(read.fields["tokenizer.ggml.tokens"].data) == 300


@pytest.mark.parametrize("name", ["gptq-int4", "awq-int4", "mlx-4", "fp8-block", "bnb-nf4", "ct-nvfp4"])
def test_a_quantized_folder_becomes_a_file(tmp_path, name):
    folder, file = tmp_path / name, tmp_path / "made.gguf"
    shutil.copytree(ROOT / "tests" / "golden" / "quantized" / name, folder)
    write_tokenizer(folder, 64)
    split_as_qwen(folder)
    done = run("convert", folder, file, "--type", "f32", "--json")
    assert done.returncode == 0, done.stderr
    assert "the checkpoint is quantized already" in json.loads(done.stdout)["notes"][-1]
    before, after = tallow.Model(folder, dtype="float32"), tallow.Model(file, dtype="float32")
    # Blocks take activations of 15 bits, floats take them as they are.
    assert np.abs(before.logits(IDS) - after.logits(IDS)).max() < 4e-3


def test_a_tokenizer_without_a_name_for_its_rule_is_refused(tmp_path):
    folder = copy_family("llama-gqa-tied", tmp_path / "hf")
    done = run("convert", folder, tmp_path / "x.gguf", "--type", "f16")
    assert done.returncode == 1 and "rule of splitting words" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_types_are_mixtures_and_files_are_not_replaced_unasked(tmp_path):
    folder, file = checkpoint("llama-gqa-tied", tmp_path / "hf"), tmp_path / "tiny.gguf"
    assert run("convert", folder, file, "--type", "q8_0").returncode == 0
    assert tallow.Model(file).config["num_layers"] > 0
    again = run("convert", folder, file, "--type", "q8_0")
    assert again.returncode == 1 and "is there already" in again.stderr
    assert run("convert", folder, file, "--type", "f16", "--overwrite").returncode == 0
    wrong = run("convert", folder, file, "--type", "q9")
    assert wrong.returncode == 2 and "q4_k_m" in wrong.stderr
    assert run("convert", folder, file).returncode == 2


def test_smollm2_keeps_its_answers(tmp_path, smollm2):
    file = tmp_path / "copy.gguf"
    done = run("convert", "smollm2", file, "--type", "q8_0")
    assert done.returncode == 0 and "quantized already" in done.stderr
    copy = tallow.Model(file)
    prompt = "The capital of France is"
    assert copy.generate(prompt, max_tokens=12).text == smollm2.generate(prompt, max_tokens=12).text
