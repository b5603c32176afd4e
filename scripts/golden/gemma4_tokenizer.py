#!/usr/bin/env python3
"""Make the golden of the tokenizer model "gemma4" of GGUF: BPE by merges over characters, with bytes for what is no token.

Writes `tests/golden/text/gemma4.json`:

    tokens, types, merges   as tokenizer.ggml.tokens, .token_type and .merges hold them; the markers of calls and thoughts have
                            the type that llama.cpp's converter gives them (4, user-defined)
    ids                     Hugging Face's tokenizers on the texts of `pretokenizers.json`, one list each
    marked                  a text with markers in it, with its ids where control tokens are read, and where they are not

A small vocabulary, trained here, in a tokenizer.json of Gemma 4's shape: spaces become U+2581, nothing parts words, byte
fallback. Run it after `pretokenizers.py`, whose texts it takes.

Made with Python 3.11, tokenizers 0.23.3.
"""

import argparse
import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parents[2]
SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>"]
MARKERS = ["<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SIZE = 1500
MARKED = '<|turn>model\n<|tool_call>call:f{a:<|"|>x <tool_call|>'


def trained(corpus):
    """The merges of a BPE that knows no words, and its tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, show_progress=False, max_token_length=12, limit_alphabet=160
    )
    tokenizer.train_from_iterator(corpus, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(merge) for merge in model["merges"]]


def assembled(pieces, merges):
    names = [*SPECIALS, *MARKERS, *BYTES, *pieces]
    vocab = {name: id for id, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in [*SPECIALS, *MARKERS]])
    return names, tokenizer


def plain(tokenizer, text):
    """The ids of a text in which no control token is read."""
    tokenizer.encode_special_tokens = True
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    tokenizer.encode_special_tokens = False
    return ids


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prose", type=Path, default=ROOT / "tests/golden/real/text.txt")
    parser.add_argument("--texts", type=Path, default=ROOT / "tests/golden/text/pretokenizers.json")
    parser.add_argument("--out", type=Path, default=ROOT / "tests/golden/text/gemma4.json")
    args = parser.parse_args()
    texts = json.loads(args.texts.read_text())["texts"]
    runs = [sign * length for sign in (" ", "\n", "\t") for length in range(2, 6)] * 40
    names, tokenizer = assembled(*trained([args.prose.read_text(), *texts * 20, *runs]))
    types = [3] * len(SPECIALS) + [4] * len(MARKERS) + [6] * 256 + [1] * (len(names) - 267)
    types[3] = 2
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    golden = {
        "tokens": names,
        "types": types,
        "merges": [" ".join(merge) for merge in merges],
        "ids": [plain(tokenizer, text) for text in texts],
        "marked": [
            MARKED,
            tokenizer.encode(MARKED, add_special_tokens=False).ids,
            plain(tokenizer, MARKED),
        ],
    }
    args.out.write_text(json.dumps(golden, separators=(",", ":"), ensure_ascii=False) + "\n")
    print(len(names), "tokens,", len(merges), "merges,", args.out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
