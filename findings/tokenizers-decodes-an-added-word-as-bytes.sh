#!/usr/bin/env bash
# Byte-level tokenizers (GPT-2, Llama 3, Qwen) write each byte as a letter of their own: byte 0xE9 as "é". Words that a domain
# needs are added with add_tokens.
#
# Usual guess: a text survives being encoded and decoded as well as before the word was added; its token stands for itself.
# Seen (tokenizers 0.23.3): the decoder of bytes takes an added word for letters of bytes too. If all its letters are among those
#   256, as in café, über, straße or ©, it becomes those bytes, which are no UTF-8: the text has a replacement character. Words
#   with another letter (ž, Japanese) are kept. Special tokens are decoded so too.
#
# Output seen:
#   café    before: 'café'    after: 'caf\ufffd'
#   straße  before: 'straße'  after: 'stra\ufffde'
#   žaba    before: 'žaba'    after: 'žaba'
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "tokenizers==0.23.3"
cat > "$work/run.py" <<'PY'
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE(vocab={letter: id for id, letter in enumerate(letters)}, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()


def there_and_back(text):
    return tokenizer.decode(tokenizer.encode(text).ids)


def shown(text):
    return "'" + text.replace("\ufffd", "\\ufffd") + "'"


seen = []
for word in ("café", "straße", "žaba"):
    before = there_and_back(word)
    tokenizer.add_tokens([word])
    after = there_and_back(word)
    seen.append((before, after))
    print(f"{word:7} before: {shown(before):9} after: {shown(after)}")
raise SystemExit(seen != [("café", "caf\ufffd"), ("straße", "stra\ufffde"), ("žaba", "žaba")])
PY
PYTHONIOENCODING=utf-8 "$work/venv/bin/python" "$work/run.py"
