"""Installs tallow with DSPy into target/demo and runs examples/quickstart.py there: `make demo`.

A wheel is looked for first: the one that is named (``--wheel``), the release of an index (``--index``), one
in dist/ or of an earlier demo made of these very sources. Else it is built, which takes minutes and Rust.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from steps import run
from wheels import DIST, ROOT, maturin, same_sources

FOLDER = ROOT / "target" / "demo"
BUILT = FOLDER / "dist"
PIP = ("-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off")
PINNED = ROOT / "scripts" / "requirements-wheels.txt"
OLDEST = (3, 10)


def fits(python: Path, wheel: Path) -> bool:
    """Whether this interpreter's pip takes the wheel."""
    command = [python, *PIP, "--dry-run", "--no-deps", "--no-index", "--ignore-installed", wheel]
    return subprocess.run(command, capture_output=True).returncode == 0


def found(python: Path) -> Path | None:
    """A wheel that was made of the sources as they are."""
    return next(
        (wheel for folder in (DIST, BUILT) for wheel in same_sources(folder) if fits(python, wheel)), None
    )


def built(python: Path) -> Path:
    if shutil.which("cargo") is None:
        sys.exit(
            "There is no wheel of these sources, and building one needs Rust, which is not installed.\n"
            "See https://www.rust-lang.org/tools/install, or name a wheel: make demo WHEEL=tallow-....whl"
        )
    (pinned,) = [
        line for line in PINNED.read_text(encoding="utf-8").splitlines() if line.startswith("maturin")
    ]
    run("installing maturin, which builds it", [str(python), *PIP, pinned], log=FOLDER / "maturin.log")
    BUILT.mkdir(parents=True, exist_ok=True)
    (wheel,) = maturin(
        "building tallow",
        ["build", "--release", "--interpreter", str(python)],
        usual="5 to 10 minutes on two cores, once",
        out=BUILT,
        environment=FOLDER,
    )
    return wheel


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--wheel", help="install this file", default=os.environ.get("WHEEL"))
    parser.add_argument(
        "--index", help="install the release from this package index", default=os.environ.get("INDEX")
    )
    given = parser.parse_args()
    if sys.version_info < OLDEST:
        sys.exit(
            f"tallow needs Python 3.10 or later, and {sys.executable} is {sys.version.split()[0]}: "
            "make demo PYTHON=python3.12"
        )
    if given.wheel and not Path(given.wheel).is_file():
        sys.exit(f"there is no file {given.wheel}; WHEEL= takes the path of a wheel")
    python = FOLDER / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        print("making an environment in target/demo ...", flush=True)
        venv.create(FOLDER, with_pip=True)
    if given.index:
        what = ["--only-binary", "tallow", "--extra-index-url", given.index, "tallow[dspy]"]
    else:
        wheel = Path(given.wheel).resolve() if given.wheel else found(python) or built(python)
        print(f"tallow is {wheel.name}", flush=True)
        what = [f"{wheel}[dspy]"]
    command = [str(python), *PIP, "--upgrade", *what]
    run("installing it with DSPy", command, usual="20 s to a minute", log=FOLDER / "install.log")
    print("\nexamples/quickstart.py:\n", flush=True)
    return subprocess.run([python, ROOT / "examples" / "quickstart.py"]).returncode


if __name__ == "__main__":
    sys.exit(main())
