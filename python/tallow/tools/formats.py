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
class Tagged:
    """A call as tags: its name, then a key and a value each. Values that are strings stand as they are."""

    #: Around the name; "" where it stands bare, up to the first tag or white space.
    name: tuple[str, str]
    #: Around the key of an argument.
    key: tuple[str, str]
    #: Around its value. The first is "" where the value follows the key's end.
    value: tuple[str, str]
    #: After the arguments.
    end: str = ""
    #: Tags and values stand on lines of their own: a line break after a tag is none of the value's.
    lines: bool = False


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How one family of models writes calls. All of it is data; see the table in the package's docstring."""

    name: str
    #: Written before a call (or before a list of them); "" if nothing is.
    open: str
    close: str = ""
    #: What stands between a marker and the call, and between the call and the closing marker.
    before: str = ""
    after: str = ""
    #: Between two calls, where each has its own markers.
    between: str = ""
    #: How a call itself is written: a JSON object, ``f(key=value)`` with literals of Python, tags, or
    #: ``call:f{key:value}``.
    body: Literal["json", "python", "tags", "braces"] = "json"
    #: The key of the name, and of the arguments.
    name_key: str = "name"
    arguments: str = "arguments"
    #: The key of a call's number, which comes first; "" if there is none.
    id_key: str = ""
    #: The name of the function is the key of its arguments: ``{"f": {...}}``.
    named: bool = False
    #: The header of the message that a call is, around the function's name, where answers are messages.
    addressed: str = ""
    #: Calls are written without the marker, and only now and then with it.
    optional: bool = False
    #: All calls stand between one pair of markers: in a JSON list, in brackets, or one after the other.
    listed: bool = False
    #: What is between two calls of a list.
    separator: str = ", "
    #: Around a list.
    brackets: tuple[str, str] = ("[", "]")
    #: The name stands before the object of arguments: ``f[ARGS]{...}``.
    heads: bool = False
    #: Stands between that name and its arguments.
    head_end: str = ""
    #: Of ``body`` "tags".
    tags: Tagged | None = None
    #: Around a string, of ``body`` "braces".
    quote: str = ""
    #: Models write calls without the marker, too, or it is a control token that shows as no text.
    bare: bool = False
    #: Whether one answer may hold more than one call.
    many: bool = True
    #: The closing marker ends the answer, so the model writes it as it ends any answer.
    ends: bool = False
    #: Whether the chat template shows the tools itself, under the variable ``variable``.
    renders: bool = False
    variable: str = "tools"
    #: Where a template looks for tools that it does not take as a variable: a field of the system message.
    system_field: str = ""
    #: A template that drops calls shows their results nonetheless, as turns of the role "tool".
    shows_results: bool = False
    #: How the ids of calls are written. "short": nine letters and digits, all that Mistral's templates take.
    id_style: Literal["numbered", "short"] = "numbered"

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.open,) if self.open else ()

    @property
    def literals(self) -> tuple[str, ...]:
        """All that is written in so many characters; there may be control tokens among it."""
        given = [self.open, self.close, self.head_end, self.quote]
        if self.tags is not None:
            given += [*self.tags.name, *self.tags.key, *self.tags.value, self.tags.end]
        return tuple(text for text in given if text)

    def call_id(self, number: int) -> str:
        """The id of a conversation's call of that number."""
        return f"call{number:05d}" if self.id_style == "short" else f"call_{number}"


