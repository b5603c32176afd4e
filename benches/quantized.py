"""Quantized checkpoints of a real model: that they answer as their packages have them, and what they cost.

    python benches/quantized.py make FOLDER [NAME ...]     FOLDER/NAME by each package
    python benches/quantized.py agree FOLDER [NAME ...]    perplexity and first tokens
    python benches/quantized.py load FOLDER [NAME ...]     seconds and memory of loading
    python benches/quantized.py speed FOLDER [NAME ...]    tokens a second, ours and the package's own

`FOLDER/plain` is a BF16 checkpoint of Llama's family; it is made of `FOLDER/plain.gguf` if it is not there.
`make` also writes FOLDER/NAME-f32: the weights as the package dequantizes them, with scales in float32.
`agree` loads both here, and holds the perplexity of this repository's texts against each other, and the
first tokens that are drawn greedily against the package's own runtime on a CPU. `speed` compares with that,
too. The packages are those of `scripts/golden/quantized.py`, which dequantizes; all in one environment with
tallow.
"""

import argparse
import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = [
    "The capital of France is",
    "Write a short poem about the sea.",
    "def fibonacci(n):",
    "Once upon a time there was a little",
    "To boil an egg, first",
]
NEW, WINDOW, WINDOWS = 24, 512, 4
#: What is quantized how, by which package.
NAMES = [
    "gptq-int4",
    "awq-int4",
    "ct-int4",
    "ct-fp8",
    "mlx-4",
    "bnb-nf4",
    "bnb-int8",
    "auto-round-int4",
]


def golden():
    spec = importlib.util.spec_from_file_location("golden", ROOT / "scripts/golden/quantized.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- Making -------------------------------------------------------------------------------------------------


def plain(folder):
    """FOLDER/plain.gguf as a BF16 folder."""
    import torch
    import transformers

    gguf = dict(gguf_file="plain.gguf")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **gguf, dtype=torch.float32)
    config = model.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):
        config.pop(key, None)
    # Of the config as it was read it would say that it cannot be saved.
    saved = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).to(torch.bfloat16)
    saved.load_state_dict({name: weight.to(torch.bfloat16) for name, weight in model.state_dict().items()})
    saved.tie_weights()
    saved.save_pretrained(folder / "plain")
    transformers.AutoTokenizer.from_pretrained(folder, **gguf).save_pretrained(folder / "plain")


def texts():
    """Paragraphs of this repository's pages: for calibration, and others to be measured by."""
    pages = sorted((ROOT / "docs").glob("*.md"))
    whole = "\n\n".join(page.read_text() for page in pages)
    prose = [p for p in re.split(r"\n\n+", whole) if len(p) > 200 and not p.startswith(("|", "```", "    "))]
    return prose[::2], prose[1::2]


def calibration(folder):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("\n\n".join(texts()[0]))["input_ids"]
    return [dict(input_ids=ids[at : at + 256], attention_mask=[1] * 256) for at in range(0, 16 * 256, 256)]


def of_gptqmodel(folder, out, **how):
    """As gptqmodel saves it, and its modules' own dequantization."""
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from safetensors.torch import load_file

    model = GPTQModel.load(str(folder), QuantizeConfig(**how), device="cpu")
    backend = {} if how.get("method") == "awq" else dict(backend=BACKEND.TORCH)
    model.quantize(calibration(folder), **backend)
    model.save(str(out))
    return golden().unpacked(out, load_file(out / "model.safetensors"))


def of_auto_round(folder, out):
    """By rounding alone (no iterations), in GPTQ's layout; its own modules dequantize."""
    from auto_round import AutoRound
    from safetensors.torch import load_file

    how = dict(scheme="W4A16", group_size=64, iters=0, disable_opt_rtn=True, device_map="cpu")
    AutoRound(str(folder), **how).quantize_and_save(str(out), format="auto_round")
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    plain = load_file(folder / "model.safetensors")
    return golden().of_words(config, load_file(out / "model.safetensors"), plain)


def by_hand(function):
    """A row of the golden checkpoints' script, of all the model's weights: (config, tensors, dequantized)."""

    def make(folder, out):
        from safetensors.torch import load_file, save_file

        said, tensors, back = function(load_file(folder / "model.safetensors"))
        shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
        root = json.loads((out / "config.json").read_text())
        if "mlx" in said:
            root |= dict(quantization=said["mlx"], quantization_config=said["mlx"])
        else:
            root["quantization_config"] = said
        (out / "config.json").write_text(json.dumps(root, indent=1))
        save_file(
            {n: t.contiguous() for n, t in tensors.items()}, out / "model.safetensors", {"format": "pt"}
        )
        return back

    return make


