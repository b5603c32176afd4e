#!/usr/bin/env python3
"""Make the goldens of adapters: what peft says of tiny adapters on the tiny checkpoints of families.py.

Each row of ROWS becomes a folder `tests/golden/adapters/<name>/`:

    adapter_config.json, adapter_model.safetensors    as peft saves them, with random numbers of real size in all
    reference.safetensors                             tokens (I64 [n]), logits (F32 [n, vocab])

and a line of `tests/golden/adapters/manifest.json`:

    name       of the row
    base       a folder of tests/golden/families
    adapter    what to load, beside the manifest: a folder or a file
    reference  the file with tokens and logits, beside the manifest; null where the adapter is refused
    refused    null, or {"kind": "model_file" | "unsupported", "words": [..]}: the error's kind, and what it says; with
               "at": "bind", where only the model shows that something is wrong
    same_as    null, or the row whose adapter this is, written in another format: they have the same hash
    bite       how far the adapter moves the logits: a reader that ignores it cannot pass
    what       what it tests

The logits are float32, eager attention, one forward over the whole prompt, of the adapter read back from its folder.

Made with Python 3.11, torch 2.15.0, transformers 5.24.0, peft 0.21.2, gguf 0.19.0, safetensors 0.8.0.
"""

import argparse
import json
import shutil
import sys
import warnings
import zlib
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ROOT / "tests/golden/families"
TOKENS = 13
# Tokens whose rows some adapters replace; every prompt has them.
REPLACED = [9, 5]
# Files that peft writes and nobody reads.
UNREAD = ("README.md",)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]


def row(name, base, what, *, dtype=None, refused=None, resized=None, **config):
    """One adapter that is made and run by peft; `config`: of `LoraConfig`; `dtype`: that it is stored in; `resized`:
    to how many tokens the base was brought before."""
    return dict(name=name, base=base, what=what, dtype=dtype, refused=refused, resized=resized, config=config)