_HERMES = ToolFormat(
    "hermes", "<tool_call>", "</tool_call>", before="\n", after="\n", between="\n", renders=True
)
_MISTRAL = ToolFormat("", "[TOOL_CALLS]", heads=True, bare=True, renders=True, id_style="short")
_FUNCTION = Tagged(
    ("<function=", ">"), ("<parameter=", ">"), ("", "</parameter>"), end="</function>", lines=True
)
_XML = replace(_HERMES, name="xml", body="tags", tags=_FUNCTION)
_BRACES = ToolFormat("gemma4", "<|tool_call>", "<tool_call|>", body="braces", quote='<|"|>', renders=True)
_PYTHON = ToolFormat("", "", body="python", listed=True, renders=True)
_LIST = ToolFormat("", "", listed=True, renders=True)
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
        replace(
            _PYTHON, name="lfm", open="<|tool_call_start|>", close="<|tool_call_end|>", shows_results=True
        ),
        replace(
            _PYTHON,
            name="olmo",
            open="<function_calls>",
            close="</function_calls>",
            separator="\n",
            brackets=("", ""),
            shows_results=True,
        ),
        _XML,
        replace(
            _XML,
            name="seed",
            open="<seed:tool_call>",
            close="</seed:tool_call>",
            tags=replace(_FUNCTION, lines=False),
        ),
        ToolFormat(
            "glm",
            "<tool_call>",
            "</tool_call>",
            body="tags",
            tags=Tagged(("", ""), ("<arg_key>", "</arg_key>"), ("<arg_value>", "</arg_value>")),
            renders=True,
        ),
        ToolFormat(
            "muse",
            "<atem:function_calls>",
            "</atem:function_calls>",
            before="\n",
            after="\n",
            body="tags",
            tags=Tagged(
                ('<atem:invoke name="', '">'),
                ('<atem:parameter name="', '">'),
                ("", "</atem:parameter>"),
                end="</atem:invoke>",
            ),
            addressed=" to={}<|message|>",
            listed=True,
            separator="\n",
            brackets=("", ""),
            renders=True,
        ),
        _BRACES,
        replace(
            _BRACES,
            name="function_gemma",
            open="<start_function_call>",
            close="<end_function_call>",
            quote="<escape>",
        ),
        ToolFormat(
            "harmony",
            "<|channel|>commentary to=functions.",
            "<|call|>",
            heads=True,
            head_end=" <|constrain|>json<|message|>",
            many=False,
            ends=True,
            renders=True,
        ),
        replace(_LIST, name="granite", open="<|tool_call|>", shows_results=True),
        replace(
            _LIST,
            name="cohere",
            open="<|START_ACTION|>",
            close="<|END_ACTION|>",
            id_key="tool_call_id",
            name_key="tool_name",
            arguments="parameters",
        ),
        replace(_LIST, name="apertus", open="<|tools_prefix|>", close="<|tools_suffix|>", named=True),
        replace(_LIST, name="nemotron", open="<TOOLCALL>", close="</TOOLCALL>"),
        replace(_LIST, name="hunyuan", open="<tool_calls>", close="</tool_calls>"),
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

#: The words of a template that tell its format, all of a row; the first row that fits counts. What several
#: families write comes after what is one family's own.
_WORDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("mistral_args", ("[TOOL_CALLS]", "[ARGS]")),
    ("mistral", ("[TOOL_CALLS]",)),
    ("muse", ("<atem:function_calls>",)),
    ("harmony", ("<|channel|>", "<|message|>", "to=functions.")),
    ("harmony", ("<|channel|>", "<|message|>", '"functions."')),
    ("lfm", ("<|tool_call_start|>",)),
    ("lfm", ("<|tool_list_start|>",)),
    ("lfm", ("List of tools: [", "<|im_start|>")),
    ("gemma4", ("<|tool_call>",)),
    ("function_gemma", ("<start_function_call>",)),
    ("cohere", ("<|START_ACTION|>",)),
    ("apertus", ("<|tools_prefix|>",)),
    ("nemotron", ("<TOOLCALL>",)),
    ("seed", ("<seed:tool_call>",)),
    ("olmo", ("<function_calls>",)),
    ("olmo", ("<functions>", "<|im_start|>environment")),
    ("xml", ("<tool_call>", "<function=", "<parameter=")),
    ("glm", ("<tool_call>", "<arg_key>", "<arg_value>")),
    ("hunyuan", ("<tool_calls>",)),
    ("hermes", ("<tool_call>",)),
    ("phi", ("<|tool|>",)),
    ("granite", ("<|tool_call|>",)),
    ("llama", ("<|start_header_id|>", "ipython")),
    ("gemma", ("<start_of_turn>",)),
)
#: Names that templates give the list of tools. SmolLM3's first one, and Granite 3's.
_VARIABLES = ("tools", "xml_tools", "available_tools")


@lru_cache(maxsize=32)
def detect(template: str | None) -> ToolFormat:
    """The format that a chat template was written for, by its own text."""
    text = template or ""
    fitting = (name for name, words in _WORDS if all(word in text for word in words))
    form = FORMATS[next(fitting, "prompted")]
    if form.name == "mistral" and "[TOOL_CALLS] [" in text:
        form = replace(form, before=" ")
    if not form.renders:
        return form
    names = variables(text)
    variable = next((name for name in _VARIABLES if name in names), None)
    if variable is not None:
        return replace(form, variable=variable)
    if form.name == "olmo" and "functions" in text:
        return replace(form, renders=False, system_field="functions")
    # One that names no tools only repeats calls and shows no tools.
    return FORMATS["prompted"]
