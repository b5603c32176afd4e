"""What importing costs, what it must not import, and what the package promises to hold."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from tqdm.std import tqdm

import tallow
from conftest import python
from tallow import progress
from tallow.progress import Bars, reporter


def test_import_is_quick_and_light():
    code = (
        "import sys, time; began = time.process_time(); import tallow; took = time.process_time() - began;"
        "heavy = {'dspy', 'torch', 'numpy', 'tqdm', 'asyncio', 'transformers', 'logging'} & set(sys.modules);"
        "print(took); print(sorted(heavy))"
    )
    runs = [python(code).stdout.split("\n")[:2] for _ in range(3)]
    assert runs[0][1] == "[]"
    assert min(float(took) for took, _ in runs) < 0.100  # 0.05 where the target is measured


def test_lm_without_dspy_says_how_to_get_it():
    done = python("import sys; sys.modules['dspy'] = None; import tallow\ntallow.LM")
    assert done.returncode == 1
    assert 'pip install "tallow[dspy]"' in done.stderr and "ImportError" in done.stderr


def test_star_import_and_dir():
    names: dict = {}
    exec("from tallow import *", names)
    assert {"Model", "Sampler", "Completion", "Error"} <= set(names)
    assert "LM" in dir(tallow)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = tallow.nothing_like_it


BUILT_IN = {
    "ModelFileError": OSError,
    "UnsupportedModelError": ValueError,
    "HubError": OSError,
    "ContextLengthError": ValueError,
    "InvalidRequestError": ValueError,
    "ConstraintError": ValueError,
    "TemplateError": ValueError,
    "OutOfMemoryError": MemoryError,
    "DeviceError": RuntimeError,
    "Cancelled": RuntimeError,
    "Timeout": TimeoutError,
    "ArgumentTypeError": TypeError,
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_errors_are_built_ins_as_well(name):
    error = getattr(tallow, name)
    assert issubclass(error, tallow.Error) and issubclass(error, BUILT_IN[name])
    assert (error.__module__, error.__name__) == ("tallow", name)


def test_features_tell_the_machine():
    assert {"cuda", "isa", "isa_opt_in"} <= tallow.features().keys()
    assert tallow.__version__.count(".") == 2


def test_progress_is_for_those_who_watch(tiny_folder, monkeypatch):
    assert reporter(False) is None
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert reporter(True) is None  # piped
    calls: list[tuple] = []
    report = lambda *call: calls.append(call)
    assert reporter(report) is report
    tallow.Model(tiny_folder, context_length=32, progress=report)
    assert all(isinstance(what, str) and isinstance(done, int) for what, _, done in calls)


def test_bars_come_only_when_it_takes_long(capsys):
    quick, slow = Bars(), Bars(patience=0.0)
    for bars in (quick, slow):
        bars("model.gguf", 100, 10)
        bars("model.gguf", 100, 60)
        assert ("model.gguf" in capsys.readouterr().err) == (bars is slow)
        bars("model.gguf", 100, -1)


@pytest.mark.parametrize("total", [100, None])
def test_a_bar_is_full_when_its_item_is_finished(total, monkeypatch):
    made = []
    monkeypatch.setattr(progress, "bar_of", lambda what, total: made.append(tqdm(total=total)) or made[-1])
    bars = Bars(patience=0.0)
    for done in (10, 60, -1):
        bars("model.gguf", total, done)
    assert [bar.n for bar in made] == [total or 60] and made[0].disable, "closed"


def test_the_interpreter_ends_while_requests_run(tiny_folder):
    code = (
        "import asyncio, sys, tallow\n"
        "model = tallow.Model(sys.argv[1])\n"
        "async def go():\n"
        "    task = asyncio.create_task(model.agenerate('once'))\n"
        "    await asyncio.sleep(0)\n"
        "asyncio.run(go())\n"
        "kept = model.stream('once upon')\n"
        "print('done')\n"
    )
    done = python(code, str(tiny_folder), timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_failing_progress_callback_reaches_the_caller(tmp_path):
    from conftest import copy_family

    folder = copy_family("llama-mha", tmp_path / "other")

    def breaks(what, total, done):
        raise KeyError("my own mistake")

    try:
        tallow.Model(folder, progress=breaks)
    except KeyError as error:
        assert "my own mistake" in str(error)


def test_the_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "tallow", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"tallow {tallow.__version__}")
