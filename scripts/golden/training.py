#!/usr/bin/env python3
"""Make the training goldens: losses and gradients of low-rank factors, as torch and peft compute them.

Each name becomes tests/golden/training/<name>.safetensors, for the checkpoint of that name in tests/golden/families:

    <layer>.<part>.a, .b        the factors, seeded; .da, .db: the gradients of the summed loss
    ids.<i>, targets.<i>        the texts (I64), and the places of their trained tokens
    losses.<i>                  the loss of each trained token

The texts begin alike and part in the middle, one of them inside what is trained. Eager attention, one text after the
other, without padding; in float64 (the files are float32), since torch's float32 is itself up to 2.5e-5 of a gradient's
length away from that on such models. The factors are peft's own modules; where a checkpoint keeps several projections
in one matrix, each has factors of its own, which peft has not: there they are added by a hook.

Made with Python 3.11, torch 2.15.0, transformers 5.24.0, peft 0.21.2, safetensors 0.8.0.
"""

import sys
import zlib
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2] / "tests" / "golden"
RANK, ALPHA = 2, 3
NAMES = [
    "llama-gqa-tied", "llama-head20", "llama-bias", "mistral-window", "qwen2-tied", "qwen3-tied", "gemma-mqa",
    "gemma2-caps", "gemma3-layers", "phi-parallel", "phi-qk-norm", "phi3-partial", "smollm3-nope4", "granite-dense",
    "starcoder2-bias", "cohere2-parallel", "olmo2-after", "arcee-relu2", "apertus-xielu", "stablelm-heads",
]  # fmt: skip
PARTS = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "dense": "o", "gate_proj": "gate", "up_proj": "up",
    "down_proj": "down", "fc1": "up", "fc2": "down", "c_fc": "up", "c_proj": "down",
}  # fmt: skip
FUSED = {"qkv_proj": ("q", "k", "v"), "gate_up_proj": ("gate", "up")}


def texts(seed):
    """Four texts of one beginning, and the places of what is trained of each."""
    draw = torch.Generator().manual_seed(seed)
    ids = lambda count: torch.randint(3, 64, (count,), generator=draw).tolist()
    start, answer = ids(9), ids(4)
    rows = [start + ids(5) + answer, start + ids(2) + ids(3), start + ids(4), ids(11)]
    # The fifth parts from the first inside the answer.
    rows.append(rows[0][:16] + ids(3))
    trained = [[14, 15, 16, 17], [11, 12, 13], [10, 12], [9, 10], [14, 15, 16, 17, 18]]
    return list(zip(rows, trained, strict=True))


def fused_sizes(config, leaf):
    """The widths of the projections in one matrix."""
    if leaf == "gate_up_proj":
        return [config.intermediate_size] * 2
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return [config.num_attention_heads * dim] + [config.num_key_value_heads * dim] * 2


def hook(linear, sizes, pairs):
    """Adds the factors of each piece of a linear layer's output."""

    def add(_, inputs, output):
        pieces = output.split(sizes, -1)
        deltas = [ALPHA / RANK * inputs[0] @ a.T @ b.T for a, b in pairs]
        return torch.cat([piece + delta for piece, delta in zip(pieces, deltas, strict=True)], -1)

    linear.register_forward_hook(add)


def factors(model, seed):
    """The model with factors on every projection of its layers, and these by name."""
    draw = torch.Generator().manual_seed(seed)
    normal = lambda *shape: (0.3 * torch.randn(shape, generator=draw)).requires_grad_()
    linears = [
        (name, it)
        for name, it in model.named_modules()
        if isinstance(it, torch.nn.Linear) and ".layers." in name
    ]
    model.requires_grad_(False)
    found, plain = {}, []
    for name, linear in linears:
        layer, leaf = name.split(".layers.")[1].split(".")[0], name.rsplit(".", 1)[1]
        if leaf not in FUSED:
            plain.append(name)
            continue
        sizes = fused_sizes(model.config, leaf)
        pairs = [(normal(RANK, linear.in_features), normal(size, RANK)) for size in sizes]
        found |= {f"{layer}.{part}": pair for part, pair in zip(FUSED[leaf], pairs, strict=True)}
        hook(linear, sizes, pairs)
    if plain:
        model = get_peft_model(
            model, LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=plain)
        )
        for name, module in model.named_modules():
            if not hasattr(module, "lora_A") or "default" not in module.lora_A:
                continue
            layer, leaf = name.split(".layers.")[1].split(".")[0], name.rsplit(".", 1)[1]
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            a.data, b.data = normal(*a.shape).detach(), normal(*b.shape).detach()
            found[f"{layer}.{PARTS[leaf]}"] = (a, b)
    return model, found


def golden(name):
    seed = zlib.crc32(name.encode())
    model = transformers.AutoModelForCausalLM.from_pretrained(
        ROOT / "families" / name, dtype=torch.float32, attn_implementation="eager"
    )
    model, pairs = factors(model.eval(), seed)
    model.double()
    for pair in pairs.values():
        for factor in pair:
            factor.data = factor.data.double()
    tensors, total = {}, 0.0
    for index, (ids, trained) in enumerate(texts(seed)):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        places = torch.tensor(trained)
        losses = torch.nn.functional.cross_entropy(
            logits[places - 1], torch.tensor(ids)[places], reduction="none"
        )
        total = total + losses.sum()
        tensors |= {
            f"ids.{index}": torch.tensor(ids),
            f"targets.{index}": places,
            f"losses.{index}": losses.detach(),
        }
    total.backward()
    for key, (a, b) in sorted(pairs.items()):
        tensors |= {f"{key}.a": a.detach(), f"{key}.b": b.detach(), f"{key}.da": a.grad, f"{key}.db": b.grad}
    (ROOT / "training").mkdir(exist_ok=True)
    floats = lambda it: it.contiguous() if it.dtype == torch.int64 else it.float().contiguous()
    save_file({key: floats(it) for key, it in tensors.items()}, ROOT / "training" / f"{name}.safetensors")
    print(f"{name}: {len(pairs)} projections, loss {total.item():.6f}")


if __name__ == "__main__":
    for name in sys.argv[1:] or NAMES:
        golden(name)
