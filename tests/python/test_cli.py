"""``tallow run`` and ``tallow chat``, and the process around them."""

from __future__ import annotations

import json
import shlex
import signal
import socket
import subprocess
import sys
import time

import pytest

from command import in_pieces, run
from conftest import THINKER
from tallow import answers
from tallow.cli import answer, output

GREEDY = ("--max-tokens", "8", "--temperature", "0")
HI = [{"role": "user", "content": "hi"}]


def test_run_prints_the_answer_and_nothing_else(tiny, tiny_folder):
    done = run("run", tiny_folder, "hi", *GREEDY)
    assert done == (0, tiny.generate(HI, max_tokens=8, temperature=0).text + "\n", "")


#: The words of the command line and stdin, and the prompt that they make.
PROMPTS = [
    (["hi"], None, "hi"),
    (["-"], "from a pipe\n", "from a pipe"),
    ([], "two\n\n", "two\n"),
    ([], "windows\r\n", "windows"),
    (["sum up:"], "a text\n", "sum up:\n\na text"),
    (["hi"], "", "hi"),
    ([], "\ufeffmarked", "marked"),
]


@pytest.mark.parametrize(("given", "stdin", "prompt"), PROMPTS)
def test_what_is_piped_in_becomes_the_prompt(tiny, tiny_folder, given, stdin, prompt):
    done = run("run", tiny_folder, *given, "--raw", *GREEDY, stdin=stdin)
    assert done.stdout == tiny.generate(prompt, max_tokens=8, temperature=0).text + "\n"


def test_system_sampler_and_stops_reach_the_model(tiny, tiny_folder):
    given = ["--system", "be brief", "--temp", "1", "--top-k", "9", "--seed", "1", "--logit-bias", "7=3"]
    turns = [{"role": "system", "content": "be brief"}, *HI]
    options = {"temperature": 1.0, "top_k": 9, "seed": 1, "logit_bias": {7: 3.0}, "max_tokens": 12}
    whole = tiny.generate(turns, **options).text
    assert run("run", tiny_folder, "hi", "-n", 12, *given).stdout == whole + "\n"
    stopped = tiny.generate(turns, stop=[whole[1]], **options).text
    assert run("run", tiny_folder, "hi", "-n", 12, *given, "--stop", whole[1]).stdout == stopped + "\n"


SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
FORMS = [
    (["--choice", "yes", "--choice", "no"], lambda text: text in ("yes", "no")),
    (["--regex", "[0-9]{3}"], lambda text: text.isdecimal() and len(text) == 3),
    (["--grammar", "LARK"], lambda text: text in ("ab", "ba")),
    (["--json-schema", json.dumps(SCHEMA)], lambda text: isinstance(json.loads(text)["a"], bool)),
    (["--json-schema", "SCHEMA"], lambda text: isinstance(json.loads(text)["a"], bool)),
]


@pytest.mark.parametrize(("given", "holds"), FORMS, ids=lambda value: str(value)[:30])
def test_forms(wide_folder, tmp_path, given, holds):
    (tmp_path / "lark").write_text('start: "ab" | "ba"')
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    files = {"LARK": tmp_path / "lark", "SCHEMA": tmp_path / "schema.json"}
    done = run("run", wide_folder, "hi", "--max-tokens", 40, *(files.get(word, word) for word in given))
    assert (done.returncode, done.stderr) == (0, "") and holds(done.stdout.rstrip("\n")), done.stdout


def test_json_and_verbose(tiny, tiny_folder):
    done = run("run", tiny_folder, "hi", *GREEDY, "--json", "--verbose")
    told, whole = json.loads(done.stdout), tiny.generate(HI, max_tokens=8, temperature=0)
    assert (told["text"], told["finish_reason"], told["notes"]) == (whole.text, whole.finish_reason, [])
    assert told["usage"]["completion_tokens"] == whole.usage.completion_tokens
    assert told["usage"]["total_tokens"] == whole.usage.total_tokens
    assert {*told["timings"]} == {"queue_s", "prefill_s", "decode_s", "tokens_per_second"}
    assert "loaded in" in done.stderr and "tokens/s" in done.stderr and done.stderr.count("\n") == 1


