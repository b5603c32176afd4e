"""Builds tallow's wheels and source distribution into ``dist/`` and checks what came out (docs/packaging.md).

    python scripts/wheels.py                     what a release has for this machine
    python scripts/wheels.py build abi3 sdist    some of it
    python scripts/wheels.py check dist/*        only the checks

Needs scripts/requirements-wheels.txt, which `make wheels` installs into an environment of its own, and Rust.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from steps import duration, run

if TYPE_CHECKING:
    from packaging.metadata import Metadata

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
LOGS = ROOT / "target" / "packaging"
#: Reads the wheels of a folder: what they were made of, and how long that took.
MANIFEST = "manifest.json"
#: The oldest glibc that a wheel runs on: that of Debian 10 and RHEL 8, and the oldest that NumPy 2 runs on.
MANYLINUX = "manylinux_2_28"
NEWEST_GLIBC = (2, 28)
LIMIT_MB = 30.0


@dataclass(frozen=True)
class Kind:
    """A wheel of a platform. maturin knows the layout of an interpreter by its name and need not find it."""

    tag: str
    interpreter: str
    #: Cargo's; those in pyproject.toml are said again, for maturin takes either these or those.
    features: tuple[str, ...] = ()


KINDS = {
    # CPython 3.10 and later
    "abi3": Kind("cp310-abi3", "python3.10"),
    # free-threaded CPython 3.14, which has no stable ABI
    "cp314t": Kind("cp314-cp314t", "python3.14t"),
    # CPython 3.15 and later, with the GIL and without
    "abi3t": Kind("cp315-abi3.abi3t", "python3.15", ("python", "abi3t")),
}
#: What a release has. The wheel for 3.15 joins it when it has run once.
RELEASE = ("abi3", "cp314t", "sdist")

#: Names that a file list must have, and that it must not have, by the end of the archive's name. A name that
#: ends in `/` stands for all below it.
MUST = {
    ".whl": (
        "tallow/__init__.py",
        "tallow/_core.pyi",
        "tallow/py.typed",
        "tallow/dspy/__init__.py",
        ".dist-info/licenses/LICENSE",
        ".dist-info/entry_points.txt",
    ),
    ".gz": (
        "Cargo.toml",
        "Cargo.lock",
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "src/lib.rs",
        "python/tallow/py.typed",
    ),
}
MUST_NOT = ("tests/", "target/", "findings/", "scripts/", ".github/", "__pycache__/")
URLS = ("Changelog", "Documentation", "Homepage", "Issues")
SDIST_LIMIT_MB = 2.0


# What an archive holds.


def contents(archive: Path) -> dict[str, bytes]:
    """The files of a wheel or sdist by name, without the folder that an sdist puts around them."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist()}
    with tarfile.open(archive) as sdist:
        files = [member for member in sdist.getmembers() if member.isfile()]
        return {file.name.partition("/")[2]: sdist.extractfile(file).read() for file in files}  # type: ignore[union-attr]


def metadata(files: dict[str, bytes]) -> Metadata:
    """What the index will read. Raises an ExceptionGroup for what it would refuse."""
    from packaging.metadata import (
        Metadata,
    )  # not in a bare interpreter, which `make demo` runs this file with

    (name,) = [name for name in files if name == "PKG-INFO" or name.endswith(".dist-info/METADATA")]
    return Metadata.from_email(files[name])


def problems(archive: Path) -> list[str]:
    """What is wrong with a wheel or an sdist, one line each."""
    files = contents(archive)
    found = [
        f"lacks {must}" for must in MUST[archive.suffix] if not any(name.endswith(must) for name in files)
    ]
    found += [f"holds {name}" for name in files if any(f"/{folder}" in f"/{name}" for folder in MUST_NOT)]
    if archive.suffix == ".gz":
        found += [f"holds {name}" for name in files if name.endswith((".so", ".pyd", ".pyc"))]
    told = metadata(files)
    found += [f"has no address {label!r}" for label in URLS if label not in (told.project_urls or {})]
    if (told.license_expression, told.license_files) != ("Apache-2.0", ["LICENSE"]):
        found.append(f"has the license {told.license_expression} in {told.license_files}")
    limit = LIMIT_MB if archive.suffix == ".whl" else SDIST_LIMIT_MB
    if megabytes(archive) > limit:
        found.append(f"has {megabytes(archive):.1f} MB, more than {limit:.0f}")
    return found


def megabytes(path: Path) -> float:
    return path.stat().st_size / 1e6


