"""The ``tallow`` command: try a model without writing a program.

    tallow run smollm2 "Why is the sky blue?"       streams the answer
    tallow chat smollm2                             a conversation
    tallow list                                     the models on this machine

``commands`` is the table of commands and their options, ``words`` reads a command line by it; a module for
each group of commands does the work and is imported when it is called. An error is one line on stderr, and
exit code 1 (2 for a wrong command line, found before anything is loaded); Ctrl-C ends with 130.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

from ..errors import Error
from . import commands, words
from .output import complain
from .usage import UsageError

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code. ``argv``: the words after "tallow"; None are those
    that this process was started with."""
    if argv is None:
        _any_character()
    given = list(sys.argv[1:] if argv is None else argv)
    for name in ("stdout", "stderr"):  # closed by whoever started us (`>&-`): nobody wants to read it
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    try:
        options = words.parse(given)
        code = commands.run(options) or OK
        sys.stdout.flush()  # a reader that has gone is noticed here, not at the interpreter's exit
        return code
    except SystemExit as ended:  # --help and --version, which argparse ends
        return ended.code if isinstance(ended.code, int) else OK
    except UsageError as error:
        complain(str(error))
        return USAGE
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, like `head`, has seen enough
        with contextlib.suppress(OSError, ValueError):  # a stdout without a file, in tests
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit complains
        return FAILED
    except Error as error:
        complain(str(error))
        return FAILED
    except OSError as error:
        complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return FAILED


def _any_character() -> None:
    """What a terminal cannot show comes out as something; an odd name of a file as it is."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            utf8 = stream.encoding.lower().replace("-", "") == "utf8"
            stream.reconfigure(errors="surrogateescape" if utf8 else "replace")  # type: ignore[union-attr]
