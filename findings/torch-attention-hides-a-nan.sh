#!/usr/bin/env bash
# A weight or an adapter that went wrong gives NaN, and NaN is what one looks for in the loss and in the logits.
#
# Usual guess: NaN in a query stays NaN through scaled_dot_product_attention, whichever of its implementations runs.
# Seen (torch 2.15.0, CPU): in the plain one it does. The flash one, which is taken by default, writes zeros for that row. The layer
#   then goes on with its residual, and the answer looks like one. So does a key that is NaN to queries before it alone in one of them:
#   with is_causal=True the plain one gives NaN to all rows.
#
# Output seen:
#   NaN in query 1     plain  NaN in rows [1]
#   NaN in query 1     flash  NaN in rows []
#   query 1 gives by default: [0.0, 0.0]
#   NaN in key 2       plain  NaN in rows [0, 1, 2, 3]
#   NaN in key 2       flash  NaN in rows [2, 3]
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "torch==2.15.0"
cat > "$work/run.py" <<'PY'
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

KINDS = {"plain": SDPBackend.MATH, "flash": SDPBackend.FLASH_ATTENTION}


def attend(spoiled, at, kind=None):
    torch.manual_seed(0)
    parts = {name: torch.randn(1, 1, 4, 2) for name in ("query", "key", "value")}
    parts[spoiled][0, 0, at, 0] = float("nan")
    if kind is None:
        return scaled_dot_product_attention(**parts, is_causal=True)[0, 0]
    with sdpa_kernel(kind):
        return scaled_dot_product_attention(**parts, is_causal=True)[0, 0]


seen = []
for spoiled, at in (("query", 1), ("key", 2)):
    for name, kind in KINDS.items():
        rows = attend(spoiled, at, kind).isnan().any(-1).nonzero().flatten().tolist()
        seen.append(rows)
        print(f"{f'NaN in {spoiled} {at}':18} {name}  NaN in rows {rows}")
    if spoiled == "query":
        default = attend("query", 1)[1].tolist()
        print("query 1 gives by default:", default)
raise SystemExit((seen, default) != ([[1], [], [0, 1, 2, 3], [2, 3]], [0.0, 0.0]))
PY
"$work/venv/bin/python" "$work/run.py"
