"""The text of a stream, cut where DSPy's listeners look for the headers of fields.

A ``dspy.streaming.StreamListener`` finds a header in the chunks that it has kept back, ten at most, and takes
a chunk with a header and the next one in it for a whole cached answer. So a header is one piece, however many
tokens it has, and no value shares it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_CHAT = r"\[\[ ## \w+ ## \]\]"
#: By the name of a format: a header, and what may become one.
_MARKS = {
    "chat": (_CHAT, r"\[\[?|\[\[ #{0,2}|\[\[ ## \w*|\[\[ ## \w+ #{0,2}|\[\[ ## \w+ ## \]?"),
    "xml": (r"</?\w+>", r"</?\w*"),
}
_PATTERNS = {
    name: (re.compile(f"({mark})"), re.compile(rf"(?:{open_})\Z")) for name, (mark, open_) in _MARKS.items()
}


class Pieces:
    """Cuts one answer. ``layout`` is the name of its format; one without headers in its text is not cut."""

    def __init__(self, layout: str) -> None:
        self._patterns = _PATTERNS.get(layout)
        self._held = ""

    def push(self, text: str, *, last: bool = False) -> Iterator[str]:
        """The pieces that can be told by now; with the ``last`` text, all that is left."""
        if self._patterns is None:
            if text:
                yield text
            return
        mark, open_ = self._patterns
        text, self._held = self._held + text, ""
        found = None if last else open_.search(text)
        if found is not None:
            text, self._held = text[: found.start()], found.group()
        yield from filter(None, mark.split(text))
