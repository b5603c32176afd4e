"""Installs the peers of the benchmark, each into an environment of its own under target/peers.

    python benches/peers/install.py [NAME ...]

The names are those of benches/peers/requirements-NAME.txt. What is there already is left as it is (remove
its folder to have it again); one that does not install is told, and does not stop the others.

llama-cpp-python is compiled for this machine, with the newest GCC there is from 13 on, else with the newest
clang. GCC before 13 miscompiles its AMX code (the first prompt ends in SIGSEGV), so where there is nothing
else AMX is left off, and the benchmark's table says so.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
INSTALLED = HERE.parents[1] / "target" / "peers"
NAMES = sorted(path.stem.removeprefix("requirements-") for path in HERE.glob("requirements-*.txt"))
NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"


def compiler() -> tuple[str, str, bool]:
    """The C and C++ compilers, and whether their AMX code is right."""
    newer = [("gcc-{}", "g++-{}", version) for version in range(20, 12, -1)]
    newer += [("clang-{}", "clang++-{}", version) for version in range(25, 16, -1)]
    for c, cpp, version in newer:
        if shutil.which(c.format(version)) and shutil.which(cpp.format(version)):
            return c.format(version), cpp.format(version), True
    said = subprocess.run(["gcc", "-dumpversion"], capture_output=True, text=True).stdout
    return "gcc", "g++", int(said.split(".")[0] or 0) >= 13


def build_environment() -> dict[str, str]:
    cpu = Path("/proc/cpuinfo")
    options = ["-DGGML_NATIVE=ON"]
    found = dict(os.environ)
    if platform.system() == "Linux" and shutil.which("gcc"):
        c, cpp, amx = compiler()
        found |= {"CC": c, "CXX": cpp}
        if not amx and cpu.exists() and "amx" in cpu.read_text():
            options += [f"-DCMAKE_C_FLAGS='{NO_AMX}'", f"-DCMAKE_CXX_FLAGS='{NO_AMX}'"]
    jobs = found.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
    return found | {"CMAKE_ARGS": " ".join(options), "CMAKE_BUILD_PARALLEL_LEVEL": jobs}


def install(name: str) -> bool:
    folder = INSTALLED / name
    if (folder / ".ready").exists():
        print(f"{name}: is there")
        return True
    print(f"{name}: installing into {folder}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    quiet = ["--quiet", "--disable-pip-version-check"]
    wanted = ["-r", str(HERE / f"requirements-{name}.txt")]
    environment = build_environment() if name.startswith("llama.cpp") else dict(os.environ)
    run = subprocess.run([python, "-m", "pip", "install", *quiet, *wanted], env=environment)
    if run.returncode == 0:
        (folder / ".ready").touch()
    return run.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)} (all, if none is named)"
    )
    names = parser.parse_args().names or NAMES
    for name in names:
        if name not in NAMES:
            parser.error(f"{name!r} is none of {', '.join(NAMES)}")
    missing = [name for name in names if not install(name)]
    if missing:
        sys.exit(f"not installed: {', '.join(missing)}")


if __name__ == "__main__":
    main()
