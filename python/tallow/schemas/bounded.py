"""JSON schemas as pydantic or a user writes them -> schemas that a grammar can be made of.

``bounded`` rewrites a schema so that every value it allows validates, keys come in declared order and all of
them are written, and whatever would go on forever (digits, decimals, open objects) has an end. It builds new
dicts from the keywords it knows, so nothing reaches the grammar that it does not understand. What a grammar
cannot say is left out and noted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from . import patterns

#: How JSON is written: on one line, as Python's ``json.dumps`` does.
STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

LARGEST = 999_999_999_999_999
STEP = 1e-9
#: The integers that JSON's readers hold without loss.
SMALLEST_HELD, LARGEST_HELD = -(2**63), 2**64 - 1
#: An object or value of any shape: this many entries, this deep.
ENTRIES, DEPTH = 8, 3
KEY = "^.{1,64}$"

#: In a dict's schema, what its keys are (pydantic's own says nothing of keys that are numbers).
KEYS = "x-keys"


class Unsupported(Exception):
    """No grammar can be made for this; the text says why."""


class Bounded:
    """Rewrites one schema. ``avoid`` are characters (as inside a regex class) that no string may hold; what
    they must be in a name or a member is up to ``escape``. ``exact``: a pattern that cannot be kept is an
    error. ``whole``: every property is written, also one with a default."""

    def __init__(
        self,
        avoid: str = "",
        notes: list[str] | None = None,
        escape: Callable[[str], str] | None = None,
        *,
        exact: bool = False,
        whole: bool = True,
    ) -> None:
        self.avoid, self.escape = avoid, escape or str
        self.notes = notes if notes is not None else []
        self.definitions: dict[str, Any] = {}
        self._given: dict[str, Any] = {}
        self._recursive: dict[str, bool] = {}
        self._exact = exact
        self._whole = whole

    def __call__(self, schema: Any) -> dict[str, Any]:
        """The schema of a whole document, with the definitions it needs."""
        if isinstance(schema, dict):
            self._given = {**schema.get("definitions", {}), **schema.get("$defs", {})}
        written = self.value(schema)
        return {**written, "$defs": dict(sorted(self.definitions.items()))} if self.definitions else written

    def value(self, schema: Any) -> dict[str, Any]:
        if schema is False:
            raise Unsupported("a schema that nothing matches")
        if not isinstance(schema, dict):
            return self.any(DEPTH - 1)
        if "$ref" in schema:
            return self._reference(schema["$ref"])
        if "const" in schema or "enum" in schema:
            return self._members(schema["enum"] if "enum" in schema else [schema["const"]])
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                return self._either(schema[keyword])
        if "allOf" in schema:
            return self._all(schema)
        kind = schema.get("type")
        if isinstance(kind, list):
            return self._either([{**schema, "type": one} for one in kind])
        if kind is None:
            return self._untyped(schema)
        writer = getattr(self, f"_{kind}", None)
        if writer is None:
            raise Unsupported(f"the JSON schema type {kind!r}")
        return writer(schema)  # type: ignore[no-any-return]

    def any(self, depth: int) -> dict[str, Any]:
        """A value of any shape, ``depth`` containers deep."""
        name = f"any-{depth}"
        if name not in self.definitions:
            options = [self._string({}), self._number({}), {"type": "boolean"}, {"type": "null"}]
            if depth > 0:
                inner = self.any(depth - 1)
                options.append({"type": "array", "items": inner, "maxItems": ENTRIES})
                options.append(self._entries({}, KEY, inner))
            self.definitions[name] = {"anyOf": options}
        return {"$ref": f"#/$defs/{name}"}

    # References and alternatives

    def _reference(self, reference: str) -> dict[str, Any]:
        name = _name(reference)
        if name not in self._given:
            raise Unsupported(f"the schema's {reference}, which is not defined in it")
        if name not in self.definitions:
            self.definitions[name] = {}  # a recursive one meets itself here
            self.definitions[name] = self.value(self._given[name])
        return {"$ref": f"#/$defs/{name}"}

    def _either(self, options: list[Any]) -> dict[str, Any]:
        """What can be written of the alternatives; one whose pattern cannot be kept only if it is alone."""
        outer, self._exact = self._exact, True
        written, why = self._options(options)
        self._exact = outer
        if not written:
            written, why = self._options(options)
        if not written:
            raise why or Unsupported("an empty anyOf")
        return written[0] if len(written) == 1 else {"anyOf": written}

    def _options(self, options: list[Any]) -> tuple[list[dict[str, Any]], Unsupported | None]:
        written: list[dict[str, Any]] = []
        why: Unsupported | None = None
        for option in options:
            try:
                one = self.value(option)
            except Unsupported as error:  # the others will do
                why = error
                continue
            written.extend(other for other in one.get("anyOf", [one]) if other not in written)
        return written, why

    def _all(self, schema: dict[str, Any]) -> dict[str, Any]:
        parts = [self.value(part) for part in schema["allOf"]]
        rest = {key: value for key, value in schema.items() if key not in ("allOf", "$defs")}
        if "type" in rest:
            parts.append(self.value(rest))
        return parts[0] if len(parts) == 1 else {"allOf": parts}

    def _untyped(self, schema: dict[str, Any]) -> dict[str, Any]:
        if "properties" in schema or "additionalProperties" in schema:
            return self._object(schema)
        if "items" in schema or "prefixItems" in schema:
            return self._array(schema)
        return self.any(DEPTH - 1)

    def _members(self, members: list[Any]) -> dict[str, Any]:
        fit = [self.escape(one) if isinstance(one, str) else one for one in members if self._fits(one)]
        fit = [one for one in fit if one is None or isinstance(one, (str, int, float))]  # no tuples
        if any(isinstance(one, int) and not SMALLEST_HELD <= one <= LARGEST_HELD for one in fit):
            raise Unsupported("an integer of more than 64 bits")
        if len(fit) < len(members):
            self.note("a member that this format cannot hold is left out")
        if not fit:
            raise Unsupported("none of the allowed members can be written in this format")
        return {"enum": fit}

    def _fits(self, member: Any) -> bool:
        """Whether the format can hold a member: what ``escape`` changes, it can."""
        if not isinstance(member, str) or not self.avoid:
            return True
        return not any(re.match(f"[{self.avoid}]", one) and self.escape(one) == one for one in member)

    # Types

    def _null(self, schema: dict[str, Any]) -> dict[str, Any]:
        return {"type": "null"}

    def _boolean(self, schema: dict[str, Any]) -> dict[str, Any]:
        return {"type": "boolean"}

    def _integer(self, schema: dict[str, Any]) -> dict[str, Any]:
        written = {"type": "integer", **_limits(schema)}
        if "multipleOf" in schema:
            written["multipleOf"] = schema["multipleOf"]
        return written

    def _number(self, schema: dict[str, Any]) -> dict[str, Any]:
        limits = _inclusive(_limits(schema))
        written = {"type": "number", **limits}
        if "multipleOf" in schema:
            written["multipleOf"] = schema["multipleOf"]
        elif limits["maximum"] - limits["minimum"] > 1e3 * STEP:
            written["multipleOf"] = STEP  # that is: so many decimals
        return written

    def _string(self, schema: dict[str, Any]) -> dict[str, Any]:
        written = {"type": "string", **_kept(schema, "minLength", "maxLength")}
        wanted = [f"^[^{self.avoid}]*$"] if self.avoid else []
        if "pattern" in schema:
            try:
                wanted.append(patterns.ascii_classes(patterns.checked(schema["pattern"])))
            except ValueError as error:
                if self._exact:
                    raise Unsupported(f"the pattern {schema['pattern']!r}: {error}") from error
                self.note(f"the pattern {schema['pattern']!r} is not enforced: {error}")
        name = schema.get("format")
        if name in patterns.FORMATS:
            wanted.append(f"^(?:{patterns.FORMATS[name]})$")
        elif name is not None and name not in patterns.ANY_TEXT:
            self.note(f"the format {name!r} is not enforced")
        if wanted:
            written["pattern"] = wanted[-1]
        if len(wanted) > 1:
            written["allOf"] = [{"type": "string", "pattern": one} for one in wanted[:-1]]
        return written

    def _array(self, schema: dict[str, Any]) -> dict[str, Any]:
        written: dict[str, Any] = {"type": "array", **_kept(schema, "minItems", "maxItems")}
        if schema.get("uniqueItems") and schema.get("minItems", 0) > 1:
            self.note(
                "that a set's items differ is not enforced, so it can come out shorter than its minimum"
            )
        first = schema.get("prefixItems")
        if first:
            written["prefixItems"] = [self.value(item) for item in first]
        items = schema.get("items", True)
        if items is False or (first and schema.get("maxItems") == len(first)):
            written["items"] = False
        elif schema.get("maxItems") == 0:
            written["items"] = {"type": "null"}
        elif schema.get("uniqueItems") and not items:
            written["items"] = self.any(0)  # what can be in a set
        else:
            written["items"] = self.value(items)
        return written

    def _object(self, schema: dict[str, Any]) -> dict[str, Any]:
        properties = schema.get("properties")
        if properties:
            return self._record(schema, properties)
        extra = schema.get("additionalProperties", schema.get("properties") is None)
        shapes = list(schema.get("patternProperties", {}).items())
        if extra is False and not shapes:
            return {"type": "object", "additionalProperties": False}
        if shapes:
            keys, inner = shapes[0]
            return self._entries(schema, patterns.checked_or(keys, KEY), self.value(inner))
        inner = self.any(DEPTH - 2) if not isinstance(extra, dict) or not extra else self.value(extra)
        return self._dictionary(schema, inner)

    def _record(self, schema: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
        declared = schema.get("required", [])
        optional = [
            name
            for name in properties
            if name not in declared and (not self._whole or self._endless(properties[name]))
        ]
        return {
            "type": "object",
            "properties": {self.escape(name): self.value(one) for name, one in properties.items()},
            "required": [self.escape(name) for name in properties if name not in optional],
            "additionalProperties": False,
        }

    def _dictionary(self, schema: dict[str, Any], inner: dict[str, Any]) -> dict[str, Any]:
        keys = self._resolved(schema.get(KEYS, schema.get("propertyNames", {})))
        members = keys.get("enum", [keys["const"]] if "const" in keys else None)
        if members is not None:
            return self._known_keys(schema, members, inner)
        kind = keys.get("type", "string")
        if kind == "integer":
            return self._entries(schema, patterns.INTEGER_KEY, inner)
        if kind in ("number", "boolean"):
            shape = patterns.INTEGER_KEY if kind == "number" else "^(?:true|false)$"
            return self._entries(schema, shape, inner)
        if kind != "string":
            raise Unsupported(f"a dict with keys of the JSON type {kind!r}")
        return self._entries(schema, self._key(keys), inner)

    def _key(self, keys: dict[str, Any]) -> str:
        if keys.get("format") in patterns.FORMATS:
            return f"^(?:{patterns.FORMATS[keys['format']]})$"
        if "pattern" in keys:
            return patterns.ascii_classes(patterns.checked_or(keys["pattern"], KEY))
        shortest, longest = keys.get("minLength", 1), keys.get("maxLength", 64)
        return f"^.{{{shortest},{max(shortest, min(longest, 64 + shortest))}}}$"

    def _known_keys(
        self, schema: dict[str, Any], members: list[Any], inner: dict[str, Any]
    ) -> dict[str, Any]:
        names = [self.escape(name) for name in members if isinstance(name, str) and self._fits(name)]
        least, most = schema.get("minProperties", 0), schema.get("maxProperties")
        if len(names) < least or not names:
            raise Unsupported("a dict whose keys JSON cannot hold")
        return {
            "type": "object",
            "properties": {name: inner for name in names[:most]},
            "required": names[:least],
            "additionalProperties": False,
        }

    def _entries(self, schema: dict[str, Any], keys: str, inner: dict[str, Any]) -> dict[str, Any]:
        least = schema.get("minProperties", 0)
        if least > 1:
            self.note(
                "that a dict's keys differ is not enforced, so it can come out shorter than its minimum"
            )
        if self.avoid:
            keys = keys.replace(".", f"[^\\n{self.avoid}]", 1) if keys.startswith("^.{") else keys
        written = {"type": "object", "patternProperties": {keys: inner}, "additionalProperties": False}
        if least:
            written["minProperties"] = least
        written["maxProperties"] = schema.get("maxProperties", max(ENTRIES, least))
        return written

    # Helpers

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in schema:
            schema = self._given[_name(schema["$ref"])]
        return schema

    def _endless(self, schema: Any) -> bool:
        """A property that holds its own kind and nothing else: writing it always would never end."""
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if reference is None:
            return False
        name = _name(reference)
        if name not in self._recursive:
            seen: set[str] = set()
            waiting = [name]
            while waiting:
                found = set(references(self._given.get(waiting.pop(), {}))) - seen
                seen |= found
                waiting.extend(found)
            self._recursive[name] = name in seen
        return self._recursive[name]

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def references(schema: Any) -> Iterator[str]:
    """The names of the definitions that a schema refers to."""
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "$ref" and isinstance(value, str):
                yield _name(value)
            else:
                yield from references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from references(value)


def _name(reference: str) -> str:
    return reference.rsplit("/", 1)[-1]


def _kept(schema: dict[str, Any], *keywords: str) -> dict[str, Any]:
    return {keyword: schema[keyword] for keyword in keywords if schema.get(keyword) is not None}


def _limits(schema: dict[str, Any]) -> dict[str, Any]:
    """Bounds; where one is missing, fifteen digits."""
    limits = _kept(schema, "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    low = max((limits[name] for name in ("minimum", "exclusiveMinimum") if name in limits), default=None)
    high = min((limits[name] for name in ("maximum", "exclusiveMaximum") if name in limits), default=None)
    if (low is not None and low > LARGEST_HELD) or (high is not None and high < SMALLEST_HELD):
        raise Unsupported("its numbers lie beyond 64 bits (-2**63 to 2**64 - 1)")
    if low is None:
        limits["minimum"] = -LARGEST if high is None or high > -LARGEST else high * 10
    if high is None:
        limits["maximum"] = LARGEST if low is None or low < LARGEST else low * 10
    return {name: _held(bound) for name, bound in limits.items()}


def _held(bound: Any) -> Any:
    """A bound of more than 64 bits as the nearest of 64 bits, which is tighter."""
    if not isinstance(bound, int) or SMALLEST_HELD <= bound <= LARGEST_HELD:
        return bound
    return min(max(bound, SMALLEST_HELD), LARGEST_HELD)


def _inclusive(limits: dict[str, Any]) -> dict[str, Any]:
    """Bounds that belong to the range: of those that do not, the JSON compiler lets some through (0 for a
    number between 0 and 0.001, -0 for one below 0)."""
    lows = {name: limits[name] for name in ("minimum", "exclusiveMinimum") if name in limits}
    highs = {name: limits[name] for name in ("maximum", "exclusiveMaximum") if name in limits}
    width = min(highs.values()) - max(lows.values())
    low = max(_next(bound, width, 1) if "ex" in name else bound for name, bound in lows.items())
    high = min(_next(bound, width, -1) if "ex" in name else bound for name, bound in highs.items())
    return {"minimum": low, "maximum": high}


def _next(bound: float, width: float, sign: int) -> float:
    """A number next to ``bound``, in a range so wide."""
    if width < 1e3 * STEP:
        return bound + sign * width / 8
    return round(bound + sign * max(STEP, 2 * math.ulp(bound)), 9)
