"""Runs DSPy's own tests, unchanged, on tallow: ``python scripts/dspy_tests.py [suite ...]``.

The tests are fetched from DSPy's repository at the revisions below into ``target/dspy-tests`` (none of its
code is kept here) and run with the plugin ``tests/python/dspy_plugin.py`` against the DSPy that is installed.
They need ``pip install "tallow[dspy]" pytest pytest-asyncio numpy litellm``, and ``reliability`` also PyYAML
and datamodel-code-generator.

- ``llm``: those that call a language model: streams with listeners, usage, cache.
- ``contract``: what DSPy asks of any engine: construction, copies, saving. Their ``Echo`` is tallow's engine.
- ``reliability``: thirteen deep and typed answers, each of which must parse and is then judged by the model
  itself (so a small one fails many); not among those that run by default.

``--source`` is another place to fetch from (a clone on disk), ``--checkout`` a folder that has ``tests/``
already. Further arguments go to pytest.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "https://github.com/stanfordnlp/dspy"


@dataclass(frozen=True)
class Suite:
    revision: str
    tests: tuple[str, ...]
    options: tuple[str, ...] = ()


_STREAMING, _MODULE = "tests/streaming/test_streaming.py::", "tests/primitives/test_base_module.py::"

SUITES = {
    "llm": Suite(
        "4ed377ee9110e912d4f5e1be43b317b87455053c",  # 3.3.1, the last release that had them
        (
            f"{_STREAMING}test_stream_listener_chat_adapter",
            f"{_STREAMING}test_stream_listener_json_adapter",
            f"{_STREAMING}test_sync_streaming",
            f"{_MODULE}test_single_module_call_with_usage_tracker",
            f"{_MODULE}test_multi_module_call_with_usage_tracker",
            "tests/utils/test_usage_tracker.py::test_track_usage_context_manager",
        ),
        ("--llm_call",),
    ),
    "contract": Suite(
        "9fac4a00a30582524d790e12d7a78c7119c2e59d",  # of 3.4
        ("tests/clients/test_custom_engine_contract.py",),
    ),
    "reliability": Suite(
        "4ed377ee9110e912d4f5e1be43b317b87455053c", ("tests/reliability",), ("--reliability",)
    ),
}
DEFAULT = ("llm", "contract")
#: DSPy's tests limit no answer, and greedy decoding of a model as small as the default one runs in circles.
OPTIONS = '{"max_tokens": 300}'

SETTINGS = """[pytest]
addopts = -q -p no:cacheprovider
asyncio_mode = strict
asyncio_default_fixture_loop_scope = function
markers =
    llm_call: calls a language model
    reliability: judges answers
    extra: needs more packages
    deno: needs deno
"""

#: Each test is given a model under these names, of those that DSPy's reliability tests know.
RELIABILITY = """adapter: {adapter}
model_list:
  - model_name: "judge"
    litellm_params: {{model: "tallow/{model}"}}
  - model_name: "llama-3.2-3b-instruct"
    litellm_params: {{model: "tallow/{model}"}}
"""


def fetched(revision: str, source: str) -> Path:
    """A folder with DSPy's ``tests`` at that revision, and nothing of its package."""
    folder = ROOT / "target" / "dspy-tests" / revision[:12]
    if not (folder / "tests").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        git = ("git", "-C", str(folder))
        subprocess.run([*git, "init", "--quiet"], check=True)
        subprocess.run([*git, "fetch", "--quiet", "--depth", "1", source, revision], check=True)
        subprocess.run([*git, "checkout", "--quiet", "FETCH_HEAD", "--", "tests"], check=True)
    return folder


def run(suite: Suite, folder: Path, given: argparse.Namespace, more: list[str]) -> int:
    (folder / "pytest.ini").write_text(SETTINGS)
    if suite is SUITES["reliability"]:
        configuration = RELIABILITY.format(adapter=given.adapter, model=given.model)
        (folder / "tests" / "reliability" / "reliability_conf.yaml").write_text(configuration)
    paths = [ROOT / "tests" / "python", folder, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "TALLOW_LM": given.model,
        "TALLOW_LM_OPTIONS": given.lm,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "DSPY_CACHEDIR": str(folder / "cache"),
    }
    command = [sys.executable, "-m", "pytest", "-c", "pytest.ini", "-p", "dspy_plugin"]
    command += [*suite.options, *more, *suite.tests]
    return subprocess.run(command, cwd=folder, env=environment).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("suite", nargs="*", default=list(DEFAULT), choices=[*SUITES, []])
    parser.add_argument("--model", default="smollm2", help="source of the model (smollm2)")
    parser.add_argument("--adapter", default="chat", choices=["chat", "json"], help="for reliability (chat)")
    parser.add_argument("--lm", default=OPTIONS, help=f"arguments of the LM, as JSON ({OPTIONS})")
    parser.add_argument("--source", default=SOURCE, help="repository to fetch from")
    parser.add_argument("--checkout", type=Path, help="a folder that has tests/ already")
    given, more = parser.parse_known_args()
    failed = 0
    for name in given.suite or DEFAULT:
        suite = SUITES[name]
        folder = given.checkout or fetched(suite.revision, given.source)
        failed |= run(suite, folder.resolve(), given, more)
    return failed


if __name__ == "__main__":
    sys.exit(main())
