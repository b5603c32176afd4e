"""DSPy's engine protocol over a ``tallow.Model``: one request in, one response or one stream of events out.

``Engine`` is for threads and ``AsyncEngine`` for tasks; both submit to the same native engine, where calls
meet in one batch. They hold nothing but the Model and a timeout, so copies share them, pickles rebuild them,
and a saved program records where the model came from. Whatever changes an answer travels in the request,
never here, because DSPy's cache does not see an engine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

from dspy import lm15  # type: ignore[import-untyped]

from .. import arguments, results
from .._async import AsyncGeneration
from ..model import AsyncStream, Model, Stream
from . import convert, plan

if TYPE_CHECKING:
    from typing_extensions import Self

#: What of OpenAI's parameters is honoured.
_PARAMS = frozenset(
    (
        *("max_tokens", "temperature", "top_p", "top_k", "stop", "seed", "n", "metadata", "logit_bias"),
        *("frequency_penalty", "presence_penalty", "logprobs", "top_logprobs"),
    )
)
_OPTIONS = ("max_tokens", "stop", "logprobs", "template_arguments", "prediction")


class _Base:
    # Read by DSPy's adapters. They become true when they are.
    supports_function_calling = False
    supports_reasoning = False
    supports_response_schema = False
    supported_params = _PARAMS

    def __init__(self, model: Model, *, timeout: float | None = None) -> None:
        if not isinstance(model, Model):
            arguments.wrong_type("model", model, "a tallow.Model")
        self.model = model
        self.timeout = None if timeout is None else arguments.seconds("timeout", timeout)

    def _starter(self, request: lm15.Request) -> tuple[plan.Plan, Callable[..., Any]]:
        """Checks a request before any work, and returns its plan and what submits candidate number
        ``index``."""
        convert.refuse_tools(request)
        turns = convert.messages(request)
        given = convert.options(request.config)
        seed = given.pop("seed", None)
        if seed is not None:
            arguments.integer("seed", seed, 0, arguments.MAX_SEED)
        known: dict[str, Any] = {name: given.pop(name, None) for name in _OPTIONS}
        checked, native = arguments.generation(turns, {**known, "timeout": self.timeout}, given)
        engine = self.model._shared.engine()
        call = plan.current(request.model)

        def start(index: int, **waker: Any) -> Any:
            own = plan.seed(seed, turns, call.rollout_id, index)
            return engine.generate(checked, **native, seed=own, **waker)

        return call, start

    # As a value

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self)._rebuilt, (self.model, self.timeout)

    @classmethod
    def _rebuilt(cls, model: Model, timeout: float | None) -> Self:
        return cls(model, timeout=timeout)

    def dump_state(self) -> dict[str, Any]:
        return {"model": self.model.to_state(), "timeout": self.timeout}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> Self:
        return cls(Model.from_state(state["model"]), timeout=state.get("timeout"))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"


class Engine(_Base):
    """For ``dspy.LM(engine=...)``."""

    def complete(self, request: lm15.Request) -> lm15.Response:
        with convert.as_lm15():
            call, start = self._starter(request)
            raw = call.take(start).collect()
            return convert.response(request, results.completion(raw, self.model._native.token_bytes))

    def stream(self, request: lm15.Request) -> Iterator[lm15.StreamEvent]:
        with convert.as_lm15():
            call, start = self._starter(request)
            chunks = Stream(call.take(start), self.model._shared)
        with chunks:
            yield _begun(request)
            while True:
                with convert.as_lm15():
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                yield from _events(chunk)

    def close(self) -> None:
        """Ends the model's native engine; the next call starts another."""
        self.model._shared.close()


class AsyncEngine(_Base):
    """For ``dspy.LM(async_engine=...)``."""

    async def complete(self, request: lm15.Request) -> lm15.Response:
        with convert.as_lm15():
            call, start = self._starter(request)
            running = call.take(_awaited(start, every_token=False))
            raw = results.joined(await running.collect())
            return convert.response(request, results.completion(raw, self.model._native.token_bytes))

    async def stream(self, request: lm15.Request) -> AsyncIterator[lm15.StreamEvent]:
        with convert.as_lm15():
            call, start = self._starter(request)
            chunks = AsyncStream(call.take(_awaited(start, every_token=True)), self.model._shared)
        async with chunks:
            yield _begun(request)
            while True:
                with convert.as_lm15():
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                for event in _events(chunk):
                    yield event

    async def aclose(self) -> None:
        self.model._shared.close()


def _awaited(start: Callable[..., Any], *, every_token: bool) -> Callable[[int], AsyncGeneration]:
    def submit(index: int) -> AsyncGeneration:
        return AsyncGeneration(lambda **waker: start(index, **waker), every_token=every_token)

    return submit


def _begun(request: lm15.Request) -> lm15.StreamStartEvent:
    return lm15.StreamStartEvent(model=request.model, adaptations=convert.adaptations(request.config))


def _events(chunk: results.Chunk) -> Iterator[lm15.StreamEvent]:
    if chunk.text or chunk.logprobs:
        yield convert.delta(chunk)
    if chunk.finish_reason is not None:
        yield convert.end(chunk)
