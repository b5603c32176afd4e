#!/usr/bin/env python3
"""Make the tokenizer.json goldens: tiny tokenizers of the kinds that models ship, and what Hugging Face makes of them.

`tests/golden/text/hf-<name>/` holds `tokenizer.json`, `tokenizer_config.json` and `cases.json`:

    add_bos, bos, eos   what the files mean
    cases[]             text; plain: ids with encode_special_tokens (control tokens in the text are text); special: ids
                        without; decoded: the decoding of `plain`. No ids of the post-processor.

    bytelevel   Llama 3's splitting rule, byte-level BPE, BOS by a template, a user-defined <think>
    llama       Llama 2: a Prepend normalizer, byte fallback, a Strip decoder, <|end|> that swallows white space
    gemma       a Replace normalizer, byte fallback, nothing prepended
    metaspace   a Metaspace splitter that prepends to the first piece only, byte fallback

Made with Python 3.11, tokenizers 0.23.3.
"""

import argparse
import json
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

ROOT = Path(__file__).resolve().parents[2]
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's what the others would've thought, isn't it?",
    "In the beginning there was a question, and the answer was 42. Then there were 1234567 others.",
    "def answer(question):\n    return lookup[question]  # the end\n\n\nprint(answer('what'))\n",
    "Größe, naïve café, crème brûlée; Привет, мир! 日本語のテキスト。 한국어 텍스트. 🙂🙂 👩‍👩‍👧",
    "the the the there then them they other another mother brother question questions answer answers",
]  # fmt: skip
TEXTS = [
    "", " ", "  ", "a", "Hello", " Hello", "Hello world", "  two  spaces ", "It's the others' answer.", "12345 1,000.5",
    "def f(x):\n    return x\n\n\n", "\n", "\n\n \n", "\t\tx", "Größe naïve café", "Привет, мир!", "日本語 한국어", "🙂 👩‍👩‍👧 \u200b",
    "e\u0301 \u00e9 \ufb01", "\u2581mark", "<0x0A>", "tail \n ", "the end<|end|>", "<s>the</s> answer", "<|end|>  \n the", "x <|end|> y",
    "<think>the answer</think>", "a<think> b", "<|im_start|>user\nHi<|im_end|>\n", "<|im_end|><|im_end|>", " <|im_end|> ",
    "<s", "<|im_end|", "<unk>", "question" * 20, "\u0000\u007f\uffff",
]  # fmt: skip


def trained(tokenizer, special=(), **options):
    trainer = trainers.BpeTrainer(
        vocab_size=520, show_progress=False, special_tokens=list(special), **options
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def control(text, **options):
    return AddedToken(text, special=True, normalized=False, **options)


def bytelevel():
    t = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    t.decoder = decoders.ByteLevel()
    trained(t, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    t.add_special_tokens(
        [control("<|begin|>"), control("<|im_start|>"), control("<|im_end|>"), control("<|endoftext|>")]
    )
    t.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    t.post_processor = processors.TemplateProcessing(
        "<|begin|> $A", special_tokens=[("<|begin|>", t.token_to_id("<|begin|>"))]
    )
    config = {"bos_token": {"content": "<|begin|>"}, "eos_token": "<|endoftext|>"}
    return t, config, True, "<|begin|>", ["<|im_end|>", "<|endoftext|>"]


def bytes_and(*tokens):
    return [*tokens, *(f"<0x{byte:02X}>" for byte in range(256))]


def sentencepiece(normalizer, splitter, decoder):
    """SentencePiece's kind of BPE: byte fallback, no splitting by words; trained on words to keep it small."""
    t = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    t.normalizer = normalizer
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(
        vocab_size=700, show_progress=False, special_tokens=bytes_and("<unk>", "<s>", "</s>")
    )
    t.train_from_iterator(CORPUS[:3] + CORPUS[4:], trainer)
    # the trainer made the bytes special tokens, which they are not: only the three first are
    state = json.loads(t.to_str())
    state["added_tokens"] = []
    t = Tokenizer.from_str(json.dumps(state))
    t.add_special_tokens([control("<unk>"), control("<s>"), control("</s>")])
    t.pre_tokenizer, t.decoder = splitter, decoder
    return t


def llama():
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    t = sentencepiece(normalizer, None, decoders.Sequence(steps))
    t.add_special_tokens([control("<|end|>", rstrip=True)])
    t.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", t.token_to_id("<s>"))])
    # what transformers 5 no longer reads where there is a tokenizer.json
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": False}
    return t, config, True, "<s>", ["</s>", "<|end|>"]


def gemma():
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    t = sentencepiece(normalizers.Replace(" ", "▁"), None, decoders.Sequence(steps))
    t.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("<think>", normalized=False)])
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False}
    return t, config, False, "<s>", ["</s>"]


def metaspace():
    splitter = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first", split=False)]
    t = sentencepiece(None, splitter, decoders.Sequence(steps[::1]))
    t.add_tokens([AddedToken("<think>", single_word=True, lstrip=True)])
    return t, {"eos_token": "</s>"}, False, None, ["</s>"]


def ids(tokenizer, text, special):
    tokenizer.encode_special_tokens = not special
    return tokenizer.encode(text, add_special_tokens=False).ids


def write(folder, tokenizer, config, add_bos, bos, eos):
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "tokenizer_config.json").write_text(json.dumps(config) + "\n")
    cases = []
    for text in TEXTS:
        plain = ids(tokenizer, text, False)
        decoded = tokenizer.decode(plain, skip_special_tokens=False)
        cases.append(
            {"text": text, "plain": plain, "special": ids(tokenizer, text, True), "decoded": decoded}
        )
    token = tokenizer.token_to_id
    head = {"add_bos": add_bos, "bos": bos and token(bos), "eos": sorted(token(text) for text in eos)}
    lines = ",\n".join("  " + json.dumps(case) for case in cases)
    (folder / "cases.json").write_text(f'{json.dumps(head)[:-1]}, "cases": [\n{lines}\n]}}\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "tests/golden/text")
    out = parser.parse_args().out
    for make in (bytelevel, llama, gemma, metaspace):
        write(out / f"hf-{make.__name__}", *make())


if __name__ == "__main__":
    main()
