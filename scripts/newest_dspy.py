"""Runs the tests that touch DSPy on its newest release that tallow admits, if that is not the pinned one.

``python scripts/newest_dspy.py [RELEASE]`` is a part of ``make check``. The release gets an environment of
its own in ``target/newest-dspy``; everything else is that of the environment that runs this.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "target" / "newest-dspy"
TESTS = (
    "test_dspy",
    "test_contract",
    "test_parts",
    "test_formats",
    "test_judge",
    "test_embed",
    "test_never_fails",
)


def newest(python: str, requirement: str) -> str:
    """The version that pip would take now."""
    command = [python, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
    command += ["--disable-pip-version-check", "--report", "-", requirement]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return str(report["install"][0]["metadata"]["version"])


def main() -> int:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (requirement,) = extras["dspy"]
    asked, pinned = sys.argv[1:], version("dspy")
    found = asked[0] if asked else newest(sys.executable, requirement)
    if found == pinned:
        print(f"DSPy {pinned} is the newest release that {requirement} admits")
        return 0
    print(f"DSPy {found}, beside {pinned}", flush=True)
    venv.create(FOLDER, with_pip=True, clear=True)
    python = str(FOLDER / "bin" / "python")
    # What is installed here can be imported there, behind what is installed there.
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    (Path(site) / "outer.pth").write_text(
        f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    )
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, f"dspy=={found}"], check=True)
    tests = [f"tests/python/{name}.py" for name in TESTS]
    return subprocess.run([python, "-m", "pytest", *tests], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
