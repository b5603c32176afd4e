#!/usr/bin/env python3
"""Make the golden of GGUF's tokenizer model "gemma4": a small BPE over characters with bytes to fall back on.

Writes `tests/golden/text/gemma4.json`:

    tokens, types, merges   the vocabulary, as tokenizer.ggml.tokens, .token_type and .merges hold it
    texts, ids              the strings (those of pretokenizers.json, and more), and the ids that the tokenizers crate gives them

The pipeline is that of the tokenizer.json of Gemma 3 and 4: a space becomes U+2581, nothing splits the text, merges go by
rank, and a character without a token becomes its bytes.

Made with Python 3.11, tokenizers 0.23.3.
"""

import argparse
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parents[2]
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SIZE = 1500
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
MORE = [
    "a\n\nb",
    "\n" * 7,
    "  two  spaces ",
    "tab\tand\r\nbreak",
    "x\u2581y",
    " \n \n",
    "\U0001f9ea \u00e9\u0301",
]


def pipeline(model):
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def train(texts):
    """The pieces and merges of a BPE whose alphabet lacks rare characters."""
    tokenizer = pipeline(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, limit_alphabet=90, show_progress=False, max_token_length=12
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    return pieces, [tuple(merge) for merge in model["merges"]]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prose", type=Path, default=ROOT / "tests/golden/real/text.txt")
    parser.add_argument("--out", type=Path, default=ROOT / "tests/golden/text/gemma4.json")
    args = parser.parse_args()
    prose = args.prose.read_text()
    runs = [c * n for c in (" ", "\n") for n in range(2, 6)] * 40
    pieces, merges = train([*prose.splitlines(keepends=True), prose[:2000], *runs])
    tokens = [*SPECIAL, *BYTES, *pieces]
    types = [UNKNOWN if token == "<unk>" else CONTROL for token in SPECIAL]
    types += [BYTE] * len(BYTES) + [NORMAL] * len(pieces)
    vocab = {token: i for i, token in enumerate(tokens)}
    oracle = pipeline(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    known = json.loads((ROOT / "tests/golden/text/pretokenizers.json").read_text())["texts"]
    texts = [*known, *MORE]
    golden = dict(tokens=tokens, types=types, merges=[" ".join(merge) for merge in merges], texts=texts,
                  ids=[oracle.encode(text).ids for text in texts])  # fmt: skip
    fallback = sum(any(4 <= i < 260 for i in ids) for ids in golden["ids"])
    assert fallback > 3, "no text falls back on bytes"
    args.out.write_text(json.dumps(golden) + "\n")
    print(f"{len(tokens)} tokens, {len(merges)} merges, {len(texts)} texts, {fallback} with bytes")


if __name__ == "__main__":
    sys.exit(main())
