#!/usr/bin/env bash
# mlx-lm's LoRA training sorts the rows by length, cuts the list into batches and takes these in random order, again and again.
#
# Usual guess: with enough iterations each row is seen; what does not fill a batch comes with the next round.
# Seen (mlx-lm 0.32.2, mlx 0.32.4): the batches are cut once. The last `rows % batch_size` rows are never trained on, however many
#   iterations there are, and as the list is sorted, these are always the longest. Evaluation leaves them out too. Nothing is said.
#
# Output seen:
#   rows: 14, of 10 to 23 tokens; batch size 4; 1000 batches
#   lengths never seen: [22, 23]
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "mlx[cpu]==0.32.4" "mlx-lm==0.32.2"
cat > "$work/run.py" <<'PY'
import itertools
import random

from mlx_lm.tuner.trainer import iterate_batches

rows = [([1] * length, 0) for length in range(10, 24)]
random.Random(0).shuffle(rows)
seen = set()
for _, lengths in itertools.islice(iterate_batches(rows, 4, max_seq_length=2048, loop=True), 1000):
    seen.update(length for _, length in lengths.tolist())
missing = sorted({len(row) for row, _ in rows} - seen)
print(f"rows: {len(rows)}, of 10 to 23 tokens; batch size 4; 1000 batches")
print("lengths never seen:", missing)
raise SystemExit(missing != [22, 23])
PY
"$work/venv/bin/python" "$work/run.py"
