#!/usr/bin/env python3
"""Make the table of variant checkpoints, `tests/golden/variants/`: the checkpoints that people bring.

    variants.json   bases (config, shapes of tensors, GGUF metadata) and rows (edits of a base, and what comes of it)
    logits.npz      float32 logits of the last positions of a seeded prompt, one array for all rows that agree
    keys.json       what each family's class of transformers reads, and the default of each key

A row is written by tests/python/checkpoints.py, here for transformers to read and in tests/python/test_variants.py for
tallow. What is claimed of a row is checked while it is made:

    same      the logits are those of the base: transformers reads both spellings, or never reads what was added
    moves     they are not: a reader that ignores the edit cannot pass
    refused   why: `raises` (transformers refuses it too), `random` (it starts a missing tensor at random), `unused` (it
              drops a tensor), `quiet` (it loads, and loses what the file says), `ours` (it works there and we
              cannot do it)

A GGUF row takes its logits from transformers on the same tensors in a folder, with the edits of `like`.

Made with Python 3.11, torch 2.15.0, transformers 5.24.0, safetensors 0.8.0, gguf 0.19.0, numpy 2.4.6.
"""

import argparse
import dataclasses
import hashlib
import inspect
import json
import re
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/python"))
import checkpoints  # noqa: E402

OUT = ROOT / "tests/golden/variants"
VOCAB, TOKENS, KEPT = 64, 24, 12
#: Ids of the prompts: none is a special token of a wrapper.
IDS = (3, 58)
FULL, SLIDING = "full_attention", "sliding_attention"


# -- The bases ----------------------------------------------------------------------------------------------


def published(model_type, **fields):
    """A config.json as published checkpoints spell it; a value of ... leaves the key out."""
    config = dict(
        model_type=model_type, vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=5000.0,
        hidden_act="silu", bos_token_id=1, eos_token_id=2, torch_dtype="float32", transformers_version="4.51.0",
        tie_word_embeddings=False,
    )  # fmt: skip
    return {key: value for key, value in {**config, **fields}.items() if value is not ...}


GEMMA = dict(head_dim=16, tie_word_embeddings=..., rms_norm_eps=1e-6, pad_token_id=0)
QWEN2 = dict(use_sliding_window=False, sliding_window=8, max_window_layers=1)
TEXT = {
    "llama": published("llama"),
    "smollm3": published("smollm3", num_hidden_layers=5, no_rope_layer_interval=4, pad_token_id=0),
    "mistral": published("mistral", sliding_window=8, head_dim=16),
    "ministral": published("ministral", sliding_window=8, head_dim=16, num_hidden_layers=3,
                           layer_types=[SLIDING, FULL, SLIDING]),
    "qwen2": published("qwen2", num_hidden_layers=3, **QWEN2),
    "qwen3": published("qwen3", num_hidden_layers=3, head_dim=16, attention_bias=False, **QWEN2),
    "phi": published("phi", rms_norm_eps=..., layer_norm_eps=1e-5, hidden_act="gelu_new", partial_rotary_factor=0.5,
                     qk_layernorm=False, num_key_value_heads=2),
    "phi3": published("phi3", original_max_position_embeddings=64, sliding_window=8, pad_token_id=0),
    "gemma": published("gemma", hidden_act="gelu_pytorch_tanh", **GEMMA),
    "gemma2": published("gemma2", num_hidden_layers=3, hidden_act=..., hidden_activation="gelu_pytorch_tanh",
                        query_pre_attn_scalar=16, sliding_window=8, attn_logit_softcapping=5.0,
                        final_logit_softcapping=8.0, **GEMMA),
    "gemma3_text": published("gemma3_text", num_hidden_layers=6, hidden_act=..., hidden_activation="gelu_pytorch_tanh",
                             query_pre_attn_scalar=16, sliding_window=8, sliding_window_pattern=3,
                             rope_local_base_freq=300.0, **GEMMA),
    "seed_oss": published("seed_oss", head_dim=16, attention_bias=True, attention_out_bias=False, mlp_bias=False,
                          pad_token_id=0),
}  # fmt: skip

EYE = dict(
    hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=4
)
IMAGE = dict(image_token_index=60)


