#!/usr/bin/env bash
# Embeddings are often kept in float16. Pooling takes the mean over a text's tokens: np.mean, or np.average with the mask as
# weights.
#
# Usual guess: the two agree where all weights are 1. np.mean sums float16 in float32, as its documentation says, and so do its
#   relatives.
# Seen (numpy 2.4.6): np.mean alone does. np.average, sum and np.linalg.norm over the rows add in float16, where 2048 + 1 is 2048: the
#   average of 4096 ones is 0.5, and a norm that is 64 is 45.25. Over one row, or along the last axis, sum adds in pairs and is right,
#   so that a small test does not find it. np.std of the numbers 0 and 600 is infinite.
#   `.astype(np.float32)` first, or dtype=np.float32, gives the right numbers.
#
# Output seen:
#   np.mean            1.0
#   np.average         0.5
#   sum                2048.0
#   np.linalg.norm     45.25
#   sum of one column  4096.0
#   np.std             inf
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "numpy==2.4.6"
cat > "$work/run.py" <<'PY'
import numpy as np

tokens = np.ones((4096, 2), dtype=np.float16)
mask = np.ones(4096, dtype=np.float16)
with np.errstate(over="ignore"):
    deviation = np.std(np.array([0, 600], dtype=np.float16))
seen = {
    "np.mean": np.mean(tokens, axis=0)[0],
    "np.average": np.average(tokens, axis=0, weights=mask)[0],
    "sum": tokens.sum(axis=0)[0],
    "np.linalg.norm": np.linalg.norm(tokens, axis=0)[0],
    "sum of one column": mask.sum(),
    "np.std": deviation,
}
for name, value in seen.items():
    print(f"{name:18} {value}")
raise SystemExit([float(value) for value in seen.values()] != [1.0, 0.5, 2048.0, 45.25, 4096.0, float("inf")])
PY
"$work/venv/bin/python" "$work/run.py"
