"""What people bring as files: checkpoints of other formats, configurations as Python writes them, odd paths.
Each is read as it was meant or refused by the name of what it is."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import struct
import sys
from pathlib import Path

import pytest

import tallow
from conftest import copy_family, needed, python

PROMPT = "a few words"
HQQ = {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4}}}


def read(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write(path: Path, header: dict, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def edit_json(path: Path, **changes) -> None:
    text = path.read_text() if path.exists() else "{}"
    path.write_text(json.dumps(json.loads(text) | changes))


def logits(source):
    return tallow.Model(source, progress=False, threads=1).logits([1, 20, 30, 40])


# Quantized checkpoints


def refused(folder: Path) -> str:
    with pytest.raises((tallow.UnsupportedModelError, tallow.ModelFileError)) as caught:
        tallow.Model(folder, progress=False)
    return str(caught.value)


def test_a_quantized_checkpoint_is_named(broken):
    folder = broken(lambda folder: edit_json(folder / "config.json", quantization_config=HQQ))
    told = refused(folder)
    assert "config.json" in told and "quantized with HQQ, 4 bits, which is not run yet" in told
    assert told.endswith("use the original model or a GGUF file of it")


def _pack(folder: Path, part: str, name: str, dtype: str) -> None:
    """What a quantizer does to the names: a projection's weight is gone, and its own tensor is there."""
    header, data = read(folder / "model.safetensors")
    weight = next(key for key in header if key.endswith(f"{part}.weight"))
    header[weight.replace("weight", name)] = header.pop(weight) | {"dtype": dtype}
    write(folder / "model.safetensors", header, data)


def test_packed_tensors_are_named_where_the_configuration_says_nothing(broken):
    folder = broken(lambda folder: _pack(folder, "q_proj", "qweight", "I32"), "llama-gqa-tied")
    told = refused(folder)
    assert "q_proj.qweight" in told and "GPTQ or AWQ" in told


def test_a_file_beside_packed_weights_tells_and_beside_plain_ones_does_not(broken):
    folder = broken(lambda folder: edit_json(folder / "quantize_config.json", bits=3, group_size=32))
    tallow.Model(folder, progress=False)
    _pack(folder, "q_proj", "qweight", "I32")
    told = refused(folder)
    assert "q_proj" in told and "the configuration says GPTQ, 3 bits, group 32" in told


@pytest.mark.parametrize(
    "said",
    [{}, None, {"quant_method": "compressed-tensors", "quantization_status": "frozen"}],
    ids=["empty", "null", "frozen"],
)
def test_what_says_that_nothing_is_quantized_changes_nothing(said, tmp_path):
    plain, told = (copy_family("llama-gqa-tied", tmp_path / name) for name in ("plain", "told"))
    edit_json(told / "config.json", quantization_config=said, quantization=said)
    assert (logits(plain) == logits(told)).all()


# Numbers


def test_f64_is_read(tmp_path):
    import numpy as np

    plain, wide = (copy_family("llama-gqa-tied", tmp_path / name) for name in ("plain", "wide"))
    header, data = read(plain / "model.safetensors")
    header.pop("__metadata__", None)
    parts, at = [], 0
    for entry in sorted(header.values(), key=lambda entry: entry["data_offsets"]):
        start, end = entry["data_offsets"]
        bits = np.frombuffer(data[start:end], "<u2" if entry["dtype"] == "BF16" else "<f4")
        exact = (bits.astype("<u4") << 16).view("<f4") if entry["dtype"] == "BF16" else bits
        parts.append(exact.astype("<f8").tobytes())
        entry.update(dtype="F64", data_offsets=[at, at + len(parts[-1])])
        at += len(parts[-1])
    write(wide / "model.safetensors", header, b"".join(parts))
    assert abs(logits(plain) - logits(wide)).max() < 1e-5


SPECIAL = [
    "[0.0, Infinity]",
    "-Infinity",
    "NaN",
    '[0.0, {"__float__": "Infinity"}]',
    "1e400",
    '"NaN, Infinity"',
]