def inner(family, *without, **fields):
    """The base of a family as the text_config of a wrapper."""
    dropped = ("torch_dtype", "transformers_version", *without)
    return {key: value for key, value in {**TEXT[family], **fields}.items() if key not in dropped}


WRAPPERS = {
    "gemma3": dict(model_type="gemma3", text_config=inner("gemma3_text"), mm_tokens_per_image=1, boi_token_index=61,
                   eoi_token_index=62, vision_config=dict(EYE, model_type="siglip_vision_model"), **IMAGE),
    "mistral3": dict(model_type="mistral3", text_config=inner("mistral", "tie_word_embeddings"), spatial_merge_size=2,
                     tie_word_embeddings=False, vision_config=dict(EYE, model_type="pixtral", head_dim=8), **IMAGE),
    "llava": dict(model_type="llava", text_config=inner("llama"), tie_word_embeddings=False,
                  vision_config=dict(EYE, model_type="clip_vision_model", projection_dim=8), **IMAGE),
    "qwen2_5_vl": dict(inner("qwen2"), model_type="qwen2_5_vl", image_token_id=60, video_token_id=61,
                       vision_start_token_id=62, vision_end_token_id=63,
                       rope_scaling=dict(type="mrope", mrope_section=[2, 3, 3]),
                       vision_config=dict(depth=1, hidden_size=8, intermediate_size=8, num_heads=1, out_hidden_size=32,
                                          model_type="qwen2_5_vl", fullatt_block_indexes=[0])),
    "qwen3_vl": dict(model_type="qwen3_vl", image_token_id=60, video_token_id=61, vision_start_token_id=62,
                     vision_end_token_id=63, tie_word_embeddings=False,
                     text_config=inner("qwen3", *QWEN2, model_type="qwen3_vl_text", rope_scaling=dict(
                         rope_type="default", mrope_section=[2, 3, 3], mrope_interleaved=True)),
                     vision_config=dict(model_type="qwen3_vl", depth=1, hidden_size=8, intermediate_size=8, num_heads=1,
                                        out_hidden_size=32, deepstack_visual_indexes=[0], num_position_embeddings=16)),
    "smolvlm": dict(model_type="smolvlm", image_token_id=60, scale_factor=2, tie_word_embeddings=False,
                    text_config=inner("llama", pad_token_id=0), vision_config=dict(EYE, model_type="smolvlm_vision")),
    "idefics3": dict(model_type="idefics3", image_token_id=60, scale_factor=2, tie_word_embeddings=False,
                     text_config=inner("llama", pad_token_id=0), vision_config=dict(EYE, model_type="idefics3_vision")),
}  # fmt: skip
CONFIGS = TEXT | WRAPPERS


def auto(config):
    """The class that has the head."""
    return getattr(
        transformers, "AutoModelFor" + ("ImageTextToText" if config["model_type"] in WRAPPERS else "CausalLM")
    )


