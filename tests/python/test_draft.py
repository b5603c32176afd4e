"""``Model(..., draft=...)``: the same answers to the last bit, refusals by name, and what is counted.

The engine is held to that over a network of hashes in ``tests/engine/drafting.rs``, where every draft is
sometimes right; here are real models, and all that stands before the engine.
"""

from __future__ import annotations

import json
import pickle
import shutil

import pytest

import tallow
from conftest import copy_family, write_tokenizer

PROMPTS = ["hello there", "abcdefghij" * 6, "the cat sat on the mat. the cat", "1 2 3 4 5 6"]
ASKED = [
    {"temperature": 0},
    {"temperature": 0.8, "top_p": 0.9, "seed": 3},
    {"temperature": 0.7, "repetition_penalty": 1.3, "seed": 5, "stop": ["e", "zz"]},
    {"temperature": 0, "regex": "[a-z]{4} (one|two|three)[0-9]*"},
    {"temperature": 0.9, "seed": 7, "choices": ["one and two", "one and three", "none"]},
]


def everything(model: tallow.Model, **more) -> list:
    """Tokens and log probabilities of all prompts with all options: alone, then all at once."""
    asked = [
        (prompt, {"max_tokens": 24, "logprobs": logprobs, **given, **more})
        for prompt in PROMPTS
        for given in ASKED
        for logprobs in (None, 2)
    ]
    alone = [model.generate(prompt, **given) for prompt, given in asked[::3]]
    streams = [model.stream(prompt, **given) for prompt, given in asked]
    together = []
    for stream in streams:
        chunks = list(stream)
        together.append(
            (
                tuple(token for chunk in chunks for token in chunk.tokens),
                tuple(entry for chunk in chunks for entry in chunk.logprobs or ()),
            )
        )
    return [(one.tokens, one.logprobs, one.text) for one in alone] + together


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    names = ("llama-gqa-tied", "llama-mha", "gemma3-layers", "falconh1-norm")
    root = tmp_path_factory.mktemp("drafts")
    made = {name: copy_family(name, root / name) for name in names}
    made["fewer tokens"] = copy_family("llama-mha", root / "fewer tokens")
    write_tokenizer(made["fewer tokens"], 60)
    return made


@pytest.mark.parametrize(
    ("name", "draft", "options"),
    [
        ("llama-gqa-tied", "llama-gqa-tied", {}),
        ("llama-gqa-tied", "llama-mha", {"prefix_cache": False}),
        ("llama-gqa-tied", "llama-mha", {"kv_memory": "256KiB"}),
        # Fewer tokens than the model has; below, a shorter context.
        ("llama-gqa-tied", "fewer tokens", {}),
        # Windows, there and here; recurrent state in the model.
        ("llama-gqa-tied", "gemma3-layers", {}),
        ("gemma3-layers", "llama-mha", {}),
        ("falconh1-norm", "llama-mha", {}),
    ],
)
def test_a_draft_changes_no_bit(name, draft, options, folders):
    plain = tallow.Model(folders[name], prefix_cache=False, speculation=False)
    context = 40 if draft == "fewer tokens" else None
    drafter = tallow.Model(folders[draft], context_length=context)
    drafted = tallow.Model(folders[name], draft=drafter, **options)
    assert drafted == plain
    expected = everything(plain)
    for _ in range(2):
        assert everything(drafted) == expected
    stats = drafted.stats()
    assert 0 <= stats["model_accepted"] <= stats["model_drafted"] <= stats["drafted"]


def test_a_model_drafts_for_itself_and_is_always_right(folders):
    folder = folders["llama-gqa-tied"]
    model = tallow.Model(folder, draft=tallow.Model(folder))
    for number in range(12):
        model.generate(f"{number} of twelve", max_tokens=60, temperature=0)
    stats = model.stats()
    assert stats["model_drafted"] == stats["model_accepted"] > 0 and stats["draft_steps"] > 0


def test_with_an_adapter_drafts_change_nothing(folders):
    from test_canary import ADAPTERS, adapted  # writes adapters of random numbers

    plain = adapted(folders["llama-gqa-tied"], speculation=False)
    model = adapted(folders["llama-gqa-tied"], draft=folders["llama-mha"])
    for name in ADAPTERS:
        assert everything(model, adapter=name) == everything(plain, adapter=name)


def changed_tokens(folder):
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(tokenizer))


def test_another_vocabulary_is_refused_by_name(folders, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folders["llama-mha"], other)
    changed_tokens(other)
    with pytest.raises(tallow.InvalidRequestError, match="same vocabulary") as raised:
        tallow.Model(folders["llama-gqa-tied"], draft=other)
    message = str(raised.value)
    assert "'other'" in message.replace('"', "'") and "llama-gqa-tied" in message
    assert '"b"' in message and '"a"' in message and "token 7" in message


def test_what_cannot_draft_is_refused(folders, tmp_path):
    target = folders["llama-gqa-tied"]
    with pytest.raises(tallow.InvalidRequestError, match="recurrent state"):
        tallow.Model(target, draft=folders["falconh1-norm"])
    with pytest.raises(tallow.InvalidRequestError, match="speculation is False"):
        tallow.Model(target, draft=folders["llama-mha"], speculation=False)
    with pytest.raises(tallow.InvalidRequestError, match="draft is empty"):
        tallow.Model(target, draft="")
    with pytest.raises(TypeError, match="draft"):
        tallow.Model(target, draft=3)
    encoder = tmp_path / "encoder"
    shutil.copytree(folders["llama-mha"], encoder)
    config = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps({**config, "is_causal": False}))
    write_tokenizer(encoder, config["vocab_size"])
    with pytest.raises(tallow.Error):
        tallow.Model(target, draft=encoder)


def test_copies_have_the_draft_and_caches_do_not_see_it(folders):
    target, draft = folders["llama-gqa-tied"], folders["llama-mha"]
    plain, model = tallow.Model(target), tallow.Model(target, draft=draft)
    assert model == plain and model._shared is not plain._shared
    assert tallow.Model(target, draft=tallow.Model(draft))._shared is model._shared
    assert pickle.loads(pickle.dumps(model))._shared is model._shared
    state = json.loads(json.dumps(model.to_state()))
    assert tallow.Model.from_state(state)._shared is model._shared and "draft" not in plain.to_state()
    # One DSPy cache for both: the answers are the same.
    assert model._exact_name() == plain._exact_name()


def test_lm_takes_a_draft(folders):
    target, draft = folders["llama-gqa-tied"], folders["llama-mha"]
    lm, plain = (
        tallow.LM(str(target), max_tokens=8, temperature=0, cache=False, progress=False, **more)
        for more in ({"draft": str(draft)}, {})
    )
    assert lm.model == plain.model and lm("hello") == plain("hello")
    with pytest.raises(tallow.InvalidRequestError, match="draft belongs to loading"):
        tallow.LM(tallow.Model(target), draft=str(draft))
