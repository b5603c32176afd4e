"""Adapters at work: by name and as values, many in one batch, swapped while requests run, kept apart in every
cache, dropped for want of memory and brought back. The numbers themselves are held against peft in Rust
(``tests/lora.rs``)."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import tallow
from conftest import FAMILIES, copy_family, python

GOLDEN = FAMILIES.parent / "adapters"
PROMPT = "the tea is"


def write(
    folder: Path, shapes: dict[str, tuple[int, int]], layers: int, *, rank=4, alpha=8, seed=0, size=0.3
):
    """A LoRA folder as peft writes one; ``shapes`` are (outputs, inputs)."""
    rng, tensors = np.random.default_rng(seed), {}
    for layer in range(layers):
        for name, (outputs, inputs) in shapes.items():
            path = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{path}.lora_A.weight"] = rng.normal(size=(rank, inputs)) / inputs**0.5
            tensors[f"{path}.lora_B.weight"] = rng.normal(size=(outputs, rank)) * size
    header, chunks, at = {}, [], 0
    for name, values in tensors.items():
        chunk = values.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [at, at + len(chunk)]}
        chunks.append(chunk)
        at += len(chunk)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(header).encode()
    file = len(text).to_bytes(8, "little") + text + b"".join(chunks)
    (folder / "adapter_model.safetensors").write_bytes(file)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none", "task_type": "CAUSAL_LM"}
    config |= {"target_modules": sorted({name.split(".")[1] for name in shapes})}
    config |= {"base_model_name_or_path": "tiny/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def shapes_of(config: dict) -> dict[str, tuple[int, int]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    wide = config["num_heads"] * config["head_dim"]
    narrow = config["num_kv_heads"] * config["head_dim"]
    return {
        "self_attn.q_proj": (wide, hidden),
        "self_attn.k_proj": (narrow, hidden),
        "self_attn.v_proj": (narrow, hidden),
        "self_attn.o_proj": (hidden, wide),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


@pytest.fixture
def model(tmp_path):
    """A tiny model of its own, whose engine no other test shares."""
    return tallow.Model(copy_family("llama-gqa-tied", tmp_path / "tiny"))


@pytest.fixture
def folder(model, tmp_path):
    """Makes a folder of an adapter for it, by seed."""

    def make(seed: int, name: str = "adapter", **options) -> Path:
        config = model.config
        return write(tmp_path / name, shapes_of(config), config["num_layers"], seed=seed, **options)

    return make


def said(model, adapter=None, prompt=PROMPT, tokens=8):
    answer = model.generate(prompt, max_tokens=tokens, temperature=0, logprobs=0, adapter=adapter)
    return answer.tokens, tuple(entry.logprob for entry in answer.logprobs)


def test_what_an_adapter_tells_of_itself(model, folder):
    adapter = model.load_adapter(folder(1), name="support", scale=0.5)
    assert (adapter.name, adapter.rank, adapter.scale, adapter.format) == ("support", 4, 0.5, "PEFT")
    assert adapter.targets == sorted(name.split(".")[1] for name in shapes_of(model.config))
    assert adapter.base == "tiny/base" and adapter.path.endswith("adapter") and adapter.bytes > 1000
    assert len(adapter.fingerprint) == 16 and adapter.loaded and adapter.notes == []
    assert repr(adapter).startswith("<tallow.Adapter 'support' of 'tiny': rank 4, scale 0.5, down_proj, ")
    assert adapter.model is model and [it.name for it in model.adapters()] == ["support"]


def test_every_call_takes_one(model, folder, tmp_path):
    adapter = model.load_adapter(folder(1), name="support")
    ids = model.tokenize(PROMPT)
    plain, changed = model.logits(ids), model.logits(ids, adapter="support")
    assert np.abs(plain - changed).max() > 0.1
    assert np.array_equal(model.logits(ids, adapter=adapter), changed)
    assert said(model, "support") == said(model, adapter) != said(model)
    with model.stream(PROMPT, max_tokens=8, temperature=0, adapter=adapter) as chunks:
        tokens = [token for chunk in chunks for token in chunk.tokens]
    assert tuple(tokens) == said(model, adapter)[0]
    scores = [model.score(PROMPT, [" a", " b"], adapter=it)[0].logprob for it in (None, adapter)]
    assert scores[0] != scores[1]
    vectors = [model.embed(["tea"], adapter=it) for it in (None, adapter)]
    assert np.abs(vectors[0] - vectors[1]).max() > 0.01

    async def awaited():
        return await model.agenerate(PROMPT, max_tokens=8, temperature=0, adapter=adapter)

    import asyncio

    assert asyncio.run(awaited()).tokens == said(model, adapter)[0]


def test_an_unknown_one_is_never_the_base(model, folder):
    model.load_adapter(folder(1), name="support")
    for call in (
        lambda it: model.generate(PROMPT, adapter=it),
        lambda it: model.stream(PROMPT, adapter=it),
        lambda it: model.score(PROMPT, ["a"], adapter=it),
        lambda it: model.logits([1], adapter=it),
        lambda it: model.embed(["a"], adapter=it),
        lambda it: model.save_prefix("p", PROMPT, adapter=it),
        lambda it: model.unload_adapter(it),
    ):
        with pytest.raises(tallow.InvalidRequestError, match=r'no adapter "suport"; loaded are support'):
            call("suport")
        with pytest.raises(tallow.ArgumentTypeError, match="adapter is 7"):
            call(7)


def test_one_of_another_model_is_refused(model, folder, tmp_path):
    other = tallow.Model(copy_family("llama-gqa-tied", tmp_path / "other"), dtype="float32")
    adapter = model.load_adapter(folder(1))
    with pytest.raises(tallow.InvalidRequestError, match="load it there"):
        other.generate(PROMPT, adapter=adapter)


def test_names(model, folder):
    first = model.load_adapter(folder(1, "a"))
    again = model.load_adapter(folder(1, "a"))
    assert first == again and first.name == "a" and len(model.adapters()) == 1
    # Another one of the same file name takes nobody's name.
    elsewhere = folder(2, "b/a")
    second = model.load_adapter(elsewhere)
    assert second != first and second.name.startswith("a-") and len(model.adapters()) == 2
    for name in ("", "a/b", "..", ".hidden", "x" * 200, "a\nb"):
        with pytest.raises(tallow.InvalidRequestError, match="name of an adapter"):
            model.load_adapter(elsewhere, name=name)
    for scale in (float("nan"), float("inf")):
        with pytest.raises(tallow.InvalidRequestError, match="finite"):
            model.load_adapter(elsewhere, scale=scale)
    model.unload_adapter(first)
    model.unload_adapter(second.name)
    assert model.adapters() == []
    # Who holds it may go on with it.
    assert said(model, first) != said(model)


def test_what_stands_in_place_of_the_base_has_no_scale(tmp_path):
    model = tallow.Model(copy_family("llama-mha", tmp_path / "llama"))
    for name in ("saved-head", "saved-projection", "tokens"):
        with pytest.raises(tallow.InvalidRequestError, match="in place of the base's"):
            model.load_adapter(GOLDEN / name, scale=0.5)
        assert model.load_adapter(GOLDEN / name).scale == 1


def test_equal_numbers_are_one_adapter_wherever_they_lie(model, folder, tmp_path):
    first = model.load_adapter(folder(1), name="first")
    moved = tmp_path / "moved"
    shutil.copytree(first.path, moved)
    assert model.load_adapter(moved, name="second") == first
    assert model.load_adapter(moved, name="third", scale=2.0) != first


@pytest.mark.parametrize("count", [1, 4])
def test_the_same_bits_alone_and_among_others(count, smollm2, tmp_path):
    """32 requests of several adapters and of none, from as many threads."""
    shapes = shapes_of(smollm2.config)
    adapters = [
        smollm2.load_adapter(write(tmp_path / f"bits{seed}", shapes, 30, rank=8, seed=seed, size=0.05))
        for seed in range(count)
    ]
    picks = [*adapters, None] * (32 // (count + 1))
    prompts = [f"{number} people went to the market, and" for number in range(len(picks))]
    alone = [said(smollm2, adapter, prompt, 6) for adapter, prompt in zip(picks, prompts, strict=True)]
    smollm2.close()  # nothing is cached
    with ThreadPoolExecutor(len(picks)) as pool:
        together = list(pool.map(lambda it: said(smollm2, it[0], it[1], 6), zip(picks, prompts, strict=True)))
    assert together == alone
    assert said(smollm2, adapters[0], prompts[0], 6) != said(smollm2, None, prompts[0], 6)
    for adapter in adapters:
        smollm2.unload_adapter(adapter)


def test_prefixes_of_adapters_are_kept_apart(model, folder):
    """Also after another one was loaded under the same name."""
    prompt = "a long beginning that many share, " * 3
    cold = {}
    for seed in (1, 2):
        fresh = tallow.Model(model.to_state()["source"], prefix_cache=False)
        cold[seed] = said(fresh, fresh.load_adapter(folder(seed), name="it"), prompt)
    cold[None] = said(tallow.Model(model.to_state()["source"], prefix_cache=False), None, prompt)
    assert len(set(cold.values())) == 3
    for _ in range(2):
        for seed in (1, None, 2):
            if seed is not None:
                model.load_adapter(folder(seed), name="it")
            assert said(model, seed and "it", prompt) == cold[seed], seed
    assert model.stats()["cached_tokens"] > 0


def test_requests_in_work_end_with_what_they_began_with(model, folder):
    """A name that gets other weights, and one that is taken away, while streams are open."""
    want = {}
    for seed in (1, 2):
        model.load_adapter(folder(seed), name="it")
        want[seed] = said(model, "it", tokens=60)[0]
    model.load_adapter(folder(1), name="it")
    old = model.stream(PROMPT, max_tokens=60, temperature=0, adapter="it")
    first = next(old)
    model.load_adapter(folder(2), name="it")
    new = model.stream(PROMPT, max_tokens=60, temperature=0, adapter="it")
    model.unload_adapter("it")
    assert tuple(t for chunk in new for t in chunk.tokens) == want[2]
    assert (*first.tokens, *(t for chunk in old for t in chunk.tokens)) == want[1]


def test_a_saved_prefix_knows_its_adapter(model, folder, tmp_path):
    prompt, path = "a long beginning that many share, " * 3, tmp_path / "prefix.safetensors"
    adapter = model.load_adapter(folder(1), name="it")
    saved = model.save_prefix(path, prompt, adapter=adapter)
    want = said(model, adapter, prompt)
    model.close()
    with pytest.raises(tallow.ModelFileError, match="another model"):
        model.load_prefix(path)
    assert model.load_prefix(path, adapter="it") == saved
    before = model.stats()["cached_tokens"]
    assert said(model, "it", prompt) == want and model.stats()["cached_tokens"] > before
    other = model.load_adapter(folder(2), name="it")
    with pytest.raises(tallow.ModelFileError, match="another model"):
        model.load_prefix(path, adapter=other)


def test_idle_ones_leave_memory_and_come_back(model, folder, tmp_path):
    size = model.load_adapter(folder(1)).bytes
    small = tallow.Model(model.to_state()["source"], adapter_memory=2 * size)
    adapters = [small.load_adapter(folder(seed, f"m{seed}")) for seed in range(4)]
    assert sum(it.loaded for it in adapters) == 2
    answers = [said(small, it) for it in adapters]
    assert len(set(answers)) == 4
    assert [said(small, it) for it in adapters] == answers
    # A file that changed meanwhile is no stand-in.
    folder(9, "m0")
    said(small, adapters[1])
    said(small, adapters[2])
    with pytest.raises(tallow.ModelFileError, match="has changed since it was loaded"):
        said(small, adapters[0])
    with pytest.raises(tallow.OutOfMemoryError, match="adapter_memory"):
        tallow.Model(model.to_state()["source"], adapter_memory=size - 1).load_adapter(folder(1))
    # While others are in use there is no room, at the second try as at the first; then there is.
    # (A stream with a filter waits for its reader.)
    held = {"max_tokens": 60, "filters": [lambda logits, tokens: None]}
    with (
        small.stream(PROMPT, adapter=adapters[1], **held),
        small.stream(PROMPT, adapter=adapters[2], **held),
    ):
        for _ in range(2):
            with pytest.raises(tallow.OutOfMemoryError, match="adapter_memory"):
                small.generate(PROMPT, max_tokens=1, adapter=adapters[3])
    assert said(small, adapters[3]) == answers[3]


def test_many_threads_load_swap_and_ask(model, folder):
    """Every answer is that of one of the adapters that had the name."""
    folders = [folder(seed, f"t{seed}") for seed in range(3)]
    allowed = {said(model, model.load_adapter(it, name="it")) for it in folders}
    failures, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            answer = said(model, "it")
            if answer not in allowed:
                failures.append(answer)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for round in range(40):
        model.load_adapter(folders[round % 3], name="it")
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures


def test_as_a_value(model, folder, tmp_path):
    adapter = model.load_adapter(folder(1), name="it")
    copy = pickle.loads(pickle.dumps(adapter))
    assert copy == adapter and hash(copy) == hash(adapter) and said(model, copy) == said(model, adapter)
    data = pickle.dumps(adapter)
    folder(2)
    with pytest.raises(tallow.ModelFileError, match="not the adapter that was pickled"):
        pickle.loads(data)


def test_it_outlives_its_engine(model, folder):
    adapter = model.load_adapter(folder(1), name="it")
    want = said(model, adapter)
    model.close()
    assert said(model, adapter) == want == said(model, "it")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_loads_it_anew(tmp_path):
    copy_family("llama-gqa-tied", tmp_path / "tiny")
    program = """
