"""Reading a command line. Needs no model, and holds on every Python that tallow runs on."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import pytest

from command import run
from tallow import _core
from tallow.cli import commands, settings, words
from tallow.cli.usage import UsageError
from tallow.model import LOAD_OPTIONS

ROOT = Path(__file__).parents[2]
PIECES = [
    ["smollm2"],
    ["why?"],
    ["--max-tokens", "5"],
    ["--temperature=0.5"],
    ["--stop", "-- x"],
    ["--json"],
]


@pytest.mark.parametrize("order", list(itertools.permutations(PIECES[:5])), ids=lambda _: "")
def test_every_order_means_the_same(order):
    given = [word for piece in order for word in piece]
    swapped = given.index("why?") < given.index("smollm2")
    found = words.parse(["run", *given])
    assert (found.model, found.prompt) == (("why?", "smollm2") if swapped else ("smollm2", "why?"))
    assert (found.max_tokens, found.temperature, found.stop) == (5, 0.5, ["-- x"])


#: A line, and what of it must come out.
LINES = [
    ("run m", {"model": "m", "prompt": None}),
    ("run m -", {"prompt": "-"}),
    ("run m -- --json", {"prompt": "--json", "json": False}),
    ("run --json -- m --", {"model": "m", "prompt": "--", "json": True}),
    ("run -- m x", {"model": "m", "prompt": "x"}),
    ("run m -5", {"prompt": "-5"}),
    ("run m --temp 0 x", {"temperature": 0.0, "prompt": "x"}),
    ("run m --rep 1.1 x", {"repetition_penalty": 1.1}),
    ("run m -n 5 x", {"max_tokens": 5, "prompt": "x"}),
    ("run m -n5 x", {"max_tokens": 5, "prompt": "x"}),
    ("run m -v x", {"verbose": True, "prompt": "x"}),
    ("run m --system --json x", {"system": "--json", "json": False}),
    ("run m --stop= x", {"stop": [""]}),
    ("run m --choice a x --choice b", {"choice": ["a", "b"], "prompt": "x"}),
    ("run m x --logit-bias 3=-1 --logit-bias 4=2.5", {"logit_bias": [(3, -1.0), (4, 2.5)]}),
    ("run m x --kv-memory 1GB", {"kv_memory": 10**9}),
    ("run|m|- one\n- two|--json", {"prompt": "- one\n- two", "json": True}),
    ("run|m|--- a line|--system=be brief", {"prompt": "--- a line", "system": "be brief"}),
    ("run|m|--json is what?", {"prompt": "--json is what?", "json": False}),
    ("score m p a b c", {"prompt": "p", "candidate": ["a", "b", "c"]}),
    ("score a --json m b c", {"model": "a", "prompt": "m", "candidate": ["b", "c"], "json": True}),
    ("embed m", {"text": []}),
    ("bench m --at-once 1,2", {"at_once": [1, 2]}),
    ("rm a b -y", {"model": ["a", "b"], "yes": True}),
]


@pytest.mark.parametrize(("line", "expected"), LINES, ids=lambda value: str(value)[:40])
def test_lines(line, expected):
    found = vars(words.parse(line.split("|" if "|" in line else " ")))
    assert {name: found[name] for name in expected} == expected


#: A wrong line, and what the complaint must say.
WRONG = [
    ("dance", "there are run, chat"),
    ("rnu m", "did you mean 'run'"),
    ("show m", "it is called 'info'"),
    ("smollm2 hi", "did you mean: tallow run smollm2"),
    ("--json run m", "the command comes first"),
    ("run", "MODEL is missing; for example: tallow run smollm2"),
    ("run m a b", "too many words, from 'b' on; put quotes"),
    ("run m --max-token", "--max-tokens needs a value"),
    ("run m --maxtokens 5", "did you mean --max-tokens?"),
    ("run m --to 5", "--top-k or --top-p"),
    ("run m -x", "goes after --"),
    ("run m --max-tokens many", "--max-tokens is 'many'; it must be an integer"),
    ("run m --max-tokens 0", "--max-tokens is 0"),
    ("run m --temperature nan", "--temperature is nan; it must be a finite number"),
    ("run m --temperature x", "--temperature is 'x'; it must be a number"),
    ("run m --seed -1", "--seed is -1"),
    ("run m --json=yes", "--json"),
    ("run m --kv-memory 2G", "--kv-memory is '2G'"),
    ("run m --think maybe", "--think is 'maybe'"),
    ("run m --timeout 0", "--timeout is 0.0"),
    ("run m --logit-bias 5", "write TOKEN=BIAS"),
    ("run m --json-schema /no/such", "neither a file nor a JSON object"),
    ('run m --json-schema {"a"', "--json-schema is not JSON"),
    ("run m --json-schema FILE", "--json-schema is no JSON object"),
    ("run m --grammar /no/such", "--grammar: /no/such: No such file"),
    ("run m --grammar LATIN1", "is not UTF-8"),
    ("score m", "PROMPT is missing"),
    ("score m p", "CANDIDATE is missing"),
    ("rm", "name the models to remove"),
    ("list what", "does not know what to do with 'what'"),
    ("bench m --at-once 1,x", "--at-once is 'x'"),
    ("bench m --max-tokens 1", "--max-tokens is 1"),
    ("embed m x --pooling middle", "--pooling is 'middle'"),
    # What is seen before a model is loaded, after the line is read.
    ("run /no/m x --raw --system y", "--raw leaves it out"),
    ("run /no/m x --regex a --choice b", "--regex and --choice exclude each other"),
    ("run /no/m x --top-p 2", "--top-p"),
    ("run /no/m x --temperature -1", "--temperature"),
    ("run /no/m x --stop=", "--stop"),
    ("run /no/m x --quantize q99", "q99"),
    ("chat /no/m --min-p 3", "--min-p"),
    ("run /no/m", "stdin is empty"),
    ("embed /no/m", "there are no texts"),
    ("embed /no/m x --output a.csv", "must end in .npy"),
    ("embed /no/m x --output /no/such/a.npy", "there is no folder"),
    ("score /no/m x y --raw --system z", "--raw leaves it out"),
    ("completion tcsh", "none of bash, zsh, fish"),
]


@pytest.mark.parametrize(("line", "part"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_line_is_one_line_and_2(line, part, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["tallow"])
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "latin1").write_bytes(b"caf\xe9")
    files = {"FILE": tmp_path / "list.json", "LATIN1": tmp_path / "latin1"}
    done = run(*(files.get(word, word) for word in line.split(" ")))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("tallow: ") and part in done.stderr, done.stderr


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_help_has_an_example_that_parses(name, monkeypatch):
    monkeypatch.setattr("sys.argv", ["tallow"])
    done = run(name, "--help")
    example = commands.COMMANDS[name].example
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: tallow {name} " in done.stdout and f"  tallow {example}\n" in done.stdout
    assert run("help", name) == done
    words.parse(shlex.split(example.partition(" >>")[0]))


def test_overview_and_version(monkeypatch):
    monkeypatch.setattr("sys.argv", ["tallow"])
    whole = run("--help")
    assert whole.returncode == 0 and all(f"\n  {name} " in whole.stdout for name in commands.COMMANDS)
    assert "exit codes: 0 done, 1 an error, 2 a wrong command line, 130" in whole.stdout
    assert run() == (2, "", whole.stdout)
    assert f"tallow {_core.__version__} (" in run("--version").stdout
    monkeypatch.setattr("sys.argv", ["/somewhere/tallow/__main__.py"])
    assert "usage: python -m tallow" in run("run", "--help").stdout


def test_no_option_of_the_model_or_the_sampler_is_forgotten():
    found = vars(words.parse(["run", "m", "x"]))
    given = {name.removeprefix("no_") for name in found}
    assert {*LOAD_OPTIONS} - {*settings.NOT_HERE} <= given
    assert {name for name, _ in _core.SAMPLER_FIELDS} - {"filters"} <= given  # a filter is a function


def calls_in_the_docs():
    """The command lines of ``docs/command-line.md``, cut as a shell cuts them."""
    text = (ROOT / "docs" / "command-line.md").read_text()
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        lines = block.replace("\\\n", " ").replace("\n", "\n;\n")
        cut = shlex.shlex(lines, posix=True, punctuation_chars=True)
        cut.commenters, cut.whitespace_split = "#", True  # or a comma ends a word
        for ends, call in itertools.groupby(cut, lambda word: set(word) <= set("();<>|&")):
            line = list(call)
            if not ends and line[0] == "tallow":
                yield line[1:]


def test_the_page_of_the_docs_says_what_is_true(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("city.lark").write_text('start: "Paris"')  # an earlier line of the page writes it
    calls = list(calls_in_the_docs())
    assert {call[0] for call in calls} >= {*commands.COMMANDS} - {"rm", "versions"}
    for call in calls:
        found = words.parse(call)
        if found.command.name in ("run", "chat"):
            settings.answer_options(found)


def test_an_error_is_a_usage_error():
    with pytest.raises(UsageError):
        words.parse(["run"])
