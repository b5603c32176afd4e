"""Runs real clients, pinned, against ``tallow serve`` on this machine: ``make clients``.

``python scripts/clients.py [NAME ...]``: each is a script in ``tests/clients`` (``with_NAME``), which docs
show as they stand. Those of this environment run in it; the others get one for each group that can be
installed together, in ``target/clients``, made once for its pins.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "tests" / "clients"
#: A group's requirements, and its clients. The first is the environment that runs this.
GROUPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "": ((), ("openai", "dspy", "dspy_plain", "litellm", "llm", "curl")),
    "openai-3": (
        ("langchain-openai==1.7.4", "pydantic-ai-slim[openai]==2.68.0"),
        ("langchain", "pydantic_ai"),
    ),
    "openai-2": (
        ("instructor==1.17.0", "llama-index-llms-openai-like==0.8.1"),
        ("instructor", "llama_index"),
    ),
}
SECONDS = 300


def main() -> int:
    names = [name for _, clients in GROUPS.values() for name in clients]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    asked = parser.parse_args().names
    for name in asked:
        if name not in names:
            parser.error(f"there is no client {name!r}; there are {', '.join(names)}")
    failed = []
    with served() as url:
        for group, (requirements, clients) in GROUPS.items():
            wanted = [name for name in clients if not asked or name in asked]
            python = environment(group, requirements) if wanted else ""
            failed += [name for name in wanted if not works(name, python, url)]
    print(f"failed: {', '.join(failed)}" if failed else "all clients work")
    return 1 if failed else 0


def environment(group: str, requirements: tuple[str, ...]) -> str:
    """The Python of a group, which has its requirements."""
    if not requirements:
        return sys.executable
    folder = ROOT / "target" / "clients" / group
    python, done = str(folder / "bin" / "python"), folder / "requirements.txt"
    text = "\n".join(requirements)
    if not done.exists() or done.read_text() != text:
        print(f"installing {' '.join(requirements)}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*command, *requirements], check=True)
        done.write_text(text)
    return python


@contextlib.contextmanager
def served() -> Iterator[str]:
    """The address of ``tallow serve smollm2 --dspy``."""
    command = [sys.executable, "-m", "tallow", "serve", "smollm2", "--port", "0", "--dspy", "--log", "off"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            told = ""
            while (found := re.search(r" at (http\S+)", told)) is None:
                line = server.stderr.readline()
                if not line:
                    raise SystemExit(f"the server did not start:\n{told}")
                told += line
            yield found[1]
        finally:
            server.terminate()


def works(name: str, python: str, url: str) -> bool:
    """Whether a client's script runs to its end."""
    path = SCRIPTS / f"with_{name}.py"
    command = [python, str(path)] if path.exists() else ["sh", str(path.with_suffix(".sh"))]
    # Who asks the network for something else would wait for it where there is none.
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "true", "DO_NOT_TRACK": "1"}
    begin = time.monotonic()
    done = subprocess.run(
        command,
        env={**os.environ, **quiet, "TALLOW_BASE_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    took = time.monotonic() - begin
    print(f"{name:12} {'ok' if done.returncode == 0 else 'FAILED'} ({took:.1f} s)", flush=True)
    if done.returncode != 0:
        print(done.stdout, flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
