#!/usr/bin/env python3
"""Make the tokenizer goldens: what llama.cpp makes of awkward strings with the two real models' vocabularies.

`tests/golden/text/<model>-tokens.json`, for smollm2 (byte-level BPE, its own splitting rule) and gemma3-270m
(SentencePiece-style BPE with byte fallback): pre, tokenizer model, BOS, and cases[] of

    text            the string
    plain           ids with add_special = false, parse_special = false
    special         ids with add_special = false, parse_special = true; left out when equal to plain
    with_bos        ids with add_special = true, parse_special = true; only for the first cases
    bytes           hex of the concatenated pieces of `plain`, special tokens rendered
    bytes_special   the same for `special`; left out when `special` is

The script is not called tokenizers.py because that name would hide the package from its neighbours.

Made with Python 3.11, llama-cpp-python 0.3.36.
"""

import argparse
import ctypes
import json
import sys
from pathlib import Path

import llama_cpp
from llama_cpp import Llama

ROOT = Path(__file__).resolve().parents[2]
WITH_BOS = 8
TEXTS = [
    # the first of these are also recorded with BOS
    "", "Hello", "Hello, world!", " Hello", "Hello ", "  two  spaces  ", "The quick brown fox jumps over the lazy dog.",
    "a",
    # whitespace
    " ", "  ", "   ", "    ", "     x", "\n", "\n\n", "\n\n\n", " \n", "\n ", " \n \n ", "\t", "\t\t", " \t ", "a\tb", "a\nb",
    "a\r\nb", "a\n\nb", "a \n b", "line one\nline two\n", "tail   \n", "\u00a0non-breaking\u00a0space", "em\u2003space",
    "ideographic\u3000space", "zero\u200bwidth", "word" + " " * 17 + "word", "\n" * 9, "x" + "\t" * 5 + "y",
    # numbers
    *("123456789012"[:n] for n in range(1, 13)), "3.14159", "1,000,000", "-42", "1e-5", "0x1F", "2026-11-21T10:30:00Z",
    "007", "12ab34", "a1b2c3", "½ ¾ ²³", "٣٤٥", "１２３", " 7", "  42", "99%", "$5.00",
    # contractions
    "I'm you're he's we'll they've I'd don't", "I'M YOU'RE HE'S WE'LL THEY'VE I'D DON'T", "It\u2019s", "'s", " 's",
    "rock 'n' roll", "o'clock", "'quoted'", "dogs' tails",
    # letters, punctuation, words
    "CamelCaseIdentifier", "snake_case_name", "SHOUTING", "naïve café", "e\u0301 and é", "Straße", "ﬁligree",
    "antidisestablishmentarianism", "Donaudampfschifffahrtsgesellschaftskapitän", "x" * 70, "ab" * 40, "...", "?!?!", "--- ***",
    "(a) [b] {c}", "\"quote\"", "a/b\\c", "user@example.com", "https://example.com/path?q=1&r=2#top", "###  Heading",
    "- item\n- item\n  - nested", "**bold** _it_", "~`!@#$%^&*()_+-=[]{}|;':\",./<>?", "¿Qué? ¡Sí!", "«guillemets»",
    "a\u0301\u0302\u0303", "Z\u0351\u036b\u0343alg\u0300o", "™©®", "→ ⇒ ∀x∈ℝ: x²≥0", "▁lower▁one▁eighth", "Ġbyte Ċlevel",
    # scripts
    "日本語のテキスト", "中文字符测试", "한국어 문장", "Русский текст", "Ελληνικά", "עברית", "العربية", "हिन्दी", "ภาษาไทย",
    "日本語とEnglishのmix 123", "Привет, world! 你好", "მხედრული", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "𐍈𐌰𐌹", "ᚠᛇᚻ",
    # emoji
    "😀", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇫🇷🇩🇪", "❤️", "a😀b", " 😀 😀", "1️⃣", "🧑🏿‍🚀 in space",
    # code
    "def f(x):\n    return x + 1\n", "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}", "<div class=\"x\">&amp;</div>",
    "SELECT * FROM t WHERE a='b';", "{\"key\": [1, 2.5, null, true]}", "if(a&&b||!c){}", "x=>x*2", "$HOME/.config", "\\n\\t\\\\",
    "#include <stdio.h>\n", "fn main() { println!(\"{}\", 1); }", "A" * 3 + " " * 3 + "B" * 3,
    # control text
    "<|im_end|>", "<|im_start|>user\nHi<|im_end|>\n", "<start_of_turn>user\nHi<end_of_turn>\n", "<bos>", "<eos>", "<s>", "</s>",
    "<|endoftext|>", "<pad><unk>", "a<|im_end|>b", "a <eos> b", " <|im_start|> ", "<|im_end", "<unused0>", "<0x0A>", "[INST]",
    "<|im_end|><|im_end|>", "text<bos>text", "<mask>", "<repo_name>x<file_sep>", "<h1>head</h1>", "<table>\n<tr>",
    # control bytes
    "\u0001\u0002\u001f", "\u007f", "\u0085", "\ufeffBOM", "\ufffd", "\u202eright to left", "\u00ad soft",
]  # fmt: skip


def pieces(model, ids):
    """The bytes of the ids, one after the other, special tokens spelled out."""
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    buffer = ctypes.create_string_buffer(512)
    out = b""
    for i in ids:
        n = llama_cpp.llama_token_to_piece(vocab, i, buffer, 512, 0, True)
        assert n >= 0
        out += buffer.raw[:n]
    return out.hex()


def case(model, text, bos):
    """One string's record."""
    data = text.encode()
    plain = model.tokenize(data, add_bos=False, special=False)
    special = model.tokenize(data, add_bos=False, special=True)
    record = dict(text=text, plain=plain, bytes=pieces(model, plain))
    if special != plain:
        record |= dict(special=special, bytes_special=pieces(model, special))
    if bos:
        record["with_bos"] = model.tokenize(data, add_bos=True, special=True)
    return record


def make(name, path, out):
    """One model's JSON, a case a line."""
    model = Llama(str(path), vocab_only=True, verbose=False)
    cases = [case(model, text, i < WITH_BOS) for i, text in enumerate(TEXTS)]
    keys = ("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id",
            "tokenizer.ggml.eos_token_id", "tokenizer.ggml.add_space_prefix")  # fmt: skip
    head = dict(file=path.name, llama_cpp_python=llama_cpp.__version__, vocab_size=model.n_vocab())
    head |= {key: model.metadata.get(key) for key in keys}
    lines = ",\n".join("  " + json.dumps(record) for record in cases)
    text = json.dumps(head, indent=1)[:-2] + ',\n "cases": [\n' + lines + "\n ]\n}\n"
    (out / f"{name}-tokens.json").write_text(text)
    assert json.loads(text)["cases"] == cases
    kept = sum(record["bytes"] == record["text"].encode().hex() for record in cases)
    print(
        f"{name}: {len(cases)} strings, {kept} come back byte for byte, {sum('special' in r for r in cases)} hold special tokens"
    )
    for record in cases:
        if record["bytes"] != record["text"].encode().hex():
            print("  ", repr(record["text"]), "->", bytes.fromhex(record["bytes"]))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smollm2", type=Path, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--gemma3", type=Path, help="gemma-3-270m-q4_k_m.gguf")
    parser.add_argument("--out", type=Path, default=ROOT / "tests/golden/text")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    assert len(set(TEXTS)) == len(TEXTS)
    for name, path in {"smollm2": args.smollm2, "gemma3-270m": args.gemma3}.items():
        if path:
            make(name, path, args.out)


if __name__ == "__main__":
    sys.exit(main())
