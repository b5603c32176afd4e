"""DSPy's engine protocol over a ``tallow.Model``: one request in, one response or one stream of events out.

``Engine`` is for threads and ``AsyncEngine`` for tasks; both submit to the same native engine, where calls
meet in one batch. They hold nothing but the Model, one adapter of it and a timeout, so copies share them,
pickles rebuild them, and a saved program records where both came from. Whatever else changes an answer
travels in the request, never here, because DSPy's cache does not see an engine; the adapter is in the
model's string.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

from dspy import lm15  # type: ignore[import-untyped]

from .. import arguments, results
from .._async import AsyncGeneration
from ..adapter import Adapter
from ..answers import Template
from ..model import AsyncStream, Model, Stream
from . import adapted, answer, convert, plan, probabilities
from .prepare import prepare

if TYPE_CHECKING:
    from typing_extensions import Self


#: What of OpenAI's parameters is honoured by every model.
_PARAMS = frozenset(
    (
        *("max_tokens", "temperature", "top_p", "top_k", "stop", "seed", "n", "metadata", "logit_bias"),
        *("frequency_penalty", "presence_penalty", "logprobs", "top_logprobs", "response_format"),
    )
)
_TOOL_PARAMS = frozenset(("tools", "tool_choice", "parallel_tool_calls"))


class _Base:
    # This and the properties below are read by DSPy's adapters.
    supports_response_schema = True

    def __init__(self, model: Model, *, timeout: float | None = None, adapter: Any = None) -> None:
        if not isinstance(model, Model):
            arguments.wrong_type("model", model, "a tallow.Model")
        self.model = model
        self.adapter: Adapter | None = adapted.chosen(model, adapter)
        self._template = Template.of(model)
        self.timeout = None if timeout is None else arguments.seconds("timeout", timeout)

    @property
    def supports_function_calling(self) -> bool:
        """A template that knows no tools is told of them in words."""
        return self.model.has_template

    @property
    def supports_reasoning(self) -> bool:
        return self._template.can_think

    @property
    def supported_params(self) -> frozenset[str]:
        tools = _TOOL_PARAMS if self.supports_function_calling else frozenset()
        return _PARAMS | tools | ({"reasoning_effort"} if self.supports_reasoning else set())

    def _taken(
        self,
        request: lm15.Request,
        submit: Callable[[Callable[..., Any]], Callable[[int], Any]],
        *,
        stream: bool = False,
    ) -> tuple[answer.Facts, answer.Reader, Any]:
        """The next candidate of the running call: what is known of it, its reader, and the generation.
        In the caller's own thread or task, where DSPy says which module is calling."""
        call = plan.current(request.model)
        prepared = call.once(
            request,
            lambda: prepare(self.model, self._template, request, self.timeout, call.rollout_id, self.adapter),
        )
        facts = prepared.facts.with_notes(probabilities.unmeasured(request, stream=stream))
        return facts, prepared.reader(), call.take(submit(prepared.start))

    # As a value

    def with_adapter(self, adapter: Adapter | None) -> Self:
        """The same model with another adapter of it, or alone."""
        return type(self)(self.model, timeout=self.timeout, adapter=adapter)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self)._rebuilt, (self.model, self.timeout, self._adapter_state())

    @classmethod
    def _rebuilt(cls, model: Model, timeout: float | None, adapter: dict[str, Any] | None = None) -> Self:
        found = None if adapter is None else adapted.from_state(model, adapter)
        return cls(model, timeout=timeout, adapter=found)

    def _adapter_state(self) -> dict[str, Any] | None:
        return None if self.adapter is None else adapted.state(self.adapter)

    def dump_state(self) -> dict[str, Any]:
        state = {"model": self.model.to_state(), "timeout": self.timeout}
        return state if self.adapter is None else {**state, "adapter": self._adapter_state()}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> Self:
        return cls._rebuilt(Model.from_state(state["model"]), state.get("timeout"), state.get("adapter"))

    def __repr__(self) -> str:
        adapter = "" if self.adapter is None else f", adapter={self.adapter.name!r}"
        return f"{type(self).__name__}({self.model!r}{adapter})"


class Engine(_Base):
    """For ``dspy.LM(engine=...)``."""

    def complete(self, request: lm15.Request) -> lm15.Response:
        if probabilities.measures(request):
            return probabilities.answer(self.model, request, self.adapter)
        with convert.as_lm15():
            facts, reader, generation = self._taken(request, lambda start: start)
            token_bytes = self.model._native.token_bytes
            done = results.completion(generation.collect(), token_bytes)
            return answer.response(facts, reader, done, token_bytes)

    def stream(self, request: lm15.Request) -> Iterator[lm15.StreamEvent]:
        probabilities.measures(request, stream=True)
        with convert.as_lm15():
            facts, reader, generation = self._taken(request, lambda start: start, stream=True)
            chunks = Stream(generation, self.model._shared)
        with chunks:
            yield facts.start()
            while True:
                with convert.as_lm15():
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                yield from answer.events(facts, reader, chunk, self.model._native.token_bytes)

    def close(self) -> None:
        """Ends the model's native engine; the next call starts another."""
        self.model._shared.close()


class AsyncEngine(_Base):
    """For ``dspy.LM(async_engine=...)``."""

    async def complete(self, request: lm15.Request) -> lm15.Response:
        if probabilities.measures(request):
            return await probabilities.aanswer(self.model, request, self.adapter)
        with convert.as_lm15():
            facts, reader, generation = self._taken(request, _awaited(every_token=False))
            token_bytes = self.model._native.token_bytes
            done = results.completion(results.joined(await generation.collect()), token_bytes)
            return answer.response(facts, reader, done, token_bytes)

    async def stream(self, request: lm15.Request) -> AsyncIterator[lm15.StreamEvent]:
        probabilities.measures(request, stream=True)
        with convert.as_lm15():
            facts, reader, generation = self._taken(request, _awaited(every_token=True), stream=True)
            chunks = AsyncStream(generation, self.model._shared)
        async with chunks:
            yield facts.start()
            while True:
                with convert.as_lm15():
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                for event in answer.events(facts, reader, chunk, self.model._native.token_bytes):
                    yield event

    async def aclose(self) -> None:
        self.model._shared.close()


def _awaited(*, every_token: bool) -> Callable[[Callable[..., Any]], Callable[[int], AsyncGeneration]]:
    def submit(start: Callable[..., Any]) -> Callable[[int], AsyncGeneration]:
        return lambda index: AsyncGeneration(lambda **waker: start(index, **waker), every_token=every_token)

    return submit
