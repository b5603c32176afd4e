#!/usr/bin/env python3
"""Make the goldens of the two real models: what llama.cpp says, greedily and as perplexity.

Writes `tests/golden/real/<model>.json` for smollm2 (SmolLM2-135M-Instruct, Q4_1) and gemma3-270m (Gemma 3 270M base,
Q4_K_M), the files of the data wheels. Each holds

    file, sha256, bytes     the GGUF file
    settings                how llama.cpp was run
    prompts[]               name, text, tokens (llama.cpp's own, BOS where the model adds it), continuation (greedy ids,
                            an end-of-generation token last if one came), margins (logit of the best minus the second,
                            a step each), stopped, continuation_text, and transformers: argmax and margins of float32
                            transformers on the dequantized weights, teacher-forced on the same continuation
    perplexity              windows (the exact token ids), sum_nll and count of each, mean_nll, and the same from
                            transformers in float32; text.txt is cut into windows of 512 tokens without overlap, BOS
                            first in each where the model adds it, every position after the first counted
    whole                   the same over the whole text as one window (past Gemma's sliding window of 512)

A fresh context for every prompt and window. Margins show where two correct engines may differ: llama.cpp quantizes
activations to 8 bits, so a step whose margin is below a few tenths is no reason to fail a test.

Made with Python 3.11, llama-cpp-python 0.3.36, transformers 5.23.0, torch 2.8.0, gguf 0.19.0.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import llama_cpp
import numpy as np
from llama_cpp import Llama

ROOT = Path(__file__).resolve().parents[2]
WINDOW = 512
SHARED = {
    "prose": "The old lighthouse keeper climbed the stairs one last time. From the gallery he could see",
    "code": 'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n    if n < 2:\n        return n\n    return',
    "list": "Shopping list for a picnic:\n1. Bread\n2. Cheese\n3. Apples\n4.",
    "numbers": "2, 4, 8, 16, 32, 64, 128,",
    "german": "Berlin ist die Hauptstadt von Deutschland. Die Stadt liegt an der Spree und",
    "facts": "Water boils at 100 degrees Celsius at sea level. On a high mountain it boils at a lower temperature, because",
}
CHAT = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
PROMPTS = {
    "smollm2": SHARED | {
        "chat": CHAT.format("What is the capital of France? Answer in one sentence."),
        "chat-long": CHAT.format("Explain to a child of eight why the sky is blue and why sunsets are red."),
    },
    "gemma3-270m": SHARED | {
        "dialogue": "\"Where have you been?\" asked Anna.\n\"At the station,\" said Tom. \"The train was",
        "unicode": "日本の首都は東京です。フランスの首都は",
    },
}  # fmt: skip
STEPS = 64


def load(path, context, every):
    """The model in llama.cpp, float32 KV cache, no flash attention, one thread."""
    return Llama(str(path), n_ctx=context, n_batch=WINDOW, logits_all=every, type_k=0, type_v=0, flash_attn=False,
                 n_threads=1, n_threads_batch=1, verbose=False)  # fmt: skip


SETTINGS = "type_k = type_v = f32, flash_attn off, n_threads 1, n_batch 512, a fresh cache for each prompt and window"


def last_logits(model):
    """Logits after the last token evaluated."""
    pointer = llama_cpp.llama_get_logits_ith(model.ctx, -1)
    return np.ctypeslib.as_array(pointer, (model.n_vocab(),)).copy()


def margin(logits):
    """Best minus second."""
    second, best = np.partition(logits, -2)[-2:]
    return round(float(best - second), 4)


def greedy(model, tokens):
    """The greedy continuation, its margins, and whether the model ended it."""
    model.reset()
    model._ctx.kv_cache_clear()
    model.eval(tokens)
    ids, margins = [], []
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    while len(ids) < STEPS:
        logits = last_logits(model)
        ids.append(int(logits.argmax()))
        margins.append(margin(logits))
        if llama_cpp.llama_vocab_is_eog(vocab, ids[-1]):
            return ids, margins, True
        model.eval(ids[-1:])
    return ids, margins, False


def continuations(path, prompts):
    """Every prompt's record."""
    model = load(path, 512, every=False)
    for name, text in prompts.items():
        tokens = model.tokenize(text.encode(), add_bos=True, special=True)
        ids, margins, stopped = greedy(model, tokens)
        yield dict(name=name, text=text, tokens=tokens, continuation=ids, margins=margins, stopped=stopped,
                   continuation_text=model.detokenize(ids, prev_tokens=tokens).decode(errors="replace"))  # fmt: skip