import os, sys
from pathlib import Path
import tallow
from test_adapters import said, shapes_of, write
folder = Path(sys.argv[1])
model = tallow.Model(folder / "tiny")
config = model.config
adapter = model.load_adapter(write(folder / "it", shapes_of(config), config["num_layers"]))
want = said(model, adapter)
child = os.fork()
if child == 0:
    os._exit(0 if said(model, adapter) == want else 3)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0 and said(model, adapter) == want
"""
    done = python(program, str(tmp_path), cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr


def test_what_does_not_fit_is_named(model, folder, tmp_path):
    config = model.config
    shapes = shapes_of(config)
    deeper = write(tmp_path / "deeper", shapes, config["num_layers"] + 1)
    with pytest.raises(tallow.ModelFileError, match=rf"layers\.{config['num_layers']}.*there is no layer"):
        model.load_adapter(deeper)
    wider = write(tmp_path / "wider", {"mlp.up_proj": (config["intermediate_size"], 99)}, 1)
    with pytest.raises(tallow.ModelFileError, match=r"made for tiny/base.*up_proj.*99.*another model"):
        model.load_adapter(wider)
    foreign = write(tmp_path / "foreign", {"self_attn.warp_proj": (8, 8)}, 1)
    with pytest.raises(tallow.Error, match="warp_proj"):
        model.load_adapter(foreign)
    with pytest.raises(tallow.ModelFileError, match=r"nowhere: no such file"):
        model.load_adapter(tmp_path / "nowhere")
    with pytest.raises(tallow.Error, match=r"there is no adapter_model\.safetensors"):
        model.load_adapter(model.to_state()["source"])
    assert model.adapters() == []


def test_goldens_load_from_python(tmp_path):
    """peft's adapters through the public door."""
    model = tallow.Model(copy_family("llama-mha", tmp_path / "llama"))
    rows = json.loads((GOLDEN / "manifest.json").read_text())
    names = [row["adapter"] for row in rows if row["base"] == "llama-mha" and not row["refused"]]
    loaded = [model.load_adapter(GOLDEN / name) for name in names]
    assert len({adapter.fingerprint for adapter in loaded}) >= 10


def test_a_scale_is_the_requests_own(model, folder):
    """Not the engine's: llama.cpp's adapters have one scale for all slots of a server at a time."""
    made = folder(1)
    scaled = {scale: model.load_adapter(made, name=f"x{scale}", scale=scale) for scale in (0.0, 0.5, 1.0)}
    alone = {scale: said(model, adapter) for scale, adapter in scaled.items()}
    assert alone[0.0] == said(model) and len(set(alone.values())) == 3
    picks = list(scaled) * 4
    with ThreadPoolExecutor(len(picks)) as pool:
        together = list(pool.map(lambda scale: said(model, scaled[scale]), picks))
    assert together == [alone[scale] for scale in picks]
