"""The ``tallow`` command, as a shell sees it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

import tallow


def run(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tallow.cli", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)


def test_run_prints_the_answer_and_nothing_else(tiny, tiny_folder):
    done = run("run", str(tiny_folder), "what is it?", "--max-tokens", "8", "--temperature", "0")
    chat = [{"role": "user", "content": "what is it?"}]
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == tiny.generate(chat, max_tokens=8, temperature=0).text + "\n"


def test_run_reads_stdin_and_takes_plain_text(tiny, tiny_folder):
    done = run(
        "run",
        str(tiny_folder),
        "--raw",
        "--max-tokens",
        "8",
        "--seed",
        "1",
        "--temperature",
        "1",
        stdin="once",
    )
    assert done.stdout == tiny.generate("once", max_tokens=8, seed=1, temperature=1.0).text + "\n"


def test_system_message(tiny, tiny_folder):
    done = run(
        "run", str(tiny_folder), "hi", "--system", "be brief", "--max-tokens", "4", "--temperature", "0"
    )
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert done.stdout == tiny.generate(chat, max_tokens=4, temperature=0).text + "\n"


def test_chat_remembers(tiny, tiny_folder):
    done = run("chat", str(tiny_folder), "--max-tokens", "4", "--temperature", "0", stdin="hi\nand?\n\n")
    turns = [{"role": "user", "content": "hi"}]
    first = tiny.generate(turns, max_tokens=4, temperature=0).text
    turns += [{"role": "assistant", "content": first}, {"role": "user", "content": "and?"}]
    second = tiny.generate(turns, max_tokens=4, temperature=0).text
    assert (done.returncode, done.stdout) == (0, f"> {first}\n> {second}\n> ")


def test_info_and_pull(smollm2):
    info = run("info", "smollm2")
    for part in ("smollm2", smollm2.fingerprint, "llama", str(smollm2.context_length), "hidden_size"):
        assert part in info.stdout
    pull = run("pull", "smollm2")
    assert (pull.returncode, pull.stderr) == (0, "") and ".gguf" in pull.stdout


def test_help_and_version():
    assert f"tallow {tallow.__version__}" in run("--version").stdout
    for arguments in (
        ["--help"],
        ["run", "--help"],
        ["chat", "--help"],
        ["info", "--help"],
        ["pull", "--help"],
    ):
        done = run(*arguments)
        assert done.returncode == 0 and "usage: tallow" in done.stdout


ERRORS = [
    (["run", "/no/such/model.gguf", "x"], 1, "model.gguf"),
    (["info", "/no/such/folder"], 1, "folder"),
    (["run", "TINY", "x", "--max-tokens", "0"], 1, "max_tokens"),
    (["run", "TINY", "x", "--temperature", "nan"], 1, "temperature"),
    (["run", "TINY", "x" * 500], 1, "128"),
    (["run"], 2, "MODEL"),
    (["dance"], 2, "dance"),
    (["run", "TINY", "x", "--raw", "--system", "y"], 2, "--system"),
]


@pytest.mark.parametrize(("arguments", "code", "part"), ERRORS, ids=lambda value: str(value)[:40])
def test_errors_are_one_line(arguments, code, part, tiny_folder):
    done = run(*(str(tiny_folder) if a == "TINY" else a for a in arguments))
    assert done.returncode == code and done.stdout == ""
    assert part in done.stderr and "Traceback" not in done.stderr
    if code == 1:
        assert done.stderr.count("\n") == 1 and done.stderr.startswith("tallow: ")


@pytest.mark.skipif(sys.platform == "win32", reason="no signals of its own to send")
def test_ctrl_c_ends_quietly(smollm2):
    command = [
        sys.executable,
        "-m",
        "tallow.cli",
        "run",
        "smollm2",
        # Greedy, this answer never ends. One that has ended is killed in the interpreter's own exit.
        "Write a very long story about a river.",
        "--temperature",
        "0",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.read(1)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "\n")
