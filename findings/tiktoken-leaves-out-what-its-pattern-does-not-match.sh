#!/usr/bin/env bash
# A byte-level tokenizer first cuts the text by a regular expression. tiktoken.Encoding and the tokenizers library both take
# such an expression from outside, with a vocabulary that has all 256 bytes.
#
# Usual guess: each byte has a token, so nothing can get lost; what the expression does not match is a piece of its own.
# Seen (tiktoken 0.14.0, tokenizers 0.23.3): tokenizers' Split keeps what is between the matches. tiktoken encodes the matches
#   alone: an expression that works in the one loses text in the other, and nothing is said.
#
# Output seen:
#   tokenizers 'one, two!'
#   tiktoken   'onetwo'
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "tiktoken==0.14.0" "tokenizers==0.23.3"
cat > "$work/run.py" <<'PY'
import tiktoken
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

PATTERN = r"\w+"
TEXT = "one, two!"

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
split = Tokenizer(models.BPE(vocab={letter: id for id, letter in enumerate(letters)}, merges=[]))
split.pre_tokenizer = pre_tokenizers.Sequence([
    pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
])
split.decoder = decoders.ByteLevel()

ranks = {bytes([byte]): byte for byte in range(256)}
encoding = tiktoken.Encoding("bytes", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})

kept = split.decode(split.encode(TEXT).ids)
left = encoding.decode(encoding.encode(TEXT))
print("tokenizers", repr(kept))
print("tiktoken  ", repr(left))
raise SystemExit((kept, left) != (TEXT, "onetwo"))
PY
"$work/venv/bin/python" "$work/run.py"
