"""tallow.Embed: vectors for DSPy's Embedder and retrievers."""

from __future__ import annotations

import asyncio
import copy
import json
import shutil

import pytest

import tallow
from conftest import ROOT, needed

dspy = needed("dspy")
cloudpickle = needed("cloudpickle")


def test_embed(tiny, tiny_folder):
    embed = tallow.Embed(tiny)
    embedder = dspy.Embedder(embed)
    vectors = embedder(["one", "two", "three"])
    assert vectors.shape == (3, tiny.config["hidden_size"]) and vectors.dtype.name == "float32"
    assert (vectors == tiny.embed(["one", "two", "three"])).all()
    assert (embedder("one") == vectors[0]).all()
    assert (asyncio.run(embedder.acall(["two"]))[0] == vectors[1]).all()
    again = cloudpickle.loads(cloudpickle.dumps(embed))
    assert copy.deepcopy(embed) is embed and again.__name__ == embed.__name__
    assert (again(["one"])[0] == vectors[0]).all()
    loaded = tallow.Embed(str(tiny_folder), threads=1)
    assert (loaded(["one"])[0] == vectors[0]).all()


def test_embeddings_of_others_never_come_from_the_cache(tiny, tiny_folder):
    other = tallow.Model(tiny_folder, context_length=64)
    embeds = [
        tallow.Embed(tiny),
        tallow.Embed(tiny, pooling="last"),
        tallow.Embed(tiny, document_prefix="text: "),
        tallow.Embed(tiny, query_prefix="text: "),
        tallow.Embed(other),
    ]
    assert len({embed.__name__ for embed in embeds}) == len(embeds)
    plain, last, prefixed, query, _ = (dspy.Embedder(embed)(["words"]) for embed in embeds)
    assert (plain != last).any() and (plain != prefixed).any() and (plain == query).all()
    asked = dspy.Embedder(embeds[3], kind="query")
    assert (asked(["words"]) == prefixed).all()


def test_a_prefix_replaces_the_models_default_prompt(tmp_path):
    folder = shutil.copytree(ROOT / "tests" / "golden" / "embed" / "qwen3", tmp_path / "model")
    settings = {"prompts": {"text": "text: "}, "default_prompt_name": "text"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    model = tallow.Model(folder)
    embed = tallow.Embed(model, query_prefix="question: ")
    assert (embed(["x"]) == model.embed(["text: x"], prompt="")).all()
    assert (embed(["x"], kind="query") == model.embed(["question: x"], prompt="")).all()


EMBED = [
    ({"pooling": "median"}, "pooling"),
    ({"threads": 2}, "threads"),
    ({"query_prefix": 3}, "query_prefix"),
]


@pytest.mark.parametrize(("given", "part"), EMBED, ids=[part for _, part in EMBED])
def test_wrong_arguments_of_embed(tiny, given, part):
    with pytest.raises(tallow.InvalidRequestError, match=part):
        tallow.Embed(tiny, **given)


def test_wrong_calls_of_embed(tiny):
    embed = tallow.Embed(tiny)
    for given, options in (("text", {}), ([], {}), ([3], {}), (["a"], {"kind": "question"})):
        with pytest.raises(tallow.InvalidRequestError):
            embed(given, **options)


def test_a_retriever(tiny):
    corpus = ["alpha beta", "gamma delta", "epsilon"]
    search = dspy.retrievers.Embeddings(corpus, dspy.Embedder(tallow.Embed(tiny)), k=1)
    assert search("gamma delta").passages == ["gamma delta"]
