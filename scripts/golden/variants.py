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
    found     whatever comes of it in transformers: logits, or one of `raises`, `random` and `unused`
    saved     the logits are those of the base when the config is what transformers saves after reading it

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
import newer_rows  # noqa: E402
import variant_rows  # noqa: E402
from newer_rows import NEWER  # noqa: E402
from variant_rows import CONFIGS, EXPERTS, KEPT, ROWS, TEXT, TOKENS, VOCAB, WRAPPERS  # noqa: E402

import checkpoints  # noqa: E402

OUT = ROOT / "tests/golden/variants"


def auto(config):
    """The class that has the head."""
    wrapper = config["model_type"] in WRAPPERS or "text_config" in config
    return getattr(transformers, "AutoModelFor" + ("ImageTextToText" if wrapper else "CausalLM"))


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
    shift = 0.0 if name.startswith(("gemma", "qwen3_5")) else 1.0
    made = dict(config=CONFIGS[name], norm_shift=shift, tensors=shapes(CONFIGS[name]))
    return made | (dict(gguf=variant_rows.metadata(name)) if name in variant_rows.ALL_ARCHES else {})


# -- What each class reads ----------------------------------------------------------------------------------

#: Read of every family: by PreTrainedConfig, the rotation, the masks or the loader.
COMMON = ["is_causal", "model_type", "original_max_position_embeddings (with llama3, yarn, longrope)",
          "partial_rotary_factor (a default for the rope object)", "per_layer_config", "quantization_config",
          "rope_parameters", "rope_scaling", "rope_theta", "tie_word_embeddings"]  # fmt: skip
#: Neither the numbers nor the shapes of an answer hang on these.
INERT = {"attention_dropout", "embd_pdrop", "resid_pdrop", "residual_dropout", "_attn_implementation", "pad_token_id",
         "get_text_config", "initializer_range", "use_cache", "bos_token_id", "eos_token_id", "attn_implementation",
         "position_ids", "weight", "bias"}  # fmt: skip
OF_NEWER = dict.fromkeys(config.get("text_config", config)["model_type"] for config in NEWER.values())
CLASSES = [*TEXT, *EXPERTS, *OF_NEWER, "qwen2_5_vl_text", "qwen3_vl_text"]
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
        rope_parameters=getattr(kind(), "rope_parameters", None),
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

    def logits(self, row):
        """The logits, and what the loader said of the tensors. Raises what transformers raises."""
        with tempfile.TemporaryDirectory() as scratch:
            folder = checkpoints.write(Path(scratch) / "row", row, self.bases)
            config = json.loads((folder / "config.json").read_text())
            options = dict(attn_implementation="eager", dtype=torch.float32, output_loading_info=True)
            model, info = auto(config).from_pretrained(folder, **options)
            tokens = torch.from_numpy(prompt(row.get("tokens", TOKENS)))
            with torch.no_grad():
                made = model.eval()(input_ids=tokens[None], use_cache=False).logits[0]
            missing = [name for name in info["missing_keys"] if "vision" not in name and "visual" not in name]
            return made[-KEPT:].float().numpy(), sorted(missing), sorted(info["unexpected_keys"])


def prompt(length):
    return np.random.RandomState(length).randint(*variant_rows.IDS, size=length)


def fitted(base, config, without):
    """Edits that give the base's tensors the shapes of the edited config."""
    wanted = shapes(checkpoints.configured(base["config"], config, without))
    gone = [["drop", name] for name in base["tensors"] if name not in wanted]
    return gone + [
        ["make", name, shape] for name, shape in wanted.items() if base["tensors"].get(name) != shape
    ]


def fit(row, bases):
    """What the row's edits make of the tensors; nothing if transformers refuses the config, which is seen later."""
    edits = row.get("reference", row)
    try:
        return fitted(bases[row["base"]], edits["config"], edits["without"])
    except Exception:
        if row["claim"] != "found":
            raise
        return []


def check(holds, message):
    if not holds:
        raise AssertionError(message)


def judge(row, reader):
    """The array of logits that the row has; None: it is refused. Complains if what is claimed does not hold."""
    claim = row["claim"]
    if claim in ("huge", "gguf refused"):
        return None
    if claim == "gguf":
        return judge_gguf(row, reader)
    if claim == "saved":
        row.update(claim="same", **respelled(reader.bases[row["base"]]["config"]))
    if claim == "found":
        return judge_found(row, reader)
    try:
        got, missing, unused = reader.logits({**row, **row.get("reference", {})})
    except Exception as error:
        said = f"{type(error).__name__}: {str(error)[:300]}"
        check(claim == "raises", f"transformers raises {said}")
        return None
    kinds = dict(random=missing, unused=unused, ours=True, quiet=True)
    if claim in ("raises", *kinds):
        check(kinds.get(claim), f"transformers loads it; missing {missing[:4]}, unused {unused[:4]}")
        return None
    check(not missing, f"missing {missing[:4]}")
    check(np.isfinite(got).all(), "not finite")
    return compared(row, got, reader)


def respelled(config):
    """The edits that make of a config what transformers saves after reading it."""
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "config.json").write_text(json.dumps(config))
        transformers.AutoConfig.from_pretrained(scratch).save_pretrained(scratch)
        saved = json.loads((Path(scratch) / "config.json").read_text())
    return dict(config=saved, without=[key for key in config if key not in saved])


