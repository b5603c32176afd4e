"""Arguments that are not spelt as JSON: their rules in a grammar, and back to values by their schema.

Three spellings. Of Python: ``f(key="text", n=1)``, values as in JSON but for True, False and None. In tags:
each value between two tags, strings as they stand, all else as JSON. In braces (Gemma): ``{key:value}`` with
quotes of its own around strings, at every depth.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..schemas import patterns
from .formats import Tagged, ToolFormat
from .functions import bounded

#: One line, as the templates show calls. What llguidance does not know of a schema is left to the function.
JSON_STYLE = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "coerce_one_of": True,
    "lenient": True,
}
_KINDS = ("string", "number", "integer", "boolean", "null", "array", "object")
_PYTHON = {"true": "True", "false": "False", "null": "None"}
#: Arguments of a function whose schema names none.
_MAX_OPEN = 16
_KEY = "/[A-Za-z_][A-Za-z0-9_]{0,40}/"

#: A marker or a text in Lark.
Spell = Callable[[str], str]


def kinds(schema: Any, root: Mapping[str, Any]) -> frozenset[str]:
    """The types of JSON that a schema may allow. Of a schema that says nothing about it, all."""
    schema = resolved(schema, root)
    if not isinstance(schema, Mapping):
        return frozenset(_KINDS)
    if "const" in schema or "enum" in schema:
        return frozenset(map(_kind, choices(schema)))
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), (list, tuple)):
            return frozenset().union(*(kinds(one, root) for one in schema[key]))
    if "type" in schema:
        given = schema["type"]
        return frozenset((given,) if isinstance(given, str) else given)
    for key, kind in (("properties", "object"), ("items", "array"), ("pattern", "string")):
        if key in schema:
            return frozenset((kind,))
    return frozenset(_KINDS)


def choices(schema: Mapping[str, Any]) -> list[Any]:
    """The values of an enum or a const; none for other schemas."""
    return [schema["const"]] if "const" in schema else list(schema.get("enum") or ())


def resolved(schema: Any, root: Mapping[str, Any]) -> Any:
    """What a reference within the document leads to."""
    for _ in range(16):
        if not isinstance(schema, Mapping) or not isinstance(schema.get("$ref"), str):
            return schema
        schema = _followed(schema["$ref"], root)
    return {}


def _followed(reference: str, root: Mapping[str, Any]) -> Any:
    found: Any = root
    for part in reference.lstrip("#/").split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        if name:
            found = found.get(name, {}) if isinstance(found, Mapping) else {}
    return found


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    by_type = {str: "string", int: "integer", float: "number", type(None): "null", list: "array"}
    return by_type.get(type(value), "object")


# Reading


def typed(text: str, key: str, parameters: Mapping[str, Any] | None) -> Any:
    """The value of an argument that stands between tags: a text where only a text may be one, else what it is
    as JSON, if that is allowed there."""
    allowed = _allowed(key, parameters)
    if allowed == {"string"}:
        return text
    bare = text.strip()
    try:
        value = json.loads(bare, strict=False)
    except (ValueError, RecursionError):
        value = {"True": True, "False": False, "None": None}.get(bare, text)
    kind = _kind(value)
    if kind in allowed or (kind == "integer" and "number" in allowed):
        return value
    if kind == "number" and "integer" in allowed and value == int(value):
        return int(value)
    return text


def is_text(key: str, parameters: Mapping[str, Any] | None) -> bool:
    """Whether the value of an argument may be a text."""
    return "string" in _allowed(key, parameters)


def _allowed(key: str, parameters: Mapping[str, Any] | None) -> frozenset[str]:
    root = parameters or {}
    properties = root.get("properties")
    return kinds(properties.get(key, {}) if isinstance(properties, Mapping) else {}, root)


# Grammars


class Spelling:
    """The rules for the arguments of one tool; ``rules`` collects what they refer to."""

    def __init__(self, form: ToolFormat, name: str, schema: Mapping[str, Any], spell: Spell) -> None:
        """``schema``: of all arguments, bounded. ``name``: a prefix for rules that is this tool's own."""
        self.form, self.name, self.root, self.spell = form, name, schema, spell
        self.rules: list[str] = []
        self._made: dict[str, str] = {}

    def arguments(self) -> str:
        """What stands between the name and the end of the call."""
        members = list(self._members())
        if self.form.body == "tags":
            assert self.form.tags is not None, "a format of tags has them"
            return self._tags(self.form.tags, members)
        if self.form.body == "python":
            return self._joined(
                [(f'{_quoted(key)} "=" {rule}', must) for key, rule, must in self._python(members)], ", "
            )
        return self._braces_of(self.root, "#")

    def _members(self) -> Iterator[tuple[str, Any, bool, str]]:
        """Key, schema, whether it must be there, and where the schema stands."""
        yield from _members_of(self.root, "#")

    def _json(self, schema: Any) -> str:
        """A value in JSON. References lead into the whole document."""
        own = moved(schema, "#/$defs/tool") if isinstance(schema, Mapping) else {}
        return json_rule({**own, "$defs": {"tool": moved(self.root, "#/$defs/tool")}})

    # Python

    def _python(self, members: list[tuple[str, Any, bool, str]]) -> Iterator[tuple[str, str, bool]]:
        for key, schema, must, _ in members:
            allowed = kinds(schema, self.root)
            words = [
                _PYTHON[w]
                for w, k in (("true", "boolean"), ("false", "boolean"), ("null", "null"))
                if k in allowed
            ]
            node = resolved(schema, self.root)
            if isinstance(node, Mapping) and choices(node):
                words = [_PYTHON.get(json.dumps(one), "") for one in choices(node)]
            only = allowed <= {"boolean", "null"}
            spelt = [_quoted(word) for word in words if word]
            options = spelt if only and spelt else [self._json(schema), *spelt]
            yield key, f"( {' | '.join(self._rule(option) for option in options)} )", must

    def _rule(self, body: str) -> str:
        """A rule of its own for a JSON document: it cannot stand in the middle of another rule."""
        if not body.startswith("%json"):
            return body
        if body not in self._made:
            self._made[body] = f"{self.name}_{len(self._made)}"
            self.rules.append(f"{self._made[body]}: {body}")
        return self._made[body]

    # Tags

    def _tags(self, tags: Tagged, members: list[tuple[str, Any, bool, str]]) -> str:
        parts = []
        for key, schema, must, _ in members:
            part = self._tag(_quoted(key), self._between(schema, tags), tags)
            parts.append(f"( {part} ){'' if must else '?'}")
        if not members and _is_open(self.root):
            self.rules.append(f"{self.name}_key: {_KEY}")
            part = self._tag(f"{self.name}_key", self._between({}, tags), tags)
            parts.append(f"( {part} ){{0,{_MAX_OPEN}}}")
        return _spaced(*parts)

    def _tag(self, key: str, value: str, tags: Tagged) -> str:
        """An argument with all around it."""
        line = '"\\n"' if tags.lines else ""
        gap = "" if tags.lines else '"\\n"?'
        parts = [*self._mark(tags.key[0]), key, *self._mark(tags.key[1])]
        if tags.value[0]:
            parts += [gap, *self._mark(tags.value[0])]
        return _spaced(*parts, line, value, line or gap)

    def _mark(self, text: str) -> list[str]:
        return [self.spell(text)] if text else []

    def _between(self, schema: Any, tags: Tagged) -> str:
        """A value and the tag that ends it."""
        end = "\n" * tags.lines + tags.value[1]
        node = resolved(schema, self.root)
        if isinstance(node, Mapping) and choices(node):
            texts = [one if isinstance(one, str) else json.dumps(one) for one in choices(node)]
            words = [*texts, *(_PYTHON[text] for text in texts if text in _PYTHON)]
            return f"( {' | '.join(map(_quoted, words))} ) {self._spelt(end)}"
        allowed = kinds(schema, self.root)
        if "string" in allowed:
            return self._text(node if allowed == {"string"} else {}, end)
        words = ["True", "False"] * ("boolean" in allowed) + ["None"] * ("null" in allowed)
        options = [self._rule(self._json(schema)), *map(_quoted, words)]
        return f"( {' | '.join(options)} ) {self._spelt(end)}"

    def _spelt(self, text: str) -> str:
        rest = text.removeprefix("\n")
        return _spaced('"\\n"' if rest != text else "", self.spell(rest))

    def _text(self, schema: Mapping[str, Any], end: str, start: str = "") -> str:
        """Free text up to an ending, and the ending: one lexeme that the first ending ends. Before a control
        token there is no need for that, for it is none of the text's."""
        least, most = schema.get("minLength", 0), schema.get("maxLength", "")
        body = f"(?s:.{{{least},{most}}})" if least or most != "" else "(?s:.*)"
        pattern = schema.get("pattern")
        also = ""
        if isinstance(pattern, str):
            try:
                also = patterns.whole(pattern)
            except ValueError:  # what no grammar holds is left to the function
                pattern = None
        mark = self.spell(end.removeprefix("\n"))
        name = f"{self.name}_text{len(self.rules)}".upper()
        if mark.startswith("<"):
            some = body if body != "(?s:.*)" else "(?s:.+)"
            self.rules.append(f"{name}: {_regex(some)}" + (f" & {_regex(also)}" if also else ""))
            opening = self.spell(start) if start else ""
            return _spaced(opening, f"{name}{'?' if not least and not also else ''}", self._spelt(end))
        last, first = _escaped(end), _escaped(start)
        stop = _escaped(end.removeprefix("\n"))
        whole = f"{name}: {_regex(first + body + last)} & ~{_regex(first + '(?s:.*)' + stop + '(?s:.+)')}"
        self.rules.append(whole + (f" & {_regex(f'{first}(?:{also}){last}')}" if also else ""))
        return name

    # Braces

    def _braces(self, schema: Any, place: str) -> str:
        """The rule for a value; the same place has the same rule, so that schemas may refer to themselves."""
        node, place = self._placed(schema, place)
        if place not in self._made:
            self._made[place] = f"{self.name}_{len(self._made)}"
            body = self._braces_of(node, place)
            self.rules.append(f"{self._made[place]}: {body}")
        return self._made[place]

    def _placed(self, schema: Any, place: str) -> tuple[Any, str]:
        while isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str):
            place, schema = schema["$ref"], _followed(schema["$ref"], self.root)
        return schema, place

    def _braces_of(self, schema: Any, place: str) -> str:
        node = schema if isinstance(schema, Mapping) else {}
        if kinds(node, self.root) == set(_KINDS) and place != _ANY:
            return self._braces(bounded(True), _ANY)
        if choices(node):
            return " | ".join(self._braced_choice(one) for one in choices(node))
        for key in ("anyOf", "oneOf"):
            if isinstance(node.get(key), (list, tuple)):
                return " | ".join(
                    self._braces(one, f"{place}/{key}/{at}") for at, one in enumerate(node[key])
                )
        return " | ".join(
            self._braced(kind, node, place) for kind in _KINDS if kind in kinds(node, self.root)
        )

    def _braced_choice(self, value: Any) -> str:
        if isinstance(value, str):
            return _spaced(self.spell(self.form.quote), _quoted(value), self.spell(self.form.quote))
        return _quoted(json.dumps(value))

    def _braced(self, kind: str, node: Mapping[str, Any], place: str) -> str:
        if kind == "string":
            return self._text(node, self.form.quote, self.form.quote)
        if kind in ("boolean", "null"):
            return '"true" | "false"' if kind == "boolean" else '"null"'
        if kind in ("integer", "number"):
            bounds = {k: node[k] for k in _BOUNDS if k in node}
            return self._rule(json_rule({"type": kind, **bounds}))
        if kind == "array":
            item = self._braces(node.get("items", {}), f"{place}/items")
            least, most = node.get("minItems", 0), node.get("maxItems", "")
            if most == 0:
                return '"[" "]"'
            more = _times(f'"," {item}', max(least - 1, 0), most - 1 if most != "" else most)
            return f'"[" ( {item} {more} ){"" if least else "?"} "]"'
        members = sorted(_members_of(node, place), key=lambda one: one[0].lower())
        rules = [(f'{_quoted(key)} ":" {self._braces(one, at)}', must) for key, one, must, at in members]
        if rules or not _is_open(node):
            return _spaced('"{"', self._joined(rules, ","), '"}"')
        more = node.get("additionalProperties", {})
        value = self._braces(more if isinstance(more, Mapping) else {}, f"{place}/additionalProperties")
        most = node.get("maxProperties", _MAX_OPEN)
        key = f"{self.name}_key{len(self.rules)}"
        self.rules.append(f"{key}: {_KEY}")
        pair = f'{key} ":" {value}'
        return _spaced('"{" (', pair, _times(f'"," {pair}', 0, most - 1), ')? "}"')

    def _joined(self, parts: list[tuple[str, bool]], separator: str) -> str:
        """Parts in their order, some of which may be missing, with a separator between any two."""
        mark = _quoted(separator)
        after: list[str] = []
        for part, must in parts:
            after.append(f"{mark} {part}" if must else f"( {mark} {part} )?")
        first = next((at for at, (_, must) in enumerate(parts) if must), len(parts))
        if first < len(parts):
            before = [f"( {part} {mark} )?" for part, _ in parts[:first]]
            return _spaced(*before, parts[first][0], *after[first + 1 :])
        starts = [_spaced(part, *after[at + 1 :]) for at, (part, _) in enumerate(parts)]
        return f"( {' | '.join(starts)} )?" if starts else ""


