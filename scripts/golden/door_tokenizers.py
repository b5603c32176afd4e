#!/usr/bin/env python3
"""Make the goldens of tokenizer files as they come: small ones of many kinds, and what transformers reads in them.

`tests/golden/text/door-tokenizers.json` is a list of rows, one a line:

    name
    files           {file name: its JSON}, a folder with a tokenizer.json
    prefix, suffix  ids that transformers puts around a text
    cases[]         text; ids without those; decoded: the text of ids; shown: the same without special tokens
    refused         instead of the three: what tallow's error names. transformers reads these files; what it makes of them
                    cannot be told token by token, or is a guess between two contradicting statements

The tokenizers are loaded as `PreTrainedTokenizerFast`, the class that takes tokenizer.json as it is. (LlamaTokenizer,
GemmaTokenizer, GPTNeoXTokenizer and others of transformers 5 take its vocabulary and merges, and build the rest anew.)

Made with Python 3.11, transformers 5.24.0, tokenizers 0.23.3.
"""

import argparse
import json
import logging
import tempfile
from pathlib import Path

from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
WORDS = ["<unk>", "<s>", "</s>", "a", "b", "c", "e4", "e5", ".", ",", "!", "'", "s", "x"]
TEXTS = ["a b", "", " a  b ", "a <x> b <y> c", "<s> a</s> b", "a . b , c !", "nothing known", "e4 e5", "a\nb"]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def added(id, content, special=True, **flags):
    plain = {"special": special, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": id, "content": content, **plain, **flags}


def flags(content, **more):
    token = {"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {**token, **more}


def decoder(*tokens):
    """tokenizer_config.json's added_tokens_decoder."""
    return {"added_tokens_decoder": {str(id): flags(text, **more) for id, text, more in tokens}}


def typed(content, **more):
    return {"__type": "AddedToken", **flags(content, **more)}


def tokenizer(model, specials=("<unk>", "<s>", "</s>"), tokens=(), **parts):
    vocab = model["vocab"]
    ids = vocab if isinstance(vocab, dict) else {piece[0]: id for id, piece in enumerate(vocab)}
    known = [added(ids[text], text) for text in specials if text in ids]
    plain = {"normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None}
    head = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [*known, *tokens]}
    return {**head, **plain, **parts, "model": model}


def numbered(tokens):
    return {token: id for id, token in enumerate(tokens)}


def words(more=(), **parts):
    """Words, as models of games and proteins have them."""
    model = {"type": "WordLevel", "vocab": numbered([*WORDS, *more]), "unk_token": "<unk>"}
    return tokenizer(model, **{"pre_tokenizer": {"type": "Whitespace"}, **parts})


def bpe(vocab, merges, model=None, **parts):
    model = {"type": "BPE", "vocab": numbered(vocab), "merges": merges, **(model or {})}
    return tokenizer(model, **parts)


def llama(model=None, **parts):
    """SentencePiece's kind of BPE with bytes to fall back on."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = ["<unk>", "<s>", "</s>", *bytes_, *"▁abch", "▁a", "▁b", "ab", "▁ab", "▁▁"]
    merges = ["▁ a", "▁ b", "a b", "▁a b", "▁ ▁"]
    steps = [replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if parts.pop("strip", True):
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    normalizer = sequence("normalizers", {"type": "Prepend", "prepend": "▁"}, replace(" ", "▁"))
    plain = {"normalizer": normalizer, "decoder": sequence("decoders", *steps)}
    options = {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True, **(model or {})}
    return bpe(vocab, merges, options, **{**plain, **parts})


def unigram(model=None, **parts):
    pieces = [
        ["<unk>", 0.0],
        ["<s>", 0.0],
        ["</s>", 0.0],
        ["▁", -2.0],
        ["a", -3.0],
        ["b", -3.1],
        ["▁a", -2.5],
        ["ab", -4.0],
    ]
    model = {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False, **(model or {})}
    plain = {"pre_tokenizer": metaspace("always"), "decoder": metaspace("always")}
    return tokenizer(model, **{**plain, **parts})


def byte_level(model=None, **parts):
    vocab = [*"abcdeloHw.,'s123", "Ġ", "Ċ", "Ã", "©", "Ġa", "lo", "Ġlo", "Ã©", "he", "<end>"]
    merges = ["Ġ a", "l o", "Ġ lo", "Ã ©"]
    plain = {"pre_tokenizer": BYTE_LEVEL, "decoder": BYTE_LEVEL, "specials": ["<end>"]}
    return bpe(vocab, merges, model, **{**plain, **parts})


def replace(old, new):
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def sequence(name, *parts):
    return {"type": "Sequence", name: list(parts)}


def metaspace(scheme, split=True, mark="▁"):
    return {"type": "Metaspace", "replacement": mark, "prepend_scheme": scheme, "split": split}


def template(before, after, ids):
    """TemplateProcessing of a single text."""

    def special(text):
        return {"SpecialToken": {"id": text, "type_id": 0}}

    tokens = {text: {"id": text, "ids": [ids[text]], "tokens": [text]} for text in (*before, *after)}
    single = [*map(special, before), {"Sequence": {"id": "A", "type_id": 0}}, *map(special, after)]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}


def wordpiece(lowercase=True, **parts):
    vocab = ["[UNK]", "[CLS]", "[SEP]", "a", "##b", "##c", "b", "don", "'", "t", ".", "!", "cafe", "é"]
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
             "max_input_chars_per_word": 100, "vocab": numbered(vocab)}  # fmt: skip
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
                  "lowercase": lowercase}  # fmt: skip
    bert = {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]}
    plain = {"normalizer": normalizer, "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": bert,
             "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
             "specials": ["[UNK]", "[CLS]", "[SEP]"]}  # fmt: skip
    return tokenizer(model, **{**plain, **parts})


def around():
    """What goes around a text."""
    ids = {"<s>": 1, "</s>": 2, "a": 3}
    switches = {"add_bos_token": True, "add_eos_token": True, "bos_token": "<s>", "eos_token": "</s>"}
    both = template(["<s>"], ["</s>"], ids)
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    roberta = {
        "type": "RobertaProcessing",
        "sep": ["</s>", 2],
        "cls": ["<s>", 1],
        "trim_offsets": True,
        "add_prefix_space": False,
    }
    yield "no post-processor, whatever the switches say", {CONFIG: switches}, words()
    yield "a template decides", {}, words(post_processor=both)
    off = {"add_bos_token": False, "add_eos_token": False}
    yield "a template decides against the switches", {CONFIG: {**switches, **off}}, words(post_processor=both)
    yield "only an end", {}, words(post_processor=template([], ["</s>"], ids))
    yield "several before", {}, words(post_processor=template(["<s>", "a"], [], ids))
    yield "several after", {}, words(post_processor=template([], ["</s>", "<s>"], ids))
    yield "Bert", {}, words(post_processor={"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]})
    yield "Roberta", {}, words(post_processor=roberta)
    yield "ByteLevel adds nothing", {}, words(post_processor=byte_level)
    yield "a sequence", {}, words(post_processor=sequence("processors", byte_level, both))
    yield "truncation and padding", {}, words(
        post_processor=both,
        truncation={"direction": "Right", "max_length": 512, "strategy": "LongestFirst", "stride": 0},
        padding={"strategy": {"Fixed": 2}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
                 "pad_token": "<unk>"},
    )  # fmt: skip


def beside():
    """Tokens that stand beside tokenizer.json."""
    own, more = len(WORDS), {"lstrip": True}
    x, y = (own, "<x>", {"special": True}), (own + 1, "<y>", {"special": False})
    plain = words(tokens=[added(own, "<x>", special=False)])
    kept = words(tokens=[added(own, "<x>")])
    yield "added_tokens_decoder", {CONFIG: decoder(x, y)}, words()
    yield "its flags", {CONFIG: decoder((own, "<x>", {"rstrip": True}), (own + 1, "<y>", more))}, words()
    yield (
        "its flags for known tokens",
        {CONFIG: decoder((1, "<s>", more), (2, "</s>", {"rstrip": True}))},
        words(),
    )
    yield (
        "single words",
        {CONFIG: decoder((own, "<x>", {}), (own + 1, "b", {"single_word": True}))},
        words(["<x>"]),
    )
    yield "special stays special", {CONFIG: decoder((own, "<x>", {"special": False}))}, kept
    yield "another id for a known token", {CONFIG: decoder((own + 7, "<x>", more))}, kept
    yield "special by its name", {CONFIG: {"bos_token": "<x>"}}, plain
    yield (
        "special by its name in the list",
        {CONFIG: {"bos_token": "<x>", **decoder((own, "<x>", {}))}},
        plain,
    )
    yield (
        "a name beside another list",
        {CONFIG: {"bos_token": "<x>", **decoder((1, "<s>", {"special": True}))}},
        plain,
    )
    yield "not special by being extra", {CONFIG: {"extra_special_tokens": ["<x>"]}}, plain
    yield "extra_special_tokens", {CONFIG: {"extra_special_tokens": ["<x>", "<y>"]}}, words()
    yield (
        "extra_special_tokens by name",
        {CONFIG: {"extra_special_tokens": {"image_token": "<y>", "z_token": "<x>"}}},
        words(),
    )
    yield "additional_special_tokens", {CONFIG: {"additional_special_tokens": ["<x>"]}}, words()
    yield (
        "one list instead of the other",
        {CONFIG: {"additional_special_tokens": ["<x>"], "extra_special_tokens": ["<y>"]}},
        words(),
    )
    yield "named tokens", {CONFIG: {"pad_token": "<y>", "bos_token": "<x>"}}, words()
    yield (
        "named tokens in order",
        {CONFIG: {"extra_special_tokens": ["<y>"], "mask_token": "<m>", "bos_token": "<x>"}},
        words(),
    )
    yield "named objects", {CONFIG: {"bos_token": typed("<x>", lstrip=True), "eos_token": "<y>"}}, words()
    yield "a word as a named token", {CONFIG: {"pad_token": "a"}}, words()
    yield "names of its own", {CONFIG: {"image_token": "<y>", "boi_token": "<x>"}}, words()
    yield "added_tokens.json", {ADDED: {"<y>": own + 1, "<x>": own}}, words()
    yield (
        "added_tokens.json, some special",
        {ADDED: {"<y>": own + 1, "<x>": own}, CONFIG: {"pad_token": "<x>"}},
        words(),
    )
    yield (
        "added_tokens.json is older",
        {ADDED: {"<x>": own}, CONFIG: decoder((1, "<s>", {"special": True}))},
        words(),
    )
    yield (
        "special_tokens_map.json",
        {MAP: {"bos_token": flags("<x>", lstrip=True), "additional_special_tokens": ["<y>"]}},
        words(),
    )
    yield "special_tokens_map.json wins", {MAP: {"bos_token": "<x>"}, CONFIG: {"bos_token": "<y>"}}, words()
    yield (
        "special_tokens_map.json is older",
        {MAP: {"bos_token": "<x>"}, CONFIG: decoder((1, "<s>", {"special": True}))},
        words(),
    )
    yield (
        "nothing named",
        {CONFIG: {"extra_special_tokens": [], "pad_token": None}, MAP: {}, ADDED: {}},
        words(),
    )
    normalized = decoder((17, "<X>", {"normalized": True}))
    yield "normalized", {CONFIG: normalized}, words(["<x>", "<y>", "d"], normalizer={"type": "Lowercase"})
    bytes_ = decoder((26, "<x>", {"lstrip": True, "rstrip": True}), (27, "<é>", {}))
    yield "beside byte-level BPE", {CONFIG: bytes_}, byte_level()


def spelling():
    """How tokens become text."""
    pieces = ["<unk>", *"abc ", "ab", "abc"]
    yield "words without a decoder", {}, words()
    yield "words, one added", {}, words(tokens=[added(len(WORDS), "<x>", special=False)])
    yield "BPE without a decoder", {}, bpe(pieces, ["a b", "ab c"], pre_tokenizer={"type": "Whitespace"})
    yield "BPE without a splitter", {}, bpe(pieces, ["a b", "ab c"], {"unk_token": "<unk>"})
    yield "Unigram without a decoder", {}, unigram(decoder=None)
    yield "WordPiece", {}, wordpiece()
    yield (
        "WordPiece without cleanup",
        {},
        wordpiece(False, decoder={"type": "WordPiece", "prefix": "##", "cleanup": False}),
    )
    yield "WordPiece without a decoder", {}, wordpiece(decoder=None)
    yield "only Fuse", {}, words(decoder={"type": "Fuse"})
    yield (
        "Strip of each token",
        {},
        unigram(
            decoder=sequence(
                "decoders", replace("▁", " "), {"type": "Strip", "content": " ", "start": 1, "stop": 0}
            )
        ),
    )
    yield (
        "Strip of other characters",
        {},
        words(decoder={"type": "Strip", "content": "e", "start": 1, "stop": 0}),
    )


def models():
    """Options of models, normalizers and splitters."""
    yield "Llama", {}, llama()
    yield "Llama without bytes", {}, llama({"byte_fallback": False})
    yield "unknown ones apart", {}, llama({"byte_fallback": False, "fuse_unk": False})
    yield "nothing before", {}, llama(normalizer=replace(" ", "▁"), strip=False)
    yield "Unigram, always", {}, unigram()
    yield "Unigram, first", {}, unigram(pre_tokenizer=metaspace("first"), decoder=metaspace("first"))
    yield "Unigram, never", {}, unigram(pre_tokenizer=metaspace("never"), decoder=metaspace("never"))
    under = unigram(pre_tokenizer=metaspace("always", mark="_"), decoder=metaspace("always", mark="_"))
    for piece in under["model"]["vocab"]:
        piece[0] = piece[0].replace("▁", "_")
    yield "another mark", {}, under
    yield "byte-level BPE", {}, byte_level()
    yield (
        "byte-level BPE with a space before",
        {},
        byte_level(pre_tokenizer={**BYTE_LEVEL, "add_prefix_space": True}),
    )
    yield "add_prefix_space beside", {CONFIG: {"add_prefix_space": True}}, byte_level()
    yield "ignore_merges", {}, byte_level({"ignore_merges": True})
    affixes = {"continuing_subword_prefix": "##", "end_of_word_suffix": "</w>", "unk_token": "<unk>"}
    subwords = ["<unk>", "a", "b", "a</w>", "##b</w>", "##b", "ab</w>", "b</w>"]
    yield (
        "subword prefix and suffix",
        {},
        bpe(subwords, ["a ##b</w>"], affixes, pre_tokenizer={"type": "Whitespace"}),
    )
    for normalizer in ("Lowercase", "NFC", "NFD", "NFKC", "StripAccents", "Nmt"):
        steps = sequence("normalizers", {"type": normalizer}, replace(" ", "▁"))
        yield normalizer, {}, llama(normalizer=steps, strip=False)
    strip = sequence(
        "normalizers", {"type": "Strip", "strip_left": True, "strip_right": True}, replace(" ", "▁")
    )
    yield "Strip", {}, llama(normalizer=strip, strip=False)
    yield (
        "digits apart",
        {},
        byte_level(
            pre_tokenizer=sequence("pretokenizers", {"type": "Digits", "individual_digits": True}, BYTE_LEVEL)
        ),
    )
    yield (
        "a split",
        {},
        words(
            pre_tokenizer={
                "type": "Split",
                "pattern": {"Regex": "[a-c]"},
                "behavior": "Isolated",
                "invert": False,
            }
        ),
    )


def refused():
    own = len(WORDS)
    gap = decoder((own + 5, "<x>", {"special": True}))
    yield "an id with a hole before it", "<x>", {CONFIG: gap}, words()
    yield "the id of another token", "<x>", {CONFIG: decoder((3, "<x>", {}))}, words()
    yield "the id of another token in added_tokens.json", "<x>", {ADDED: {"<x>": 3}}, words()
    twice = template([], [], {})
    twice["single"] = twice["single"] * 2
    yield "a text twice", "post-processor", {}, words(post_processor=twice)
    yield "BPEDecoder", "BPEDecoder", {}, words(decoder={"type": "BPEDecoder", "suffix": "</w>"})
    ctc = {"type": "CTC", "pad_token": "a", "word_delimiter_token": "b", "cleanup": True}
    yield "CTC", "CTC", {}, words(decoder=ctc)
    pattern = {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"}
    yield "a pattern", "Replace", {}, words(decoder=pattern)
    yield (
        "bytes and more",
        "ByteLevel",
        {},
        byte_level(decoder=sequence("decoders", replace("l", "L"), BYTE_LEVEL)),
    )
    whole = sequence("decoders", {"type": "Fuse"}, replace(" .", "."))
    yield "across tokens", "Replace", {}, words(decoder=whole)
    ends = sequence("decoders", {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 1})
    yield "both ends", "Strip", {}, words(decoder=ends)


MORE = [
    "ab ab",
    "abc  ab",
    "Héllo é",
    "A AB",
    "lo a lo. 123",
    "don't a.b!",
    "abcb ab",
    "x<x>y b<y>",
    "<S> <X> <x>",
    "hé<x>b\n",
]


def load(files):
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_text(json.dumps(content))
        return PreTrainedTokenizerFast.from_pretrained(folder)


def row(name, files):
    tokenizer = load(files)
    cases = []
    for text in [*TEXTS, *MORE]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        shown = tokenizer.decode(ids, skip_special_tokens=True)
        cases.append({"text": text, "ids": ids, "decoded": tokenizer.decode(ids), "shown": shown})
    text, whole = cases[0]["ids"], tokenizer(TEXTS[0])["input_ids"]
    start = next(start for start in range(len(whole)) if whole[start : start + len(text)] == text)
    return {
        "name": name,
        "files": files,
        "prefix": whole[:start],
        "suffix": whole[start + len(text) :],
        "cases": cases,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "tests/golden/text/door-tokenizers.json")
    out = parser.parse_args().out
    logging.disable(logging.WARNING)
    rows = []
    for kind in (around, beside, spelling, models):
        rows += [row(name, {"tokenizer.json": main, **files}) for name, files, main in kind()]
    for name, word, files, main in refused():
        load({"tokenizer.json": main, **files})
        rows.append({"name": name, "files": {"tokenizer.json": main, **files}, "refused": word})
    assert len({row["name"] for row in rows}) == len(rows)
    dump = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
    out.write_text("[\n" + ",\n".join(dump) + "\n]\n")
    print(len(rows), "rows")


if __name__ == "__main__":
    main()
