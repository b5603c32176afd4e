#!/usr/bin/env bash
# dspy.Embedder takes a function that embeds texts (its documentation passes `model.encode`) and caches what it returns, in memory
# and on disk, unless it is told otherwise.
#
# Usual guess: two models have two caches, so a second one is asked too.
# Seen (dspy 3.4.1): of a function or method the key holds its source text alone. Two objects of one class are the same key,
#   and the second gets the first one's vectors, without being called; so does the next process, from the disk, when the model
#   that the same class loads was changed. Embedder(..., caching=False) asks each.
#
# Output seen:
#   first model      [1.0, 1.0]
#   second model     [1.0, 1.0] (called 0 times)
#   second, no cache [2.0, 2.0]
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "dspy==3.4.1" "numpy==2.4.6"
cat > "$work/run.py" <<'PY'
import dspy
import numpy as np


class Encoder:
    def __init__(self, value):
        self.value = value
        self.calls = 0

    def encode(self, texts):
        self.calls += 1
        return np.full((len(texts), 2), self.value, dtype=np.float32)


first, second = Encoder(1), Encoder(2)
one = dspy.Embedder(first.encode)("a text").tolist()
two = dspy.Embedder(second.encode)("a text").tolist()
calls = second.calls
fresh = dspy.Embedder(second.encode, caching=False)("a text").tolist()
print("first model     ", one)
print("second model    ", two, f"(called {calls} times)")
print("second, no cache", fresh)
raise SystemExit((one, two, calls, fresh) != ([1.0, 1.0], [1.0, 1.0], 0, [2.0, 2.0]))
PY
DSPY_CACHEDIR="$work/cache" "$work/venv/bin/python" "$work/run.py"
