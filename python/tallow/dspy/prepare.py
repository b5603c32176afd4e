"""A request of DSPy, checked and made ready to run: before any work, in the thread or task that asks.

The prompt: turns and tools as the model's template shows them, thinking on or off. The bounds: the format or
the caller's own constraint, together with the grammar of tool calls, after the thought if there is one. What
is told: everything that was asked for and came out otherwise.

Thinking is off where a format bounds the answer, which then begins with the format; a model that answers
freely does as its template says; ``reasoning_effort`` decides both ways.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dspy import lm15  # type: ignore[import-untyped]

from .. import _core, answers, arguments, prompts, thinking, tools
from ..adapter import Adapter
from ..answers import Template
from ..model import Model
from . import answer, constraints, convert, plan
from .formats import Format

_OPTIONS = ("max_tokens", "stop", "logprobs", "prediction")
Notes = tuple[lm15.Adaptation, ...]


@dataclass(frozen=True)
class Prepared:
    """A request that was checked, and is ready to run."""

    facts: answer.Facts
    #: Submits candidate number ``index``.
    start: Callable[..., Any]
    #: A reader for one answer.
    reader: Callable[[], answer.Reader]


def prepare(
    model: Model,
    template: Template,
    request: lm15.Request,
    timeout: float | None,
    rollout_id: Any,
    adapter: Adapter | None = None,
) -> Prepared:
    convert.refuse(request)
    given = convert.options(request.config)
    chosen = constraints.possible(model, constraints.choose(request, given))
    own = arguments.template_arguments("template_arguments", given.pop("template_arguments", None) or {})
    thinks, switch, notes = _thinks(request.config.reasoning, template, chosen, own)
    turns = convert.messages(request)
    prompt = prompts.rendered(
        model._native, turns, tools=_offered(request), template_arguments={**switch, **own}
    )
    opened = template.tags is not None and template.tags.opened_by(prompt.text)
    bound = _bound(template, request, chosen, thought=True if opened else thinks, opened=opened)
    notes = (*notes, *_clamp(model, prompt, given))
    options = {name: given.pop(name, None) for name in _OPTIONS}
    seeded = _seeds(given, turns, rollout_id)
    splits = template.splits(thinks, opened)
    shown = template.shown(splits, calls=bool(_offered(request)))
    start = _starter(model, prompt, {**options, "timeout": timeout, **bound}, given, seeded, shown, adapter)
    told = constraints.told(chosen, bool(chosen.constraint)) | (
        {"tools": template.form.name} if request.tools else {}
    )
    noted = (*convert.hints(request.config), *constraints.dropped(request, chosen), *notes)

    def reader() -> answer.Reader:
        return answer.Reader(
            thinking.splitter(splits, opened) if splits is not None else None,
            _call_splitter(template, request),
        )

    return Prepared(answer.Facts(request.model, told, noted, tuple(prompt.notes)), start, reader)


def _starter(
    model: Model,
    prompt: _core.Prompt,
    options: dict[str, Any],
    fields: dict[str, Any],
    seeded: Callable[[int], int | None],
    shown: list[int],
    adapter: Adapter | None,
) -> Callable[..., Any]:
    checked, native = arguments.generation(prompt, options, fields)
    if adapter is not None:
        native["adapter"] = adapter._for(model)
    engine = model._shared.engine()

    def start(index: int, **waker: Any) -> Any:
        return engine.generate(checked, **native, shown_tokens=shown, seed=seeded(index), **waker)

    return start


def _seeds(
    given: dict[str, Any], turns: list[dict[str, Any]], rollout_id: Any
) -> Callable[[int], int | None]:
    seed = given.pop("seed", None)
    if seed is not None:
        arguments.integer("seed", seed, 0, arguments.MAX_SEED)
    return lambda index: plan.seed(seed, turns, rollout_id, index)


# Tools


def _offered(request: lm15.Request) -> tuple[lm15.Tool, ...]:
    choice = request.config.tool_choice
    return () if choice is not None and choice.mode == "none" else request.tools


def _call_splitter(template: Template, request: lm15.Request) -> tools.Splitter | None:
    offered = _offered(request)
    if not offered:
        return None
    before = sum(
        isinstance(part, lm15.ToolCallPart) for message in request.messages for part in message.parts
    )
    return tools.Splitter(template.form, {tool.name: tool.parameters or {} for tool in offered}, before)


def _bound(
    template: Template,
    request: lm15.Request,
    chosen: Format,
    *,
    thought: bool | None,
    opened: bool,
) -> dict[str, Any]:
    """The one constraint of the answer: its format or calls, after the thought. ``thought``: whether there is
    one; None: the model may begin with one."""
    offered, choice = _offered(request), request.config.tool_choice or lm15.ToolChoice()
    if choice.mode == "required" and not offered:
        arguments.wrong_value("tool_choice", choice.mode, '"auto" or "none" when there are no tools')
    calls = offered and (chosen.why != constraints.SWITCHED_OFF or choice.mode == "required")
    return answers.bound(
        template,
        chosen.constraint,
        offered if calls else (),
        choice=choice.mode,
        parallel=choice.parallel is not False,
        allowed=choice.allowed,
        thought=thought,
        opened=opened,
    )


# Thinking

_BUDGET = "thinking_budget"


def _thinks(
    asked: lm15.Reasoning | None, template: Template, chosen: Format, own: dict[str, Any]
) -> tuple[bool | None, dict[str, Any], Notes]:
    """Whether the model is to think (None: as it likes), the template's switch for that, and what is told."""
    tags = template.tags
    if tags is None:
        if asked is not None and not asked.is_off:
            convert.no(
                "config.reasoning", "this model's template knows no thoughts; leave reasoning_effort out"
            )
        return False, {}, ()
    if tags.switch in own:  # the caller speaks to the template directly
        return own[tags.switch] not in (False, "none"), {}, ()
    if asked is None:
        wanted = False if chosen.constraint else None
        return wanted, _switched(tags, wanted, None), ()
    return not asked.is_off, _switched(tags, not asked.is_off, asked), _reasoning_notes(asked, tags)


