"""Embedding models against sentence-transformers, whose folders and vectors lie in ``tests/golden/embed``.

``scripts/golden/embeddings.py`` made them: tiny random checkpoints, and cases that replace some files.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tallow
from conftest import ROOT, copy_family

GOLDEN = ROOT / "tests" / "golden" / "embed"
MODELS = {
    folder.name: json.loads((folder / "golden.json").read_text()) for folder in sorted(GOLDEN.iterdir())
}
CASES = [(model, case) for model, golden in MODELS.items() for case in golden["cases"]]


def write(folder: Path, files: dict) -> None:
    """JSON files; a name with a plus in front is merged into what is there, as the script does it."""
    for name, content in files.items():
        path = folder / name.lstrip("+")
        path.parent.mkdir(exist_ok=True)
        known = json.loads(path.read_text()) if name.startswith("+") else {}
        path.write_text(json.dumps({**known, **content} if known else content))


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., tallow.Model]:
    """A copy of one of the folders, with other files, loaded."""

    def make(name: str, files: dict | None = None, change: Callable = lambda folder: None, **options):
        folder = tmp_path / name
        shutil.copytree(GOLDEN / name, folder)
        write(folder, files or {})
        change(folder)
        return tallow.Model(folder, dtype="float32", **options)

    return make


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{name}, {case['name']}" for name, case in CASES])
def test_vectors_are_those_of_sentence_transformers(model, name, case):
    embedder, texts = model(name, case["files"]), MODELS[name]["texts"]
    wanted = np.array(case["vectors"], dtype=np.float64)
    if not case["keeps_length"]:
        wanted = unit(wanted)
    found = embedder.embed(texts)
    assert found.shape == wanted.shape and found.dtype == np.float32
    assert abs(found - wanted).max() <= 1e-5
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    assert (alone == found).all(), "a vector is the same alone and among others"


@pytest.mark.parametrize("name", MODELS)
def test_keys_and_values_of_sixteen_bits_point_the_same_way(name):
    golden, embedder = MODELS[name], tallow.Model(GOLDEN / name)
    found = embedder.embed(golden["texts"])
    assert (found * unit(np.array(golden["cases"][0]["vectors"]))).sum(axis=1).min() >= 0.9999
    alone = np.concatenate([embedder.embed([text]) for text in golden["texts"]])
    assert (alone == found).all()


def test_among_hundreds_and_on_any_threads(model, tmp_path):
    """Texts of a bidirectional model share steps, and some are longer than one."""
    embedder = model("gemma3", threads=1)
    texts = [("text " * (number * 7 % 150))[: 1 + number * 13 % 700] + str(number) for number in range(200)]
    found = embedder.embed(texts)
    assert embedder.stats()["largest_batch"] > 1 and embedder.stats()["cached_pages"] == 0
    alone = np.concatenate([embedder.embed([text]) for text in texts[:40]])
    assert (alone == found[:40]).all()
    other = tallow.Model(tmp_path / "gemma3", dtype="float32", threads=2, kv_memory="1MiB")
    assert (other.embed(texts[::-1])[::-1] == found).all()


def test_a_bidirectional_model_continues_nothing(model, tmp_path):
    embedder = model("gemma3")
    calls = [
        lambda: embedder.generate("a"),
        lambda: embedder.generate(embedder.tokenize("a")),
        lambda: embedder.score("a", ["b"]),
        lambda: embedder.save_prefix(tmp_path / "prefix", "a" * 40),
        lambda: embedder.load_prefix(tmp_path / "prefix"),
        lambda: list(embedder.stream("a")),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(tallow.InvalidRequestError, match=r"embedding model.*bidirectional.*embed"):
            call()
            pytest.fail(f"call {number} was answered")
    ids = embedder.tokenize("a text of some length")
    logits = embedder.logits(ids)
    assert logits.shape == (len(ids), embedder.vocab_size)
    # The last token changes what the first one says.
    assert (embedder.logits([*ids[:-1], ids[0]])[0] != logits[0]).any()


def test_the_callers_pooling_and_prompt(model):
    query = {"+config_sentence_transformers.json": {"default_prompt_name": "query"}}
    embedder = model("qwen3", query)
    plain, prompted = embedder.embed(["x"], prompt=""), embedder.embed(["x"])
    assert (plain != prompted).any()
    assert (embedder.embed(["Instruct: find it\nQuery:x"], prompt="") == prompted).all()
    assert (embedder.embed(["x"], prompt="Instruct: find it\nQuery:") == prompted).all()
    assert (embedder.embed(["x"], "last") == prompted).all()
    names = ("mean", "last", "cls", "max", "weightedmean", "mean_sqrt_len_tokens")
    vectors = {embedder.embed(["some text"], name).tobytes() for name in names}
    # Two of them have the same direction.
    assert len(vectors) in (5, 6)


def test_texts_that_are_too_long(model):
    files = {"sentence_bert_config.json": {"max_seq_length": 12, "do_lower_case": False}}
    embedder = model("qwen3", files)
    assert embedder.embed(["a" * 11]).shape == (1, 16)
    with pytest.raises(tallow.ContextLengthError) as caught:
        embedder.embed(["a", "a" * 12])
    assert (caught.value.prompt_tokens, caught.value.limit) == (13, 12)


def pickled(folder: Path) -> None:
    (folder / "2_Dense/model.safetensors").rename(folder / "2_Dense/pytorch_model.bin")


def chain(*kinds: str) -> dict:
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in map(
        lambda kind: kind.partition(" ")[::2], kinds)]  # fmt: skip
    return {"modules.json": modules}


POOLING = "+1_Pooling/config.json"
SENTENCE = "+config_sentence_transformers.json"
UNSUPPORTED, BROKEN = tallow.UnsupportedModelError, tallow.ModelFileError
REFUSED = [
    ("a pickle", {}, pickled, UNSUPPORTED, "2_Dense/pytorch_model.bin.*pickle"),
    ("no weights", {}, lambda f: (f / "3_Dense/model.safetensors").unlink(), BROKEN, "3_Dense"),
    ("no config", {}, lambda f: (f / "3_Dense/config.json").unlink(), BROKEN, "3_Dense/config.json"),
    ("a module", chain("Transformer", "Pooling 1_Pooling", "LSTM 2_LSTM"), None, UNSUPPORTED, "models.LSTM"),
    ("own code", {"modules.json": [{"type": "custom.Transformer", "path": ""}]}, None, UNSUPPORTED, "custom"),
    ("no pooling", chain("Transformer", "Normalize 1_Pooling"), None, UNSUPPORTED, "no Pooling"),
    ("another first", chain("Pooling 1_Pooling"), None, UNSUPPORTED, "first module"),
    ("a subfolder", chain("Transformer 0_Transformer"), None, UNSUPPORTED, "0_Transformer"),
    ("out of the folder", chain("Transformer", "Pooling ../1_Pooling"), None, BROKEN, "1_Pooling/config"),
    ("widths", chain("Transformer", "Pooling 1_Pooling", "Dense 3_Dense"), None, BROKEN, "40 dimensions.*16"),
    ("a mode", {POOLING: {"pooling_mode": "attention"}}, None, UNSUPPORTED, "pooling_mode.*attention"),
    ("its width", {POOLING: {"embedding_dimension": 8}}, None, BROKEN, "8 dimensions"),
    ("out_features", {"+2_Dense/config.json": {"out_features": 39}}, None, BROKEN, "linear.weight.*39"),
    ("a bias", {"+2_Dense/config.json": {"bias": True}}, None, BROKEN, "linear.bias"),
    ("activation", {"+2_Dense/config.json": {"activation_function": "torch.nn.modules.activation.Mish"}},
     None, UNSUPPORTED, "Mish"),
    ("a reranker", {SENTENCE: {"model_type": "CrossEncoder"}}, None, UNSUPPORTED, "CrossEncoder"),
    ("no such prompt", {SENTENCE: {"default_prompt_name": "none"}}, None, BROKEN, "default_prompt.*none"),
    ("the prompt's rows", {POOLING: {"include_prompt": False}, SENTENCE: {
        "prompts": {"q": "q: "}, "default_prompt_name": "q"}}, None, UNSUPPORTED, "include_prompt"),
    ("no JSON", {}, lambda f: (f / "modules.json").write_text("{"), BROKEN, "modules.json.*not valid JSON"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "change", "error", "part"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_what_would_be_another_vector_is_refused_by_name(model, files, change, error, part):
    embedder = model("gemma3", files, change or (lambda folder: None))
    with pytest.raises(error, match=f"(?s){part}"):
        embedder.embed(["a"])
    # All else goes on.
    assert embedder.logits([5, 6]).shape == (2, embedder.vocab_size)


def test_a_pooling_that_does_not_suit_what_follows(model):
    doubled = {POOLING: {"pooling_mode": ["mean", "cls"]}}

    def norm(folder: Path) -> None:
        save(folder / "2_LayerNorm/model.safetensors", {"norm.weight": [1.0] * 32, "norm.bias": [0.0] * 32})

    chained = chain("Transformer", "Pooling 1_Pooling", "LayerNorm 2_LayerNorm")
    embedder = model("llama", {**doubled, "2_LayerNorm/config.json": {"dimension": 32}, **chained}, norm)
    assert embedder.embed(["a"]).shape == (1, 32)
    with pytest.raises(tallow.InvalidRequestError, match=r"pooling.*mean.*32 dimensions"):
        embedder.embed(["a"], "mean")


def save(path: Path, vectors: dict[str, list[float]]) -> None:
    """A safetensors file of float32 vectors."""
    header, data = {}, b""
    for name, values in vectors.items():
        more = struct.pack(f"<{len(values)}f", *values)
        offsets = [len(data), len(data) + len(more)]
        header[name] = {"dtype": "F32", "shape": [len(values)], "data_offsets": offsets}
        data += more
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_an_embedding_model_in_a_gguf_file(tmp_path):
    golden = MODELS["gemma3"]
    whole = (GOLDEN / "gemma3" / "model.gguf").read_bytes()
    file = tmp_path / "model.gguf"

    def load(data: bytes) -> tallow.Model:
        file.write_bytes(data)
        return tallow.Model(file, dtype="float32")

    def pooled(number: int) -> bytes:
        key = b"gemma-embedding.pooling_type" + struct.pack("<I", 4)
        assert whole.count(key + struct.pack("<I", 1)) == 1
        return whole.replace(key + struct.pack("<I", 1), key + struct.pack("<I", number))

    found = load(whole).embed(golden["texts"])
    assert abs(found - np.array(golden["cases"][0]["vectors"])).max() <= 1e-5
    with pytest.raises(tallow.InvalidRequestError, match="bidirectional"):
        load(whole).generate("a")
    last, cls = load(pooled(3)), load(pooled(2))
    texts = golden["texts"]
    assert (last.embed(texts) == last.embed(texts, "last")).all()
    assert (cls.embed(texts) == last.embed(texts, "cls")).all() and (cls.embed(texts) != found).any()
    for data, part in (
        (pooled(4), "rank.*reranker"),
        (pooled(9), "pooling_type 9"),
        # Under a name that changes nothing in any model.
        (whole.replace(b"dense_3.weight", b"ab.input_scale"), "dense_3.weight.*dense-modules"),
    ):
        with pytest.raises(tallow.UnsupportedModelError, match=part):
            load(data).embed(["a"])


def test_the_fingerprint_knows_the_modules(model, tmp_path):
    one = model("gemma3").fingerprint
    write(
        tmp_path / "gemma3",
        {"+2_Dense/config.json": {"activation_function": "torch.nn.modules.activation.Tanh"}},
    )
    assert tallow.Model(tmp_path / "gemma3", dtype="float32").fingerprint != one


def test_a_folder_without_modules(tmp_path):
    """The mean, or what a lone 1_Pooling says, as it always was."""
    folder = copy_family("llama-gqa-tied", tmp_path / "plain")
    mean = tallow.Model(folder, kv_type="bf16").embed(["a text"])  # the default of embedders
    write(folder, {"1_Pooling/config.json": {"pooling_mode_lasttoken": True}})
    last = tallow.Model(folder, threads=1)
    assert last.kv_type == "bf16"
    assert (last.embed(["a text"], "mean") == mean).all() and (last.embed(["a text"]) != mean).any()
