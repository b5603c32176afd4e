"""``tallow run``, and how an answer is shown: text on stdout, all else on stderr, or one JSON object."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import json
import os
import select
import stat
import sys
from typing import Any

from .. import answers, results
from ..errors import InvalidRequestError
from ..model import Model
from . import settings
from .output import counted, is_terminal, tell, write
from .usage import UsageError

#: Seconds after which somebody who waits for us is told that we wait for stdin.
_PATIENCE = 1.0


def run(options: argparse.Namespace) -> int | None:
    if options.raw and (options.system or options.think):
        name = "--system" if options.system else "--think"
        raise UsageError(f"run: {name} needs the chat template, and --raw leaves it out")
    given = settings.answer_options(options)
    prompt = whole_prompt(options.prompt)
    model, seconds = settings.load(options)
    adapter = settings.adapter(model, options)
    asked = answers.prepare(model, _as_prompt(model, prompt, options), adapter=adapter, **given)
    shown = show(asked, options)
    if options.verbose:
        tell(figures(model, shown.reply, seconds))
    return None


def _as_prompt(model: Model, text: str, options: argparse.Namespace) -> Any:
    # A model without a template takes plain prompts only, and there is nothing else that could be meant.
    if options.raw or not (model.has_template or options.system):
        return text
    return [*settings.opening(options), {"role": "user", "content": text}]


# The prompt


def whole_prompt(given: str | None) -> str:
    """The prompt of the command line, with what is piped in behind it."""
    if given in (None, "-"):
        if is_terminal(sys.stdin):
            tell("tallow: reading the prompt from the terminal; end it with Ctrl-D")
        text = read_stdin()
        if not text:
            raise UsageError("there is no prompt: stdin is empty; write one behind the model, in quotes")
        return text
    piped = read_stdin() if _is_piped() else ""
    return f"{given}\n\n{piped}" if piped else str(given)


def read_stdin() -> str:
    """All of stdin, without its last line break: ``echo`` wrote that, and nobody meant it."""
    if sys.stdin is None:  # closed by whoever started us
        return ""
    _say_when_waiting()
    return decoded(sys.stdin.buffer.read()).removesuffix("\n").removesuffix("\r")


def decoded(data: bytes) -> str:
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"stdin is not UTF-8 text: byte 0x{data[error.start]:02x} at {error.start}; convert it, for "
            "example with `iconv -f latin1 -t utf-8`"
        ) from None


def _is_piped() -> bool:
    """Whether stdin was put there for us: a pipe, a file, or a socket that has something. One that has not
    may stay open for ever (node gives its children such), and a device says nothing."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # none, closed, or without a file
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or (stat.S_ISSOCK(mode) and _has_something(0.1))


def _has_something(seconds: float) -> bool:
    """Whether stdin has bytes, or its end, within that time."""
    return bool(select.select([sys.stdin], [], [], seconds)[0])


def _say_when_waiting() -> None:
    """A pipe that nobody writes to and nobody closes looks like a slow model."""
    if is_terminal(sys.stdin) or sys.platform == "win32":  # there select knows sockets only
        return
    with contextlib.suppress(OSError, ValueError):  # a stdin without a file
        if not _has_something(_PATIENCE):
            tell("tallow: waiting for the end of stdin, which goes into the prompt (< /dev/null is none)")


# The answer


class Shown:
    """An answer as it was shown, and what is known of it; after Ctrl-C as far as it came."""

    def __init__(self, reply: answers.Reply) -> None:
        self.reply = reply
        self.text = ""
        self.thought = ""
        self.interrupted = False

    def as_json(self) -> dict[str, Any]:
        reply = self.reply
        assert reply.usage is not None and reply.timings is not None, "it was read to its end"
        usage = {
            "prompt_tokens": reply.usage.prompt_tokens,
            "completion_tokens": reply.usage.completion_tokens,
            "total_tokens": reply.usage.total_tokens,
            "cached_tokens": reply.usage.cached_tokens,
        }
        if reply.thought_tokens is not None:
            usage["thought_tokens"] = reply.thought_tokens
        timings = {
            "queue_s": reply.timings.queue,
            "prefill_s": reply.timings.prefill,
            "decode_s": reply.timings.decode,
            "tokens_per_second": results.speed(reply.usage, reply.timings),
        }
        thinking = {"thinking": self.thought} if self.thought else {}
        return {
            "text": self.text,
            **thinking,
            "finish_reason": reply.finish_reason,
            "usage": usage,
            "timings": {name: round(value, 6) for name, value in timings.items()},
            "notes": list(reply.notes),
        }


def show(
    asked: answers.Asked, options: argparse.Namespace, *, keep: bool = False, told: set[str] | None = None
) -> Shown:
    """Prints an answer as it comes. ``keep``: Ctrl-C ends the answer and keeps what was said of it. ``told``:
    notes that were told before."""
    with asked.stream() as reply:
        shown = Shown(reply)
        try:
            for event in reply:
                _take(shown, event, quiet=options.json)
        except KeyboardInterrupt:
            if not keep:
                raise
            shown.interrupted = True
    if options.json and not shown.interrupted:
        print(json.dumps(shown.as_json(), ensure_ascii=False), flush=True)
    elif not options.json:
        write("\n")
        told = set() if told is None else told
        for note in reply.notes:
            if note not in told:
                tell(f"note: {note}")
        told.update(reply.notes)
    return shown


def _take(shown: Shown, event: answers.Event, *, quiet: bool) -> None:
    if isinstance(event, answers.Thought):
        shown.thought += event.text
        if not quiet:
            write(event.text, sys.stderr, faint=True)
    elif isinstance(event, str):
        if shown.thought and not shown.text and not quiet:
            write("\n", sys.stderr)
        shown.text += event
        if not quiet:
            write(event)


def figures(model: Model, reply: answers.Reply, load_seconds: float) -> str:
    """One line of what an answer cost."""
    if reply.usage is None or reply.timings is None:
        return "ended early"
    usage, timings = reply.usage, reply.timings
    computed = usage.prompt_tokens - usage.cached_tokens
    prompt = f", {computed / timings.prefill:.0f} tokens/s" if timings.prefill > 0 and computed else ""
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    rate = results.speed(usage, timings)  # the first token comes with the prompt, so a single one has none
    answered = f", {rate:.1f} tokens/s" if rate else ""
    loaded = f"{model.name} loaded in {load_seconds:.2f} s; " if load_seconds else ""
    return (
        f"{loaded}prompt {counted(usage.prompt_tokens, 'token')}{cached}{prompt}; "
        f"answer {counted(usage.completion_tokens, 'token')}{answered}; "
        f"{timings.total:.2f} s; finish reason {reply.finish_reason}"
    )
