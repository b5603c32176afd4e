"""``tallow chat``: a conversation in a terminal, or one message a line from a pipe."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import answers, arguments
from .._log import size
from ..errors import ContextLengthError, Error, InvalidRequestError, TemplateError
from . import settings
from .answer import decoded, figures, show
from .output import complain, counted, is_terminal, tell

_QUOTES = '"""'
_MAX_SAVED = 64 << 20


def chat(options: argparse.Namespace) -> int | None:
    given = settings.answer_options(options)
    model, seconds = settings.load(options)
    if not model.has_template:
        raise TemplateError(
            f"{model.name} has no chat template, so it cannot hold a conversation; tallow run continues a "
            "text, and --chat-template gives one"
        )
    talk = Chat(model, options, {**given, "adapter": settings.adapter(model, options)})
    if is_terminal(sys.stdin):
        with contextlib.suppress(ImportError):  # Windows has none
            import readline  # noqa: F401  arrow keys, and the messages of this conversation
        tell(
            f"{model.name}, {size(model.weight_bytes)}, context of {model.context_length} tokens, "
            f"loaded in {seconds:.1f} s. /help lists commands, Ctrl-D ends."
        )
    talk.loop()
    return None


class Chat:
    """The conversation so far, and what a line of input does to it."""

    def __init__(self, model: Any, options: argparse.Namespace, given: dict[str, Any]) -> None:
        self.model = model
        self.options = options
        self.given = given
        self.turns: list[dict[str, Any]] = settings.opening(options)
        self.template = answers.Template.of(model)
        #: Notes of the template that were told; each turn would bring them again.
        self.notes: set[str] = set()
        #: Files that this conversation may write again.
        self.own: set[Path] = set()
        self.commands: dict[str, tuple[Callable[[str], bool], str]] = {
            "help": (self.help, "/help          this list"),
            "bye": (self.bye, "/bye           end (so does Ctrl-D)"),
            "clear": (self.clear, "/clear         forget the conversation, not the system message"),
            "system": (self.system, "/system TEXT   set the system message; without a TEXT, show it"),
            "save": (self.save, "/save FILE     write the conversation as JSON"),
            "load": (self.load, "/load FILE     go on with one that was saved"),
        }

    def loop(self) -> None:
        goes_on = True
        while goes_on:
            try:
                said = self.read()
            except KeyboardInterrupt:
                tell("\n(/bye or Ctrl-D ends)")
                continue
            if said is None:
                return
            goes_on = self.take(said)

    def take(self, said: str) -> bool:
        """What one message or command does; False if it ends the conversation."""
        if said.startswith("/") and not said.startswith("//"):
            return self.command(said)
        if said.strip():
            self.ask(said[1:] if said.startswith("//") else said)
        return True

    # Reading

    def read(self) -> str | None:
        """The next message or command; None at the end."""
        line = _line("> ")
        if line is None or not line.startswith(_QUOTES):
            return line
        text = line.removeprefix(_QUOTES)
        while not text.rstrip().endswith(_QUOTES):
            more = _line("... ")
            if more is None:
                break
            text += f"\n{more}"
        return text.rstrip().removesuffix(_QUOTES).strip("\n")

    # Asking

    def ask(self, said: str) -> None:
        turns = [*self.turns, {"role": "user", "content": said}]
        try:
            asked = answers.prepare(self.model, turns, template=self.template, **self.given)
            shown = show(asked, self.options, keep=True, told=self.notes)
        except ContextLengthError as error:
            complain(
                f"the conversation has {error.prompt_tokens} tokens now, and the context has "
                f"{error.limit}; this message was left out. /clear forgets what was said"
            )
            return
        except Error as error:
            if not is_terminal(sys.stdin):
                raise
            complain(str(error))
            return
        if shown.interrupted:
            tell("(interrupted)")
        if shown.text or not shown.interrupted:
            said_back = {"role": "assistant", "content": shown.text}
            self.turns = [*turns, said_back]
        usage = shown.reply.usage
        if usage is not None and usage.total_tokens >= self.model.context_length:
            tell(f"(the context of {self.model.context_length} tokens is full; /clear forgets what was said)")
        if self.options.verbose and not shown.interrupted:
            tell(figures(self.model, shown.reply, 0))

    # Commands

    def command(self, said: str) -> bool:
        name, _, rest = said[1:].partition(" ")
        name = {"exit": "bye", "quit": "bye", "?": "help"}.get(name, name)
        if name in self.commands:
            return self.commands[name][0](rest.strip())
        close = difflib.get_close_matches(name, self.commands, n=1)
        hint = f"did you mean /{close[0]}?" if close else "/help lists them"
        tell(f"/{name} is no command; {hint} (a message may begin with //)")
        return True

    def help(self, _: str) -> bool:
        lines = [text for _, text in self.commands.values()]
        lines.append(f"{_QUOTES}            begins and ends a message of several lines")
        tell("\n".join([*lines, "Ctrl-C         ends an answer"]))
        return True

    def bye(self, _: str) -> bool:
        return False

    def clear(self, _: str) -> bool:
        self.turns = [turn for turn in self.turns[:1] if turn["role"] == "system"]
        tell("forgotten")
        return True

    def system(self, text: str) -> bool:
        rest = [turn for turn in self.turns if turn["role"] != "system"]
        if text:
            self.turns = [{"role": "system", "content": text}, *rest]
            tell("it holds from the next message on" if rest else "set")
        else:
            own = [turn["content"] for turn in self.turns if turn["role"] == "system"]
            tell(own[0] if own else "there is no system message; /system TEXT sets one")
        return True

    def save(self, name: str) -> bool:
        path = Path(name).expanduser()
        if not name:
            tell("/save needs a file: /save talk.json")
        elif path.exists() and path.resolve() not in self.own:
            tell(f"{name} exists, and is not of this conversation; choose another name")
        else:
            saved = {"model": self.options.model, "messages": self.turns}
            try:
                path.write_text(json.dumps(saved, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            except OSError as error:
                tell(f"{name}: {error.strerror}")
            else:
                self.own.add(path.resolve())
                tell(f"{counted(len(self.turns), 'message')} in {name}")
        return True

    def load(self, name: str) -> bool:
        path = Path(name).expanduser()
        try:
            if path.stat().st_size > _MAX_SAVED:
                raise InvalidRequestError(f"is longer than {size(_MAX_SAVED)}")
            saved = json.loads(path.read_bytes())
            messages = saved.get("messages") if isinstance(saved, dict) else saved
            if not isinstance(messages, list):
                raise InvalidRequestError('holds no "messages"')
            self.turns = arguments.messages("messages", messages, self.model.chat_template)
        except OSError as error:
            tell(f"/load {name}: {error.strerror or error}")
        except ValueError as error:  # no JSON, or no messages
            tell(f"/load {name}: is no conversation that /save wrote: {error}")
        else:
            self.own.add(path.resolve())
            tell(f"{counted(len(self.turns), 'message')} from {name}")
        return True


def _line(prompt: str) -> str | None:
    """The next line; None at the end of stdin. Only a terminal is prompted."""
    if is_terminal(sys.stdin):
        try:
            return input(prompt)
        except EOFError:
            print(file=sys.stderr)
            return None
    data = sys.stdin.buffer.readline() if sys.stdin is not None else b""
    return decoded(data).rstrip("\r\n") if data else None