@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_json_as_python_writes_it(name, value, broken):
    """``json.dumps`` writes these for infinities and NaN, and ``json.loads`` reads them."""
    json.loads(value)

    def change(folder: Path) -> None:
        file = folder / name
        if not file.exists():
            file.write_text("{}")
        text = file.read_text().rstrip()[:-1]
        file.write_text(f'{text}{"," if len(text) > 1 else ""} "time_step_limit": {value}}}')

    assert tallow.Model(broken(change), progress=False).generate(PROMPT, max_tokens=1)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("config.json", "rms_norm_eps", "NaN"),
        ("config.json", "rope_theta", "Infinity"),
        ("config.json", "hidden_size", "NaN"),
        ("config.json", "num_hidden_layers", '{"__float__": "Infinity"}'),
        ("config.json", "rms_norm_eps", "1e400"),
        ("generation_config.json", "repetition_penalty", "NaN"),
    ],
)
def test_a_number_that_is_none_is_refused_where_it_counts(name, field, value, broken):
    def change(folder: Path) -> None:
        edit_json(folder / name, **{field: "HERE"})
        (folder / name).write_text((folder / name).read_text().replace('"HERE"', value))

    with pytest.raises(tallow.ModelFileError) as caught:
        tallow.Model(broken(change), progress=False)
    shown = json.dumps(json.loads(value)).removeprefix('{"__float__": "').removesuffix('"}')
    assert f'"{field}"' in str(caught.value) and f"not {shown}" in str(caught.value), str(caught.value)


def test_a_configuration_that_is_too_large_is_refused(broken):
    folder = broken(lambda folder: os.truncate(folder / "tokenizer_config.json", 2**27))
    with pytest.raises(tallow.ModelFileError, match=r"tokenizer_config\.json has 134217728 bytes"):
        tallow.Model(folder, progress=False)


# Paths


@pytest.mark.skipif(sys.platform != "linux", reason="the names of files are text there")
@pytest.mark.parametrize("name", [b"mod\xe8le", b"space ", b" space", b"a\nb", "模型".encode()])
def test_a_folder_of_any_name_is_loaded(name, tmp_path):
    plain = copy_family("llama-gqa-tied", tmp_path / "plain")
    odd = os.fsencode(tmp_path) + b"/" + name
    shutil.copytree(os.fsencode(plain), odd)
    source = os.fsdecode(odd)
    for given in (source, Path(source)):
        model = tallow.Model(given, progress=False)
        assert model.generate(PROMPT, max_tokens=1)
    assert tallow.Model.from_state(json.loads(json.dumps(model.to_state()))) == model
    saved = source + "/\udce8.safetensors"
    model.save_prefix(saved, PROMPT * 4)
    assert model.load_prefix(Path(saved))


def test_a_path_that_no_file_can_have_is_called_that(tiny):
    for call in (tallow.Model, tiny.load_prefix):
        with pytest.raises(
            tallow.InvalidRequestError, match=r"lone surrogate at index 1, which no name of a file"
        ):
            call("a\ud800")
    with pytest.raises(tallow.ModelFileError, match="no such file or folder"):
        tallow.Model("/no/such/mod\udce8le")


def test_other_files_of_a_folder_are_called_what_they_are(tmp_path):
    folder = copy_family("llama-gqa-tied", tmp_path / "model")
    for name in ("config.json", "tokenizer.json"):
        with pytest.raises(tallow.ModelFileError, match="no index of a model's files") as caught:
            tallow.Model(folder / name, progress=False)
        assert name in str(caught.value) and "give the folder" in str(caught.value)


