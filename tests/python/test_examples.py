"""Every example runs to its end on the real model, in a process of its own."""

from __future__ import annotations

import pytest

from conftest import ROOT, python

#: Arguments of those that would take minutes.
ARGUMENTS = {"finetune": ["8"]}
#: Those for Ray run where it is: test_ray.py.
EXAMPLES = [file for file in sorted((ROOT / "examples").glob("*.py")) if not file.stem.startswith("ray_")]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_example(file, smollm2, tmp_path):
    argv = [str(file), *ARGUMENTS.get(file.stem, [])]
    code = f"import runpy, sys; sys.argv = {argv!r}; runpy.run_path({str(file)!r}, run_name='__main__')"
    done = python(code, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert file.read_text(encoding="utf-8").startswith('"""'), "an example begins by saying what it shows"


def test_quickstart_has_help():
    file = str(ROOT / "examples" / "quickstart.py")
    done = python(
        f"import runpy, sys; sys.argv = [{file!r}, '--help']; runpy.run_path({file!r}, run_name='__main__')"
    )
    assert done.returncode == 0 and "usage" in done.stdout, done.stderr


def test_there_is_something_to_test():
    assert len(EXAMPLES) >= 10
