#!/usr/bin/env bash
# dspy.majority votes among several answers; dspy.evaluate.answer_exact_match says whether an answer is the expected one.
#
# Usual guess: of "A", "A", "A", "B" the majority is "A"; -5 is not an exact match of 5.
# Seen (dspy 3.4.1): both take articles and punctuation out first, as is done for English trivia. The letter A is an article:
#   its votes are not counted. An empty answer matches "A"; signs, decimal points and strokes vanish from numbers.
#   `majority(..., normalize=None)` and a metric of one's own compare what stands there.
#
# Output seen:
#   majority of A A A B    B
#   majority of -5 7 7 5   -5
#   '' matches 'A'         True
#   '-5' matches '5'       True
#   '1.5' matches '15'     True
#   '1/2' matches '12'     True
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "dspy==3.4.1"
cat > "$work/run.py" <<'PY'
import dspy
from dspy.evaluate import answer_exact_match


def majority(*answers):
    drawn = dspy.Prediction.from_completions([{"answer": answer} for answer in answers])
    return dspy.majority(drawn).answer


def matches(answer, gold):
    return answer_exact_match(dspy.Example(answer=gold), dspy.Prediction(answer=answer))


seen = {
    "majority of A A A B": majority("A", "A", "A", "B"),
    "majority of -5 7 7 5": majority("-5", "7", "7", "5"),
    "'' matches 'A'": matches("", "A"),
    "'-5' matches '5'": matches("-5", "5"),
    "'1.5' matches '15'": matches("1.5", "15"),
    "'1/2' matches '12'": matches("1/2", "12"),
}
for name, value in seen.items():
    print(f"{name:22} {value}")
raise SystemExit(list(seen.values()) != ["B", "-5", True, True, True, True])
PY
DSPY_CACHEDIR="$work/cache" "$work/venv/bin/python" "$work/run.py"