def test_notes_of_the_template_are_told(roomy, tmp_path):
    template = tmp_path / "no-system.jinja"
    template.write_text(
        "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('none') }}"
        "{% endif %}{{ message.content }}{% endfor %}"
    )
    folder = roomy.to_state()["source"]
    given = ("--system", "x", *GREEDY, "--chat-template", template)
    done = run("run", folder, "hi", *given)
    assert done.returncode == 0 and done.stderr.startswith("note: ") and "system" in done.stderr
    assert talk(folder, "hi", "and?", given=given).stderr == done.stderr  # once


@pytest.fixture
def thinker_given(roomy, tmp_path):
    path = tmp_path / "thinker.jinja"
    path.write_text(THINKER)
    return [roomy.to_state()["source"], "--chat-template", path, *GREEDY]


def test_thoughts_go_to_stderr(thinker_given, monkeypatch):
    in_pieces(monkeypatch, "<think>", "so", "</think>\n", "\nIt is.")
    done = run("run", *thinker_given, "hi")
    assert (done.stdout, done.stderr) == ("It is.\n", "so\n")
    in_pieces(monkeypatch, "<think>so</think>", "It is.")
    told = json.loads(run("run", *thinker_given, "hi", "--json").stdout)
    assert (told["thinking"], told["text"]) == ("so", "It is.")


@pytest.mark.parametrize(
    ("how", "seen"), [("on", False), ("off", True), (None, False)], ids=["on", "off", "left"]
)
def test_think_reaches_the_template(thinker_given, monkeypatch, how, seen):
    found = []
    real = answers.prepare

    def spy(*given, **options):
        asked = real(*given, **options)
        found.append(asked.prompt.text)
        return asked

    monkeypatch.setattr(answers, "prepare", spy)
    run("run", *thinker_given, "hi", *(["--think", how] if how else []))
    assert found[0].endswith("<think></think>") is seen
    done = run("run", *thinker_given, "hi", "--think", "high")
    assert done.returncode == 1 and "only on or off" in done.stderr


#: A wrong input that only the model can judge: one line, and 1.
FAILURES = [
    (["run", "/no/such/model.gguf", "x"], "model.gguf"),
    (["info", "/no/such/folder"], "folder"),
    (["pull", "/no/such/folder"], "folder"),
    (["bench", "/no/such/folder"], "folder"),
    (["embed", "/no/such/folder", "x"], "folder"),
    (["score", "/no/such/folder", "x", "y"], "folder"),
    (["chat", "/no/such/folder"], "folder"),
    (["rm", "/no/such/folder"], "is in no cache"),
    (["run", "smolm2", "x"], "Did you mean smollm2"),
    (["run", "TINY", "x" * 500], "128"),
    (["run", "TINY", "x", "--regex", "("], "regex"),
    (["run", "TINY", "x", "--think", "on"], "knows no thoughts"),
    (["run", "TINY", "x", "--revision", "main"], "revision"),
    (["run", "TINY", "x", "--logit-bias", "99999=1"], "99999"),
    (["run", "BASE", "x", "--system", "y"], "template"),
    (["chat", "BASE"], "no chat template"),
    (["score", "BASE", "x", "y", "--system", "z"], "no chat template"),
    (["bench", "TINY"], "do not fit into the context of 128"),
]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    from conftest import copy_family

    return copy_family("llama-gqa-tied", tmp_path_factory.mktemp("models") / "base", template=None)


