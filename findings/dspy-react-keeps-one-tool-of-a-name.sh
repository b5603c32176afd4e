#!/usr/bin/env bash
# dspy.ReAct(signature, tools=[...]) takes functions. Each tool is called by its function's name, and ReAct adds one of its own,
# "finish", with which the model ends the loop.
#
# Usual guess: each function given is a tool; two of one name are refused, and so is one named like ReAct's own.
# Seen (dspy 3.4.1): the later takes the earlier one's place, in silence. Functions that a factory made (one a table, one a
#   customer) share a name and leave one tool; a tool of the user's named "finish" is never called: the loop ends instead.
#
# Output seen:
#   two tables  ['look_up', 'finish'] look_up reads prices
#   own finish  ['finish'] takes []
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "dspy==3.4.1"
cat > "$work/run.py" <<'PY'
import dspy


def reader(table):
    def look_up(key: str) -> str:
        """Looks up a key in a table."""
        return table

    return look_up


def finish(order: str) -> str:
    """Marks an order as finished."""
    return f"order {order} is finished"


tables = dspy.ReAct("question -> answer", tools=[reader("stock"), reader("prices")]).tools
orders = dspy.ReAct("question -> answer", tools=[finish]).tools
seen = (list(tables), tables["look_up"](key="tea"), list(orders), list(orders["finish"].args))
print("two tables ", seen[0], "look_up reads", seen[1])
print("own finish ", seen[2], "takes", seen[3])
raise SystemExit(seen != (["look_up", "finish"], "prices", ["finish"], []))
PY
DSPY_CACHEDIR="$work/cache" "$work/venv/bin/python" "$work/run.py"