def shapes(config):
    """The tensors of a checkpoint of this config, as transformers saves it."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "config.json"
        path.write_text(json.dumps(config))
        model = auto(config).from_config(transformers.AutoConfig.from_pretrained(scratch))
        model.save_pretrained(scratch)
        with safe_open(Path(scratch) / "model.safetensors", "pt") as file:
            return {name: list(file.get_slice(name).get_shape()) for name in sorted(file.keys())}


def base(name):
    shift = 0.0 if name.startswith("gemma") else 1.0
    return dict(config=CONFIGS[name], norm_shift=shift, tensors=shapes(CONFIGS[name]))


# -- The rows -----------------------------------------------------------------------------------------------

ROWS = []


def row(base, name, config=None, *, without=(), tensors=(), fit=False, **fields):
    """`fit`: the shapes follow the edited config."""
    made = dict(name=f"{base}/{name}", base=base, config=dict(config or {}), without=list(without),
                tensors=list(tensors), fit=fit, **fields)  # fmt: skip
    ROWS.append(made)


def same(base, name, config=None, **fields):
    row(base, name, config, claim="same", **fields)


def moves(base, name, config=None, **fields):
    row(base, name, config, claim="moves", **fields)


def refused(base, name, words, because, config=None, **fields):
    row(base, name, config, claim=because, refused=[words] if isinstance(words, str) else words, **fields)


def lm_head(base):
    return "language_model.lm_head.weight" if base in ("gemma3", "mistral3", "llava") else "lm_head.weight"


YARN = dict(factor=4.0, original_max_position_embeddings=32)
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
SHORT = [1.0, 1.1, 1.25, 1.4, 1.6, 1.9, 2.3, 2.8]
LONG = [1.2, 1.7, 2.5, 3.6, 5.1, 7.0, 9.5, 13.0]
#: Families that scale their only rope by any rule.
SCALED = [name for name in TEXT if name not in ("phi", "phi3", "gemma3_text")]
FLAT_ROPE = [name for name in TEXT if name != "gemma3_text"]
UNTIED = [name for name in TEXT if not name.startswith("gemma")]
FIRST = "model.layers.0."


def every_family():
    for name in TEXT:
        row(name, "published", claim="base")
        same(name, "dtype instead of torch_dtype", dict(dtype="float32"), without=["torch_dtype"])
        refused(name, "no model_type", "model_type", "raises", without=["model_type"])
        moves(name, "rope_theta absent", without=["rope_theta"])
        same(name, "rope_scaling null", dict(rope_scaling=None))
        same(
            name,
            "rotary_emb.inv_freq stored",
            tensors=[["make", FIRST + "self_attn.rotary_emb.inv_freq", [8]]],
        )
        same(name, "float64", tensors=[["cast", "*", "float64"]])
        moves(name, "bfloat16", tensors=[["cast", "*", "BF16"]])
        refused(
            name,
            "a layer too many",
            "layers.9.",
            "unused",
            tensors=[["copy", FIRST + "input_layernorm.weight", "model.layers.9.input_layernorm.weight"]],
        )
        refused(
            name,
            "a scale beside a weight",
            "down_proj.scale|fc2.scale",
            "unused",
            tensors=[["make", FIRST + ("mlp.fc2" if name == "phi" else "mlp.down_proj") + ".scale", [1]]],
        )
        refused(
            name,
            "gptq",
            "gptq",
            "raises",
            dict(quantization_config=dict(quant_method="gptq", bits=4, group_size=32)),
        )
        refused(
            name,
            "rope type banana",
            "banana",
            "raises",
            dict(rope_scaling=dict(rope_type="banana", factor=2.0)),
        )


def ropes():
    for name in FLAT_ROPE:
        theta = dict(rope_theta=5000.0)
        partial = dict(partial_rotary_factor=0.5) if name == "phi" else {}
        same(
            name,
            "rope_parameters",
            dict(rope_parameters=dict(theta, rope_type="default", **partial)),
            without=["rope_theta", *partial],
        )
        same(name, "rope_scaling default", dict(rope_scaling=dict(rope_type="default")))
    for name in SCALED:
        moves(name, "linear, oldest spelling", dict(rope_scaling=dict(type="linear", factor=4.0)))
        moves(
            name,
            "linear, rope_parameters",
            without=["rope_theta"],
            like_row=f"{name}/linear, oldest spelling",
            config=dict(rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=5000.0)),
        )
        moves(name, "yarn as a model card advises", dict(rope_scaling=dict(type="yarn", **YARN)))
        moves(
            name,
            "yarn beside rope_parameters",
            without=["rope_theta"],
            config=dict(
                rope_parameters=dict(rope_type="default", rope_theta=5000.0),
                rope_scaling=dict(rope_type="yarn", **YARN),
            ),
        )
        same(name, "dynamic, a short prompt", dict(rope_scaling=dict(type="dynamic", factor=4.0)))
        moves(name, "llama3", dict(rope_scaling=dict(rope_type="llama3", **LLAMA3)))


def heads():
    for name in UNTIED:
        head = ["drop", "lm_head.*"]
        same(name, "tied by the flag, head stored", dict(tie_word_embeddings=True))
        refused(name, "untied without a head", "lm_head", "random", tensors=[head])
        if name == "phi":
            continue
        moves(name, "tied without a head", dict(tie_word_embeddings=True), tensors=[head])
        moves(
            name,
            "tied, the embedding stored as the head",
            dict(tie_word_embeddings=True),
            tensors=[["drop", "model.embed_tokens.weight"]],
        )
        refused(
            name,
            "untied without an embedding",
            "embed_tokens",
            "random",
            tensors=[["drop", "model.embed_tokens.weight"]],
        )
        if name == "smollm3":
            moves(name, "flag absent, no head", without=["tie_word_embeddings"], tensors=[head])
            same(name, "flag absent, head stored", without=["tie_word_embeddings"])
        else:
            refused(
                name,
                "flag absent, no head",
                "lm_head",
                "random",
                without=["tie_word_embeddings"],
                tensors=[head],
            )
            same(name, "flag absent, head stored", without=["tie_word_embeddings"])


every_family()
ropes()
heads()


# -- What each class reads ----------------------------------------------------------------------------------

#: Read of every family: by PreTrainedConfig, the rotation, the masks or the loader.
COMMON = ["is_causal", "model_type", "original_max_position_embeddings (with llama3, yarn, longrope)",
          "partial_rotary_factor (a default for the rope object)", "per_layer_config", "quantization_config",
          "rope_parameters", "rope_scaling", "rope_theta", "tie_word_embeddings"]  # fmt: skip
#: Neither the numbers nor the shapes of an answer hang on these.
INERT = {"attention_dropout", "embd_pdrop", "resid_pdrop", "residual_dropout", "_attn_implementation", "pad_token_id",
         "get_text_config", "initializer_range", "use_cache", "bos_token_id", "eos_token_id", "attn_implementation",
         "position_ids", "weight", "bias"}  # fmt: skip
CLASSES = [*TEXT, "qwen2_5_vl_text", "qwen3_vl_text"]
SHARED = {re.sub(" .*", "", key) for key in COMMON}


def keys_of(model_type):
    """The keys that the family's own code reads, with the default of each where it is absent; what the class
    declares and does not read; its rotation and tying
    where the file says nothing."""
    kind = type(transformers.AutoConfig.for_model(model_type))
    model = transformers.AutoModel._model_mapping[kind]
    model = model[0] if isinstance(model, tuple) else model
    source = inspect.getsource(sys.modules[model.__module__]) + inspect.getsource(kind)
    fields = {field.name: field.default for field in dataclasses.fields(kind)}
    inherited = {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
    attributes = set(re.findall(r"\b(?:self\.config|config|self)\.(\w+)", source)) & set(fields)
    quoted = set(re.findall(r"getattr\((?:self\.)?config, \"(\w+)\"", source))
    quoted |= set(re.findall(r"kwargs\.(?:get|pop|setdefault)\(\"(\w+)\"", inspect.getsource(kind)))
    own = (attributes | quoted) - INERT - inherited - SHARED
    rest = set(fields) - own - INERT - inherited - SHARED
    return dict(
        rope_parameters=kind().rope_parameters,
        tie_word_embeddings=fields.get("tie_word_embeddings"),
        reads={key: plain_default(fields.get(key)) for key in sorted(own)},
        declares_only={key: plain_default(fields[key]) for key in sorted(rest)},
    )


def plain_default(value):
    return value if isinstance(value, (bool, int, float, str, list, dict, type(None))) else str(value)


def all_keys():
    families = {name: keys_of(name) for name in CLASSES}
    every = set().union(*(entry["reads"] for entry in families.values()))
    for entry in families.values():
        entry["ignores"] = sorted(every - set(entry["reads"]))
    return {"all families": COMMON, "changes nothing": sorted(INERT), **families}


# -- What comes of a row ------------------------------------------------------------------------------------


class Reader:
    """Reads rows as transformers does."""

    def __init__(self, bases):
        self.bases = bases
        self.known = {}

    def write(self, row, folder):
        return checkpoints.write(folder, row, self.bases)

    def logits(self, row):
        """The logits, and what the loader said of the tensors. Raises what transformers raises."""
        with tempfile.TemporaryDirectory() as scratch:
            folder = self.write(
                {k: v for k, v in row.items() if not k.startswith("gguf")}, Path(scratch) / "row"
            )
            config = json.loads((folder / "config.json").read_text())
            options = dict(attn_implementation="eager", dtype=torch.float32, output_loading_info=True)
            model, info = auto(config).from_pretrained(folder, **options)
            tokens = torch.from_numpy(prompt(row.get("tokens", TOKENS)))
            with torch.no_grad():
                made = model.eval()(input_ids=tokens[None], use_cache=False).logits[0]
            return made[-KEPT:].float().numpy(), info


def prompt(length):
    return np.random.RandomState(length).randint(*IDS, size=length)


def fitted(row, bases):
    """Edits that give the base's tensors the shapes of the row's config."""
    base = bases[row["base"]]
    wanted = shapes(checkpoints.configured(base["config"], row["config"], row["without"]))
    gone = [["drop", name] for name in base["tensors"] if name not in wanted]
    return gone + [
        ["make", name, shape] for name, shape in wanted.items() if base["tensors"].get(name) != shape
    ]


def short_key(array):
    return hashlib.sha256(array.tobytes()).hexdigest()[:12]


def judge(row, reader, arrays):
    """The row as the test needs it; complains if what is claimed of it does not hold."""
    claim, base = row["claim"], reader.known.get(row["base"])
    out = {
        k: v for k, v in row.items() if k not in ("claim", "fit", "like", "like_row") and v not in ({}, [])
    }
    try:
        got, info = reader.logits({**row, **row.get("like", {})})
    except Exception as error:
        assert claim == "raises", f"transformers raises {type(error).__name__}: {str(error)[:300]}"
        return out
    missing = [name for name in info["missing_keys"] if "vision" not in name and "visual" not in name]
    unused = sorted(info["unexpected_keys"])
    finite = np.isfinite(got).all()
    if claim == "raises":
        raise AssertionError(f"transformers loads it; missing {missing}, unused {unused}")
    if claim == "random":
        assert missing, "nothing is missing"
        return out
    if claim == "unused":
        assert unused, "nothing is unused"
        return out
    if claim in ("ours", "quiet"):
        return out
    assert not missing, f"missing {missing}"
    assert finite, "not finite"
    key = short_key(got)
    if claim == "base":
        reader.known[row["base"]] = got
    else:
        apart = np.abs(got - base).max()
        assert claim != "same" or apart < 2e-5, f"claimed the same, differs by {apart}"
        assert claim != "moves" or apart > 0.01, f"claimed to move, differs by {apart}"
        if claim == "same":
            key, got = short_key(base), base
    if "like_row" in row:
        other = reader.known[row["like_row"]]
        assert np.abs(got - other).max() < 2e-5, (
            f"differs from {row['like_row']} by {np.abs(got - other).max()}"
        )
        key, got = short_key(other), other
    reader.known[row["name"]] = got
    arrays[key] = got
    if unused:
        out["unread"] = unused
    return {**out, "logits": key}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="rows whose names hold this; nothing is written")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity(50)
    transformers.logging.disable_progress_bar()
    bases = {name: base(name) for name in CONFIGS}
    reader, arrays, made, wrong = Reader(bases), {}, [], 0
    for row in ROWS:
        if args.only and args.only not in row["name"] and row["claim"] != "base":
            continue
        if row["fit"]:
            row["tensors"] = fitted(row, bases) + row["tensors"]
        try:
            made.append(judge(row, reader, arrays))
        except AssertionError as error:
            wrong += 1
            print(f"{row['name']} ({row['claim']}): {error}", flush=True)
    print(f"{len(made)} rows, {len(arrays)} arrays, {wrong} wrong")
    if args.only:
        return wrong
    OUT.mkdir(exist_ok=True)
    table = dict(tokens=TOKENS, ids=IDS, vocab_size=VOCAB, bases=bases, rows=made)
    (OUT / "variants.json").write_text(dumped(table))
    (OUT / "keys.json").write_text(json.dumps(all_keys(), indent=1) + "\n")
    np.savez_compressed(OUT / "logits.npz", **arrays)
    return wrong


def dumped(table):
    """JSON with a line for each base and each row."""
    lines = lambda items: ",\n  ".join(items)
    bases = lines(f"{json.dumps(name)}: {json.dumps(base)}" for name, base in table["bases"].items())
    rows = lines(json.dumps(row) for row in table["rows"])
    head = ", ".join(f"{json.dumps(k)}: {json.dumps(table[k])}" for k in ("tokens", "ids", "vocab_size"))
    return f'{{\n {head},\n "bases": {{\n  {bases}\n }},\n "rows": [\n  {rows}\n ]\n}}\n'


if __name__ == "__main__":
    sys.exit(main())