@pytest.mark.parametrize(("given", "part"), FAILURES, ids=lambda value: str(value)[:40])
def test_errors_are_one_line_and_1(given, part, tiny_folder, base_folder):
    folders = {"TINY": tiny_folder, "BASE": base_folder}
    done = run(*(folders.get(word, word) for word in given))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done
    assert done.stderr.startswith("tallow: ") and part in done.stderr, done.stderr


def test_stdin_that_is_no_text(tiny_folder):
    done = run("run", tiny_folder, "-", stdin=b"ab\xff")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "stdin is not UTF-8 text: byte 0xff at 2" in done.stderr


# chat


def talk(folder, *lines, given=GREEDY):
    return run("chat", folder, *given, stdin="".join(f"{line}\n" for line in lines))


def test_chat_remembers_and_forgets(tiny, tiny_folder):
    turns = list(HI)
    first = tiny.generate(turns, max_tokens=4, temperature=0).text
    turns += [{"role": "assistant", "content": first}, {"role": "user", "content": "and?"}]
    second = tiny.generate(turns, max_tokens=4, temperature=0).text
    given = ("--max-tokens", "4", "--temperature", "0")
    done = talk(tiny_folder, "hi", "", "and?", "/clear", "hi", given=given)
    assert done == (0, f"{first}\n{second}\n{first}\n", "forgotten\n")


#: Lines of a conversation, and what must be said beside the answers.
SAID = [
    (["/help"], "/save FILE"),
    (["/hlep"], "/hlep is no command; did you mean /help?"),
    (["/dance"], "/dance is no command; /help lists them"),
    (["/system"], "there is no system message"),
    (["/system be brief", "/system"], "be brief"),
    (["/save"], "/save needs a file"),
    (["/save /no/such/talk.json"], "No such file"),
    (["/load /no/such/talk.json"], "No such file"),
    (["/load BAD"], "no conversation that /save wrote"),
    (["/load LIST"], 'it must be a dict like {"role"'),
    (["/save BAD"], "exists, and is not of this conversation"),
    (["/bye", "never read"], ""),
]


@pytest.mark.parametrize(("lines", "part"), SAID, ids=lambda value: str(value)[:30])
def test_commands_of_chat(tiny_folder, tmp_path, lines, part):
    (tmp_path / "bad").write_text("nothing")
    (tmp_path / "list").write_text('{"messages": [1]}')
    for name in ("bad", "list"):
        lines = [line.replace(name.upper(), str(tmp_path / name)) for line in lines]
    done = talk(tiny_folder, *lines)
    assert (done.returncode, done.stdout) == (0, "") and part in done.stderr, done


def test_chat_saves_and_loads(tiny, tiny_folder, tmp_path):
    path = tmp_path / "talk.json"
    first = talk(tiny_folder, "/system be brief", "hi", f"/save {path}", "/clear", f"/save {path}")
    saved = json.loads(path.read_text())
    assert saved == {"model": str(tiny_folder), "messages": [{"role": "system", "content": "be brief"}]}
    turns = [*saved["messages"], *HI]
    assert first.stdout == tiny.generate(turns, max_tokens=8, temperature=0).text + "\n"
    assert talk(tiny_folder, f"/load {path}", "hi").stdout == first.stdout


def test_chat_takes_several_lines_and_slashes(tiny, tiny_folder):
    said = [{"role": "user", "content": "one\ntwo"}]
    done = talk(tiny_folder, '"""one', 'two"""')
    assert done.stdout == tiny.generate(said, max_tokens=8, temperature=0).text + "\n"
    assert talk(tiny_folder, '"""', "one", "two", '"""').stdout == done.stdout
    said = [{"role": "user", "content": "/x"}]
    assert talk(tiny_folder, "//x").stdout == tiny.generate(said, max_tokens=8, temperature=0).text + "\n"


def test_a_full_context_is_said_and_the_talk_goes_on(tiny, tiny_folder):
    done = talk(tiny_folder, "x" * 200, "hi")
    assert done.stdout == tiny.generate(HI, max_tokens=8, temperature=0).text + "\n"
    assert done.returncode == 0 and "the context has 128" in done.stderr and "/clear" in done.stderr


