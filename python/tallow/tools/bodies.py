"""What stands between the markers of a call, read as it comes: one reader for each way to write it.

A reader is a generator over a ``Cursor``. It yields where the text so far does not tell how to go on, returns
the calls (name and arguments each) with the cursor behind them, and raises ``NoCall`` for what is none. Every
decision rests on the text so far and never on how it was cut into pieces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Mapping
from typing import Any, NoReturn, TypeVar

from .formats import Tagged, ToolFormat
from .values import is_text, typed

T = TypeVar("T")
Reading = Generator[None, None, T]
Pairs = list[tuple[str, dict[str, Any]]]
#: The tools that may be called, with the schemas of their arguments.
Schemas = Mapping[str, Mapping[str, Any]]

_ARGUMENT_KEYS = ("arguments", "parameters")
_NAME_KEYS = ("name", "tool_name", "function")
_SPACE = re.compile(r"\s*")
_SEPARATORS = re.compile(r"[\s;,]*")
_NAME = re.compile(r"[\w.\-]*")
_PYTHON_KEY = re.compile(r"[^=(){}\[\]\"',]*")
_MAX_NAME = 200
#: Deeper than this is no call.
_MAX_DEPTH = 64


class NoCall(Exception):
    """What looked like a call is text."""


class Cursor:
    """A place in a text that is still coming in."""

    def __init__(self, at: int) -> None:
        self.text, self.at, self.final = "", at, False

    def more(self) -> Reading[None]:
        """Waits for more of the text; at its end there is no call."""
        if self.final:
            raise NoCall
        yield

    def char(self) -> Reading[str]:
        """The next character, not taken."""
        while self.at >= len(self.text):
            yield from self.more()
        return self.text[self.at]

    def run(self, pattern: re.Pattern[str]) -> Reading[str]:
        """The longest run of characters that a pattern of single characters matches; something follows it."""
        start = self.at
        while True:
            match = pattern.match(self.text, self.at)
            assert match is not None, "the pattern matches nothing, too"
            self.at = match.end()
            if self.at < len(self.text):
                return self.text[start : self.at]
            yield from self.more()

    def literal(self, *texts: str) -> Reading[str | None]:
        """Takes the first of these texts that stands here; None if none does."""
        while True:
            for text in texts:
                if self.text.startswith(text, self.at):
                    self.at += len(text)
                    return text
            rest = self.text[self.at :]
            if not any(text.startswith(rest) for text in texts):
                return None
            yield from self.more()

    def needed(self, *texts: str) -> Reading[str]:
        found = yield from self.literal(*texts)
        if found is None:
            raise NoCall
        return found

    def ahead(self, text: str) -> Reading[bool]:
        """Whether a text comes next, after white space; if so, that space is taken."""
        while True:
            at = _after_space(self.text, self.at)
            if self.text.startswith(text, at):
                self.at = at
                return True
            if self.final or not text.startswith(self.text[at:]):
                return False
            yield

    def until(self, end: str) -> Reading[str]:
        """The text up to an ending, which is taken too."""
        start = seen = self.at
        while (found := self.text.find(end, seen)) < 0:
            seen = max(start, len(self.text) - len(end) + 1)
            yield from self.more()
        self.at = found + len(end)
        return self.text[start:found]


def read(cursor: Cursor, form: ToolFormat, marked: bool, schemas: Schemas) -> Reading[Pairs]:
    """The calls behind a marker, or behind none (``marked`` False)."""
    yield from cursor.run(_SPACE)
    calls = yield from _READERS[form.body if marked else "json"](cursor, form, marked, schemas)
    if marked and form.close:
        yield from _closing(cursor, form.close)
    return calls


def _closing(cursor: Cursor, close: str) -> Reading[None]:
    """Takes the closing marker. One that was forgotten is none the worse: the call is complete."""
    if (yield from cursor.ahead(close)):
        cursor.at += len(close)
    elif cursor.final and close.startswith(cursor.text[_after_space(cursor.text, cursor.at) :]):
        cursor.at = len(cursor.text)  # half of it came


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None, "the pattern matches nothing, too"
    return match.end()


# JSON


def _read_json(cursor: Cursor, form: ToolFormat, marked: bool, schemas: Schemas) -> Reading[Pairs]:
    name = None
    if marked and form.heads and (yield from cursor.char()) not in "{[":
        name = yield from _head(cursor, form)
    value = yield from _json(cursor)
    if name is not None:
        return [(name, _arguments(value))]
    items = value if isinstance(value, list) else [value]
    calls = [_one(item, form, needs_arguments=not marked) for item in items]
    if not calls:
        raise NoCall
    return calls


_HEADS = {
    "[ARGS]": re.compile(r"\s*([\w.\-]+)(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*"),
    " <|constrain|>json<|message|>": re.compile(
        r"\s*([\w.\-]+)\s*(?:<\|constrain\|>)?\s*(?:json)?\s*<\|message\|>\s*"
    ),
}
_HEAD_CHARS = re.compile(r"[\w.\-\[\]<|>\s]*")


def _head(cursor: Cursor, form: ToolFormat) -> Reading[str]:
    """``name[ARGS]`` before an object."""
    head = yield from cursor.run(_HEAD_CHARS)
    match = _HEADS[form.head_end or "[ARGS]"].fullmatch(head)
    if match is None or len(head) > _MAX_NAME or cursor.text[cursor.at] != "{":
        raise NoCall
    return match[1]


_OUTSIDE = re.compile(r'["{}\[\]]')
_INSIDE = re.compile(r'["\\]')


def _json(cursor: Cursor) -> Reading[Any]:
    """An object or a list. The scan goes on where it stopped, so small pieces cost no more."""
    if (yield from cursor.char()) not in "{[":
        raise NoCall
    start, at, depth, in_string = cursor.at, cursor.at, 0, False
    while True:
        match = (_INSIDE if in_string else _OUTSIDE).search(cursor.text, at)
        if match is None or (match[0] == "\\" and match.end() == len(cursor.text)):
            at = len(cursor.text) if match is None else match.start()
            yield from cursor.more()
            continue
        at = match.end() + (match[0] == "\\")
        if match[0] == '"':
            in_string = not in_string
        elif match[0] in "{[":
            depth += 1
        elif match[0] in "}]":
            depth -= 1
            if depth == 0:
                cursor.at = at
                return _loads(cursor.text[start:at])


def _loads(text: str) -> Any:
    try:
        # Models write real line breaks into strings; nothing is gained by refusing them.
        return json.loads(text, strict=False, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise NoCall from None


def _refuse(_: str) -> NoReturn:
    raise NoCall


def _one(item: Any, form: ToolFormat, needs_arguments: bool) -> tuple[str, dict[str, Any]]:
    if isinstance(item, dict) and isinstance(item.get("function"), dict):
        item = item["function"]
    if not isinstance(item, dict):
        raise NoCall
    if form.named and len(item) == 1:
        ((name, arguments),) = item.items()
        return name, _arguments(arguments)
    name = next((item[key] for key in _NAME_KEYS if key in item), None)
    if not isinstance(name, str) or not name:
        raise NoCall
    given = [item[key] for key in _ARGUMENT_KEYS if key in item]
    if not given and needs_arguments:
        raise NoCall
    return name, _arguments(given[0] if given else {})


def _arguments(value: Any) -> dict[str, Any]:
    if isinstance(value, str):  # OpenAI's way: JSON within JSON
        value = _loads(value)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise NoCall
    return value


# f(key=value)


def _read_python(cursor: Cursor, form: ToolFormat, marked: bool, schemas: Schemas) -> Reading[Pairs]:
    if (yield from cursor.literal("[")) is None:
        calls = [(yield from _python_call(cursor))]
        while not (yield from cursor.ahead(form.close)) and (yield from _name_follows(cursor)):
            calls.append((yield from _python_call(cursor)))
        return calls
    calls = []
    while True:
        yield from cursor.run(_SEPARATORS)
        if calls and (yield from cursor.literal("]")) is not None:
            return calls
        calls.append((yield from _python_call(cursor)))


def _name_follows(cursor: Cursor) -> Reading[bool]:
    while (at := _after_space(cursor.text, cursor.at)) == len(cursor.text) and not cursor.final:
        yield
    found = at < len(cursor.text) and (cursor.text[at].isalpha() or cursor.text[at] == "_")
    cursor.at = at if found else cursor.at
    return found


def _python_call(cursor: Cursor) -> Reading[tuple[str, dict[str, Any]]]:
    name = yield from cursor.run(_NAME)
    yield from cursor.needed("(")
    if not 0 < len(name) <= _MAX_NAME:
        raise NoCall
    arguments: dict[str, Any] = {}
    while True:
        yield from cursor.run(_SEPARATORS)
        if (yield from cursor.literal(")")) is not None:
            return name, arguments
        key = (yield from cursor.run(_PYTHON_KEY)).strip()
        yield from cursor.needed("=")
        yield from cursor.run(_SPACE)
        if not key:
            raise NoCall
        arguments[key] = yield from _literal(cursor)


# call:f{key:value}


def _read_braces(cursor: Cursor, form: ToolFormat, marked: bool, schemas: Schemas) -> Reading[Pairs]:
    yield from cursor.needed("call:")
    name = yield from cursor.run(_NAME)
    if not 0 < len(name) <= _MAX_NAME:
        raise NoCall
    yield from cursor.run(_SPACE)
    if (yield from cursor.char()) != "{":
        raise NoCall
    return [(name, (yield from _literal(cursor, form.quote)))]


# Literals of Python, of JSON and of Gemma

_WORD = re.compile(r"[^\s,:{}\[\]()=\"']*")
_KEY = re.compile(r"[^:{}\[\],]*")
_WORDS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
_CLOSING = {"{": "}", "[": "]", "(": ")"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "0": "\0", "\n": ""}
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|x[0-9a-fA-F]{2}|.)", re.DOTALL)


def _literal(cursor: Cursor, quote: str = "", depth: int = 0) -> Reading[Any]:
    """A value. ``quote``: what is around strings, besides quotes; then a word alone is a string, too."""
    if depth > _MAX_DEPTH:
        raise NoCall
    char = yield from cursor.char()
    if quote and (yield from cursor.literal(quote)) is not None:
        return (yield from cursor.until(quote))
    if char in "\"'":
        return (yield from _quoted(cursor, char))
    if char in _CLOSING:
        return (yield from _container(cursor, _CLOSING[char], quote, depth + 1))
    word = yield from cursor.run(_WORD)
    if word in _WORDS:
        return _WORDS[word]
    try:
        return json.loads(word, parse_constant=_refuse)
    except ValueError:
        if quote and word:
            return word
        raise NoCall from None


def _container(cursor: Cursor, closing: str, quote: str, depth: int) -> Reading[Any]:
    cursor.at += 1
    items: list[Any] = []
    pairs: dict[str, Any] = {}
    while True:
        yield from cursor.run(_SEPARATORS)
        if (yield from cursor.literal(closing)) is not None:
            return pairs if closing == "}" else items
        if closing != "}":
            items.append((yield from _literal(cursor, quote, depth)))
            continue
        key = yield from _key(cursor, quote)
        yield from cursor.run(_SPACE)
        yield from cursor.needed(":")
        yield from cursor.run(_SPACE)
        pairs[key] = yield from _literal(cursor, quote, depth)


def _key(cursor: Cursor, quote: str) -> Reading[str]:
    char = yield from cursor.char()
    if quote and (yield from cursor.literal(quote)) is not None:
        return (yield from cursor.until(quote))
    if char in "\"'":
        return (yield from _quoted(cursor, char))
    key = (yield from cursor.run(_KEY)).strip()
    if not quote or not key:
        raise NoCall
    return key


def _quoted(cursor: Cursor, mark: str) -> Reading[str]:
    start = at = cursor.at + 1
    pattern = re.compile(rf"[{mark}\\]")
    while True:
        match = pattern.search(cursor.text, at)
        if match is None or (match[0] == "\\" and match.end() == len(cursor.text)):
            at = len(cursor.text) if match is None else match.start()
            yield from cursor.more()
        elif match[0] == "\\":
            at = match.end() + 1
        else:
            cursor.at = match.end()
            return _unescaped(cursor.text[start : match.start()])


def _unescaped(text: str) -> str:
    def one(match: re.Match[str]) -> str:
        code = match[1]
        if len(code) == 1:
            return _ESCAPES.get(code, code if code in "\\\"'/" else match[0])
        number = int(code[1:], 16)
        return chr(number) if number < 0x110000 else match[0]

    plain = _ESCAPE.sub(one, text) if "\\" in text else text
    # JSON writes what lies beyond four digits as two halves.
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# Tags


def _read_tags(cursor: Cursor, form: ToolFormat, marked: bool, schemas: Schemas) -> Reading[Pairs]:
    assert form.tags is not None, "a format of tags has them"
    calls = []
    while True:
        calls.append((yield from _tagged(cursor, form.tags, form.close, schemas)))
        if not form.tags.name[0] or not (yield from cursor.ahead(form.tags.name[0])):
            return calls


def _tagged(
    cursor: Cursor, tags: Tagged, close: str, schemas: Schemas
) -> Reading[tuple[str, dict[str, Any]]]:
    before, after = tags.name
    if before:
        yield from cursor.needed(before)
    name = yield from cursor.run(_NAME)
    if after:
        yield from cursor.needed(after)
    if not 0 < len(name) <= _MAX_NAME:
        raise NoCall
    schema, raw = schemas.get(name), {}
    while True:
        yield from cursor.run(_SPACE)
        found = yield from cursor.needed(tags.key[0], *filter(None, (tags.end, close)))
        if found != tags.key[0]:
            break
        key = yield from cursor.until(tags.key[1])
        if tags.value[0]:
            yield from cursor.run(_SPACE)
            yield from cursor.needed(tags.value[0])
        text = yield from _tagged_value(cursor, tags, key, schema)
        raw[key] = typed(text, key, schema)
    if found == close:
        cursor.at -= len(close)  # it is read where all are
    return name, raw


def _tagged_value(cursor: Cursor, tags: Tagged, key: str, schema: Mapping[str, Any] | None) -> Reading[str]:
    """The text of a value. In an object or a list a text may hold the closing tag, so these are read as JSON
    where the value cannot be a text itself."""
    start = cursor.at
    if not is_text(key, schema):
        try:
            yield from cursor.run(_SPACE)
            yield from _json(cursor)
            end = cursor.at
            if (yield from cursor.ahead(tags.value[1])):
                cursor.at += len(tags.value[1])
                return cursor.text[start:end]
        except NoCall:
            pass
        cursor.at = start
    text = yield from cursor.until(tags.value[1])
    return text.removeprefix("\n").removesuffix("\n") if tags.lines else text


_READERS: dict[str, Callable[[Cursor, ToolFormat, bool, Schemas], Reading[Pairs]]] = {
    "json": _read_json,
    "python": _read_python,
    "braces": _read_braces,
    "tags": _read_tags,
}
