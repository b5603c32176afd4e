#!/usr/bin/env python3
"""Have peft and transformers read what tallow writes: adapters that it has trained, models that it has merged.

    python tests/python/test_written.py FOLDER          # with tallow: writes both
    python scripts/golden/written.py FOLDER             # without: reads both

Of each adapter `tests/golden/written/<checkpoint of families>/` (in peft's layout, as tallow wrote it) this makes

    reference.safetensors       tokens (I64 [n]), logits (F32 [n, vocab]): peft's, of the adapter read from there

and of the models FOLDER/merged/<row of tests/golden/adapters> one file, `tests/golden/written/merged.json`:

    form     a digest of config.json and of the tensors' names, types and shapes (test_written.py says how)
    apart    the largest difference between transformers' logits of the model and peft's with the adapter beside its base

What either of them leaves out or makes up without saying so ends the script. Float32, eager attention.

Made with Python 3.11, torch 2.15.0, transformers 5.24.0, peft 0.21.2, safetensors 0.8.0.
"""

import json
import sys
import warnings
import zlib
from pathlib import Path

import peft
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).resolve().parents[2] / "tests/golden"
WRITTEN = GOLDEN / "written"
TOKENS = 13


def base_model(folder, **options):
    load = transformers.AutoModelForCausalLM.from_pretrained
    return load(folder, attn_implementation="eager", dtype=torch.float32, **options)


@torch.no_grad()
def logits(model, tokens):
    return model.eval()(input_ids=tokens[None], use_cache=False).logits[0].float().contiguous()


def adapter(folder):
    """peft's logits of an adapter, which must have found a place for every tensor."""
    base = base_model(GOLDEN / "families" / folder.name)
    draw = torch.Generator().manual_seed(zlib.crc32(folder.name.encode()))
    tokens = torch.randint(3, base.config.vocab_size, (TOKENS,), generator=draw)
    before = logits(base, tokens)
    model = peft.PeftModel.from_pretrained(base, folder)
    ours = load_file(folder / "adapter_model.safetensors")
    theirs = peft.get_peft_model_state_dict(model)
    assert ours.keys() == theirs.keys(), f"{folder.name}: {sorted(ours.keys() ^ theirs.keys())}"
    assert all(torch.equal(ours[name], theirs[name]) for name in ours), folder.name
    right = logits(model, tokens)
    bite = (right - before).abs().max().item()
    assert bite > 0.1, f"{folder.name}: the logits move by {bite} only"
    save_file(dict(tokens=tokens, logits=right), folder / "reference.safetensors")
    print(f"{folder.name:24} moves the logits by {bite:.3f}")


def merged(folder, reference):
    """How far transformers' logits of a merged model are from peft's with the adapter."""
    model, info = base_model(folder, output_loading_info=True)
    wrong = {key: value for key, value in info.items() if value}
    assert not wrong, f"{folder.name}: {wrong}"
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}, file.metadata()
    reference = load_file(GOLDEN / "adapters" / reference)
    apart = (logits(model, reference["tokens"]) - reference["logits"]).abs().max().item()
    assert apart < 1e-4, f"{folder.name}: {apart} from peft"
    print(f"{folder.name:24} is {apart:.1e} from peft")
    return float(f"{apart:.1e}")


def main():
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    for folder in sorted(WRITTEN.iterdir()):
        if folder.is_dir():
            adapter(folder)
    forms = json.loads((out / "merged.json").read_text())
    manifest = json.loads((GOLDEN / "adapters" / "manifest.json").read_text())
    references = {line["name"]: line["reference"] for line in manifest}
    lines = {
        name: {**it, "apart": merged(out / "merged" / name, references[name])} for name, it in forms.items()
    }
    (WRITTEN / "merged.json").write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()
