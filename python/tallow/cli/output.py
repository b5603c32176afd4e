"""What commands print: sizes, tables and bars that a person reads, and text that a terminal may show."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, TextIO

#: Control characters, but for line breaks and tabs: a model's answer may hold what a terminal obeys.
_CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(0x7F, 0xA0))}
for _code in (ord("\n"), ord("\t"), ord("\r")):
    del _CONTROLS[_code]
_BLOCKS = " ▏▎▍▌▋▊▉█"


def is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # closed, or none
        return False


def write(text: str, stream: TextIO | None = None, *, faint: bool = False) -> None:
    """At once, and harmless where it is shown. ``faint``: as what is beside the matter, on a terminal."""
    stream = stream or sys.stdout
    if is_terminal(stream):
        text = text.translate(_CONTROLS)
        text = f"\x1b[2m{text}\x1b[0m" if faint and _has_styles() else text
    stream.write(text)
    stream.flush()


def _has_styles() -> bool:
    """As https://no-color.org asks, and terminals that say that they are plain."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def tell(line: str) -> None:
    """A line beside the answer."""
    write(line, sys.stderr, faint=True)
    write("\n", sys.stderr)


def complain(message: str) -> None:
    """What went wrong, in one line."""
    write(f"tallow: {' '.join(message.split())}\n", sys.stderr)


def counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Columns under their names; those of ``right`` stand at the right, as numbers do."""
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = (
            text.rjust(width) if at in right else text.ljust(width)
            for at, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip().translate(_CONTROLS))
    return "\n".join(lines)


def bar(share: float, width: int = 24) -> str:
    """A share of 1 as a bar, to an eighth of a character; plain where the terminal has no blocks."""
    if "utf" not in (getattr(sys.stdout, "encoding", None) or "utf-8").lower():
        return ("#" * round(share * width)).ljust(width)
    eighths = round(share * width * 8)
    return (_BLOCKS[8] * (eighths // 8) + _BLOCKS[eighths % 8].strip()).ljust(width)


def without_none(value: Any) -> Any:
    """The same JSON without what says nothing: None, and lists of None."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if not _is_empty(item)}
    return value


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, list) and bool(value) and all(item is None for item in value))
