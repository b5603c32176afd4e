"""Trains a draft of two layers for a small model, on text that the model wrote itself.

    pip install torch gguf
    python benches/draft_pair.py MODEL.gguf target/draft-pair.gguf [--answers 1000] [--steps 600]
    python benches/drafts.py --model MODEL.gguf --draft target/draft-pair.gguf

The draft has the model's embedding, its first two layers and its final norm; the embedding stays, the rest
is trained to say the next token of the model's answers (cross entropy among the tokens that occur, which
spares most of the head's work). Both have one
vocabulary, so that the acceptance of a real pair can be measured without another download. The file is the
model's own GGUF with two blocks in float16. The loss is printed on the way, and at the end that on answers
which were kept apart.

The model must be a GGUF of architecture `llama` whose head is its embedding.
"""

from __future__ import annotations

import argparse
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import torch
import torch.nn.functional as F
from gguf.quants import dequantize

import tallow

THINGS = (
    "rivers bread bridges moons bees chess tea volcanoes clocks rain libraries bicycles whales gardens "
    "trains honey glaciers paper owls salt lighthouses music deserts coins maps soap kites cheese mirrors "
    "harbours snow horses rice windmills spiders candles markets tides wool stars cats farms schools ships"
)
FORMS = (
    "Explain {} to a child.", "Write a short story about {}.", "List five facts about {}.",
    "Why do people like {}?", "Write a poem about {}.", "What is the history of {}?",
    "Compare {} with {other}.", "Give me advice about {}.", "Write a dialogue between two friends about {}.",
    "How would you describe {} in a letter?", "Name three problems with {} and how to solve them.",
    "Write a Python function that has to do with {}, and explain it.",
)  # fmt: skip
WINDOW, BATCH = 128, 8


def answers(source: str, count: int, tokens: int) -> list[list[int]]:
    """Conversations as the model goes on with them, as ids: prompts and answers."""
    model = tallow.Model(source)
    chance, things = random.Random(7), THINGS.split()
    asked = [
        chance.choice(FORMS).format(chance.choice(things), other=chance.choice(things)) for _ in range(count)
    ]

    def answer(job: tuple[int, str]) -> list[int]:
        seed, text = job
        prompt = [{"role": "user", "content": text}]
        written = model.generate(prompt, max_tokens=tokens, temperature=0.7, seed=seed)
        return [*model.tokenize(model.render(prompt)), *written.tokens]

    with ThreadPoolExecutor(32) as threads:
        return list(threads.map(answer, enumerate(asked)))


