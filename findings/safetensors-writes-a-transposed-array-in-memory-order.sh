#!/usr/bin/env bash
# safetensors.numpy.save and save_file write numpy arrays, among them views such as `weight.T` and arrays in Fortran order.
#
# Usual guess: what is loaded equals what was saved; what the format cannot hold is refused, as safetensors.torch refuses tensors
#   that are not contiguous.
# Seen (safetensors 0.8.0): the bytes are written in the order of memory under the shape of the view. A transposed weight
#   comes back with its values shuffled, and nothing is said. 0.7.0 wrote the values of the view. (The docstring asks for
#   contiguous tensors in both.) `numpy.ascontiguousarray` first gives the right file.
#
# Output seen:
#   saved       [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
#   0.7.0 loads [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
#   0.8.0 loads [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
cat > "$work/run.py" <<'PY'
import sys

import numpy as np
import safetensors
from safetensors.numpy import load, save

view = np.arange(6, dtype=np.float32).reshape(2, 3).T
loaded = load(save({"weight": view}))["weight"]
if safetensors.__version__ == "0.7.0":
    print("saved      ", view.tolist())
print(safetensors.__version__, "loads", loaded.tolist())
sys.exit(np.array_equal(loaded, view) != (safetensors.__version__ == "0.7.0"))
PY
for version in "safetensors==0.7.0" "safetensors==0.8.0"; do
    "$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$version" "numpy==2.4.6"
    "$work/venv/bin/python" "$work/run.py"
done
