#!/usr/bin/env bash
# A notebook starts a task in one cell (a server, a stream, a progress report) and goes on. nbclient runs notebooks for
# documentation and tests and stores their outputs.
#
# Usual guess: what the task prints later stands in the cell that started it, as in the browser, or in the one that runs then.
# Seen (nbclient 0.11.0, ipykernel 7.4.0): of an asyncio task it stands nowhere. ipykernel sends it as output of the cell that
#   started the task, and nbclient, which has finished that cell, drops it. What a thread prints is stored in the cell that
#   runs then.
#
# Output seen:
#   task    cell 1: 'started\n'  cell 2: 'done\n'
#   thread  cell 1: 'started\n'  cell 2: 'from the background\ndone\n'
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
    "nbclient==0.11.0" "ipykernel==7.4.0" "nbformat==5.11.1" "ipython==9.18.1"
cat > "$work/run.py" <<'PY'
import nbclient
import nbformat

TASK = (
    """
import asyncio
async def work():
    await go.wait()
    print("from the background")
go = asyncio.Event()
task = asyncio.create_task(work())
print("started")
""",
    """
go.set()
await task
print("done")
""",
)
THREAD = (
    """
import threading
def work():
    go.wait()
    print("from the background")
go = threading.Event()
thread = threading.Thread(target=work)
thread.start()
print("started")
""",
    """
go.set()
thread.join()
print("done")
""",
)


def outputs(cells):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=60).execute()
    return ["".join(output.get("text", "") for output in cell.outputs) for cell in notebook.cells]


seen = {"task": outputs(TASK), "thread": outputs(THREAD)}
for name, (first, second) in seen.items():
    print(f"{name:7} cell 1: {first!r}  cell 2: {second!r}")
want = [["started\n", "done\n"], ["started\n", "from the background\ndone\n"]]
raise SystemExit(list(seen.values()) != want)
PY
JUPYTER_PATH="$work/venv/share/jupyter" "$work/venv/bin/python" "$work/run.py" 2>/dev/null
