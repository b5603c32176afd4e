"""Every wrong argument names itself, says what would be right, and is a built-in error as well."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest

import tallow
from tallow import _core, arguments

# What is called on the model, the exception, and what its message must hold.
CASES = [
    ("empty prompt", lambda m: m.generate(""), ValueError, ["prompt", "empty"]),
    ("no messages", lambda m: m.generate([]), ValueError, ["prompt", "empty"]),
    ("no prompt", lambda m: m.generate(None), TypeError, ["prompt", "None"]),
    ("prompt a number", lambda m: m.generate(3), TypeError, ["prompt", "int"]),
    ("prompt a dict", lambda m: m.generate({"role": "user", "content": "x"}), TypeError, ["prompt", "list"]),
    ("several prompts", lambda m: m.generate(["a", "b"]), TypeError, ["prompt", "one prompt a call"]),
    ("float ids", lambda m: m.generate([1.5]), TypeError, ["prompt[0]", "token id"]),
    ("negative id", lambda m: m.generate([5, -1]), ValueError, ["prompt[1]", "-1"]),
    ("unknown id", lambda m: m.generate([5, 10_000]), ValueError, ["10000", "vocabulary"]),
    ("surrogate", lambda m: m.generate("a\ud800"), ValueError, ["prompt", "surrogate"]),
    ("no role", lambda m: m.generate([{"content": "x"}]), ValueError, ["prompt[0]", "role"]),
    ("odd role", lambda m: m.generate([{"role": "usr", "content": "x"}]), ValueError, ["role", "'user'?"]),
    ("no content", lambda m: m.generate([{"role": "user"}]), ValueError, ["prompt[0]", "content"]),
    (
        "unknown",
        lambda m: m.generate("x", temprature=1),
        TypeError,
        ["temprature", "'temperature'?", "top_k"],
    ),
    ("schema as text", lambda m: m.generate("x", json_schema="{}"), TypeError, ["json_schema", "dict"]),
    ("unknown, stream", lambda m: m.stream("x", max_token=1), TypeError, ["stream()", "'max_tokens'?"]),
    ("max_tokens 0", lambda m: m.generate("x", max_tokens=0), ValueError, ["max_tokens", "0", "1"]),
    ("max_tokens -1", lambda m: m.generate("x", max_tokens=-1), ValueError, ["max_tokens", "-1"]),
    ("max_tokens 2^63", lambda m: m.generate("x", max_tokens=2**63), ValueError, ["max_tokens"]),
    ("max_tokens 1.5", lambda m: m.generate("x", max_tokens=1.5), TypeError, ["max_tokens", "integer"]),
    ("max_tokens True", lambda m: m.generate("x", max_tokens=True), TypeError, ["max_tokens", "bool"]),
    ("n 0", lambda m: m.generate("x", n=0), ValueError, ["n is 0", "128"]),
    ("n large", lambda m: m.generate("x", n=10**9), ValueError, ["n is", "128"]),
    ("n in a stream", lambda m: m.stream("x", n=2), ValueError, ["n is 2", "stream()"]),
    ("seed -1", lambda m: m.generate("x", seed=-1), ValueError, ["seed", "-1"]),
    ("seed 2^64", lambda m: m.generate("x", seed=2**64), ValueError, ["seed"]),
    ("seed text", lambda m: m.generate("x", seed="a"), TypeError, ["seed", "integer"]),
    ("logprobs 21", lambda m: m.generate("x", logprobs=21), ValueError, ["logprobs", "20"]),
    ("logprobs True", lambda m: m.generate("x", logprobs=True), TypeError, ["logprobs", "alternatives"]),
    ("timeout 0", lambda m: m.generate("x", timeout=0), ValueError, ["timeout"]),
    ("timeout NaN", lambda m: m.generate("x", timeout=math.nan), ValueError, ["timeout", "nan"]),
    ("stop a number", lambda m: m.generate("x", stop=3), TypeError, ["stop"]),
    ("stop empty text", lambda m: m.generate("x", stop=[""]), ValueError, ["stop[0]", "1 to 256"]),
    ("stop long", lambda m: m.generate("x", stop=["a" * 257]), ValueError, ["stop[0]", "257"]),
    ("stop many", lambda m: m.generate("x", stop=["a"] * 33), ValueError, ["stop", "33", "32"]),
    ("temperature NaN", lambda m: m.generate("x", temperature=math.nan), ValueError, ["temperature", "nan"]),
    ("temperature inf", lambda m: m.generate("x", temperature=math.inf), ValueError, ["temperature", "inf"]),
    ("temperature < 0", lambda m: m.generate("x", temperature=-0.5), ValueError, ["temperature", "-0.5"]),
    ("temperature text", lambda m: m.generate("x", temperature="hot"), TypeError, ["temperature", "hot"]),
    ("top_k 0", lambda m: m.generate("x", top_k=0), ValueError, ["top_k", "0"]),
    ("top_p 2", lambda m: m.generate("x", top_p=2.0), ValueError, ["top_p", "2"]),
    ("min_p -1", lambda m: m.generate("x", min_p=-1.0), ValueError, ["min_p", "-1"]),
    ("typical_p 0", lambda m: m.generate("x", typical_p=-0.1), ValueError, ["typical_p"]),
    ("penalty 0", lambda m: m.generate("x", repetition_penalty=0.0), ValueError, ["repetition_penalty", "0"]),
    ("bias list", lambda m: m.generate("x", logit_bias=[1]), TypeError, ["logit_bias", "dict"]),
    ("bias id", lambda m: m.generate("x", logit_bias={10**6: 1.0}), ValueError, ["logit_bias", "1000000"]),
    ("bias NaN", lambda m: m.generate("x", logit_bias={1: math.nan}), ValueError, ["logit_bias[1]", "nan"]),
    ("filter", lambda m: m.generate("x", filters=[3]), TypeError, ["filters[0]", "callable"]),
    ("sampler", lambda m: m.generate("x", sampler={"top_k": 1}), TypeError, ["sampler", "tallow.Sampler"]),
    ("tools, plain", lambda m: m.generate("x", tools=[]), ValueError, ["tools", "messages"]),
    (
        "tools a dict",
        lambda m: m.generate([{"role": "user", "content": "x"}], tools={}),
        TypeError,
        ["tools"],
    ),
    ("prediction", lambda m: m.generate("x", prediction=["a"]), TypeError, ["prediction", "str"]),
    ("prediction, stream", lambda m: m.stream("x", prediction=3), TypeError, ["prediction", "int"]),
    ("prediction, surrogate", lambda m: m.generate("x", prediction="\udc00"), ValueError, ["prediction"]),
    ("tokenize bytes", lambda m: m.tokenize(b"x"), TypeError, ["text", "bytes"]),
    ("special", lambda m: m.tokenize("x", special=1), TypeError, ["special", "True or False"]),
    ("detokenize", lambda m: m.detokenize("abc"), TypeError, ["ids", "str"]),
    ("logits empty", lambda m: m.logits([]), ValueError, ["ids", "empty"]),
    ("logits text", lambda m: m.logits(["a"]), TypeError, ["ids[0]", "token id"]),
    ("render text", lambda m: m.render("hi"), TypeError, ["messages", "list"]),
    ("score empty", lambda m: m.score("x", []), ValueError, ["candidates", "empty"]),
    ("score text", lambda m: m.score("x", "ab"), TypeError, ["candidates", "list"]),
    ("score no text", lambda m: m.score("x", ["a", ""]), ValueError, ["candidates[1]", "empty"]),
    ("embed text", lambda m: m.embed("x"), TypeError, ["texts", "list"]),
    ("pooling", lambda m: m.embed(["x"], "median"), ValueError, ["pooling", "'mean'"]),
    ("prompt", lambda m: m.embed(["x"], prompt=3), TypeError, ["prompt", "int"]),
]


@pytest.mark.parametrize(("call", "builtin", "parts"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_wrong_arguments_name_themselves(tiny, call, builtin, parts):
    with pytest.raises(tallow.InvalidRequestError) as caught:
        call(tiny)
    assert isinstance(caught.value, builtin)
    assert not [part for part in parts if part not in str(caught.value)], str(caught.value)


LOADING = [
    ({"source": ""}, ValueError, ["source", "empty", "smollm2"]),
    ({"source": 3}, TypeError, ["source", "int"]),
    ({"contextlength": 3}, TypeError, ["contextlength", "'context_length'?"]),
    ({"context_length": 0}, ValueError, ["context_length", "0"]),
    ({"threads": 0}, ValueError, ["threads", "0"]),
    ({"device": None}, TypeError, ["device"]),
    ({"device": "gpu"}, ValueError, ["device", "gpu", "cpu"]),
    ({"dtype": "int3"}, ValueError, ["dtype", "int3"]),
    ({"kv_type": "int4"}, ValueError, ["kv_type", "int4", "bf16"]),
    ({"kv_type": None}, TypeError, ["kv_type"]),
    ({"quantize": "q9"}, ValueError, ["quantize", "q9"]),
    ({"progress": 3}, TypeError, ["progress"]),
    ({"kv_memory": 0}, ValueError, ["kv_memory is 0", "1 byte"]),
    ({"kv_memory": -5}, ValueError, ["kv_memory is -5"]),
    ({"kv_memory": 2**63}, ValueError, ["kv_memory"]),
    ({"kv_memory": 1e9}, TypeError, ["kv_memory", "float", "512MiB"]),
    ({"kv_memory": True}, TypeError, ["kv_memory", "bool"]),
    ({"kv_memory": "512"}, ValueError, ["kv_memory", "'512'", "MiB"]),
    ({"kv_memory": "2G"}, ValueError, ["kv_memory", "'2G'", "GiB"]),
    ({"kv_memory": "-2GB"}, ValueError, ["kv_memory", "'-2GB'"]),
    ({"kv_memory": "0.1B"}, ValueError, ["kv_memory is 0"]),
    ({"kv_memory": "9" * 18 + "TB"}, ValueError, ["kv_memory", "at most"]),
    ({"queue": 0}, ValueError, ["queue", "0"]),
    ({"queue": "many"}, TypeError, ["queue", "integer"]),
    ({"prefix_cache": 1}, TypeError, ["prefix_cache", "True or False"]),
    ({"speculation": None}, TypeError, ["speculation", "True or False"]),
    ({"prefix_caching": False}, TypeError, ["prefix_caching", "'prefix_cache'?"]),
]


@pytest.mark.parametrize(("given", "builtin", "parts"), LOADING, ids=[str(case[0]) for case in LOADING])
def test_wrong_load_arguments_name_themselves(tiny_folder, given, builtin, parts):
    with pytest.raises(tallow.InvalidRequestError) as caught:
        tallow.Model(**{"source": tiny_folder, **given})
    assert isinstance(caught.value, builtin)
    assert not [part for part in parts if part not in str(caught.value)], str(caught.value)


MEMORY = [
    (4096, 4096),
    ("4096B", 4096),
    ("512MiB", 512 * 2**20),
    ("2GB", 2 * 10**9),
    ("1.5 gib", 3 * 2**29),
    (" 100kb ", 100_000),
    ("0.1TB", 10**11),
]


@pytest.mark.parametrize(("given", "bytes"), MEMORY, ids=[str(case[0]) for case in MEMORY])
def test_memory_has_units(given, bytes, tiny_folder):
    assert tallow.Model(tiny_folder, kv_memory=given).to_state()["kv_memory"] == bytes


@pytest.mark.parametrize(
    "field", ["temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty"]
)
@pytest.mark.parametrize("value", ["hot", math.nan, -1])
def test_samplers_check_their_fields(field, value):
    with pytest.raises(tallow.InvalidRequestError, match=field):
        tallow.Sampler(**{field: value})


def test_samplers_are_values():
    one = tallow.Sampler(temperature=0.7, top_k=40)
    assert one == tallow.Sampler(temperature=0.7, top_k=40)
    assert hash(one) == hash(tallow.Sampler(temperature=0.7, top_k=40))
    other = one.replace(top_k=None, min_p=0.1)
    assert (other.temperature, other.top_k, other.min_p) == (0.7, None, 0.1)
    assert (one.top_k, one.min_p) == (40, None)
    assert "0.7" in repr(one) and "40" in repr(one)


@pytest.mark.parametrize("ids", [[5, 6, 7], (5, 6, 7), np.array([5, 6, 7]), np.array([5, 6, 7], np.uint32)])
def test_ids_may_be_any_sequence_of_integers(tiny, ids):
    assert tiny.generate(ids, max_tokens=4).tokens == tiny.generate([5, 6, 7], max_tokens=4).tokens
    assert tiny.detokenize(ids) == tiny.detokenize([5, 6, 7])
    assert tiny.logits(ids).shape == (3, tiny.vocab_size)


def test_one_table_names_the_fields_of_a_sampler():
    names = [name for name, _ in _core.SAMPLER_FIELDS]
    assert list(inspect.signature(tallow.Sampler).parameters) == names == list(arguments.SAMPLER_FIELDS)
    sampler = tallow.Sampler()
    assert [getattr(sampler, name) for name in names] == [1.0, *[None] * (len(names) - 2), ()]
    with pytest.raises(tallow.InvalidRequestError, match=", ".join(names)):
        sampler.replace(heat=1)
