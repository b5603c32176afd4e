"""Trains with peft and torch: reads one JSON object from stdin, writes one to the stdout it began with.

The loop is what trl's and transformers' trainers come to on a CPU: one padded batch (or `micro` rows of it at
a time) forward and backward, the loss summed over the trained tokens of the whole step and divided by their
number, clipping, AdamW, a linear schedule with warm-up. The base is the same GGUF, dequantized to float32.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from train_ours import answer
from worker import peak_mib

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def train(job: dict[str, Any]) -> dict[str, Any]:
    import peft
    import torch
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    path = Path(job["path"])
    base = transformers.AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32
    )
    base.config.use_cache = False
    config = peft.LoraConfig(r=job["rank"], lora_alpha=job["alpha"], target_modules=TARGETS, lora_dropout=0.0)
    model = peft.get_peft_model(base, config).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=job["learning_rate"], weight_decay=0.0)
    steps = [job["examples"][at : at + job["batch"]] for at in range(0, len(job["examples"]), job["batch"])]
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, round(0.1 * len(steps)), len(steps))
    loaded, times, losses = peak_mib(), [], []
    for step in steps:
        count = sum(end - start for _, start, end in step)
        loss = 0.0
        for at in range(0, len(step), job["micro"]):
            ids, mask, labels = (torch.tensor(part) for part in padded(step[at : at + job["micro"]]))
            # Without padding torch takes its quicker causal attention.
            mask = None if mask.all() else mask
            found = model(input_ids=ids, attention_mask=mask, labels=labels, num_items_in_batch=count).loss
            found.backward()
            loss += found.item()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        times.append(time.perf_counter())
        losses.append(loss)
    version = f"peft {peft.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    return {"version": version, "loaded": loaded, "times": times, "losses": losses}


def padded(rows: list[tuple[list[int], int, int]]) -> tuple[list[list[int]], ...]:
    """Ids, which of them are some, and the labels."""
    longest = max(len(ids) for ids, _, _ in rows)
    ids = [row + [0] * (longest - len(row)) for row, _, _ in rows]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row, _, _ in rows]
    kept = lambda row, start, end: [id if start <= at < end else -100 for at, id in enumerate(row)]
    labels = [kept(*row) + [-100] * (longest - len(row[0])) for row in rows]
    return ids, mask, labels


if __name__ == "__main__":
    answer(train, json.load(sys.stdin))