class Draft(torch.nn.Module):
    """Two blocks of a Llama as llama.cpp stores it: neighbouring dimensions of a head turn together."""

    def __init__(self, reader: gguf.GGUFReader, blocks: list[int]) -> None:
        super().__init__()
        number = lambda key: reader.fields[f"llama.{key}"].contents()
        self.heads, self.kv_heads = number("attention.head_count"), number("attention.head_count_kv")
        self.eps, self.base = number("attention.layer_norm_rms_epsilon"), number("rope.freq_base")
        stored = {tensor.name: tensor for tensor in reader.tensors}
        values = lambda name: torch.tensor(
            dequantize(stored[name].data, stored[name].tensor_type), dtype=torch.float32
        )
        self.embedding = values("token_embd.weight")
        self.norm = torch.nn.Parameter(values("output_norm.weight"))
        names = [name.removeprefix("blk.0.") for name in stored if name.startswith("blk.0.")]
        self.blocks = torch.nn.ModuleList(
            torch.nn.ParameterDict(
                {name.replace(".", "/"): torch.nn.Parameter(values(f"blk.{at}.{name}")) for name in names}
            )
            for at in blocks
        )

    def normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        dim, length = x.shape[-1], x.shape[-2]
        frequency = self.base ** (-torch.arange(0, dim, 2) / dim)
        angle = torch.outer(torch.arange(length), frequency)
        a, b = x[..., 0::2], x[..., 1::2]
        pair = (a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos())
        return torch.stack(pair, -1).flatten(-2)

    def forward(self, ids: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
        """Logits `[batch, length, among]` of ids `[batch, length]`."""
        x = self.embedding[ids]
        for block in self.blocks:
            w = lambda name: block[f"{name}/weight"]  # noqa: B023
            h = self.normed(x, w("attn_norm"))
            split = lambda y, heads: y.unflatten(-1, (heads, -1)).transpose(1, 2)
            q = self.turned(split(h @ w("attn_q").T, self.heads))
            k = self.turned(split(h @ w("attn_k").T, self.kv_heads))
            v = split(h @ w("attn_v").T, self.kv_heads)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = x + mixed.transpose(1, 2).flatten(-2) @ w("attn_output").T
            h = self.normed(x, w("ffn_norm"))
            x = x + (F.silu(h @ w("ffn_gate").T) * (h @ w("ffn_up").T)) @ w("ffn_down").T
        return self.normed(x, self.norm) @ self.embedding[among].T


def rows(texts: list[list[int]]) -> torch.Tensor:
    """Texts end to end, cut into windows of one more than is predicted."""
    flat = [token for text in texts for token in text]
    count = (len(flat) - 1) // WINDOW
    return torch.tensor([flat[i * WINDOW : (i + 1) * WINDOW + 1] for i in range(count)])


def loss_of(draft: Draft, batch: torch.Tensor, among: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The loss, and the share of tokens that the draft's greatest logit has right; `among`: sorted."""
    logits, wanted = draft(batch[:, :-1], among), torch.searchsorted(among, batch[:, 1:])
    right = (logits.argmax(-1) == wanted).float().mean().item()
    return F.cross_entropy(logits.flatten(0, 1), wanted.flatten()), right


def train(draft: Draft, texts: list[list[int]], steps: int, rate: float, minutes: float) -> None:
    kept = rows(texts[: max(1, len(texts) // 20)])
    data = rows(texts[max(1, len(texts) // 20) :])
    among = torch.unique(torch.cat([kept.flatten(), data.flatten()]))
    optimizer = torch.optim.AdamW(draft.parameters(), lr=rate, weight_decay=0.0)
    chance, begun, losses = np.random.default_rng(1), time.monotonic(), []
    share = 0.0
    while share < 1:
        done = len(losses)
        share = max(done / steps, (time.monotonic() - begun) / (60 * minutes))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (done + 1) / 20) * max(1 - share, 0.02)
        loss, _ = loss_of(draft, data[chance.integers(0, len(data), BATCH)], among)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(draft.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if done % 50 == 0:
            print(f"step {done}: loss {np.mean(losses[-50:]):.3f}", flush=True)
    with torch.no_grad():
        apart = [loss_of(draft, kept[at : at + BATCH], among) for at in range(0, len(kept), BATCH)]
    loss, right = np.mean([loss.item() for loss, _ in apart]), np.mean([right for _, right in apart])
    print(f"{len(losses)} steps of {BATCH * WINDOW} tokens; kept apart: loss {loss:.3f}, {right:.0%} right")


def write(path: Path, reader: gguf.GGUFReader, draft: Draft) -> None:
    """The model's file with the draft's blocks."""
    writer = gguf.GGUFWriter(path, "llama")
    skipped = {"general.architecture", "llama.block_count"}
    for name, field in reader.fields.items():
        if name in skipped or name.startswith("GGUF."):
            continue
        sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=sub)
    writer.add_block_count(len(draft.blocks))
    for tensor in reader.tensors:
        if tensor.name == "token_embd.weight":
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.add_tensor("output_norm.weight", draft.norm.detach().numpy())
    for at, block in enumerate(draft.blocks):
        for name, weight in block.items():
            values = weight.detach().numpy()
            kept = values if values.ndim == 1 else values.astype(np.float16)
            writer.add_tensor(f"blk.{at}.{name.replace('/', '.')}", kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a GGUF")
    parser.add_argument("file", type=Path, help="the draft, a GGUF")
    parser.add_argument("--answers", type=int, default=1000, help="answers that it learns from")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of an answer at most")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--minutes", type=float, default=30, help="of training at most")
    parser.add_argument("--rate", type=float, default=5e-4)
    given = parser.parse_args()
    reader = gguf.GGUFReader(given.model)
    texts = answers(given.model, given.answers, given.tokens)
    print(f"{len(texts)} answers, {sum(map(len, texts)):,} tokens with their prompts", flush=True)
    draft = Draft(reader, [0, 1])
    train(draft, texts, given.steps, given.rate, given.minutes)
    write(given.file, reader, draft)


if __name__ == "__main__":
    main()
