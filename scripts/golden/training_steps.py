"""Writes tests/golden/train/steps.safetensors: 20 steps of training an adapter, as torch and peft take them.

    python scripts/golden/training_steps.py [output]

The checkpoint is tests/golden/families/llama-gqa-tied, all is float32. Rows are random ids that begin alike; of
each the last tokens are trained. A step is the mean loss over all trained tokens of four rows, clipped to length 1,
by AdamW at a rate that falls linearly from 1e-2. The tensors:

    <layer>.<part>.a0, .a, .b   A as it begins (B is zero); both after the last step
    ids, targets                I64 [steps, rows, tokens], and [steps, rows]: where what is trained begins
    losses                      F32 [steps]

Made with Python 3.11, torch 2.15.0, transformers 5.24.0, peft 0.21.2, safetensors 0.8.0.
"""

import sys
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2] / "tests" / "golden"
STEPS, ROWS, TOKENS, SHARED = 20, 4, 24, 12
RANK, ALPHA, RATE = 4, 8, 1e-2
PARTS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "gate_proj": "gate", "up_proj": "up"}
PARTS["down_proj"] = "down"


def factors(model: torch.nn.Module) -> dict[str, tuple[torch.nn.Parameter, torch.nn.Parameter]]:
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            layer, leaf = name.split(".layers.")[1].split(".")[0], name.rsplit(".", 1)[1]
            found[f"{layer}.{PARTS[leaf]}"] = (
                module.lora_A["default"].weight,
                module.lora_B["default"].weight,
            )
    return found


def texts(draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight rows of which each step takes four, and where what is trained of them begins."""
    ids = torch.randint(3, 64, (8, TOKENS), generator=draw)
    ids[:, :SHARED] = ids[0, :SHARED]
    begins = torch.randint(SHARED + 2, TOKENS - 1, (8,), generator=draw)
    chosen = torch.stack([torch.randperm(8, generator=draw)[:ROWS] for _ in range(STEPS)])
    return ids[chosen], begins[chosen]


def main() -> None:
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "train" / "steps.safetensors"
    draw = torch.Generator().manual_seed(16)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        ROOT / "families" / "llama-gqa-tied", dtype=torch.float32, attn_implementation="eager"
    )
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=list(PARTS))
    model = get_peft_model(model, config).eval()
    pairs = factors(model)
    tensors = {}
    for key, (a, b) in sorted(pairs.items()):
        a.data = (torch.rand(a.shape, generator=draw) * 2 - 1) / a.shape[1] ** 0.5
        b.data.zero_()
        tensors[f"{key}.a0"] = a.detach().clone()
    ids, begins = texts(draw)
    parameters = [it for pair in pairs.values() for it in pair]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 0, STEPS)
    losses = []
    for step in range(STEPS):
        logits = model(input_ids=ids[step], use_cache=False).logits
        total, count = 0.0, 0
        for row in range(ROWS):
            begin = int(begins[step, row])
            total = total + torch.nn.functional.cross_entropy(
                logits[row, begin - 1 : -1], ids[step, row, begin:], reduction="sum"
            )
            count += TOKENS - begin
        loss = total / count
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    for key, (a, b) in sorted(pairs.items()):
        tensors |= {f"{key}.a": a.detach(), f"{key}.b": b.detach()}
    tensors |= {"ids": ids, "targets": begins, "losses": torch.tensor(losses)}
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: it.contiguous() for key, it in tensors.items()}, output)
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, {output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
