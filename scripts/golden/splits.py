#!/usr/bin/env python3
r"""Make the goldens of the splitting rules by their published patterns: the vocabulary of `pretokenizers.json` under each.

Writes `tests/golden/text/splits.json`, a list of {"pre": names of tokenizer.ggml.pre, "patterns": the regular expressions
of the families' own tokenizer.json, "ids": one list for each text of pretokenizers.json}. Where llama.cpp splits otherwise
(capitals of other alphabets, marks), this is what the models were trained with.

The patterns look ahead (`\s+(?!\S)`), which tallow's own cannot, so they are an independent statement of the rules.

Made with Python 3.11, tokenizers 0.23.3.
"""

import argparse
import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

ROOT = Path(__file__).resolve().parents[2]
END = r"|\s+(?!\S)|\s+"
ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+" + END
SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+" + END
WORD = r"[^\r\n\p{L}\p{N}]?"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LLAMA3 = ENGLISH + "|" + WORD + r"\p{L}+|\p{N}{1,3}" + SIGNS
QWEN2 = ENGLISH + "|" + WORD + r"\p{L}+|\p{N}" + SIGNS
QWEN35 = ENGLISH + "|" + WORD + r"[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+" + END
CJK = "[一-龥぀-ゟ゠-ヿ]+"
DEEPSEEK = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"""


def cased(tail, digits):
    """Words that end where a small letter meets a capital, with what may follow and the digits of a number."""
    words = f"{WORD}{UPPER}*{LOWER}+{tail}|{WORD}{UPPER}+{LOWER}*{tail}"
    return words + "|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+" + END


# names, patterns, whether a word that is a token is taken whole
RULES = [
    ("gpt-2 phi-2 mpt olmo exaone4 jais trillion gigachat granite-docling mellum", [GPT2], False),
    ("llama-bpe falcon3 falcon-h1 lfm2 pixtral midm-2.0 jina-v5-nano glm4 glm5", [LLAMA3], True),
    ("dbrx smaug-bpe chatglm-bpe", [LLAMA3], False),
    ("qwen2 deepseek-r1-qwen stablelm2 hunyuan grok-2 kormo f2llmv2 solar-open", [QWEN2], False),
    ("qwen35", [QWEN35], False),
    ("tekken", [cased("", r"\p{N}")], True),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", [cased(ENGLISH + "?", r"\p{N}{1,3}")], False),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", [r"\p{N}{1,3}", CJK, DEEPSEEK + r"[\r\n]*|\s*[\r\n]+" + END], False),
    ("laguna", [r"[^\n]+|[\n]+", QWEN2], False),
    ("minicpm5", [r"\p{N}{1,3}", ENGLISH + "|" + WORD + r"\p{L}+|\p{N}+" + SIGNS], True),
    ("bailingmoe bailingmoe2 llada-moe",
     [r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]" + END], False),
    ("exaone-moe",
     [ENGLISH + "|" + WORD + r"(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]" + END], False),
    ("ufakzeka", [WORD + r"\p{L}+|\p{N}" + SIGNS], False),
    ("seed-coder", [ENGLISH + "|" + WORD + r"\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+" + END], False),
    ("youtu",
     ["[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|" + CJK, cased(ENGLISH + "?", r"\p{N}")], True),
    ("spark2_5", [r"\p{N}{1,3}", CJK, DEEPSEEK + r"|[\r\n]" + END, r"\p{N}"], False),
    ("bloom poro-chat gpt3-finnish", [r" ?[^(\s|.,!?…。，、।۔،)]+"], False),
    ("viking", [r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}"], False),
]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "tests/golden/text/splits.json")
    out = parser.parse_args().out
    given = json.loads((ROOT / "tests/golden/text/pretokenizers.json").read_text())
    vocab = {token: id for id, token in enumerate(given["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in given["merges"]]
    rows = []
    for names, patterns, whole in RULES:
        tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=whole))
        steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, bytes_])
        ids = [tokenizer.encode(text).ids for text in given["texts"]]
        rows.append({"pre": names.split(), "patterns": patterns, "ids": ids})
    dump = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
    out.write_text("[\n" + ",\n".join(dump) + "\n]\n")


if __name__ == "__main__":
    main()
