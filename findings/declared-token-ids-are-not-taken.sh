#!/usr/bin/env bash
# "added_tokens_decoder" in tokenizer_config.json maps ids to the tokens that were added to a tokenizer. A token that stands there
# and not in tokenizer.json is added when the tokenizer is loaded.
#
# Usual guess: it gets the id that it is declared with.
# Seen (transformers 5.24.0): it gets the next free id, in the order of the declared ones. With six words, {"10": "<x>", "7": "<y>"}
#   gives <y> 6 and <x> 7: 7 is now another token than the file says, and nothing is said.
#
# Output seen:
#   declared {'<x>': 10, '<y>': 7}
#   given    {'<x>': 7, '<y>': 6}
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "transformers==5.24.0" "tokenizers==0.23.3"
cat > "$work/run.py" <<'PY'
import json
import pathlib
import tempfile

import transformers

transformers.logging.set_verbosity_error()
folder = pathlib.Path(tempfile.mkdtemp())
words = {word: number for number, word in enumerate(["<unk>", "a", "b", "c", "d", "e"])}
tokenizer = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
}
declared = {"<x>": 10, "<y>": 7}
flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": False}
(folder / "tokenizer.json").write_text(json.dumps(tokenizer))
(folder / "tokenizer_config.json").write_text(json.dumps({
    "tokenizer_class": "PreTrainedTokenizerFast",
    "added_tokens_decoder": {str(id): {"content": token, **flags} for token, id in declared.items()},
}))
found = transformers.AutoTokenizer.from_pretrained(folder)
given = {token: found.convert_tokens_to_ids(token) for token in declared}
print("declared", declared)
print("given   ", given)
raise SystemExit(given != {"<x>": 7, "<y>": 6})
PY
"$work/venv/bin/python" "$work/run.py"
