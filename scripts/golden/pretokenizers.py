#!/usr/bin/env python3
"""Make the goldens of GGUF's `tokenizer.ggml.pre`: one small byte-level BPE, split by each rule in llama.cpp.

Writes `tests/golden/text/pretokenizers.json`:

    tokens, merges      the vocabulary, as tokenizer.ggml.tokens and .merges hold it (256 bytes, then the merges' results)
    texts               the strings
    rules               groups of `pre` names that llama.cpp splits alike over these strings: {"pre": [...], "ids": [...]},
                        `ids` one list a string, add_special = parse_special = false

The merges were trained across spaces, digits and newlines, so that wherever two rules split differently the ids differ.

Made with Python 3.11, tokenizers 0.23.3, gguf 0.19.0, llama-cpp-python 0.3.36.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import gguf
from llama_cpp import Llama
from tokenization import TEXTS
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parents[2]
PRE = ("default", "gpt-2", "phi-2", "llama-bpe", "llama3", "qwen2", "deepseek-r1-qwen", "smollm", "starcoder", "falcon",
       "deepseek-llm", "deepseek-coder", "deepseek-v3", "tekken", "gpt-4o", "llama4", "command-r", "mpt", "dbrx", "olmo",
       "glm4", "chatglm-bpe", "hunyuan", "hunyuan-dense", "exaone", "exaone4", "granite-docling", "qwen35", "refact", "stablelm2",
       "codeshell", "bloom", "lfm2", "pixtral", "falcon3", "kimi-k2", "seed-coder", "superbpe", "bailingmoe", "minimax-m2",
       "modern-bert", "roberta-bpe", "jina-v2-code", "smaug-bpe", "viking", "grok-2", "gigachat", "trillion")  # fmt: skip
SIZE = 2400


def train(texts):
    """Byte-level BPE whose merges know no word boundary: (tokens, merges)."""
    tokenizer = Tokenizer(models.BPE())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = split
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, initial_alphabet=alphabet, show_progress=False, max_token_length=16
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return tokens, [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]


def write_vocabulary(path, tokens, merges, pre):
    """A GGUF file of nothing but a tokenizer."""
    w = gguf.GGUFWriter(path, "llama")
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(pre)
    w.add_token_list(tokens)
    w.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    w.add_token_merges(merges)
    w.add_add_bos_token(False)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()


def ids_of(tokens, merges, pre):
    """llama.cpp's ids of every text under one rule, or None where it does not know the name."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "vocabulary.gguf"
        write_vocabulary(path, tokens, merges, pre)
        try:
            model = Llama(str(path), vocab_only=True, verbose=False)
        except ValueError:
            return None
        return [model.tokenize(text.encode(), add_bos=False, special=False) for text in TEXTS]


def corpus(prose):
    """What to train on: prose, the strings themselves, and runs of digits, spaces and newlines."""
    runs = [c * n for c in (" ", "\n", "\t", "\r\n") for n in range(2, 6)] * 20
    numbers = [str(n * 7919) for n in range(1, 2000)]
    return [prose.lower(), prose, prose.upper(), *TEXTS * 40, *runs, *numbers]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prose", type=Path, default=ROOT / "tests/golden/real/text.txt")
    parser.add_argument("--out", type=Path, default=ROOT / "tests/golden/text/pretokenizers.json")
    args = parser.parse_args()
    tokens, merges = train(corpus(args.prose.read_text()))
    rules = []
    for pre in PRE:
        ids = ids_of(tokens, merges, pre)
        if ids is None:
            print(f"{pre}: llama.cpp does not know it")
            continue
        same = next((rule for rule in rules if rule["ids"] == ids), None)
        if same:
            same["pre"].append(pre)
        else:
            rules.append(dict(pre=[pre], ids=ids))
    rows = ",\n".join(json.dumps(rule, separators=(",", ":")) for rule in rules)
    head = json.dumps(dict(tokens=tokens, merges=merges, texts=TEXTS))
    args.out.write_text(head[:-1] + ', "rules": [\n' + rows + "\n]}\n")
    assert json.loads(args.out.read_text())["rules"] == rules
    for rule in rules:
        unlike = sum(a != b for a, b in zip(rule["ids"], rules[0]["ids"], strict=False))
        print(f"{', '.join(rule['pre'])}: {unlike} of {len(TEXTS)} strings unlike {rules[0]['pre'][0]}")


if __name__ == "__main__":
    sys.exit(main())
