#!/usr/bin/env bash
# Tokenizer.add_tokens gives a new token the next free id. A vocabulary may have holes: one that was cut down to the words that
# a model needs keeps the ids of its embedding.
#
# Usual guess: the next free id is above the highest, or is one of the holes.
# Seen (tokenizers 0.23.3): ids are counted from the number of entries, without a look at which are taken. Of the ids 0, 2, 3
#   and 5 the next would be 4, then 5: the second new token has the id of an old one. Both are encoded to 5, 5 is decoded to the
#   new one, and nothing is said.
#
# Output seen:
#   before  {'a': 0, 'b': 2, 'c': 3, 'd': 5}
#   added   {'<x>': 4, '<y>': 5}
#   'a d' is encoded to [0, 5] and decoded to 'a <y>'
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "tokenizers==0.23.3"
cat > "$work/run.py" <<'PY'
from tokenizers import Tokenizer, models, pre_tokenizers

before = {"a": 0, "b": 2, "c": 3, "d": 5}
tokenizer = Tokenizer(models.WordLevel(vocab=before, unk_token="a"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.add_tokens(["<x>", "<y>"])
added = {token: tokenizer.token_to_id(token) for token in ("<x>", "<y>")}
ids = tokenizer.encode("a d").ids
text = tokenizer.decode(ids)
print("before ", before)
print("added  ", added)
print(f"'a d' is encoded to {ids} and decoded to {text!r}")
raise SystemExit((added, ids, text) != ({"<x>": 4, "<y>": 5}, [0, 5], "a <y>"))
PY
"$work/venv/bin/python" "$work/run.py"
