"""The scripts in findings/ have one form, and its README lists them; they are not run here."""

from __future__ import annotations

import os
import re
import shlex

import pytest

from conftest import ROOT

FOLDER = ROOT / "findings"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
# The script and what was seen with it: the last two columns of a row.
ROWS = re.findall(
    r"\| ([^|]+) \| \[script\]\(([^)]+)\) \|$",
    (FOLDER / "README.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)
HEAD = ("Usual guess: ", "Seen (", "Output seen", "Exits with 0 if it is still so")
# An address of the machine itself is none.
HOST = re.compile(r"https?://(?!127\.0\.0\.1)|--(extra-)?index-url|--find-links|\.(org|com|io|co|net)\b")


def head(text: str) -> list[str]:
    """The comment at the top, without the first line."""
    lines = text.splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return lines[1:end]


def requirements(text: str) -> list[str]:
    """What the calls of `pip install` name, one by one."""
    calls = re.findall(r"pip install (.*)", text.replace("\\\n", " "))
    return [word for call in calls for word in shlex.split(call) if not word.startswith(("-", "$"))]


def wrong(text: str) -> list[str]:
    """What is wrong with the text of a script."""
    comment = head(text)
    found = [
        f"no {part!r} in the head" for part in HEAD if not any(line[2:].startswith(part) for line in comment)
    ]
    found += [f"{one} is not pinned" for one in requirements(text) if "==" not in one]
    found += [
        f"{one} is not pinned" for one in re.findall(r'^.* = \{ version = "[^=].*$', text, re.MULTILINE)
    ]
    found += [f"names a host: {hit.group()}" for hit in HOST.finditer(text)]
    if not requirements(text) and 'version = "=' not in text:
        found.append("installs nothing")
    if not text.startswith("#!/usr/bin/env bash\n") or "set -euo pipefail\n" not in text:
        found.append("does not stop at the first error")
    if "trap 'rm -rf \"$work\"' EXIT" not in text:
        found.append("leaves its folder behind")
    if re.search(r"\btallow\b", text):
        found.append("uses tallow")
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_form(script):
    assert wrong(script.read_text(encoding="utf-8")) == []
    assert os.access(script, os.X_OK), "not executable"


def test_readme_lists_each_once():
    assert sorted(name for _, name in ROWS) == [script.name for script in SCRIPTS]


@pytest.mark.parametrize(("packages", "name"), ROWS, ids=[name for _, name in ROWS])
def test_versions_of_the_readme(packages, name):
    text = (FOLDER / name).read_text(encoding="utf-8")
    for package in packages.split(", "):
        project, version = package.split()
        pinned = (f'"{project}=={version}"', f'{project} = {{ version = "={version}"')
        assert any(pin in text for pin in pinned), f"{package} is not what the script pins"


GOOD = SCRIPTS[0].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("# Usual guess: ", "# One might guess: ", "no 'Usual guess: ' in the head"),
        ("# Output seen", "# It prints", "no 'Output seen' in the head"),
        ("==5", ">=5", "transformers>=5.24.0 is not pinned"),
        ("pip install", "pip install --index-url http://mirror", "names a host: --index-url"),
        ("set -euo pipefail", "set -e", "does not stop at the first error"),
        ("' EXIT", "' INT", "leaves its folder behind"),
        ("import sys", "import tallow", "uses tallow"),
    ],
)
def test_a_wrong_form_is_seen(old, new, complaint):
    """On a script that is right but for one thing."""
    assert old in GOOD
    assert complaint in wrong(GOOD.replace(old, new))
