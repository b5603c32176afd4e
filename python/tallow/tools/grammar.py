"""Tools -> a grammar (Lark, llguidance's dialect) whose every text is an answer that ``reader`` reads back.

Two ways to write a grammar failed. A call spelt as literals (an opening brace with its first key) beside a
JSON text format: the lexer is greedy, so the long literal swallowed the other's ``{``; hence a call is one
JSON schema from its first brace. And text followed by a marker as two lexemes: the text went on through the
marker up to its last character, and then nothing fitted; hence the first marker ends the lexeme of the text
before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from ..errors import InvalidRequestError
from .formats import ToolFormat
from .functions import Function, bounded, functions
from .reader import CALL_KEYS
from .values import Spelling, json_rule, moved

#: More calls than this in one answer are a model that does not find its end.
MAX_CALLS = 16

Specials = Collection[str] | Mapping[str, int]


def call_grammar(
    form: ToolFormat,
    offered: Iterable[object],
    choice: str | Sequence[str] = "auto",
    parallel: bool = True,
    text_format: str | None = None,
    *,
    around: tuple[str, str] = ("", ""),
    allowed: Sequence[str] = (),
    specials: Specials = frozenset(),
) -> dict[str, Any]:
    """The keyword for ``Model.generate`` under which an answer is text or well-formed calls.

    ``choice``: "auto", "required" (at least one call), "none", or names (a call of one of these).
    ``allowed``: narrows "auto" and "required" to these names. ``text_format``: a grammar (Lark, from
    ``start``) for the answer that is no call. ``around``: what stands around such an answer in control
    tokens; the header of a message must be there (it has no end), others may be missing. ``specials``: the
    vocabulary's control tokens, best with their ids: a marker among them is that token, others are written in
    letters. One that Lark cannot spell (``[TOOL_CALLS]``) is reached by its id alone.
    """
    tools = functions(offered)
    mode, names = _choice(tools, choice, allowed)
    around_ = (token(around[0], specials), token(around[1], specials))
    if mode == "none" or not names:
        return {"grammar": "\n".join(_answer(form, text_format, around_)) + "\n"}
    chosen = [tool for tool in tools if tool.name in names]
    if _is_message(around) and form.addressed:
        lines = _messages(form, chosen, specials)
    else:
        lines = _calls(form, chosen, MAX_CALLS if parallel and form.many else 1, specials)
    if mode == "required":
        lines.insert(0, "start: calls")
    elif text_format is not None or _is_message(around):
        lines[:0] = ["start: answer | calls", *_answer(form, text_format, around_, "answer")]
    else:
        lines[:0] = _free(form, token(form.open, specials), around_)
    return {"grammar": "\n".join(lines) + "\n"}


def _choice(
    tools: tuple[Function, ...], choice: str | Sequence[str], allowed: Sequence[str]
) -> tuple[str, list[str]]:
    known = [tool.name for tool in tools]
    mode = choice if isinstance(choice, str) else "required"
    if mode not in ("auto", "required", "none"):
        raise InvalidRequestError(
            f"tool_choice is {mode!r}; it must be 'auto', 'required', 'none' or a list of names of tools"
        )
    wanted = list(allowed) if isinstance(choice, str) else [*choice, *allowed]
    for name in wanted:
        if name not in known:
            raise InvalidRequestError(
                f"tool_choice names {name!r}, which is none of the tools: {', '.join(known)}"
            )
    if mode == "required" and (not known or (not isinstance(choice, str) and not wanted)):
        raise InvalidRequestError("tool_choice wants a call, and there is no tool to call")
    return mode, wanted or known


def _calls(form: ToolFormat, tools: list[Function], most: int, specials: Specials) -> list[str]:
    """The rules ``calls`` (an answer's calls), ``more`` (what follows the first marker), ``one``."""
    open_, close = token(form.open, specials), "" if form.ends else token(form.close, specials)
    payload, rules = _payload(form, tools, most, specials)
    again = 0 if form.listed else most - 1
    repeated = f"( {_sequence(_quoted(form.between), open_, 'one')} ){{0,{again}}}" if again else ""
    if form.optional:
        open_ = f"{open_}?" if _is_token(open_) else ""
    return [
        f"calls: {_sequence(open_, 'more')}",
        f"more: {_sequence('one', repeated)}",
        f"one: {_sequence(_quoted(form.before), payload, _quoted(form.after), close)}",
        *rules,
    ]


def _messages(form: ToolFormat, tools: list[Function], specials: Specials) -> list[str]:
    """``calls`` where each is a message with the name in its header: one, for another is another message."""
    calls, lines = [], []
    for at, tool in enumerate(tools):
        header, open_, close = (
            token(mark, specials) for mark in (form.addressed.format(tool.name), form.open, form.close)
        )
        payload, rules = _payload(form, [tool], 1, specials, f"m{at}")
        calls.append(_sequence(header, open_, _quoted(form.before), payload, _quoted(form.after), close))
        lines += rules
    return [f"calls: {' | '.join(calls)}", *lines]


def _payload(
    form: ToolFormat, tools: list[Function], most: int, specials: Specials, prefix: str = "call"
) -> tuple[str, list[str]]:
    """What stands between the markers of a call or of all, and the rules for it, named with ``prefix``."""
    if form.body == "json" and not form.head_end:
        return "payload", [f"payload: {json_rule(_calls_schema(form, tools, most))}"]
    calls, rules = [], []
    for at, tool in enumerate(tools):
        if form.body == "json":
            arguments = f"{prefix}_args_{at}"
            rules.append(f"{arguments}: {json_rule(_arguments_schema(tool))}")
        else:
            spelling = Spelling(
                form, f"{prefix}_{at}", bounded(tool.parameters), lambda text: token(text, specials)
            )
            arguments = spelling.arguments()
            rules += spelling.rules
        calls.append(_call(form, tool.name, arguments, specials))
    rules.append(f"{prefix}: {' | '.join(calls)}")
    if not form.listed:
        return prefix, rules
    before, after = form.brackets
    repeated = f"( {_quoted(form.separator)} {prefix} ){{0,{most - 1}}}" if most > 1 else ""
    return _sequence(_quoted(before), prefix, repeated, _quoted(after)), rules


def _call(form: ToolFormat, name: str, arguments: str, specials: Specials) -> str:
    if form.tags is not None:
        (before, after), line = form.tags.name, '"\\n"'
        lines = line if form.tags.lines else f"{line}?"
        end = token(form.tags.end, specials)
        opening = (token(before, specials), _quoted(name), token(after, specials))
        return _sequence(*opening, lines, arguments, end)
    if form.body == "python":
        return _sequence(_quoted(f"{name}("), arguments, '")"')
    if form.body == "braces":
        return _sequence(_quoted(f"call:{name}"), arguments)
    return _sequence(_quoted(name), token(form.head_end, specials), arguments)


def _answer(
    form: ToolFormat, text_format: str | None, around: tuple[str, str], name: str = "start"
) -> list[str]:
    """The rule for an answer that is no call."""
    if text_format is None:
        return [f"{name}: {_framed('TEXT', around)}", _text(form)]
    if name == "start" and not around[0]:
        return [text_format]
    return [f"{name}: {_framed('formatted', around)}", "formatted: %lark {", text_format, "}"]


def _framed(rule: str, around: tuple[str, str]) -> str:
    """A rule between what may stand, or what must stand, around an answer."""
    before, after = around
    if "<" not in re.sub(r'"(\\.|[^"\\])*"', "", before):  # in characters it could not be told from the text
        return rule
    if not after:
        return f"{before} {rule}"
    return f"( {before} {rule} ( {after} )? | {rule} )"


def _is_message(around: tuple[str, str]) -> bool:
    return bool(around[0]) and not around[1]


def _free(form: ToolFormat, open_: str, around: tuple[str, str]) -> list[str]:
    """Free text, or calls, with or without text before them."""
    if form.optional:
        return ["start: TEXT | calls", _text(form)]
    if _is_token(open_):
        return [f"start: {_framed('TEXT', around)} | TEXT? calls", _text(form)]
    mark = pattern(form.open)
    first = f"TEXT_OPEN: /(?s:.*){mark}/ & ~/(?s:.*){mark}(?s:.+)/{_guard(form)}"
    return ["start: TEXT | TEXT_OPEN more", _text(form), first]


def _text(form: ToolFormat) -> str:
    mark = pattern(form.open)
    return f"TEXT: /(?s:.+)/ & ~/(?s:.*){mark}(?s:.*)/{_guard(form)}"


def _guard(form: ToolFormat) -> str:
    """Text must not begin as a call without a marker does."""
    if form.optional:  # the call itself begins with a brace, and the lexer cannot tell later
        return r" & ~/\s*(\[\s*)?\{(?s:.*)/"
    keys = "|".join(CALL_KEYS)
    return rf' & ~/\s*(\[\s*)?\{{\s*"({keys})"(?s:.*)/' if form.bare else ""


# Schemas


def _calls_schema(form: ToolFormat, tools: list[Function], most: int) -> dict[str, Any]:
    one: dict[str, Any] = {"anyOf": [_call_schema(form, tool, f"tool{at}") for at, tool in enumerate(tools)]}
    schema = {"type": "array", "items": one, "minItems": 1, "maxItems": most} if form.listed else one
    definitions = {f"tool{at}": _moved(tool, f"#/$defs/tool{at}") for at, tool in enumerate(tools)}
    return {**schema, "$defs": definitions}


def _call_schema(form: ToolFormat, tool: Function, definition: str) -> dict[str, Any]:
    arguments = {"$ref": f"#/$defs/{definition}"}
    if form.named:
        properties: dict[str, Any] = {tool.name: arguments}
    else:
        number = {form.id_key: {"type": "string", "pattern": "^[0-9]{1,3}$"}} if form.id_key else {}
        properties = {**number, form.name_key: {"const": tool.name}, form.arguments: arguments}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _arguments_schema(tool: Function) -> dict[str, Any]:
    return {"$ref": "#/$defs/tool", "$defs": {"tool": _moved(tool, "#/$defs/tool")}}


def _moved(tool: Function, root: str) -> Any:
    """The schema of a tool's arguments, bounded, for a place further down."""
    return moved(bounded(tool.parameters), root)


# Spellings


def token(mark: str, specials: Specials) -> str:
    """A marker in Lark: control tokens where the vocabulary has them as such, else its characters. One that
    has no id and that Lark cannot spell is written in characters, too."""
    names = [name for name in specials if _spelling(name, specials)]
    if not mark or not names:
        return _quoted(mark)
    parts = re.split(f"({'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})", mark)
    return _sequence(*(_spelling(part, specials) if part in names else _quoted(part) for part in parts))


def _spelling(name: str, specials: Specials) -> str:
    if isinstance(specials, Mapping):
        return f"<[{specials[name]}]>"
    return name if re.fullmatch(r"<[^<>\s\[][^<>\s]*>", name) else ""


def _is_token(spelling: str) -> bool:
    return spelling.startswith("<")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def pattern(mark: str) -> str:
    """A marker inside of a regex."""
    return re.escape(mark).replace("/", r"\/")


def _sequence(*parts: str) -> str:
    return " ".join(part for part in parts if part)
