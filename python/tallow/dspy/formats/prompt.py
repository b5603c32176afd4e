"""Which of DSPy's adapters wrote a prompt, and for which fields.

Each ends the last user message with a reminder of the format, in words of its own. The reminder gives the
fields' names and their order; types come from the caller's Signature if that Signature, rendered by the same
adapter, gives the same reminder, and from the prompt's notes otherwise.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import dspy  # type: ignore[import-untyped]
from dspy import lm15
from dspy.adapters.utils import translate_field_type  # type: ignore[import-untyped]

from ...schemas.bounded import Unsupported
from .types import Field, from_note, from_signature, from_type

_CHAT = "Respond with the corresponding output fields, starting with the field "
_JSON = "Respond with a JSON object in the following order of fields: "
_XML = "Respond with the corresponding output fields wrapped in XML tags "
_CHAT_END = ", and then ending with the marker for `[[ ## completed ## ]]`."

_NAMES = {
    "chat": re.compile(r"(?:^|, then )`\[\[ ## (\w+) ## \]\]`"),
    "json": re.compile(r"(?:^|, then )`(\w+)`"),
    "xml": re.compile(r"(?:^|, then )`<(\w+)>`"),
}
_KIND = re.compile(r" \(must be (?:formatted as a valid Python |a JSON object like)(.*)\)$", re.DOTALL)


@dataclass(frozen=True)
class Prompt:
    """A prompt that a stock adapter wrote."""

    #: "chat", "json", "baml" or "xml".
    kind: str
    #: From the first word of the reminder on.
    reminder: str
    system: str
    #: What stands before the reminder, in the last user message.
    inputs: str = ""

    @property
    def layout(self) -> str:
        return "json" if self.kind == "baml" else self.kind

    def pieces(self) -> list[tuple[str, str]]:
        """The fields' names, each with what the reminder says of it."""
        body = self.reminder.split(
            ": " if self.layout == "json" else "field " if self.kind == "chat" else "tags ", 1
        )[1]
        if self.kind == "chat":
            body = body.split(_CHAT_END)[0]
        elif self.kind == "xml":
            body = body.split(". Use this nested XML structure:")[0]
        found = list(_NAMES[self.layout].finditer(body))
        ends = [*(match.start() for match in found), len(body)][1:]
        return [(match[1], body[match.end() : end]) for match, end in zip(found, ends, strict=True)]


def recognised(request: lm15.Request) -> Prompt | None:
    last = next((message for message in reversed(request.messages) if message.role == "user"), None)
    if last is None:
        return None
    text = text_of(last.parts)
    found = {kind: text.rfind(words) for kind, words in (("chat", _CHAT), ("json", _JSON), ("xml", _XML))}
    kind = max(found, key=lambda one: found[one])
    if found[kind] < 0:
        return None
    inputs, reminder = text[: found[kind]], text[found[kind] :]
    if kind == "chat" and _CHAT_END not in reminder:
        return None
    system = text_of(request.system)
    if kind == "json" and "\nOutput field `" in system:
        kind = "baml"
    return Prompt(kind, reminder, system, inputs)


def text_of(parts: Any) -> str:
    if parts is None or isinstance(parts, str):
        return parts or ""
    return "\n".join(part.text for part in parts if isinstance(part, lm15.TextPart))


# Fields


_ADAPTERS: dict[str, Any] = {
    "chat": dspy.ChatAdapter,
    "json": dspy.JSONAdapter,
    "baml": dspy.JSONAdapter,
    "xml": dspy.XMLAdapter,
}


def from_caller(prompt: Prompt, signature: type[dspy.Signature] | None) -> list[Field] | None:
    """The fields with the types of the caller's Signature; None if it is not this prompt's."""
    names = [name for name, _ in prompt.pieces()]
    if signature is None or not names or not set(names) <= signature.output_fields.keys():
        return None
    shown = signature
    for name in signature.output_fields:
        if name not in names:
            shown = shown.delete(name)
    if list(shown.output_fields) != names:
        return None
    if not prompt.reminder.startswith(_ADAPTERS[prompt.kind]().user_message_output_requirements(shown)):
        return None
    fields = shown.output_fields
    if prompt.kind == "xml" and not all(_says(prompt.system, name, info) for name, info in fields.items()):
        return None
    return [from_signature(name, info) for name, info in fields.items()]


def _says(system: str, name: str, info: Any) -> bool:
    """XMLAdapter's reminder names no types, so the system message has to have this field's note."""
    if dspy.XMLAdapter._uses_nested_xml(info.annotation):
        return True
    return f"<{name}>\n{translate_field_type(name, info)}\n</{name}>" in system


def from_notes(prompt: Prompt) -> list[Field]:
    """The fields as the prompt itself describes them."""
    if prompt.kind == "baml":
        raise Unsupported("the prompt is not the calling Signature's, and BAMLAdapter's notes are no schema")
    structure = prompt.system
    if prompt.kind == "json":
        structure = _unwrapped(structure)
    fields = []
    for name, said in prompt.pieces():
        kind = _KIND.match(said.rstrip(".") if prompt.kind == "json" else said)
        note = _note(structure, name, prompt.layout)
        if prompt.kind == "xml" and note is None:  # elements in elements, which are shown without types
            fields.append(from_type(name, _declared(prompt.system, name)))
            continue
        fields.append(from_note(name, kind[1] if kind else _of_note(note or ""), note or ""))
    if not fields:
        raise Unsupported("the prompt names no output fields")
    return fields


def _declared(system: str, name: str) -> str:
    """The type of an output field, as the list of fields at the prompt's begin names it."""
    outputs = system.partition("\nYour output fields are:\n")[2]
    found = re.search(rf"^\d+\. `{name}` \((.+?)\):", outputs, re.MULTILINE)
    return found[1] if found else ""


def _note(structure: str, name: str, layout: str) -> str | None:
    """The note on a field: the last one, as an input may have its name. None if the field is not shown."""
    shown = rf"\{{{name}\}}(?: {{8}}# note: the value you produce (.*?))?"
    shown = rf"<{name}>\n{shown}\n</{name}>" if layout == "xml" else rf"^{shown}$"
    found = re.findall(shown, structure, re.MULTILINE | (re.DOTALL if layout == "xml" else 0))
    return found[-1] if found else None


def _of_note(note: str) -> str | None:
    """The type that a note gives away, where the reminder names none."""
    for words, kind in (
        ("must be a single int", "int"),
        ("must be a single float", "float"),
        ("must be True", "bool"),
    ):
        if note.startswith(words):
            return kind
    members = re.match(r"must exactly match \(no extra characters\) one of: (.*)", note, re.DOTALL)
    return f"Literal[{', '.join(map(repr, members[1].split('; ')))}]" if members else None


def _unwrapped(system: str) -> str:
    """JSONAdapter shows its notes as the values of a JSON object."""
    start = system.find("Outputs will be a JSON object with the following fields.\n\n")
    start = system.find("{", start) if start >= 0 else -1
    if start < 0:
        return ""
    try:
        found, _ = json.JSONDecoder().raw_decode(system[start:])
    except ValueError:
        return ""
    return "\n".join(str(value).replace("\n", " ") for value in found.values())
