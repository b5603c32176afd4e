"""Regular expressions for grammars: what users' patterns may hold, and texts that pydantic reads.

pydantic searches a pattern anywhere in a string and knows all of Unicode; a grammar matches whole lexemes.
The formats are narrower than their standards where pydantic is (no year 0, no 29 February, no leap second).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

INTEGER_KEY = "^-?(?:0|[1-9][0-9]{0,14})$"

_DATE = (
    "[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,6})?"
_ZONE = "(?:Z|[+-](?:0[0-9]|1[0-3]):[0-5][0-9])"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = f"{_BYTE}(?:\\.{_BYTE}){{3}}"
#: The bits of the host must be zero.
_NETWORK = f"{_BYTE}\\.0\\.0\\.0/8|{_BYTE}\\.{_BYTE}\\.0\\.0/16|{_BYTE}(?:\\.{_BYTE}){{2}}\\.0/24|{_IPV4}/32"
_IPV6 = "(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}|::(?:[0-9a-f]{1,4}:){0,5}[0-9a-f]{1,4}"
_HOST = "[a-z][a-z0-9]{0,30}(?:\\.[a-z][a-z0-9]{1,20}){0,2}\\.(?:com|org|net|edu|gov|io|de|fr|uk)"
_HEX = "[0-9a-f]"


def _uuid(version: str) -> str:
    return f"{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-[89ab]{_HEX}{{3}}-{_HEX}{{12}}"


FORMATS: dict[str, str] = {
    "date": _DATE,
    "date-time": f"{_DATE}T{_TIME}{_ZONE}?",
    "date-time-aware": f"{_DATE}T{_TIME}{_ZONE}",
    "date-time-naive": f"{_DATE}T{_TIME}",
    "date-past": _DATE.replace("[1-9][0-9]{3}", "1[0-9]{3}", 1),
    "date-future": _DATE.replace("[1-9][0-9]{3}", "[3-9][0-9]{3}", 1),
    "date-time-past": _DATE.replace("[1-9][0-9]{3}", "1[0-9]{3}", 1) + f"T{_TIME}{_ZONE}?",
    "date-time-future": _DATE.replace("[1-9][0-9]{3}", "[3-9][0-9]{3}", 1) + f"T{_TIME}{_ZONE}?",
    "time": f"{_TIME}",
    "time-naive": f"{_TIME}",
    "time-aware": f"{_TIME}{_ZONE}",
    "duration": "P[1-9][0-9]{0,3}D(?:T[1-9][0-9]?H)?|PT(?:[1-9][0-9]?H)?[1-9][0-9]?M|PT[1-9][0-9]{0,3}S",
    "uuid": _uuid("[1-8]"),
    **{f"uuid{version}": _uuid(str(version)) for version in range(1, 9)},
    "email": f"[a-z][a-z0-9_]{{0,30}}(?:\\.[a-z0-9]{{1,20}}){{0,2}}@{_HOST}",
    "uri": f"https?://{_HOST}(?:/[A-Za-z0-9._~-]{{1,40}}){{0,6}}/?",
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "ipvanyaddress": f"{_IPV4}|{_IPV6}",
    "ipv4interface": f"{_IPV4}/(?:3[0-2]|[12]?[0-9])",
    "ipv6interface": f"(?:{_IPV6})/(?:12[0-8]|1[01][0-9]|[1-9]?[0-9])",
    "ipvanyinterface": f"{_IPV4}/(?:3[0-2]|[12]?[0-9])",
    "ipv4network": _NETWORK,
    "ipv6network": f"(?:{_IPV6})/128",
    "ipvanynetwork": _NETWORK,
    "regex": "[A-Za-z0-9 ]*",
}


def address(schemes: Iterable[str]) -> str:
    """An address of one of these schemes, as a pattern."""
    begin = "|".join(re.escape(scheme) for scheme in schemes)
    host = "" if set(schemes) == {"file"} else _HOST
    return f"^(?:{begin})://{host}/[a-z0-9_]{{1,40}}$"


#: Formats that any text has.
ANY_TEXT = frozenset(("binary", "path", "password", "text"))

_UNKNOWN = re.compile(r"\(\?[=!>|(&R]|\(\?<[=!]|\(\?P[=>]|\\[bBGKXR1-9]|[*+?}]\+|\(\?[a-zA-Z]*x")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def checked(pattern: str) -> str:
    """The pattern, or ValueError with what it uses that a grammar does not know."""
    bare = re.sub(r"\\[\\]", "", pattern)
    found = _UNKNOWN.search(bare)
    if found is not None:
        raise ValueError(f"a grammar knows no {found.group()!r}")
    for part in alternatives(pattern):
        if _anchors(_trimmed(part)[1]):
            raise ValueError("it has an anchor inside")
    return pattern


def checked_or(pattern: str, other: str) -> str:
    try:
        return checked(pattern)
    except ValueError:
        return other


#: In ASCII, narrower than Unicode's and a hundredth of the size; the complements are Unicode's, and spelled
#: out because the JSON compiler takes ``\D`` and ``\W`` for those of ASCII.
_CLASSES = {
    "d": "[0-9]",
    "w": "[0-9A-Za-z_]",
    "D": r"\P{Nd}",
    "W": r"[^\p{Alphabetic}\p{M}\p{N}\p{Pc}\p{Join_Control}]",
}


def ascii_classes(pattern: str) -> str:
    r"""The pattern with ``\d``, ``\w``, ``\D`` and ``\W`` as classes that match nothing that they do not."""
    return _ESCAPED.sub(lambda found: _CLASSES.get(found[1], found[0]), pattern)


def whole(pattern: str) -> str:
    """A pattern that is searched, as one that matches the whole text."""
    parts = []
    for part in alternatives(ascii_classes(checked(pattern))):
        (left, right), bare = _trimmed(part)
        parts.append(f"{'' if left else '(?s:.*)'}(?:{bare}){'' if right else '(?s:.*)'}")
    return "|".join(parts)


def alternatives(pattern: str) -> list[str]:
    """The pattern, split at each ``|`` outside brackets."""
    parts, depth, in_class, start = [], 0, False, 0
    escaped = False
    for at, character in enumerate(pattern):
        if escaped or character == "\\":
            escaped = not escaped
        elif in_class:
            in_class = character != "]" or pattern[at - 1] == "[" or pattern[at - 2 : at] == "[^"
        elif character == "[":
            in_class = True
        elif character in "()":
            depth += 1 if character == "(" else -1
        elif character == "|" and depth == 0:
            parts.append(pattern[start:at])
            start = at + 1
    return [*parts, pattern[start:]]


def _trimmed(part: str) -> tuple[tuple[bool, bool], str]:
    """Which ends are anchored, and the part without these anchors."""
    left = part.startswith(("^", "\\A"))
    part = part[1 if part.startswith("^") else 2 :] if left else part
    right = False
    for anchor in ("\\Z", "\\z", "$"):
        body = part[: -len(anchor)]
        if part.endswith(anchor) and (len(body) - len(body.rstrip("\\"))) % 2 == 0:
            right, part = True, body
            break
    return (left, right), part


def _anchors(part: str) -> bool:
    bare = re.sub(r"\\[^AzZ]", "", part)
    bare = re.sub(r"\[\^?\]?[^\]]*\]", "", bare)
    return bool(re.search(r"\^|\$|\\[AzZ]", bare))