def of_mlx(folder, out):
    """As mlx-lm converts it."""
    import mlx.core as mx
    import mlx_lm
    import torch

    mlx_lm.convert(str(folder), mlx_path=str(out), quantize=True, q_group_size=64, q_bits=4)
    parts = mx.load(str(out / "model.safetensors"))
    back = {}
    for name, part in parts.items():
        module = name.removesuffix(".weight")
        if name.endswith((".scales", ".biases")):
            continue
        if f"{module}.scales" in parts:
            wide = [parts[f"{module}.{own}"].astype(mx.float32) for own in ("scales", "biases")]
            part = mx.dequantize(part, *wide, group_size=64, bits=4)
        back[name] = torch.from_numpy(np.array(part.astype(mx.float32)))
    return back


def maker(name):
    rows = golden()
    return {
        "gptq-int4": lambda *at: of_gptqmodel(*at, bits=4, group_size=64),
        "awq-int4": by_hand(rows.awq_row(64, False, rows.AWQ | dict(bits=4, group_size=64, zero_point=True))),
        "ct-int4": by_hand(rows.compressed_row(rows.PACKED, rows.int_args(4, group=64))),
        "ct-fp8": by_hand(rows.compressed_row("float-quantized", rows.float_args(8, "channel"))),
        "mlx-4": of_mlx,
        "bnb-nf4": by_hand(rows.four_bits("nf4", True)),
        "bnb-int8": by_hand(rows.eight_bits),
        "auto-round-int4": of_auto_round,
    }[name]


def make(folder, name):
    """Writes FOLDER/name, and FOLDER/name-f32 with the weights as the package has them."""
    from safetensors.torch import save_file

    out, wide = folder / name, folder / f"{name}-f32"
    for old in (out, wide):
        shutil.rmtree(old, ignore_errors=True)
    start = time.perf_counter()
    back = maker(name)(folder / "plain", out)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / "plain" / file, out)
    shutil.copytree(folder / "plain", wide, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(
        {n: t.float().contiguous() for n, t in back.items()}, wide / "model.safetensors", {"format": "pt"}
    )
    print(f"{name}: made in {time.perf_counter() - start:.0f} s", flush=True)


# -- Agreeing -----------------------------------------------------------------------------------------------


def loaded(folder, **options):
    import tallow

    return tallow.Model(folder, progress=False, packed_cache=False, **options)


def nats(model, ids):
    """The mean negative log-likelihood of the tokens behind the first of each window."""
    total, count = 0.0, 0
    for at in range(0, len(ids) - WINDOW + 1, WINDOW):
        window = ids[at : at + WINDOW]
        logits = model.logits(window)[:-1].astype(np.float64)
        top = logits.max(-1)
        whole = top + np.log(np.exp(logits - top[:, None]).sum(-1))
        total += (whole - logits[np.arange(WINDOW - 1), window[1:]]).sum()
        count += WINDOW - 1
    return total / count


def runtime(name, folder):
    """The package's own: ids -> logits after each of them."""
    import torch

    if name.startswith("mlx"):
        import mlx.core as mx
        import mlx_lm

        model, _ = mlx_lm.load(str(folder))
        return lambda ids: np.array(model(mx.array([ids]))[0].astype(mx.float32))
    if name.startswith(("gptq", "awq")):
        from gptqmodel import BACKEND, GPTQModel

        backend = BACKEND.TORCH_AWQ if name.startswith("awq") else BACKEND.TORCH
        model = GPTQModel.load(str(folder), backend=backend, device="cpu").model
    else:
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, device_map="cpu"
        )
    model = model.eval()

    def run(ids):
        with torch.no_grad():
            return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().numpy()

    return run


def greedy(model, ids):
    options = dict(max_tokens=NEW, temperature=0, logit_bias=dict.fromkeys(model.eos_ids, -100.0))
    return list(model.generate(ids, **options).tokens)


def same_start(other, ids, drawn, never):
    """How many of our tokens another runtime draws, and how much less it gives to ours where it differs."""
    logits = other(ids + drawn)
    logits[:, list(never)] = -np.inf
    for at, token in enumerate(drawn):
        row = logits[len(ids) + at - 1]
        if row.argmax() != token:
            return at, float(row.max() - row[token])
    return len(drawn), 0.0