def judge_found(row, reader):
    """Whatever transformers makes of the row; a refusal names the keys that were edited."""
    try:
        got, missing, unused = reader.logits({**row, **row.get("reference", {})})
        understood = not missing and not unused and np.isfinite(got).all()
    except Exception:
        understood = False
        if row.get("lenient"):
            return SKIPPED
    if understood and not row["ours"]:
        return got
    row["refused"] = [row["ours"] or "|".join([*row["config"], *row["without"], ".", ","])]
    return None


def compared(row, got, reader):
    """Holds the logits against the base's and against those of the row that they should be like."""
    claim, base = row["claim"], reader.known.get(f"{row['base']}/published")
    if claim != "base":
        apart = np.abs(got - base).max()
        check(claim != "same" or apart < CLOSE, f"claimed the same, differs by {apart}")
        check(claim != "moves" or apart > FAR, f"claimed to move, differs by {apart}")
    other = base if claim == "same" else reader.known[row["like"]] if "like" in row else None
    if other is None:
        return got
    check(np.abs(got - other).max() < CLOSE, f"differs from {row.get('like')} by {np.abs(got - other).max()}")
    return other


def judge_gguf(row, reader):
    reference = row["reference"]
    edits = dict(config=reference.get("config", {}), without=reference.get("without", []))
    tensors = row["tensors"] + reference.get("tensors", [])
    got, missing, unused = reader.logits(
        dict(edits, base=row["base"], tensors=tensors, tokens=row.get("tokens", TOKENS))
    )
    check(not missing and not unused, f"missing {missing[:4]}, unused {unused[:4]}")
    claim = "moves" if edits["config"] or edits["without"] or tensors else "same"
    read_back(row, reader.bases)
    return compared(dict(row, claim=claim), got, reader)


def read_back(row, bases):
    """The file is one that gguf-py reads."""
    with tempfile.TemporaryDirectory() as scratch:
        reader = gguf.GGUFReader(checkpoints.write(Path(scratch), row, bases))
        check(len(reader.tensors) > 10 and len(reader.fields) > 15, "gguf-py does not read the file")


def short_key(array):
    return hashlib.sha256(array.tobytes()).hexdigest()[:12]


#: Rounding in another order stays below; a mistake is seen above.
CLOSE, FAR = 2e-5, 5e-4
#: What the test has no use for.
WORKING = ("claim", "fit", "like", "reference", "ours", "lenient")
#: Not a row after all.
SKIPPED = object()


def finished(row, array, arrays):
    """The row as the test needs it."""
    out = {key: value for key, value in row.items() if key not in WORKING and value not in ({}, [])}
    if "gguf" in row:
        out["gguf"] = row["gguf"]
    if array is None:
        return out
    key = short_key(array)
    arrays[key] = array
    return {**out, "logits": key}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="rows whose names hold this; nothing is written")
    parser.add_argument("--bases", nargs="*", help="rows of these alone; those of others stay as they are")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity(50)
    transformers.logging.disable_progress_bar()
    CONFIGS.update(NEWER)
    newer_rows.newer()
    stays = lambda name: bool(args.bases) and name not in args.bases
    bases, kept, arrays = left_alone(stays) if args.bases else ({}, {}, {})
    bases |= {name: base(name) for name in CONFIGS if not stays(name)}
    reader, made, wrong = Reader(bases), [], 0
    for row in ROWS:
        if stays(row["base"]):
            made += kept.get(row["name"], [])
            continue
        if args.only and args.only not in row["name"] and row["claim"] != "base":
            continue
        try:
            if row["fit"]:
                row["tensors"] = fit(row, bases) + row["tensors"]
            array = judge(row, reader)
            if array is SKIPPED:
                continue
            reader.known[row["name"]] = array
            made.append(finished(row, array, arrays))
        except Exception as error:
            wrong += 1
            print(f"{row['name']} ({row['claim']}): {error!r:.400}", flush=True)
    print(f"{len(made)} rows, {len(arrays)} arrays, {wrong} wrong")
    if args.only:
        return wrong
    OUT.mkdir(exist_ok=True)
    table = dict(tokens=TOKENS, ids=variant_rows.IDS, vocab_size=VOCAB, bases=bases, rows=made)
    (OUT / "variants.json").write_text(dumped(table))
    (OUT / "keys.json").write_text(json.dumps(all_keys(), indent=1) + "\n")
    np.savez_compressed(OUT / "logits.npz", **arrays)
    return wrong


def left_alone(stays):
    """Bases, rows by name, and arrays of these rows, as the files have them."""
    table, arrays = json.loads((OUT / "variants.json").read_text()), np.load(OUT / "logits.npz")
    rows = [row for row in table["rows"] if stays(row["base"])]
    used = [row["logits"] for row in rows if "logits" in row]
    return table["bases"], {row["name"]: [row] for row in rows}, {key: arrays[key] for key in used}


def dumped(table):
    """JSON with a line for each base and each row."""
    lines = lambda items: ",\n  ".join(items)
    bases = lines(f"{json.dumps(name)}: {json.dumps(base)}" for name, base in table["bases"].items())
    rows = lines(json.dumps(row) for row in table["rows"])
    head = ", ".join(f"{json.dumps(k)}: {json.dumps(table[k])}" for k in ("tokens", "ids", "vocab_size"))
    return f'{{\n {head},\n "bases": {{\n  {bases}\n }},\n "rows": [\n  {rows}\n ]\n}}\n'


if __name__ == "__main__":
    sys.exit(main())
