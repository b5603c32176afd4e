"""Installs wheels into fresh environments and runs in each what a new user runs first. Prints a table.

    python scripts/test_wheel.py                          the wheels in dist/, every Python that is found
    python scripts/test_wheel.py dist/tallow-...whl --python python3.12 --environments newest

A row is an environment. `install` is `pip install WHEEL` with pip's cache as it is (run twice if it is cold),
`import` the best of three processes, `token` a process from its start to the first token of the cached small
model, and `sum` what a new user waits for: install and token.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.14t", "3.15", "3.15t")
LIMIT_IMPORT_MS, LIMIT_SUM_S = 60.0, 3.0


@dataclass(frozen=True)
class Environment:
    """What is installed beside the wheel, as pip reads it."""

    name: str
    extra: str = ""
    beside: tuple[str, ...] = ()

    def requirements(self, wheel: Path) -> list[str]:
        return [f"{wheel}{self.extra}", *self.beside]


#: The lower ends of what pyproject.toml asks for.
OLDEST = ("numpy==1.23.*", "tqdm==4.60.*")
#: The first is what the times are told of.
ENVIRONMENTS = (
    Environment("newest"),
    Environment("numpy 1", beside=("numpy<2",)),
    Environment("oldest", beside=OLDEST),
    Environment("dspy", extra="[dspy]"),
    Environment("dspy, numpy 1", extra="[dspy]", beside=("numpy<2",)),
)

IMPORT = (
    "import time; began = time.perf_counter(); import tallow; print((time.perf_counter() - began) * 1000)"
)
INSTALLED = """
from importlib.metadata import PackageNotFoundError, version
for name in ("numpy", "dspy"):
    try: print(version(name))
    except PackageNotFoundError: print("-")
"""
TOKEN = """
import tallow
with tallow.Model("smollm2").stream("The capital of France is", max_tokens=8, temperature=0) as chunks:
    print(next(iter(chunks)).text)
"""
THREADS = """
from concurrent.futures import ThreadPoolExecutor
import tallow
model = tallow.Model("smollm2")
ask = lambda text: model.generate(text, max_tokens=8, temperature=0).text
texts = ["The capital of France is", "One, two, three,"]
alone = [ask(text) for text in texts]
with ThreadPoolExecutor(2) as pool:
    assert list(pool.map(ask, texts)) == alone, alone
import sys, sysconfig
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    assert not sys._is_gil_enabled(), "importing tallow has switched the GIL on"
"""
WRONG = """
import tallow
try: tallow.Model("smollm2").generate("Hi", max_token=3)
except tallow.InvalidRequestError as error: assert isinstance(error, ValueError) and "max_token" in str(error)
else: raise SystemExit("a misspelt argument was taken")
"""


NEEDS_DSPY = re.compile(r"\bdspy\b|tallow\.(LM|Judge|Embed)\b")


class Failed(Exception):
    """A program did not do what it should; the text is its end."""


def out(command: Sequence[str | Path], **more: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=tempfile.gettempdir(), **more)  # type: ignore[call-overload]
    if done.returncode != 0:
        raise Failed(f"{' '.join(map(str, command))[:200]}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return str(done.stdout)


# Pythons.


def pythons(asked: Iterable[str]) -> Iterator[Path]:
    """Those that were asked for, or each version once, from PATH or pyenv, that starts."""
    for name in asked:
        found = shutil.which(name)
        if not found:
            sys.exit(f"there is no {name}")
        yield Path(found)
    if asked:
        return
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for version in VERSIONS:
        candidates = [
            shutil.which(f"python{version}"),
            *sorted(pyenv.glob(f"{version}.*/bin/python{version}")),
        ]
        if python := next((Path(it) for it in candidates if it and answers(Path(it), version)), None):
            yield python
        else:
            print(f"python{version}: not found, so nothing is proven of it", flush=True)


def answers(python: Path, version: str) -> bool:
    """Whether it runs and is of that version; pyenv has commands on PATH for versions that are not chosen."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() == version.rstrip("t")


# One environment.


def binary(folder: Path, name: str) -> Path:
    return folder / ("Scripts" if os.name == "nt" else "bin") / name


def fitting(python: Path, wheels: Sequence[Path]) -> Path | None:
    """The first wheel that this interpreter's pip takes."""
    command = [python, "-m", "pip", "install", "--dry-run", "--no-deps", "--no-index", "--ignore-installed"]
    for wheel in wheels:
        if subprocess.run([*command, wheel], capture_output=True).returncode == 0:
            return wheel
    return None


def available(python: Path, environment: Environment) -> bool:
    """Whether there are wheels of what is installed beside: NumPy 1 has none for Python 3.13, and much of
    what DSPy needs has none for a free-threaded one."""
    if environment.extra and free_threaded(python):
        return False
    command = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest"]
    with tempfile.TemporaryDirectory() as folder:
        return not environment.beside or (
            subprocess.run([*command, folder, *environment.beside], capture_output=True).returncode == 0
        )


def free_threaded(python: Path) -> bool:
    return (
        out([python, "-c", "import sysconfig; print(sysconfig.get_config_var('Py_GIL_DISABLED'))"]).strip()
        == "1"
    )


def install(python: Path, wheel: Path, environment: Environment) -> float:
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]
    began = time.perf_counter()
    out([*pip, *environment.requirements(wheel)])
    return time.perf_counter() - began


def seconds(command: Sequence[str | Path]) -> float:
    began = time.perf_counter()
    out(command)
    return time.perf_counter() - began


