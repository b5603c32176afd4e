"""Reading a command line: words and options in any order, the same on every Python.

argparse decides at the first word which positionals there are, so an option between MODEL and PROMPT loses
the PROMPT (Python 3.10 to 3.13 alike), and versions differ in what ``--`` does. So the line is cut here into
options, each with its value, and words, by the parser's own table; argparse reads the options (types,
``--help``), and the words are matched with what the command takes.

- An option may be cut short as long as it can be only one (``--temp``), may have its value behind ``=``, and
  may have any value, also one that begins with a dash. After ``--`` all are words.
- A wrong line is a ``UsageError``: one line that says what to do.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence

from . import commands
from .usage import Parser, UsageError, prog

#: What an option begins with; "-", "-5", "- a list" and "--- a line" are words.
_OPTION = re.compile(r"-[A-Za-z]|--[A-Za-z][\w-]*(=|\Z)")


def parse(given: Sequence[str]) -> argparse.Namespace:
    """The command and its options; prints and ends for ``--help`` and ``--version``."""
    given = list(given)
    if given[:1] == ["help"]:  # as git has it
        given = [*given[1:2], "--help"]
    if not given or given[0] in ("-h", "--help"):
        print(commands.overview(prog()), file=sys.stdout if given else sys.stderr)
        raise SystemExit(0 if given else 2)
    if given[0] in ("-V", "--version"):
        print(commands.version())
        raise SystemExit(0)
    command = commands.COMMANDS.get(given[0])
    if command is None:
        raise UsageError(_no_command(given[0]))
    parser = command.parser(prog())
    options, found = split(parser, given[1:])
    namespace = parser.parse_args(options)
    namespace.command = command
    _match(command, parser, namespace, found)
    return namespace


def _no_command(word: str) -> str:
    names = list(commands.COMMANDS)
    if word.startswith("-"):
        return f"the command comes first, then {word}; for example: {prog()} run smollm2 {word}"
    if word in commands.OTHER_NAMES:
        return f"{word!r} is no command; it is called {commands.OTHER_NAMES[word]!r} here"
    # Not what destroys something: "r" is as near to "run".
    close = difflib.get_close_matches(word, [name for name in names if name != "rm"], n=1)
    if close:
        return f"{word!r} is no command; did you mean {close[0]!r}?"
    if commands.is_model(word):
        return f"{word!r} is no command; did you mean: {prog()} run {word}?"
    return f"{word!r} is no command; there are {', '.join(names)}"


def split(parser: Parser, given: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options, as argparse reads them without a doubt, and the words."""
    options: list[str] = []
    found: list[str] = []
    rest = iter(given)
    for text in rest:
        if text == "--":
            found.extend(rest)
        elif not _OPTION.match(text):
            found.append(text)
        else:
            name, value = _option(parser, text)
            action = parser._option_string_actions[name]
            if action.nargs != 0 and value is None:
                value = next(rest, None)
                if value is None:
                    parser.error(f"{name} needs a value: {name} {action.metavar}")
            options.append(name if value is None else f"{name}={value}")
    return options, found


def _option(parser: Parser, text: str) -> tuple[str, str | None]:
    """The full name of an option, and the value that stands in the same word."""
    names = parser._option_string_actions
    if not text.startswith("--"):
        name, value = text[:2], text[2:] or None
        if name in names and (value is None or names[name].nargs != 0):
            # By its long name: "-n=5" would be the value "=5".
            return names[name].option_strings[-1], value
        parser.error(_no_option(parser, text))
    name, equals, after = text.partition("=")
    if name not in names:
        longer = [known for known in names if known.startswith(name)]
        if len({id(names[known]) for known in longer}) > 1:
            parser.error(f"{name} may be {' or '.join(longer)}; write more of it")
        if not longer:
            parser.error(_no_option(parser, name))
        name = longer[0]
    return name, after if equals else None


def _no_option(parser: Parser, name: str) -> str:
    known = [option for option in parser._option_string_actions if option.startswith("--")]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else "; a word that begins with a dash goes after --"
    return f"there is no option {name}{hint}"


def _match(
    command: commands.Command, parser: Parser, namespace: argparse.Namespace, found: list[str]
) -> None:
    """Gives the words to the names that the command has for them."""
    left = list(found)
    for word in command.words:
        if word.many:
            setattr(namespace, word.name, left)
            if word.required and not left:
                parser.error(f"{word.metavar} is missing; for example: {prog()} {command.example}")
            left = []
        elif left:
            setattr(namespace, word.name, left.pop(0))
        elif word.required:
            parser.error(f"{word.metavar} is missing; for example: {prog()} {command.example}")
    if left:
        parser.error(
            f"too many words, from {left[0]!r} on; put quotes around a text of several words"
            if any(word.name == "prompt" for word in command.words)
            else f"does not know what to do with {left[0]!r}"
        )
