#!/usr/bin/env bash
# dspy.Parallel and Module.batch run a program on many examples in threads; dspy.Evaluate and the optimizers do it on the same
# executor.
#
# Usual guess: each example is run once, as with a ThreadPoolExecutor, however long it takes.
# Seen (dspy 3.4.1): when at most three are left, each that has run for 120 seconds is started anew, beside the first run, which goes
#   on; the new run is started anew, too. On a machine where an answer takes minutes the last examples are asked several times
#   at once, and what the program writes, counts or pays happens several times. timeout=0 turns it off; Evaluate has no such
#   argument. (The script sets the 120 seconds to 1.)
#
# Output seen:
#   results: [0, 1, 2, 3]
#   the quick examples ran once: True
#   the slow one ran more than once: True
#   with timeout=0 it ran once: True
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "dspy==3.4.1"
cat > "$work/run.py" <<'PY'
import collections
import inspect
import time

import dspy

runs = collections.Counter()


class Program(dspy.Module):
    def forward(self, number):
        runs[number] += 1
        time.sleep(5 if number == 3 else 0)
        return dspy.Prediction(number=number)


def run(timeout):
    runs.clear()
    parallel = dspy.Parallel(num_threads=4, timeout=timeout, disable_progress_bar=True)
    return [result.number for result in parallel([(Program(), {"number": number}) for number in range(4)])]


results = run(timeout=1)
once, again = runs[0] == runs[1] == runs[2] == 1, runs[3] > 1
run(timeout=0)
off = runs[3] == 1
print("results:", results)
print("the quick examples ran once:", once)
print("the slow one ran more than once:", again)
print("with timeout=0 it ran once:", off)
default = inspect.signature(dspy.Parallel).parameters["timeout"].default
raise SystemExit((results, once, again, off, default) != ([0, 1, 2, 3], True, True, True, 120))
PY
DSPY_CACHEDIR="$work/cache" "$work/venv/bin/python" "$work/run.py"
