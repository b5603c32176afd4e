"""The table of formats, and ``detect``: which one a chat template was written for.

A template that never reads ``tools`` gets them in the system message, in our own words (``prompted``), and
turns with calls and results are written out as plain text, for such a template would drop them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from .template import variables


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How one family of models writes calls. All of it is data; see the table in the package's docstring."""

    name: str
    #: Written before a call (or before a list of them); "" if nothing is.
    open: str
    close: str = ""
    #: What stands between a marker and the JSON, and between the JSON and the closing marker.
    before: str = ""
    after: str = ""
    #: Between two calls, where each has its own markers.
    between: str = ""
    #: The key of the arguments.
    arguments: str = "arguments"
    #: Calls are written without the marker, and only now and then with it.
    optional: bool = False
    #: All calls stand in one JSON list.
    listed: bool = False
    #: The name stands before the object of arguments: ``f[ARGS]{...}``.
    heads: bool = False
    #: Stands between that name and its arguments.
    head_end: str = ""
    #: Models write calls without the marker, too, or it is a control token that shows as no text.
    bare: bool = False
    #: Whether one answer may hold more than one call.
    many: bool = True
    #: Whether the chat template shows the tools itself, under the variable ``variable``.
    renders: bool = False
    variable: str = "tools"
    #: Where Phi's template looks for them: a field of the system message.
    system_field: str = ""
    #: How the ids of calls are written. "short": nine letters and digits, all that Mistral's templates take.
    id_style: Literal["numbered", "short"] = "numbered"

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.open,) if self.open else ()

    def call_id(self, number: int) -> str:
        """The id of a conversation's call of that number."""
        return f"call{number:05d}" if self.id_style == "short" else f"call_{number}"


_HERMES = ToolFormat(
    "hermes", "<tool_call>", "</tool_call>", before="\n", after="\n", between="\n", renders=True
)
_MISTRAL = ToolFormat("", "[TOOL_CALLS]", heads=True, bare=True, renders=True, id_style="short")
FORMATS: dict[str, ToolFormat] = {
    form.name: form
    for form in (
        _HERMES,
        ToolFormat(
            "llama",
            "<|python_tag|>",
            arguments="parameters",
            optional=True,
            bare=True,
            many=False,
            renders=True,
        ),
        replace(_MISTRAL, name="mistral", listed=True),
        replace(_MISTRAL, name="mistral_args", head_end="[ARGS]"),
        ToolFormat("phi", "<|tool_call|>", "<|/tool_call|>", listed=True, bare=True, system_field="tools"),
        ToolFormat(
            "gemma",
            "```tool_code",
            "```",
            before="\n",
            after="\n",
            between="\n",
            arguments="parameters",
            bare=True,
        ),
        replace(_HERMES, name="prompted", renders=False),
    )
}


@lru_cache(maxsize=32)
def detect(template: str | None) -> ToolFormat:
    """The format that a chat template was written for, by its own text."""
    form = _family(template or "")
    if form is None:
        return FORMATS["prompted"]
    if not form.renders:
        return form
    names = variables(template or "")
    if "tools" in names:
        return form
    # SmolLM3's first template; one that names neither only repeats calls and shows no tools.
    return replace(form, variable="xml_tools") if "xml_tools" in names else FORMATS["prompted"]


def _family(template: str) -> ToolFormat | None:
    if "[TOOL_CALLS]" in template:
        if "[ARGS]" in template:
            return FORMATS["mistral_args"]
        spaced = "[TOOL_CALLS] [" in template
        return replace(FORMATS["mistral"], before=" ") if spaced else FORMATS["mistral"]
    if "<tool_call>" in template:
        return FORMATS["hermes"]
    if "<|tool|>" in template:
        return FORMATS["phi"]
    if "<|start_header_id|>" in template and "ipython" in template:
        return FORMATS["llama"]
    if "<start_of_turn>" in template:
        return FORMATS["gemma"]
    return None