def test_ctrl_c_ends_the_answer_and_not_the_talk(tiny_folder, monkeypatch, tmp_path):
    path = tmp_path / "talk.json"
    in_pieces(monkeypatch, "It is", KeyboardInterrupt)
    done = talk(tiny_folder, "hi", f"/save {path}")
    assert (done.returncode, done.stdout) == (0, "It is\n") and "(interrupted)" in done.stderr
    assert json.loads(path.read_text())["messages"][-1] == {"role": "assistant", "content": "It is"}


def test_chat_as_json_lines(tiny_folder):
    done = talk(tiny_folder, "hi", "and?", given=(*GREEDY, "--json"))
    assert all(json.loads(line)["text"] for line in done.stdout.splitlines()) and done.stdout.count("\n") == 2


def test_a_terminal_is_told_nothing_that_it_obeys(monkeypatch, capsys):
    monkeypatch.setattr(output, "is_terminal", lambda stream: True)
    output.write("a\x1b[2Jb\n")
    assert capsys.readouterr().out == "a\N{REPLACEMENT CHARACTER}[2Jb\n"


def test_a_terminal_is_prompted(tiny_folder, monkeypatch):
    lines = iter(["hi", KeyboardInterrupt, EOFError])
    prompts = []

    def read(prompt):
        prompts.append(prompt)
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    from tallow.cli import chat

    monkeypatch.setattr(chat, "is_terminal", lambda stream: True)
    monkeypatch.setattr("builtins.input", read)
    done = run("chat", tiny_folder, *GREEDY)
    assert done.returncode == 0 and prompts == ["> "] * 3
    assert "/help lists commands" in done.stderr and "Ctrl-D ends" in done.stderr


def test_who_waits_for_stdin_is_told(monkeypatch, capsys):
    monkeypatch.setattr(answer, "_has_something", lambda seconds: False)
    answer._say_when_waiting()
    assert "waiting for the end of stdin" in capsys.readouterr().err


def test_an_open_socket_is_not_waited_for(tiny_folder, tiny):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = process("run", tiny_folder, "hi", *GREEDY, stdin=theirs)
        assert done.stdout.decode() == tiny.generate(HI, max_tokens=8, temperature=0).text + "\n"
        ours.sendall(b"more\n")
        ours.shutdown(socket.SHUT_WR)
        done = process("run", tiny_folder, "hi", *GREEDY, stdin=theirs)
    said = [{"role": "user", "content": "hi\n\nmore"}]
    assert done.stdout.decode() == tiny.generate(said, max_tokens=8, temperature=0).text + "\n"


# The process


def process(*arguments, **options):
    command = [sys.executable, "-m", "tallow", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=120, check=False, **options)


def test_python_m_tallow(tiny, tiny_folder):
    done = process("run", tiny_folder, *GREEDY, input=b"hi")
    expected = tiny.generate(HI, max_tokens=8, temperature=0).text.encode() + b"\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, b"")


def test_a_reader_that_has_gone_is_no_traceback(tiny_folder):
    command = f"{sys.executable} -m tallow list --json | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60, check=False)
    assert done.returncode in (0, 1) and done.stderr == b""


@pytest.mark.skipif(sys.platform == "win32", reason="no signals of its own to send")
def test_ctrl_c_ends_quietly(smollm2):
    # Greedy, this answer never ends. One that has ended is killed in the interpreter's own exit.
    asked = ["run", "smollm2", "Write a very long story about a river.", "--temperature", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tallow", *asked],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.read(1)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "\n")


@pytest.mark.parametrize("command", ["--help", "versions", "list", "completion bash"])
def test_a_closed_stdout_is_no_traceback(command):
    line = f"{shlex.quote(sys.executable)} -m tallow {command} >&-"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
