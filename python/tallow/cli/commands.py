"""The table of commands: what each is called, takes and does, and the options that several share.

An option's value is checked when it is read, so that a wrong one costs no load of a model; the checks are
those of the Python interface, and the sampler's options come from its own table of fields.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .. import _core, arguments
from ..errors import Error
from ..wheels import ALIASES
from .usage import Parser


class Word(NamedTuple):
    """What a command takes without a name."""

    name: str
    help: str
    required: bool = True
    many: bool = False

    @property
    def metavar(self) -> str:
        return self.name.upper()

    @property
    def shown(self) -> str:
        text = self.metavar + (" ..." if self.many else "")
        return text if self.required else f"[{text}]"


@dataclass(frozen=True)
class Command:
    name: str
    #: What does it, "module:function" of this package.
    function: str
    summary: str
    words: tuple[Word, ...]
    #: What follows "tallow", to be typed as it stands.
    example: str
    options: tuple[Callable[[Parser], None], ...] = ()
    #: What the summary does not say.
    more: str = ""

    def parser(self, prog: str) -> Parser:
        taken = " ".join(word.shown for word in self.words)
        parser = Parser(
            add_help=False,
            prog=f"{prog} {self.name}",
            usage=f"{prog} {self.name} {taken} [options]".replace("  ", " "),
            description=f"{self.summary[0].upper()}{self.summary[1:]}.\n\n{_filled(self.more)}".rstrip(),
            epilog=f"example:\n  {prog} {self.example}\n\nOptions may stand before, between and after words.",
            formatter_class=_Help,
        )
        if self.words:
            group = parser.add_argument_group("words")
            for word in self.words:
                default: Any = [] if word.many else None
                group.add_argument(
                    word.name, nargs="?", metavar=word.metavar, help=word.help, default=default
                )
        parser.others = parser.add_argument_group("options")
        for add in self.options:
            add(parser)
        parser.others.add_argument("-h", "--help", action="help", help="show this help and end")
        return parser


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str, **rest: Any) -> None:
        super().__init__(prog, max_help_position=30, **rest)


def _filled(text: str) -> str:
    return "\n".join(textwrap.fill(line, 90) for line in text.splitlines())


def run(options: argparse.Namespace) -> int | None:
    """Does what a command line asks for; an exit code, if it is not 0."""
    module, _, function = options.command.function.partition(":")
    return getattr(importlib.import_module(f".{module}", __package__), function)(options)  # type: ignore[no-any-return]


def is_model(text: str) -> bool:
    return text in ALIASES or "/" in text or text.endswith(".gguf") or text.startswith("pypi:")


# Values


def _one_line(check: Callable[..., Any], name: str, *rest: Any) -> Any:
    """The value, or argparse's own error with the message of ours."""
    try:
        return check(name, *rest)
    except Error as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(name: str, least: int = 1, most: int = arguments.MAX_COUNT) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.strip().lstrip("+-").isdecimal():
            return _one_line(arguments.wrong_value, name, text, f"an integer from {least} to {most}")  # type: ignore[no-any-return]
        return _one_line(arguments.integer, name, int(text), least, most)  # type: ignore[no-any-return]

    return read


def _number(name: str, check: Callable[..., Any] = arguments.number) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            return _one_line(arguments.wrong_value, name, text, "a number")  # type: ignore[no-any-return]
        return _one_line(check, name, value)  # type: ignore[no-any-return]

    return read


def _text(name: str, check: Callable[..., Any] = arguments.text) -> Callable[[str], str]:
    return lambda text: _one_line(check, name, text)


def _choice(name: str, allowed: tuple[str, ...]) -> Callable[[str], str]:
    return lambda text: _one_line(arguments.choice, name, text, allowed)


def _file_text(name: str, path: str) -> str:
    try:
        return Path(path).expanduser().read_bytes().decode()
    except UnicodeDecodeError as error:
        raise argparse.ArgumentTypeError(f"{name}: {path} is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{name}: {path}: {error.strerror}") from None