QV = ["q_proj", "v_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
RESIZED = dict(at="bind", kind="unsupported", words=["resized", "70"])
DEEPER = dict(at="bind", kind="unsupported", words=["layers.2.self_attn.q_proj", "no such module"])
WIDER = dict(at="bind", kind="model_file", words=["made for another model"])
NORMS = dict(kind="unsupported", words=["layernorm", "norms are not adapted"])

ROWS = [
    row("lora", "llama-mha", "all seven projections", r=4, lora_alpha=8, target_modules=ALL),
    row("unit", "llama-mha", "a scale of 1", r=4, lora_alpha=4, target_modules=["up_proj", "q_proj"]),
    row("rslora", "llama-mha", "alpha / sqrt(r)", r=4, lora_alpha=3, target_modules=QV, use_rslora=True),
    row("half", "llama-mha", "stored as bfloat16", dtype=torch.bfloat16, r=4, lora_alpha=8, target_modules=QV),
    row("patterns", "llama-mha", "ranks and alphas by regular expressions; the first that matches counts",
        r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj"],
        rank_pattern={r"layers\.\d+\.self_attn\.v_proj": 3, "model.layers.1.self_attn.v_proj": 6, "q_proj": 2},
        alpha_pattern={"k_proj": 1, "layers.0": 99, "proj": 98, "self_attn.q_proj": 5}),
    row("one-layer", "llama-mha", "layers_to_transform, targets as a regular expression", r=4, lora_alpha=8,
        target_modules=r".*layers\.1\..*\.(q|v)_proj"),
    row("dora", "llama-mha", "magnitudes", r=4, lora_alpha=8, target_modules=["q_proj", "o_proj", "down_proj"],
        use_dora=True),
    row("dora-bias", "qwen2-tied", "magnitudes beside biases", r=4, lora_alpha=8, target_modules=QV, use_dora=True),
    row("lora-bias", "qwen2-tied", "a bias beside B", r=4, lora_alpha=8, target_modules=["q_proj", "o_proj"],
        lora_bias=True),
    row("bias-lora-only", "qwen2-tied", "biases of the targets, replaced", r=4, lora_alpha=8, target_modules=QV,
        bias="lora_only"),
    row("bias-all", "qwen2-tied", "all biases replaced", r=4, lora_alpha=8, target_modules=["q_proj"], bias="all"),
    row("bias-all-norms", "phi-parallel", "all biases, of norms too", refused=NORMS, r=2, target_modules=["q_proj"],
        bias="all"),
    row("resized", "llama-mha", "more tokens than the base has", refused=RESIZED, resized=70, r=2,
        target_modules=["q_proj"]),
    row("embedding", "llama-mha", "the embedding", r=4, lora_alpha=8, target_modules=["embed_tokens", "q_proj"]),
    row("embedding-tied", "llama-gqa-tied", "the embedding alone, where the head is tied to it", r=4, lora_alpha=8,
        target_modules=["embed_tokens", "q_proj"]),
    row("both-tied", "llama-gqa-tied", "the embedding and the head that is tied to it", r=4, lora_alpha=8,
        target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True),
    row("head", "llama-mha", "the head", r=4, lora_alpha=8, target_modules=["lm_head", "q_proj"]),
    row("head-tied", "llama-gqa-tied", "the head alone, where it is tied to the embedding", r=4, lora_alpha=8,
        target_modules=["lm_head", "q_proj"]),
    row("saved-head", "llama-mha", "another head", r=4, lora_alpha=8, target_modules=QV, modules_to_save=["lm_head"]),
    row("saved-embedding", "llama-mha", "another embedding", r=4, lora_alpha=8, target_modules=QV,
        modules_to_save=["embed_tokens"]),
    row("saved-head-tied", "llama-gqa-tied", "another head, where it is tied", r=4, lora_alpha=8, target_modules=QV,
        modules_to_save=["lm_head"]),
    row("saved-both-tied", "llama-gqa-tied", "another embedding and the head that is tied to it", r=4, lora_alpha=8,
        target_modules=QV, modules_to_save=["lm_head"], ensure_weight_tying=True),
    row("saved-projection", "llama-mha", "a projection stored whole", r=4, lora_alpha=8, target_modules=["q_proj"],
        modules_to_save=["layers.1.self_attn.v_proj"]),
    row("tokens", "llama-mha", "rows of the embedding", r=4, lora_alpha=8, target_modules=QV,
        trainable_token_indices=REPLACED),
    row("tokens-tied", "llama-gqa-tied", "rows of the embedding and of the head that is tied to it", r=4,
        lora_alpha=8, target_modules=QV, trainable_token_indices=REPLACED),
    row("tokens-both", "llama-mha", "rows of the embedding, others of the head", r=4, lora_alpha=8,
        target_modules=QV, trainable_token_indices={"embed_tokens": REPLACED, "lm_head": [7]}),
    row("qwen2", "qwen2-tied", "projections with biases", r=4, lora_alpha=8, target_modules="all-linear"),
    row("qwen3", "qwen3-tied", "norms of heads behind the projections", r=4, lora_alpha=8, target_modules=ALL),
    row("gemma3", "gemma3-classic", "windows, four norms", r=1, lora_alpha=4, target_modules=ALL),
    row("phi3", "phi3-partial", "fused projections", r=4, lora_alpha=8, target_modules="all-linear"),
    row("phi3-dora", "phi3-partial", "magnitudes of fused projections", r=2, lora_alpha=4,
        target_modules=["qkv_proj", "gate_up_proj"], use_dora=True),
    row("phi", "phi-parallel", "dense, fc1, fc2, and a head with a bias", r=4, lora_alpha=8,
        target_modules=["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2", "lm_head"]),
    row("lfm2", "lfm2-classic", "short convolutions", r=2, lora_alpha=4, target_modules="all-linear"),
    row("qwen3_5", "qwen3_5-dense", "delta nets", r=1, lora_alpha=2, target_modules="all-linear"),
    row("experts", "qwen3moe-normed", "experts in one parameter", r=2, lora_alpha=4, target_modules=["q_proj"],
        target_parameters=EXPERTS),
    row("experts-down", "qwen3moe-normed", "one parameter of two", r=2, lora_alpha=4, target_modules=[],
        target_parameters=EXPERTS[1:]),
    row("experts-all", "qwen3moe-normed", "experts and router, by all-linear", r=2, lora_alpha=4,
        target_modules="all-linear"),
    row("experts-turned", "gptoss-bf16", "experts whose parameters are stored the other way round, with biases", r=2,
        lora_alpha=4, target_modules=["q_proj"], target_parameters=EXPERTS),
]  # fmt: skip


def other(name, of, what, **fields):
    """The adapter of another row in another format; `fields`: what else its writer wants."""
    return dict(name=name, of=of, what=what, **fields)


GGUF_ROWS = [
    other("gguf", "lora", "GGUF: rows of q and k in another order"),
    other("gguf-half", "half", "GGUF: stored as F16, of an adapter whose numbers fit", dtype=torch.float16),
    other("gguf-plain", "qwen3", "GGUF: rows as peft has them", same="qwen3"),
    other("gguf-embedding", "embedding", "GGUF: the embedding's A a row a token"),
    other("gguf-fused", "phi3", "GGUF: fused projections under llama.cpp's names"),
    other("gguf-experts", "experts", "GGUF: three dimensions"),
    other("gguf-no-alpha", "unit", "GGUF: without an alpha the scale is 1", alpha=0.0),
]
MLX_ROWS = [
    other("mlx", "lora", "mlx-lm: both factors the other way round, a scale that is no alpha", same="lora"),
    other("mlx-dora", "dora", "mlx-lm: magnitudes", same="dora"),
    other("mlx-experts", "experts", "mlx-lm: experts of three kinds", same="gguf-experts"),
]
REFUSED_ROWS = [
    other("deeper", "one-layer", "an adapter of a model with another layer; peft takes it, and leaves it out",
          refused=DEEPER),
    other("wider", "qwen3", "an adapter of another model", base="gemma3-classic", refused=WIDER),
]  # fmt: skip
# As files of older versions of transformers have the experts of `experts`: modules of their own.
SINGLE_ROWS = [other("experts-single", "experts", "each expert a module")]


def seeded(name):
    torch.manual_seed(zlib.crc32(name.encode()))


def base_model(base):
    load = transformers.AutoModelForCausalLM.from_pretrained
    return load(FAMILIES / base, attn_implementation="eager", dtype=torch.float32).eval()


@torch.no_grad()
def logits(model, tokens):
    return model(input_ids=tokens[None], use_cache=False).logits[0].float().contiguous()


@torch.no_grad()
def fill(model):
    """Random numbers of real size where peft begins with none: an adapter that changes nothing tests nothing."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        noise = torch.randn(parameter.shape)
        if "lora_A" in name:
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
        elif "lora_" in name and "magnitude" not in name:
            parameter.copy_(0.3 * noise)
        else:
            parameter.add_(0.3 * noise * parameter.abs().mean().clamp(min=0.3))


def make(row, out):
    """The folder of a row, and its line of the manifest."""
    folder = out / row["name"]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    seeded(row["name"])
    model = base_model(row["base"])
    if row["resized"]:
        model.resize_token_embeddings(row["resized"])
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **row["config"]))
    fill(model)
    # What peft does by itself where it can see the base's configuration.
    model.save_pretrained(folder, save_embedding_layers=True if row["resized"] else "auto")
    tidy(folder, row)
    line = dict(name=row["name"], base=row["base"], adapter=row["name"], reference=None, refused=row["refused"],
                same_as=None, bite=None, what=row["what"])  # fmt: skip
    if row["refused"]:
        return line
    plain = base_model(row["base"])
    tokens = torch.randint(3, plain.config.vocab_size, (TOKENS,))
    tokens[2:4] = torch.tensor(REPLACED)
    before = logits(plain, tokens)
    back = peft.PeftModel.from_pretrained(plain, folder).eval()
    right = logits(back, tokens)
    if not row["dtype"]:
        assert torch.equal(right, logits(model.eval(), tokens)), f"{row['name']}: read back it differs"
    save_file(dict(tokens=tokens, logits=right), folder / "reference.safetensors")
    bite = (right - before).abs().max().item()
    assert bite > 0.05, f"{row['name']}: the logits move by {bite} only"
    return line | dict(reference=f"{row['name']}/reference.safetensors", bite=round(bite, 4))


def tidy(folder, row):
    """Without what nobody reads, and in the row's type."""
    for name in UNREAD:
        (folder / name).unlink(missing_ok=True)
    respell(folder, row["base"])
    tensors = folder / "adapter_model.safetensors"
    if row["dtype"]:
        save_file({name: tensor.to(row["dtype"]) for name, tensor in load_file(tensors).items()}, tensors)
    for path in folder.iterdir():
        path.chmod(0o644)


def respell(folder, base):
    """No path of the machine that made it; lists in one order."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = f"tiny/{base}"
    for key in ("target_modules", "modules_to_save", "target_parameters"):
        if isinstance(config.get(key), list):
            config[key].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=False) + "\n")


def tensors_of(name, out):
    """The tensors of a row, by module: the names of transformers, without what peft puts before them."""
    modules = {}
    for key, tensor in load_file(out / name / "adapter_model.safetensors").items():
        for end in (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B",
                    ".lora_magnitude_vector"):  # fmt: skip
            if key.endswith(end):
                role = "m" if "magnitude" in end else end.replace("_embedding", "")[6]
                modules.setdefault(key.removeprefix("base_model.model.").removesuffix(end), {})[role] = (
                    tensor.float()
                )
    return modules


def experts_of(modules, rank):
    """The A `[experts, r, in]` and B `[experts, out, r]` of gate, up and down of each layer, the name of transformers
    with `{}` for what they are."""
    found = {}
    for module, kinds in (
        (m, ("gate", "up") if m.endswith("base_layer") else ("down",)) for m in list(modules)
    ):
        if not module.removesuffix(".base_layer").endswith(".experts"):
            continue
        pair = modules.pop(module)
        a = pair["A"].reshape(-1, rank, pair["A"].shape[1])
        b = pair["B"].reshape(len(pair["B"]), rank, -1).permute(2, 0, 1)
        for kind, part in zip(kinds, b.chunk(len(kinds), dim=1), strict=True):
            found[module.removesuffix(".base_layer"), kind] = a.clone(), part.contiguous()
    return found


def write_gguf(row, base, out):
    """As llama.cpp's converter does."""
    import gguf
    from to_gguf import interleave

    peft_config = json.loads((out / row["of"] / "adapter_config.json").read_text())
    meta = json.loads((FAMILIES / base / "meta.json").read_text())
    config = transformers.AutoConfig.from_pretrained(FAMILIES / base)
    arch = meta["gguf_architecture"]
    path = out / row["name"] / "adapter.gguf"
    w = gguf.GGUFWriter(path, arch)
    w.add_type(gguf.GGUFType.ADAPTER)
    w.add_string(gguf.Keys.Adapter.TYPE, "lora")
    alpha = row.get("alpha", float(peft_config["lora_alpha"]))
    if alpha:
        w.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    by_value = {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(by_value[arch], config.num_hidden_layers)

    def add(name, a, b):
        for which, tensor in (("a", a), ("b", b)):
            w.add_tensor(
                f"{name}.lora_{which}", tensor.to(row.get("dtype", torch.float32)).contiguous().numpy()
            )

    modules = tensors_of(row["of"], out)
    for (module, kind), (a, b) in experts_of(modules, peft_config["r"]).items():
        add(f"blk.{module.split('.')[2]}.ffn_{kind}_exps.weight", a, b)
    for module, pair in modules.items():
        a, b = pair["A"], pair["B"]
        if arch == "llama" and module.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if module.endswith("q_proj") else config.num_key_value_heads
            b = interleave(b, heads)
        add(names.get_name(module) + ".weight", a.T if module.endswith("embed_tokens") else a, b)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path.name


def write_mlx(row, base, out):
    """As mlx-lm does."""
    peft_config = json.loads((out / row["of"] / "adapter_config.json").read_text())
    rank, modules, tensors = peft_config["r"], tensors_of(row["of"], out), {}
    for (module, kind), (a, b) in experts_of(modules, rank).items():
        name = module.replace(".experts", f".switch_mlp.{kind}_proj")
        tensors |= {f"{name}.lora_a": a, f"{name}.lora_b": b}
    for module, pair in modules.items():
        tensors |= {f"{module}.lora_a": pair["A"].T, f"{module}.lora_b": pair["B"].T}
        if "m" in pair:
            tensors[f"{module}.m"] = pair["m"]
    folder = out / row["name"]
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapters.safetensors"
    )
    parameters = dict(rank=rank, dropout=0.0, scale=peft_config["lora_alpha"] / rank)
    kind = "dora" if peft_config["use_dora"] else "lora"
    config = dict(fine_tune_type=kind, lora_parameters=parameters, model=f"tiny/{base}", num_layers=-1)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return ""


def write_single(row, base, out):
    """Each expert on its own, in peft's layout."""
    peft_config = json.loads((out / row["of"] / "adapter_config.json").read_text())
    modules, tensors = tensors_of(row["of"], out), {}
    for (module, kind), (a, b) in experts_of(modules, peft_config["r"]).items():
        for expert in range(len(a)):
            name = f"base_model.model.{module}.{expert}.{kind}_proj"
            tensors |= {
                f"{name}.lora_A.weight": a[expert].clone(),
                f"{name}.lora_B.weight": b[expert].clone(),
            }
    for module, pair in modules.items():
        tensors |= {f"base_model.model.{module}.lora_{role}.weight": pair[role] for role in "AB"}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()},
              out / row["name"] / "adapter_model.safetensors")  # fmt: skip
    config = peft_config | dict(
        target_parameters=None, target_modules=["q_proj", "gate_proj", "up_proj", "down_proj"]
    )
    (out / row["name"] / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return ""


def write_refused(row, base, out):
    """In peft's layout; of `deeper` the layer that it has becomes one that the base has not."""
    source, folder = out / row["of"], out / row["name"]
    tensors = load_file(source / "adapter_model.safetensors")
    config = json.loads((source / "adapter_config.json").read_text())
    if row["name"] == "deeper":
        tensors = {name.replace("layers.1.", "layers.2."): tensor for name, tensor in tensors.items()}
        config["target_modules"] = QV
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return ""


def again(row, write, lines, out):
    """The adapter of another row as `write` writes it, and its line of the manifest."""
    line = next(line for line in lines if line["name"] == row["of"])
    folder = out / row["name"]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    file = write(row, line["base"], out)
    for path in folder.iterdir():
        path.chmod(0o644)
    adapter = f"{row['name']}/{file}".rstrip("/")
    line = line | dict(name=row["name"], adapter=adapter, same_as=row.get("same"), what=row["what"])
    if row.get("refused"):
        line |= dict(base=row.get("base", line["base"]), reference=None, refused=row["refused"], bite=None)
    return line


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "tests/golden/adapters")
    parser.add_argument("--only", nargs="*", help="names of rows (default: all)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    manifest = args.out / "manifest.json"
    known = json.loads(manifest.read_text()) if args.only else []
    kept = {line["name"]: line for line in known if line["name"] not in args.only}
    lines = [kept.get(row["name"]) or make(row, args.out) for row in ROWS]
    written = (
        (GGUF_ROWS, write_gguf),
        (MLX_ROWS, write_mlx),
        (SINGLE_ROWS, write_single),
        (REFUSED_ROWS, write_refused),
    )
    for rows, write in written:
        lines += [kept.get(row["name"]) or again(row, write, lines, args.out) for row in rows]
    manifest.write_text(json.dumps(lines, indent=1) + "\n")
    for line in lines:
        print(f"{line['name']:24} on {line['base']:16} moves the logits by {line['bite']}")


if __name__ == "__main__":
    sys.exit(main())