def windows(path, text, size):
    """The text's tokens in windows of `size`, BOS first in each where the model adds it."""
    model = Llama(str(path), vocab_only=True, verbose=False)
    tokens = model.tokenize(text.encode(), add_bos=False, special=False)
    head = model.tokenize(b"", add_bos=True, special=False)
    step = size - len(head)
    return [head + tokens[i : i + step] for i in range(0, len(tokens), step)]


def nll(logits, tokens):
    """Sum of the negative log likelihoods of tokens[1:]."""
    rows = np.asarray(logits[: len(tokens) - 1], dtype=np.float64)
    top = rows.max(axis=1)
    total = top + np.log(np.exp(rows - top[:, None]).sum(axis=1))
    return float((total - rows[np.arange(len(rows)), tokens[1:]]).sum())


def llama_nlls(path, cut):
    model = load(path, max(WINDOW, len(cut[0])), every=True)
    for tokens in cut:
        model.reset()
        model._ctx.kv_cache_clear()
        model.eval(tokens)
        yield nll(model.scores, tokens)


def reference(path):
    """The dequantized weights in transformers: a function from ids to float32 logits."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()

    def logits(tokens):
        with torch.no_grad():
            return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].numpy()

    return logits


def forced(logits, record):
    """transformers' own choice and margin at every step of llama.cpp's continuation."""
    tokens, ids = record["tokens"], record["continuation"]
    rows = logits(tokens + ids[:-1])[len(tokens) - 1 :]
    return dict(argmax=[int(row.argmax()) for row in rows], margins=[margin(row) for row in rows])


def summary(sums, cut):
    counts = [len(tokens) - 1 for tokens in cut]
    mean = sum(sums) / sum(counts)
    return dict(sum_nll=[round(x, 4) for x in sums], count=counts, mean_nll=round(mean, 6),
                perplexity=round(float(np.exp(mean)), 4))  # fmt: skip


def perplexity(path, logits, text, size):
    """Both engines over the text in windows of `size`."""
    cut = windows(path, text, size)
    return dict(window=size, windows=cut, llama_cpp=summary(list(llama_nlls(path, cut)), cut),
                transformers=summary([nll(logits(tokens), tokens) for tokens in cut], cut))  # fmt: skip


def make(name, path, out, text):
    """One model's JSON."""
    data = path.read_bytes()
    records = list(continuations(path, PROMPTS[name]))
    logits = reference(path)
    for record in records:
        record["transformers"] = forced(logits, record)
    result = dict(file=path.name, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), settings=SETTINGS,
                  versions=versions(), prompts=records, perplexity=perplexity(path, logits, text, WINDOW),
                  whole=perplexity(path, logits, text, 2048))  # fmt: skip
    write(out / f"{name}.json", result)
    report(name, result)


def versions():
    import gguf  # noqa: F401  transformers needs it to read the file
    import torch
    import transformers

    return {"llama-cpp-python": llama_cpp.__version__, "transformers": transformers.__version__,
            "torch": torch.__version__.split("+")[0]}  # fmt: skip


def write(path, result):
    """JSON with each list of numbers on one line."""
    text = json.dumps(result, indent=1, ensure_ascii=False)
    lines, row = [], None
    for line in text.split("\n"):
        plain = line.strip().rstrip(",")
        number = plain.lstrip("-").replace(".", "", 1).replace("e-", "").isdigit()
        if row is None and line.endswith("["):
            row = [line]
        elif row is not None and number:
            row.append(line.strip())
        elif row is not None and plain == "]":
            lines.append(row[0] + " ".join(row[1:]) + line.strip())
            row = None
        else:
            lines += (row or []) + [line]
            row = [lines.pop()] if line.endswith("[") else None
    path.write_text("\n".join(lines) + "\n")
    assert json.loads(path.read_text()) == result


def report(name, result):
    for r in result["prompts"]:
        same = sum(a == b for a, b in zip(r["continuation"], r["transformers"]["argmax"], strict=False))
        print(f"{name} {r['name']:10} {len(r['tokens']):3} + {len(r['continuation']):2} tokens, "
              f"transformers agrees on {same}, least margin {min(r['margins'])}: {r['continuation_text'][:60]!r}")  # fmt: skip
    for part in ("perplexity", "whole"):
        for engine in ("llama_cpp", "transformers"):
            print(name, part, engine, result[part][engine])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smollm2", type=Path, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--gemma3", type=Path, help="gemma-3-270m-q4_k_m.gguf")
    parser.add_argument("--out", type=Path, default=ROOT / "tests/golden/real")
    args = parser.parse_args()
    text = (args.out / "text.txt").read_text()
    for name, path in {"smollm2": args.smollm2, "gemma3-270m": args.gemma3}.items():
        if path:
            make(name, path, args.out, text)


if __name__ == "__main__":
    sys.exit(main())