def programs(python: Path, dspy: bool) -> None:
    """Runs what a new user runs, and a wrong input; raises Failed with the end of what went wrong."""
    program, expected = first_program((ROOT / "README.md").read_text(encoding="utf-8"), dspy)
    printed = out([python, "-c", program])
    if expected is not None and printed.strip() != expected.strip():
        raise Failed(f"README says\n{expected}\nand this was printed\n{printed}")
    command = python.with_name("tallow.exe" if os.name == "nt" else "tallow")
    version = out([command, "--version"])
    if has_main(python) and out([python, "-m", "tallow", "--version"]) != version:
        raise Failed("python -m tallow says another version than tallow")
    out([python, "-c", THREADS])
    out([python, "-c", WRONG])
    done = subprocess.run([command, "info", "no/such.gguf"], capture_output=True, text=True)
    if done.returncode != 1 or len(done.stderr.strip().splitlines()) != 1:
        raise Failed(f"tallow info no/such.gguf: not one line and exit code 1 but\n{done.stderr}")


def has_main(python: Path) -> bool:
    code = "import importlib.util; print(importlib.util.find_spec('tallow.__main__') is not None)"
    return out([python, "-c", code]).strip() == "True"


def first_program(text: str, dspy: bool) -> tuple[str, str | None]:
    """A README's first program, or its first without DSPy, and the output that stands right below it."""
    blocks = re.findall(r"^```python\n(.*?)^```\n+(?:^```text\n(.*?)^```)?", text, re.DOTALL | re.MULTILINE)
    program, expected = next(block for block in blocks if dspy or not NEEDS_DSPY.search(block[0]))
    return program, expected or None


# All of them.


def row(
    base: Path, wheels: Sequence[Path], environment: Environment, folder: Path
) -> dict[str, object] | None:
    """Makes the environment, runs everything in it and says what came out; None if packages are missing."""
    out([base, "-m", "venv", folder])
    python = binary(folder, "python")
    version = out([python, "-c", "import sys; print(sys.version.split()[0] + getattr(sys, 'abiflags', ''))"])
    told: dict[str, object] = {"python": version.strip(), "with": environment.name}
    wheel = fitting(python, wheels)
    if wheel is None:
        return {**told, "result": "no wheel fits"}
    if not available(python, environment):
        return None
    told["wheel"] = wheel.name.removesuffix(".whl").split("-", 2)[2]
    told["MB"] = round(wheel.stat().st_size / 1e6, 1)
    try:
        told["install"] = round(install(python, wheel, environment), 2)
        told["numpy"], told["dspy"] = out([python, "-c", INSTALLED]).split()
        out([python, "-c", TOKEN])  # a first run writes bytecode and fetches the model if it is not there
        told["import"] = round(min(float(out([python, "-c", IMPORT])) for _ in range(3)), 1)
        told["token"] = round(seconds([python, "-c", TOKEN]), 2)
        told["sum"] = round(float(str(told["install"])) + float(str(told["token"])), 2)
        programs(python, told["dspy"] != "-")
        told["result"] = "good"
    except Failed as failure:
        told["result"] = "FAILED"
        print(failure, flush=True)
    return told


#: Their widths; times are seconds, but for the import's milliseconds.
COLUMNS = {
    "python": 8,
    "with": 13,
    "numpy": 7,
    "dspy": 6,
    "MB": 5,
    "install": 8,
    "import": 7,
    "token": 6,
    "sum": 6,
    "result": 7,
    "wheel": 0,
}


def line(cells: dict[str, object]) -> str:
    return "  ".join(str(cells.get(name, "-")).ljust(width) for name, width in COLUMNS.items()).rstrip()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("wheel", nargs="*", type=Path, help="(those in dist/)")
    parser.add_argument("--python", nargs="*", default=[], metavar="COMMAND", help="(every version found)")
    names = [it.name for it in ENVIRONMENTS]
    parser.add_argument("--environments", nargs="+", default=names, choices=names, help="(all)")
    parser.add_argument(
        "--limits", action="store_true", help="fail if a target of docs/packaging.md is missed"
    )
    given = parser.parse_args()
    wheels = [path.resolve() for path in given.wheel or sorted((ROOT / "dist").glob("*.whl"))]
    if not wheels:
        sys.exit("there is no wheel in dist/; `make wheels` builds them")
    print(line({name: name for name in COLUMNS}), flush=True)
    rows = []
    for python in pythons(given.python):
        for environment in ENVIRONMENTS:
            if environment.name in given.environments:
                with tempfile.TemporaryDirectory() as folder:
                    told = row(python, wheels, environment, Path(folder) / "env")
                if told is not None:
                    rows.append(told)
                    print(line(told), flush=True)
    print(json.dumps(rows)) if os.environ.get("CI") else None
    late = [it for it in rows if given.limits and missed(it)]
    bad = [it for it in rows if it["result"] != "good"]
    print(
        f"{len(rows) - len(bad)} passed, {len(bad)} failed{f', {len(late)} missed a target' if late else ''}"
    )
    return int(bool(bad or late))


def missed(told: dict[str, object]) -> bool:
    """Whether an environment with nothing but the wheel and the newest packages is slower than promised."""
    return told["with"] == "newest" and (
        float(str(told.get("import", 0))) > LIMIT_IMPORT_MS or float(str(told.get("sum", 0))) > LIMIT_SUM_S
    )


if __name__ == "__main__":
    sys.exit(main())