def _json_schema(text: str) -> dict[str, Any]:
    inline = text.lstrip().startswith("{")
    if not inline and not os.path.exists(os.path.expanduser(text)):
        raise argparse.ArgumentTypeError(
            f'--json-schema: {text!r} is neither a file nor a JSON object like \'{{"type": "object"}}\''
        )
    try:
        schema = json.loads(text if inline else _file_text("--json-schema", text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"--json-schema is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise argparse.ArgumentTypeError("--json-schema is no JSON object; a schema is one")
    return schema


def _bias(text: str) -> tuple[int, float]:
    id, equals, value = text.partition("=")
    if not equals or not id.strip().isdecimal():
        raise argparse.ArgumentTypeError(f"--logit-bias is {text!r}; write TOKEN=BIAS, for example 42=-5")
    return int(id), _number("--logit-bias")(value)


def _sizes(text: str) -> list[int]:
    read = _count("--at-once", 1, 1024)
    return [read(part) for part in text.split(",")]


# Options that several commands have


def _loading(parser: Parser, *, revision: bool = True) -> None:
    add = parser.add_argument_group("the model").add_argument
    if revision:
        _revision(parser, add)
    add("--quantize", metavar="TYPE", help="pack full-precision weights at load: q8_0, q4_0, ...")
    add(
        "--context-length",
        metavar="N",
        type=_count("--context-length"),
        help="tokens of a conversation; default: what the model was made for",
    )
    add("-t", "--threads", metavar="N", type=_count("--threads"), help="CPU threads; default: one a core")
    add(
        "--kv-memory",
        metavar="SIZE",
        type=lambda text: _one_line(arguments.memory, "--kv-memory", text),
        help='memory for keys and values: "512MiB", "2GB"; default: a quarter of what is free',
    )
    add("--device", metavar="NAME", default="auto", help="auto, cpu, cuda:0, metal")
    add("--dtype", metavar="TYPE", default="auto", help="what it computes in: auto, float32, bfloat16, ...")
    add(
        "--kv-type",
        metavar="TYPE",
        default="auto",
        help="of keys and values on the CPU: auto, int8, bf16, f32",
    )
    add(
        "--chat-template",
        metavar="FILE",
        help="a Jinja file instead of the model's own template, or the name of one that it has",
    )
    add("--no-packed-cache", action="store_true", help="neither map packed weights nor keep them on disk")
    add("--no-prefix-cache", action="store_true", help="compute common beginnings again and again")
    add("--no-speculation", action="store_true", help="do not guess tokens from the text so far")
    add(
        "--draft",
        metavar="MODEL",
        type=_text("--draft", arguments.path_text),
        help="a smaller model of the same vocabulary, whose guesses are checked: the same answers, sooner",
    )


def _adapter(parser: Parser) -> None:
    parser.others.add_argument(
        "-a",
        "--adapter",
        metavar="SOURCE",
        type=_text("--adapter"),
        help="an adapter (LoRA) of the model: a folder, a .gguf file, or org/name on the hub",
    )


def _revision(parser: Parser, add: Callable[..., Any] | None = None) -> None:
    (add or parser.others.add_argument)(
        "--revision", metavar="NAME", help="branch, tag or commit, for models of the hub"
    )


def _system(parser: Parser, add: Callable[..., Any] | None = None) -> None:
    (add or parser.others.add_argument)(
        "-s", "--system", metavar="TEXT", type=_text("--system"), help="a system message before it all"
    )


def _answering(parser: Parser) -> None:
    from ..answers import EFFORTS  # and all of the tools, which other commands need not wait for

    add = parser.add_argument_group("the answer").add_argument
    _system(parser, add)
    add(
        "-n",
        "--max-tokens",
        metavar="N",
        type=_count("--max-tokens"),
        help="end the answer after N tokens; default: where the model ends it",
    )
    add(
        "--stop",
        metavar="TEXT",
        action="append",
        default=[],
        help="end the answer before this text; may be given several times",
    )
    add(
        "--think",
        metavar="HOW",
        type=_choice("--think", ("on", "off", *EFFORTS)),
        help=f"on, off, or how much where the model knows that: {', '.join(EFFORTS)}",
    )
    add(
        "--timeout",
        metavar="SECONDS",
        type=_number("--timeout", arguments.seconds),
        help="give up after that long",
    )
    add("--json", action="store_true", help="print one JSON object an answer: text, usage, timings, ...")
    add("-v", "--verbose", action="store_true", help="tell load time and speed on stderr")


#: What the fields of a Sampler do; one that is missing here fails a test.
FIELDS = {
    "temperature": ("T", "0 takes the likeliest token; higher is more varied"),
    "top_k": ("K", "only the K likeliest tokens"),
    "top_p": ("P", "only the likeliest tokens that together have the probability P"),
    "min_p": ("P", "only tokens at least P times as likely as the likeliest"),
    "typical_p": ("P", "only the tokens nearest to the expected surprise, P in all"),
    "repetition_penalty": ("X", "divide the logits of tokens that were there by X; 1 is off"),
    "frequency_penalty": ("X", "take X off a token's logit for each time that it was said"),
    "presence_penalty": ("X", "take X off the logit of a token that was said"),
}


def _sampling(parser: Parser) -> None:
    group = parser.add_argument_group("how tokens are picked", "Default: what the model's makers advise.")
    for name, kind in _core.SAMPLER_FIELDS:
        if name not in FIELDS:
            continue
        metavar, text = FIELDS[name]
        option = f"--{name.replace('_', '-')}"
        read: Callable[[str], float] = _count(option) if kind == "count" else _number(option)
        names = [option, "--temp"] if name == "temperature" else [option]
        group.add_argument(*names, metavar=metavar, type=read, help=text, dest=name)
    group.add_argument(
        "--logit-bias",
        metavar="TOKEN=BIAS",
        type=_bias,
        action="append",
        help="add BIAS to the logit of a token id; may be given several times",
    )
    group.add_argument(
        "--seed",
        metavar="S",
        type=_count("--seed", 0, arguments.MAX_SEED),
        help="the same seed gives the same answer",
    )


def _forms(parser: Parser) -> None:
    group = parser.add_argument_group("the form of the answer", "Enforced while it is written; one at most.")
    group.add_argument(
        "--json-schema", metavar="FILE|JSON", type=_json_schema, help="a JSON document of this schema"
    )
    group.add_argument(
        "--regex",
        metavar="PATTERN",
        type=_text("--regex"),
        help="a text that this pattern matches whole",
    )
    group.add_argument(
        "--grammar",
        metavar="FILE",
        type=lambda text: _file_text("--grammar", text),
        help="a text of this Lark grammar, from its rule start",
    )
    group.add_argument(
        "--choice",
        metavar="TEXT",
        type=_text("--choice"),
        action="append",
        help="this text or another --choice",
    )


def _raw(parser: Parser) -> None:
    parser.others.add_argument(
        "--raw", action="store_true", help="continue the text as it is, without the chat template"
    )


def _as_json(parser: Parser) -> None:
    parser.others.add_argument("--json", action="store_true", help="print JSON, for programs")


def _yes(parser: Parser) -> None:
    parser.others.add_argument("-y", "--yes", action="store_true", help="do not ask")


def _packed(parser: Parser) -> None:
    parser.others.add_argument(
        "--packed", action="store_true", help="only packed weights, which the next start makes again"
    )


def _embedding(parser: Parser) -> None:
    from ..model import POOLINGS

    parser.others.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="write there: an array [texts, dimensions] if it ends in .npy, JSON lines if in .jsonl",
    )
    parser.others.add_argument(
        "--pooling",
        metavar="HOW",
        default="auto",
        type=_choice("--pooling", POOLINGS),
        help=f"one vector of many: {', '.join(POOLINGS)}",
    )
    parser.others.add_argument(
        "--prefix",
        metavar="TEXT",
        type=_text("--prefix"),
        help='put before each text, such as "query: "; default: what the model\'s files say',
    )


def _converting(parser: Parser) -> None:
    add = parser.others.add_argument
    add(
        "--type",
        metavar="TYPE",
        dest="kind",
        required=True,
        type=_choice("--type", tuple(_core.CONVERT_TYPES)),
        help=f"what matrices are stored as: {', '.join(_core.CONVERT_TYPES)}",
    )
    add("--requantize", action="store_true", help="round weights again that are quantized already")
    add("--overwrite", action="store_true", help="replace a file that is there")
    add("-t", "--threads", metavar="N", type=_count("--threads"), help="CPU threads; default: one a core")


def _measuring(parser: Parser) -> None:
    parser.others.add_argument(
        "--at-once",
        metavar="N,N,...",
        type=_sizes,
        default=[1, 4, 16],
        help="how many requests run together; default: 1,4,16",
    )
    parser.others.add_argument(
        "--prompt-tokens",
        metavar="N",
        type=_count("--prompt-tokens"),
        default=256,
        help="tokens of each prompt; default: 256",
    )
    parser.others.add_argument(
        "-n",
        "--max-tokens",
        metavar="N",
        type=_count("--max-tokens", 2),
        default=64,
        help="tokens of each answer; default: 64",
    )
    parser.others.add_argument(
        "--repeat",
        metavar="N",
        type=_count("--repeat"),
        default=3,
        help="take the median of N runs; default: 3",
    )


def _serving(parser: Parser) -> None:
    add = parser.add_argument_group("the server").add_argument
    add("--host", metavar="ADDRESS", type=_text("--host"), default="127.0.0.1", help="default: 127.0.0.1")
    add("--port", metavar="N", type=_count("--port", 0, 65535), default=8000, help="default: 8000; 0: any")
    add("--name", metavar="NAME", type=_text("--name"), help="what requests call the model")
    add(
        "-a",
        "--adapter",
        metavar="NAME=SOURCE",
        type=_named_adapter,
        action="append",
        default=[],
        help="serve an adapter (LoRA) as the model NAME; may be given several times",
    )
    add(
        "--api-key",
        metavar="KEY",
        type=_text("--api-key"),
        action="append",
        default=[],
        help="what clients must send; may be given several times, or in TALLOW_API_KEYS, with commas",
    )
    add(
        "--cors",
        metavar="ORIGIN",
        action="append",
        default=[],
        help='let pages of this origin ask, such as "http://localhost:3000"; "*" for all',
    )
    add(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help='a name that clients may call the server by, behind a proxy; "*" for any',
    )
    add("--queue", metavar="N", type=_count("--queue"), default=1024, help="how many may wait; default: 1024")
    add(
        "--timeout",
        metavar="SECONDS",
        type=_number("--timeout", arguments.seconds),
        default=600.0,
        help="what an answer may take; default: 600",
    )
    add(
        "--grace",
        metavar="SECONDS",
        type=_number("--grace", arguments.seconds),
        default=30.0,
        help="what answers in work get when the server is stopped; default: 30",
    )
    add(
        "--max-body",
        metavar="SIZE",
        type=lambda text: _one_line(arguments.memory, "--max-body", text),
        default="8MiB",
        help="of a request; default: 8MiB",
    )
    add("--allow-unknown", action="store_true", help="leave out fields that are not known, unrefused")
    add("--load-adapters", action="store_true", help="let clients load adapters from paths of this machine")
    add("--open-metrics", action="store_true", help="answer /metrics without a key, too")
    add(
        "--dspy",
        action="store_true",
        help="enforce the formats that DSPy's adapters ask for in their prompts, whatever the client",
    )
    add(
        "--adapter-memory",
        metavar="SIZE",
        type=lambda text: _one_line(arguments.memory, "--adapter-memory", text),
        help="what adapters may take together; default: an eighth of what is free",
    )
    add(
        "--log",
        metavar="HOW",
        type=_choice("--log", ("text", "json", "off")),
        default="text",
        help="a line a request on stderr: text, json or off; never what was asked",
    )


def _named_adapter(text: str) -> tuple[str, str]:
    name, equals, source = text.partition("=")
    if not (name and equals and source):
        raise argparse.ArgumentTypeError(
            f"--adapter is {text!r}; write NAME=SOURCE, for example support=./support"
        )
    return name, source


MODEL = Word("model", '"smollm2", a hub id "org/name[/file.gguf]", a folder, a file, or "pypi:NAME"')

_ALL = (
    Command(
        "run",
        "answer:run",
        "answer one prompt, streamed",
        (
            MODEL,
            Word("prompt", 'the prompt; "-" or none reads it from stdin', required=False),
        ),
        'run smollm2 --max-tokens 40 "Why is the sky blue?"',
        (_answering, _forms, _sampling, _loading, _raw, _adapter),
        "Text that is piped in beside a PROMPT goes after it, a blank line between them "
        '(tallow run smollm2 "Sum up:" < report.txt); leave it out with < /dev/null. '
        "The answer goes to stdout; thoughts, notes and figures go to stderr.",
    ),
    Command(
        "chat",
        "chat:chat",
        "talk with a model",
        (MODEL,),
        'chat smollm2 --system "Answer in one sentence."',
        (_answering, _forms, _sampling, _loading, _adapter),
        'Ctrl-C ends an answer, Ctrl-D the conversation. """ begins and ends a message of several lines. '
        "/help lists the commands.",
    ),
    Command(
        "serve",
        "serve:serve",
        "serve a model over HTTP, as OpenAI's API has it",
        (MODEL,),
        "serve smollm2 --port 8000",
        (_serving, _loading),
        'Needs pip install "tallow[serve]". Ctrl-C or SIGTERM lets answers in work end; a second one '
        "does not.",
    ),
    Command("list", "caches:show", "list the models on this machine", (), "list", (_as_json,)),
    Command(
        "pull",
        "caches:pull",
        "fetch a model into the cache, for use without network",
        (MODEL,),
        "pull smollm2",
        (_revision,),
    ),
    Command(
        "rm",
        "caches:remove",
        "remove models from the caches",
        (Word("model", "its name, as tallow list shows it", required=False, many=True),),
        "rm org/name",
        (_yes, _packed),
        "Asks first; where there is no terminal to ask on, --yes is needed. What another process is "
        "downloading is left alone. Packed weights go with their model; --packed removes them alone, and "
        "without a MODEL those of all.",
    ),
    Command(
        "convert",
        "convert:convert",
        "write a model as a GGUF file, for llama.cpp and what reads its files",
        (MODEL, Word("file", "the file to write; its name ends in .gguf")),
        "convert ./my-model my-model.gguf --type q4_k_m",
        (_converting, _revision, _as_json),
        "q4_k_m and its kind are mixtures: some tensors are stored more exactly than the rest. Weights that "
        "are quantized already are copied, unless --requantize says to round them again. What GGUF cannot "
        "say of a model is refused by name, and nothing is left behind.",
    ),
    Command(
        "info",
        "info:info",
        "say what a model is, and what it needs",
        (MODEL,),
        "info smollm2",
        (_as_json, _loading),
    ),
    Command(
        "bench",
        "bench:bench",
        "measure a model's speed on this machine",
        (MODEL,),
        "bench smollm2 --at-once 1,8",
        (_measuring, _as_json, _loading),
        "Prompts of random tokens, so that nothing is found in a cache or guessed from the text so far.",
    ),
    Command(
        "embed",
        "vectors:embed",
        "make vectors of texts",
        (MODEL, Word("text", "texts; without any, each line of stdin is one", required=False, many=True)),
        'embed smollm2 "one text" "another text" --output vectors.npy',
        (_embedding, _loading, _adapter),
        'Prints a JSON object per text: {"text": ..., "embedding": [...]}.',
    ),
    Command(
        "score",
        "vectors:score",
        "say how likely each of some answers is",
        (
            MODEL,
            Word("prompt", 'the prompt; "-" reads it from stdin'),
            Word("candidate", "an answer; with --raw a continuation, with its leading blank", many=True),
        ),
        'score smollm2 "Is ice colder than steam?" yes no',
        (_as_json, _raw, _system, _loading, _adapter),
        "Nothing is sampled: the likelihoods are exact, and the shares are relative to each other.",
    ),
    Command(
        "versions",
        "versions:versions",
        "say what a bug report should say of this machine",
        (),
        "versions",
        (_as_json,),
    ),
    Command(
        "completion",
        "completion:script",
        "print a script that completes commands and options",
        (Word("shell", "bash, zsh or fish"),),
        "completion bash >> ~/.bashrc",
    ),
)
COMMANDS = {command.name: command for command in _ALL}
#: What others call them.
OTHER_NAMES = {
    **{"show": "info", "inspect": "info", "ls": "list", "ps": "list", "models": "list"},
    **{"remove": "rm", "delete": "rm", "download": "pull", "get": "pull", "fetch": "pull"},
    **{"generate": "run", "complete": "run", "prompt": "run", "repl": "chat", "benchmark": "bench"},
}


def overview(prog: str) -> str:
    rows = "\n".join(f"  {command.name:11} {command.summary}" for command in _ALL)
    return f"""usage: {prog} COMMAND ... [options]

A language model inside your Python process; this command is to try one without a program.

commands:
{rows}

{prog} COMMAND --help tells what a command takes; {prog} --version what this build offers.

examples:
  {prog} run smollm2 "Why is the sky blue?"
  cat notes.txt | {prog} run smollm2 "Sum up in one sentence:" --max-tokens 60
  {prog} run smollm2 "Is ice cold?" --choice yes --choice no

exit codes: 0 done, 1 an error, 2 a wrong command line, 130 ended by Ctrl-C"""


def version() -> str:
    offers = ", ".join(f"{name} {value}" for name, value in sorted(_core.features().items()))
    return f"tallow {_core.__version__} ({offers})"