def test_an_adapter_is_called_that(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    edit_json(folder / "adapter_config.json", peft_type="LORA", base_model_name_or_path="org/base")
    plain = copy_family("llama-gqa-tied", tmp_path / "plain")
    shutil.copy(plain / "model.safetensors", folder / "adapter_model.safetensors")
    for source in (folder, folder / "adapter_model.safetensors"):
        told = refused(source)
        assert "an adapter (LORA)" in told and 'load "org/base"' in told, told


def test_gguf_in_capitals(tmp_path):
    """The name says what it is, and the bytes are believed: no tokenizer is in these, which is told next."""
    (tmp_path / "M.GGUF").write_bytes(b"GGUF\x03\0\0\0" + b"\0" * 16)
    for source in (tmp_path, tmp_path / "M.GGUF"):
        with pytest.raises(tallow.ModelFileError, match=r"M\.GGUF"):
            tallow.Model(source, progress=False)


# Names for what a model computes with


@pytest.fixture
def large(tmp_path):
    """Two checkpoints of a few MiB and of one name, equal so far."""
    one = copy_family("llama-gqa-tied", tmp_path / "one" / "model")
    header, data = read(one / "model.safetensors")
    config = json.loads((one / "config.json").read_text())
    name, entry = next((name, e) for name, e in header.items() if name.endswith("embed_tokens.weight"))
    start, end = entry["data_offsets"]
    rows = 1 + (3 << 20) // ((end - start) // config["vocab_size"])
    more = data[start:end] * (1 + rows // config["vocab_size"])
    wide = {key: value for key, value in header.items() if key not in (name, "__metadata__")}
    at, parts = 0, []
    for value in wide.values():
        first, last = value["data_offsets"]
        parts.append(data[first:last])
        value["data_offsets"] = [at, at := at + last - first]
    wide[name] = entry | {
        "shape": [len(more) // ((end - start) // config["vocab_size"]), entry["shape"][1]],
        "data_offsets": [at, at + len(more)],
    }
    edit_json(one / "config.json", vocab_size=wide[name]["shape"][0], max_position_embeddings=512)
    write(one / "model.safetensors", wide, b"".join(parts) + more)
    return one, Path(shutil.copytree(one, tmp_path / "two" / "model"))


def flip(folder: Path, part: str, at: int) -> None:
    """One bit of a tensor."""
    path = folder / "model.safetensors"
    header, data = read(path)
    start = next(e["data_offsets"][0] for name, e in header.items() if name.endswith(part))
    changed = bytearray(data)
    changed[start + at] ^= 8
    write(path, header, bytes(changed))


def test_one_weight_of_a_norm_is_another_model(large):
    one, two = large
    assert tallow.Model(one, progress=False).fingerprint == tallow.Model(two, progress=False).fingerprint
    flip(two, "input_layernorm.weight", 2)
    first, second = (tallow.Model(folder, progress=False) for folder in large)
    assert len(first.fingerprint) == 16 and first.fingerprint != second.fingerprint
    assert (first.logits([1, 20, 30]) != second.logits([1, 20, 30])).any()


def test_one_byte_of_a_large_tensor_shows_where_it_outlives_the_process(large, tmp_path):
    first = tallow.Model(large[0], progress=False)
    same = tallow.Model(large[1], progress=False)
    path = tmp_path / "prefix.safetensors"
    first.save_prefix(path, "abc" * 20)
    assert same.load_prefix(path) and first._exact_name() == same._exact_name() != first.fingerprint
    flip(large[1], "embed_tokens.weight", 500_001)  # between the places that the fingerprint looks at
    second = tallow.Model(large[1], progress=False)
    assert second.fingerprint == first.fingerprint and second._exact_name() != first._exact_name()
    with pytest.raises(tallow.ModelFileError, match="another model"):
        second.load_prefix(path)


def test_a_model_whose_files_have_gone_has_a_name_of_its_own(large, tmp_path):
    first, second = (tallow.Model(folder, progress=False) for folder in large)
    flip(large[0], "embed_tokens.weight", 3)
    (large[1] / "model.safetensors").unlink()
    assert len({first._exact_name(), second._exact_name(), first.fingerprint}) == 3
    assert first._exact_name() == first._exact_name()
    for model in (first, second):
        with pytest.raises(tallow.ModelFileError, match=r"model\.safetensors"):
            model.save_prefix(tmp_path / "p.safetensors", "abc" * 20)


HASHED_ONCE = """
import os, sys, time
import tallow

seen = []
model = tallow.Model(sys.argv[1], progress=False)
name = model._exact_name(lambda what, total, done: seen.append(what))
print(name, len(seen), model._exact_name() == name)
"""


def test_a_file_is_hashed_once_for_all_processes(large, tmp_path):
    weights = large[0] / "model.safetensors"
    os.utime(weights, (1e9, 1e9))  # a file that was just written may be written again in the same tick
    cache = tmp_path / "cache"

    def run(**more: str) -> list[str]:
        done = python(HASHED_ONCE, str(large[0]), env={**os.environ, "TALLOW_CACHE": str(cache), **more})
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    name, hashed, same = run()
    assert int(hashed) >= 2 and same == "True"
    assert run() == [name, "0", "True"]
    for entry in (cache / "hashes").iterdir():
        entry.write_text("{")
    assert run() == [name, hashed, "True"]
    flip(large[0], "embed_tokens.weight", 500_001)
    os.utime(weights, (1e9, 1e9))  # the times say nothing, but no program can set all of them
    assert run()[0] != name
    # A home that nobody can write to: a file is in the way.
    assert run(TALLOW_CACHE=str(weights))[::2] == run()[::2]


INTERRUPTED = """
import os, signal, sys, threading, time
import tallow

model = tallow.Model(sys.argv[1], progress=False)
sent = 0.0

def interrupt():
    global sent
    sent = time.monotonic()
    os.kill(os.getpid(), signal.SIGINT)

threading.Timer(0.2, interrupt).start()
try:
    model.save_prefix(sys.argv[1] + "/p", "abc" * 20)
    after = None
except KeyboardInterrupt:
    after = time.monotonic() - sent
print(after, model.generate("abc", max_tokens=1).usage.completion_tokens)
"""


@pytest.mark.skipif(os.name != "posix", reason="no signals of its own to send")
def test_ctrl_c_ends_the_hashing_of_a_large_file(tmp_path):
    """A tensor of 6 GiB that nothing reads, and that takes no room on disk."""
    folder = copy_family("llama-gqa-tied", tmp_path / "model")
    header, data = read(folder / "model.safetensors")
    room = [len(data), len(data) + (6 << 30)]
    header["model.layers.0.self_attn.rotary_emb.inv_freq"] = {
        "dtype": "U8",
        "shape": [6 << 30],
        "data_offsets": room,
    }
    write(folder / "model.safetensors", header, data)
    size = (folder / "model.safetensors").stat().st_size
    os.truncate(folder / "model.safetensors", size + (6 << 30))
    latencies: list[float] = []
    while len(latencies) < 3 and min(latencies, default=1) >= 0.2:
        done = python(INTERRUPTED, str(folder))
        assert done.returncode == 0, done.stderr
        after, tokens = done.stdout.split()
        assert after != "None" and tokens == "1", "it was over before the interrupt came"
        latencies.append(float(after))
    assert min(latencies) < 0.2, latencies


# DSPy's cache, which knows a model by one string


def requests(lm) -> int:
    return lm.stats()["requests"]


def test_dspys_cache_never_answers_for_a_model_that_differs_in_one_byte(large):
    needed("dspy")
    first, same = (tallow.LM(str(folder), max_tokens=5, progress=False) for folder in large)
    assert first("one byte") == same("one byte")
    assert (requests(first), requests(same)) == (1, 0)
    flip(large[1], "embed_tokens.weight", 500_001)
    other = tallow.LM(str(large[1]), max_tokens=5, progress=False)
    other("one byte")
    assert requests(other) == 1 and other.model != first.model
    assert other.engine.model.fingerprint == first.engine.model.fingerprint


def test_a_language_model_without_cache_hashes_nothing_until_a_call_wants_one(large):
    needed("dspy")
    lm = tallow.LM(str(large[0]), max_tokens=5, cache=False, progress=False)
    model = lm.engine.model
    lm("plainly")
    assert model._shared.exact is None and model.fingerprint in lm.model
    for ask in (lm, lm.copy(cache=True)):
        assert ask("now with a cache", cache=True) and model._shared.exact in ask.model
    assert requests(lm) == 2
    fresh = tallow.LM(str(large[1]), max_tokens=5, cache=False, progress=False)
    asyncio.run(fresh.acall("and awaited", cache=True))
    assert fresh.engine.model._shared.exact in fresh.model


def test_vectors_of_a_model_that_differs_in_one_byte_are_its_own(large):
    first, same = (tallow.Embed(str(folder), progress=False) for folder in large)
    assert first.__name__ == same.__name__
    flip(large[1], "embed_tokens.weight", 500_001)
    other = tallow.Embed(str(large[1]), progress=False)
    assert other.__name__ != same.__name__