def _switched(tags: thinking.Tags, wanted: bool | None, asked: lm15.Reasoning | None) -> dict[str, Any]:
    if tags.switch is None or wanted is None:
        return {}
    if not wanted or asked is None:
        return {tags.switch: tags.off}
    if tags.switch == _BUDGET and asked.thinking_budget is not None:
        return {tags.switch: asked.thinking_budget}
    return {tags.switch: asked.effort if tags.on is None else tags.on}


def _reasoning_notes(asked: lm15.Reasoning, tags: thinking.Tags) -> Notes:
    note = lm15.Adaptation
    found = []
    if asked.is_off and tags.switch is None and tags.opened:
        found.append(
            note("config.reasoning", "dropped", "this model always begins with a thought", asked=asked.effort)
        )
    if asked.is_off and tags.messages is not None:
        found.append(
            note(
                "config.reasoning",
                "clamped",
                "the template has no way to switch thoughts off",
                asked=asked.effort,
                applied=tags.off,
            )
        )
    if not asked.is_off and tags.on is not None:
        found.append(
            note(
                "config.reasoning.effort",
                "clamped",
                "thoughts are on or off",
                asked=asked.effort,
                applied="on",
            )
        )
    for name in ("thinking_budget", "summary"):
        value = getattr(asked, name)
        if value is not None and name != tags.switch:
            found.append(note(f"config.reasoning.{name}", "dropped", "thoughts are given whole", asked=value))
    return tuple(found)


# Room


def _clamp(model: Model, prompt: _core.Prompt, given: dict[str, Any]) -> Notes:
    """Holds ``max_tokens`` to the room that the prompt leaves. A prompt that leaves none is refused by the
    engine, with the numbers."""
    asked, limit = given.get("max_tokens"), model.context_length
    if not isinstance(asked, int) or asked + len(prompt.text.encode()) < limit:  # a token is a byte or more
        return ()
    room = limit - len(prompt)
    if not 0 < room < asked:
        return ()
    given["max_tokens"] = room
    reason = f"the context has {limit} tokens for prompt and answer"
    return (lm15.Adaptation("config.max_tokens", "clamped", reason, asked=asked, applied=room),)