def audit(wheel: Path) -> tuple[str, list[str]]:
    """The newest glibc whose symbols a Linux wheel asks for, and what the auditors have against the wheel."""
    found = []
    if "-abi3-" in wheel.name:
        audited = tool("abi3audit", "--strict", str(wheel))
        found += [audited.stdout + audited.stderr] if audited.returncode else []
    if "linux" not in wheel.name:
        return "-", found
    told = json.loads(tool("auditwheel", "show", "--json", str(wheel)).stdout)
    symbols = {symbol for library in told["versioned_symbols"].values() for symbol in library}
    versions = [tuple(map(int, it[6:].split("."))) for it in symbols if it.startswith("GLIBC_")]
    newest = max(versions, default=(0,))
    if newest > NEWEST_GLIBC or told["external_libs"]:
        found.append(f"needs {sorted(symbols)} and the libraries {sorted(told['external_libs'])}")
    return ".".join(map(str, newest)), found


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name(name)), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def check(archives: Sequence[Path]) -> int:
    """Prints a line for each archive; 1 if something is wrong with one."""
    failed = 0
    for archive in archives:
        glibc, found = audit(archive) if archive.suffix == ".whl" else ("-", [])
        found += problems(archive)
        verdict = "; ".join(found) or "good"
        print(f"{archive.name}: {megabytes(archive):.1f} MB, glibc {glibc}, {verdict}")
        failed |= bool(found)
    return failed


# Building.


def sources() -> str:
    """A hash of every file that a build reads; wheels of equal hashes do the same."""
    files = [ROOT / name for name in ("Cargo.toml", "Cargo.lock", "pyproject.toml")]
    for folder in ("src", "python"):
        files += [path for path in (ROOT / folder).rglob("*") if path.suffix in {".rs", ".py", ".pyi"}]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(ROOT).as_posix()} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def noted(folder: Path) -> dict[str, dict]:
    """What the folder's manifest says of the wheels that are still there."""
    path = folder / MANIFEST
    notes = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {name: note for name, note in notes.items() if (folder / name).exists()}


def same_sources(folder: Path) -> list[Path]:
    """The wheels in a folder that were made of the sources as they are now."""
    now = sources()
    return [folder / name for name, note in noted(folder).items() if note["sources"] == now]


def maturin(
    title: str, arguments: Sequence[str], *, usual: str, out: Path, environment: Path = Path(sys.prefix)
) -> list[Path]:
    """Runs the environment's maturin and returns what it put into ``out``, whose manifest then knows it."""
    before = {path: path.stat().st_mtime_ns for path in out.glob("tallow-*")}
    read = sources()  # before, for they may be edited while it compiles
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    # where maturin looks for zig
    variables = {"VIRTUAL_ENV": str(environment), "PATH": os.pathsep.join([str(scripts), os.environ["PATH"]])}
    command = [str(scripts / "maturin"), *arguments, "--out", str(out)]
    command += ["--manifest-path", str(ROOT / "Cargo.toml")]
    log = LOGS / f"{title.replace(' ', '-')}.log"
    seconds = run(title, command, usual=usual, log=log, env=variables)
    made = [path for path in sorted(out.glob("tallow-*")) if before.get(path) != path.stat().st_mtime_ns]
    notes = noted(out)
    for path in made:
        notes[path.name] = {"sources": read, "seconds": round(seconds, 1)}
    (out / MANIFEST).write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")
    return made


def build(kind: str, *, target: str | None, compatibility: str, zig: bool, out: Path) -> list[Path]:
    if kind == "sdist":
        return maturin("sdist", ["sdist"], usual="a few seconds", out=out)
    arguments = ["build", "--release", "--interpreter", KINDS[kind].interpreter]
    arguments += ["--auditwheel", "check", "--compatibility", compatibility, *(["--zig"] if zig else [])]
    arguments += ["--target", target] if target else []
    for feature in KINDS[kind].features:
        arguments += ["--features", feature]
    title = f"wheel {KINDS[kind].tag}"
    return maturin(title, arguments, usual="6 to 10 minutes on two cores, the second wheel less", out=out)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command")
    builds = commands.add_parser("build", help="build and check")
    builds.add_argument("kind", nargs="*", help=f"of {', '.join([*KINDS, 'sdist'])} ({' '.join(RELEASE)})")
    checks = commands.add_parser("check", help="check what is there")
    checks.add_argument("archive", nargs="+", type=Path)
    linux = sys.platform == "linux"
    for either in (parser, builds):
        either.add_argument("--target", help="Rust's name of the platform to build for (this one)")
        either.add_argument("--compatibility", default=MANYLINUX if linux else "pypi", help="(%(default)s)")
        either.add_argument("--zig", action=argparse.BooleanOptionalAction, default=linux, help="link by zig")
        either.add_argument("--out", type=Path, default=DIST, help="(dist)")
    given = parser.parse_args()
    if given.command == "check":
        return check(given.archive)
    kinds = getattr(given, "kind", None) or list(RELEASE)
    for kind in kinds:
        if kind not in (*KINDS, "sdist"):
            parser.error(f"{kind!r} is none of {', '.join([*KINDS, 'sdist'])}")
    given.out.mkdir(parents=True, exist_ok=True)
    made: list[Path] = []
    for kind in kinds:
        made += build(
            kind, target=given.target, compatibility=given.compatibility, zig=given.zig, out=given.out
        )
    for name, note in noted(given.out).items():
        if given.out / name in made:
            print(f"{name}: built in {duration(note['seconds'])}")
    return check(made)


if __name__ == "__main__":
    sys.exit(main())
