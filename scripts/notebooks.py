"""Runs the notebooks and compares what they show with what is committed; --write puts the new outputs there.

Answers repeat bit by bit, so outputs must be equal; seconds and tokens a second are not looked at, nor are
the cells that are tagged "varies" (what they show depends on the machine). No cell may fail, warn, or show a
path of this machine. The kernel is this interpreter, with no settings, history or cache of the user's.
"""

from __future__ import annotations

import argparse
import copy
import difflib
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
#: What differs from run to run in every output.
TIMES = re.compile(r"Timings\([^)]*\)|\d[\d,.]*(?= (?:s|ms|tokens/s)\b)")
#: A progress bar as it stands at the end, or the blanks that it left.
BAR = re.compile(r"^.*\d%\|.*\| \S+/\S+ \[.*\] *\n?|\A\s+\Z", re.MULTILINE)
_PATIENCE = 300  # seconds for the kernel to start and for a cell, on a machine with much else to do
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="begins of file names (default: all)")
    parser.add_argument("--write", action="store_true", help="keep the new outputs")
    options = parser.parse_args()
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    chosen = [path for path in paths if not options.names or path.name.startswith(tuple(options.names))]
    if not chosen:
        parser.error(f"no notebook begins like that; there are {', '.join(path.stem for path in paths)}")
    wrong = [line for path in chosen for line in check(path, options.write)]
    if wrong:
        print("\n".join(wrong))
    sys.exit(bool(wrong))


def check(path: Path, write: bool) -> list[str]:
    """What is wrong with a notebook, in lines for a person."""
    began = time.monotonic()
    old = nbformat.read(path, as_version=4)
    new = executed(old)
    wrong = list(faults(new))
    if not write:
        wrong += difflib.unified_diff(shown(old), shown(new), "committed", "now", lineterm="", n=1)
    elif not wrong:
        nbformat.write(new, path)
    print(f"{path.stem}: {'FAILED' if wrong else 'ok'}, {time.monotonic() - began:.1f} s", flush=True)
    return [f"{path.stem}: {line}" for line in wrong]


class Kernel(AsyncKernelManager):
    """This interpreter, which is what there is without kernel specs. By sockets in a folder: a port is open
    to everybody on the machine. (A relative path would be looked up in the kernel's own folder.)"""

    def __init__(self, **given: Any) -> None:
        socket = os.path.join(os.environ["JUPYTER_RUNTIME_DIR"], "socket")
        specs = KernelSpecManager(kernel_dirs=[])
        super().__init__(**given, kernel_spec_manager=specs, transport="ipc", ip=socket)


def executed(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    new = copy.deepcopy(notebook)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "DSPY_CACHEDIR"):
            os.environ[name] = os.path.join(folder, name)
            os.mkdir(os.environ[name])
        (work := Path(folder, "work")).mkdir()
        NotebookClient(
            new,
            kernel_manager_class=Kernel,
            kernel_name="python3",
            startup_timeout=_PATIENCE,
            timeout=_PATIENCE,
            record_timing=False,
            coalesce_streams=True,
            allow_errors=True,
        ).execute(cwd=str(work))
    new.metadata = nbformat.from_dict(METADATA)
    for cell in code_cells(new):
        cell.outputs = [output for output in map(tidy, cell.outputs) if output.get("text") != ""]
    return new


def tidy(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    if output.output_type == "stream":
        output.text = BAR.sub("", output.text)
    if "text/html" in output.get("data", ()):  # then the text is for the terminal, and long
        output.data.pop("text/plain", None)
    return output


def code_cells(notebook: nbformat.NotebookNode) -> Iterator[nbformat.NotebookNode]:
    return (cell for cell in notebook.cells if cell.cell_type == "code")


def texts(cell: nbformat.NotebookNode) -> Iterator[tuple[str, str]]:
    """What a cell shows: (kind, text)."""
    for output in cell.outputs:
        if output.output_type == "stream":
            yield output.name, output.text
        elif output.output_type == "error":
            yield "error", f"{output.ename}: {output.evalue}"
        else:
            yield from sorted(output.data.items())


def shown(notebook: nbformat.NotebookNode) -> list[str]:
    """What must not change, a line of text each."""
    lines = []
    for cell in code_cells(notebook):
        lines.append(f"# {cell.source.splitlines()[0]}")
        if "varies" not in cell.metadata.get("tags", ()):
            for kind, text in texts(cell):
                text = TIMES.sub("#", text).replace("><", ">\n<")
                lines += [f"{kind}: {line}" for line in text.splitlines()]
    return lines


def faults(notebook: nbformat.NotebookNode) -> Iterator[str]:
    private = {str(Path.home()), str(ROOT), sys.prefix, tempfile.gettempdir() + os.sep}
    for cell in code_cells(notebook):
        first = cell.source.splitlines()[0]
        for kind, text in texts(cell):
            if kind in ("error", "stderr"):
                yield f"{first!r} shows {kind}: {text}"
            for path in private:
                if path in text:
                    yield f"{first!r} shows a path of this machine: {path}"


if __name__ == "__main__":
    main()