#: The place of a value about which no schema says anything.
_ANY = "any"
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")


def _members_of(node: Mapping[str, Any], place: str) -> Iterator[tuple[str, Any, bool, str]]:
    required = node.get("required") or ()
    for key, schema in (node.get("properties") or {}).items():
        escaped = key.replace("~", "~0").replace("/", "~1")
        yield key, schema, key in required, f"{place}/properties/{escaped}"


def _is_open(node: Mapping[str, Any]) -> bool:
    return node.get("additionalProperties", True) is not False


def json_rule(schema: dict[str, Any]) -> str:
    return "%json " + json.dumps({"x-guidance": JSON_STYLE, **schema}, ensure_ascii=False)


def moved(node: Any, root: str) -> Any:
    """A schema for a place further down: references start from there."""
    if isinstance(node, Mapping):
        return {
            key: root + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else moved(value, root)
            for key, value in node.items()
        }
    return [moved(item, root) for item in node] if isinstance(node, (list, tuple)) else node


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def _regex(pattern: str) -> str:
    escaped = re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", pattern)
    return "/" + escaped.replace("\n", "\\n") + "/"


def _times(part: str, least: int, most: int | str) -> str:
    """A part as often as that; "" has no end."""
    return f"( {part} ){{{least},{most}}}" if most == "" or int(most) > 0 else ""


def _escaped(text: str) -> str:
    """A text in a regex."""
    return re.escape(text).replace("\\\n", "\\n")


def _spaced(*parts: str) -> str:
    return " ".join(part for part in parts if part)
