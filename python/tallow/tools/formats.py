"""The table of formats, and ``detect``: which one a chat template was written for.

A template that never reads ``tools`` gets them in the system message, in our own words (``prompted``), and
turns with calls and results are written out as plain text, for such a template would drop them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from . import conversation, grammar, reader
from .functions import functions
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

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.open,) if self.open else ()

    def call_id(self, number: int) -> str:
        """The id of a conversation's call of that number. Mistral's templates take nine characters only."""
        return f"call{number:05d}" if self.open == "[TOOL_CALLS]" else f"call_{number}"

    def system(self, tools: Iterable[object]) -> str:
        """What the system message must say about the tools; "" where the template does it."""
        found = functions(tools)
        if self.renders or self.system_field or not found:
            return ""
        return conversation.instructions(self, found)

    def prepare(
        self, messages: Sequence[Mapping[str, Any]], tools: Iterable[object], *, shown: bool | None = None
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The conversation, and the template's arguments, that show the tools and the calls so far.

        ``shown``: whether the template was seen to show calls and results; None goes by what it reads. Those
        that it does not show are written out as text. One that shows calls although it reads no tools gets
        them as they are, unless there are tools, which are called in our words then."""
        return conversation.prepare(self, messages, functions(tools), shown)

    def grammar(
        self,
        tools: Iterable[object],
        choice: str | Sequence[str] = "auto",
        parallel: bool = True,
        text_format: str | None = None,
        *,
        allowed: Sequence[str] = (),
        specials: Collection[str] | Mapping[str, int] = frozenset(),
    ) -> dict[str, Any]:
        """The keyword for ``Model.generate`` under which an answer is text or well-formed calls.

        ``choice``: "auto", "required" (at least one call), "none", or names (a call of one of these).
        ``allowed``: narrows "auto" and "required" to these names. ``text_format``: a grammar (Lark, from
        ``start``) for the answer that is no call. ``specials``: the vocabulary's control tokens, best with
        their ids: a marker among them is that token, others are written in letters. One that Lark cannot
        spell (``[TOOL_CALLS]``) is reached by its id alone.
        """
        return grammar.build(self, functions(tools), choice, parallel, text_format, allowed, specials)

    def parse(
        self, text: str, names: Collection[str] | None = None, first: int = 0
    ) -> tuple[str, list[reader.Call]]:
        """An answer's text without its calls, and the calls. ``names``, ``first``: as in ``splitter``."""
        return reader.parse(self, text, names, first)

    def splitter(self, names: Collection[str] | None = None, first: int = 0) -> reader.Splitter:
        """Reads a streamed answer. ``names``: what counts as a call where one has no marker (None: any name).
        ``first``: how many calls the conversation has already, so that ids differ."""
        return reader.Splitter(self, names, first)


_HERMES = ToolFormat(
    "hermes", "<tool_call>", "</tool_call>", before="\n", after="\n", between="\n", renders=True
)
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
        ToolFormat("mistral", "[TOOL_CALLS]", listed=True, heads=True, bare=True, renders=True),
        ToolFormat("mistral_args", "[TOOL_CALLS]", heads=True, head_end="[ARGS]", bare=True, renders=True),
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
