#!/usr/bin/env bash
# mlx-lm's LoRA training masks the loss by (offset, length) of a row: with --mask-prompt the tokens of the answer count, up to its end.
#
# Usual guess: an answer of two tokens, the last of them the end token, is two targets.
# Seen (mlx-lm 0.32.2, mlx 0.32.4): three. The mask takes in the step after the last token, whose target is the padding, 0. A model
#   that predicts the row perfectly has a loss, and every row teaches to write token 0 behind the end token. Where answers are one
#   label, that is a third of what is trained. A row that fills the batch to its last column has no padding and is spared.
#
# Output seen:
#   row [5, 6, 7, 2], answer from the third token on
#   targets counted: 3
#   loss of a model that is always right: 13.33
#   the same, if it also writes token 0 behind the end: 0.00
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "mlx[cpu]==0.32.4" "mlx-lm==0.32.2"
cat > "$work/run.py" <<'PY'
import mlx.core as mx
import numpy as np
from mlx_lm.tuner.trainer import default_loss, iterate_batches

ROW, OFFSET, VOCABULARY = [5, 6, 7, 2], 2, 10


def sure(after):
    """A model that knows the row, and what it writes behind it."""
    following = [*ROW[1:], after]

    def model(inputs):
        logits = np.zeros((*inputs.shape, VOCABULARY), np.float32)
        for at in range(inputs.shape[1]):
            logits[0, at, following[min(at, len(ROW) - 1)]] = 40.0
        return mx.array(logits)

    return model


batch, lengths = next(iterate_batches([(ROW, OFFSET)], batch_size=1, max_seq_length=2048))
loss, counted = default_loss(sure(after=9), batch, lengths)
padded, _ = default_loss(sure(after=0), batch, lengths)
print(f"row {ROW}, answer from the third token on")
print("targets counted:", counted.item())
print(f"loss of a model that is always right: {loss.item():.2f}")
print(f"the same, if it also writes token 0 behind the end: {padded.item():.2f}")
raise SystemExit((counted.item(), round(loss.item(), 1), round(padded.item(), 3)) != (3, 13.3, 0.0))
PY
"$work/venv/bin/python" "$work/run.py"