def agree(folder, name):
    model, wide = loaded(folder / name), loaded(folder / f"{name}-f32")
    ids = model.tokenize("\n\n".join(texts()[1]))[: WINDOW * WINDOWS]
    ours, theirs = (math.exp(nats(each, ids)) for each in (model, wide))
    prompts = [model.tokenize(prompt) for prompt in PROMPTS]
    drawn = [greedy(model, prompt) for prompt in prompts]
    kept, never = " ".join(model.weight_types), model.eos_ids
    del model, wide
    other = runtime(name, folder / name)
    starts = [same_start(other, prompt, tokens, never) for prompt, tokens in zip(prompts, drawn, strict=True)]
    same = " ".join(str(count) if not apart else f"{count} ({apart:.2f})" for count, apart in starts)
    print(
        f"| {name} | {kept} | {ours:.3f} | {theirs:.3f} | {100 * (ours / theirs - 1):+.2f} % | {same} |",
        flush=True,
    )


# -- Costs --------------------------------------------------------------------------------------------------

LOAD = """
import json, sys, time
import numpy
def status(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) / 1024
import tallow
before, start, work = status("VmRSS"), time.perf_counter(), time.process_time()
model = tallow.Model(sys.argv[1], progress=False, packed_cache=False)
print(json.dumps(dict(seconds=time.perf_counter() - start, cpu=time.process_time() - work,
    peak=status("VmHWM") - before, weights=model.weight_bytes / 2**20)))
"""


def load_cost(path, times=3):
    """Of loading in fresh processes: the best seconds, and MiB above the interpreter's with the package."""
    runs = [
        json.loads(
            subprocess.run([sys.executable, "-c", LOAD, str(path)], check=True, capture_output=True).stdout
        )
        for _ in range(times)
    ]
    return {key: min(run[key] for run in runs) for key in runs[0]}


def size_of(path):
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files) / 2**20


def loads(folder, name):
    path = folder / name
    cost, size = load_cost(path), size_of(path)
    print(
        f"| {name} | {size:.0f} | {cost['seconds']:.2f} | {cost['cpu']:.2f} | {cost['peak']:.0f} | "
        f"{cost['weights']:.0f} | {cost['peak'] / size:.2f} |",
        flush=True,
    )


def ours_a_second(folder, name):
    model = loaded(folder / name)
    prompt = model.tokenize("\n\n".join(texts()[1]))[:128]

    def run(new):
        start = time.perf_counter()
        options = dict(max_tokens=new, temperature=0, logit_bias=dict.fromkeys(model.eos_ids, -100.0))
        model.generate(prompt, **options)
        return time.perf_counter() - start

    run(1)
    prompt = prompt[::-1]
    first = run(1)
    prompt = prompt[1:] + prompt[:1]
    return 128 / first, 31 / (run(32) - first), prompt


def theirs_a_second(folder, name, ids):
    """Tokens a second of a prompt and of answers, by the package's own runtime with its cache."""
    if name.startswith("mlx"):
        import mlx.core as mx
        import mlx_lm
        from mlx_lm.models.cache import make_prompt_cache

        model, _ = mlx_lm.load(str(folder / name))

        def step(ids, cache):
            cache = cache or make_prompt_cache(model)
            logits = model(mx.array([ids]), cache=cache)
            mx.eval(logits)
            return int(logits[0, -1].argmax()), cache

    else:
        import torch
        import transformers

        run = runtime(name, folder / name)
        model = run.__closure__[0].cell_contents

        def step(ids, cache):
            cache = cache or transformers.DynamicCache()
            with torch.no_grad():
                out = model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
            return int(out.logits[0, -1].argmax()), cache

    step(ids[:8], None)
    start = time.perf_counter()
    token, cache = step(ids, None)
    first = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(8):
        token, cache = step([token], cache)
    return len(ids) / first, 8 / (time.perf_counter() - start)


def speed(folder, name):
    prompt, answer, ids = ours_a_second(folder, name)
    other = theirs_a_second(folder, name, ids)
    print(
        f"| {name} | {prompt:.0f} | {answer:.1f} | {other[0]:.0f} | {other[1]:.1f} | "
        f"{prompt / other[0]:.1f} | "
        f"{answer / other[1]:.1f} |",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tasks = dict(make=make, agree=agree, load=loads, speed=speed)
    parser.add_argument("what", choices=tasks)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    if not (args.folder / "plain").exists():
        plain(args.folder)
    for name in args.names or NAMES:
        tasks[args.what](args.folder, name)


if __name__ == "__main__":
    main()
