"""``tallow.LM``: the ``dspy.LM`` over a model in this process.

DSPy keeps its cache, its retries, history and callbacks; all that is added is what it cannot do for an
engine: make one from a model's name, name the model by its bytes (so that the cache never mixes two models),
carry sampler fields that DSPy has no name for, and hand ``n`` and ``rollout_id`` to the engine.
``forward`` is not overridden: DSPy would then treat this as an old-style LM, without cache.
"""

from __future__ import annotations

import asyncio
import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import dspy  # type: ignore[import-untyped]
from dspy.utils.exceptions import LMUnsupportedFeatureError  # type: ignore[import-untyped]

from .. import arguments
from ..adapter import Adapter
from ..errors import ArgumentTypeError, InvalidRequestError
from ..model import LOAD_OPTIONS, Model
from . import adapted, constraints, early, train_kwargs
from .convert import METADATA_KEYS
from .engine import AsyncEngine, Engine
from .plan import Plan, planned, running
from .provider import Provider


class LM(dspy.LM):
    """A language model for DSPy: ``dspy.configure(lm=tallow.LM("smollm2"))``.

    ``model`` is a ``tallow.Model`` or what one is made from; as ``kwargs`` the arguments of ``Model``
    (``quantize``, ``threads``, ``kv_memory``, ``queue``, ...), those of ``dspy.LM`` (``temperature``,
    ``max_tokens``, ``cache``, ``callbacks``, ...) and sampler fields (``min_p``, ``repetition_penalty``,
    ...) may follow, ``template_arguments`` for the chat template, ``prediction`` (rather for one call: a
    text that the answer may well resemble), and ``timeout``, the seconds that one answer may take. The
    Model is ``lm.engine.model``.

    The format that an adapter of DSPy asks for is enforced while the model writes; ``constrain=False`` lets
    it write as it likes. Instead, an answer may have a constraint of your own, one of
    ``choices=["yes", "no"]``, ``regex=...``, ``json_schema=...`` and ``grammar=...``. What was done is in
    ``lm.history[-1]["response"].provider_data["format"]``.

    ``adapter`` is a LoRA adapter to answer with: the name of one that the Model has loaded, the Adapter, or a
    folder or file of one. ``lm.adapter`` is the one in use. ``dspy.BootstrapFinetune`` trains one in this
    process, from the LM as it is; its ``train_kwargs`` may be given here, too.

    ``num_retries`` is 0 here: in one process nothing gets better by being repeated. ``progress`` is that of
    Model. ``engine`` and ``async_engine`` are DSPy's, for programs that it loads; leave them out.
    """

    def __init__(
        self,
        model: str | Model,
        *,
        adapter: Any = None,
        engine: Any = None,
        async_engine: Any = None,
        timeout: float | None = None,
        num_retries: int = 0,
        progress: Any = True,
        **kwargs: Any,
    ) -> None:
        kwargs = {name: value for name, value in kwargs.items() if _is_given(name, value)}
        _check(kwargs)
        load = {name: kwargs.pop(name) for name in LOAD_OPTIONS if name in kwargs}
        if isinstance(engine, Engine):  # saved, and made again from its own state
            engine = engine if adapter is None else engine.with_adapter(adapter)
            async_engine = AsyncEngine(engine.model, timeout=engine.timeout, adapter=engine.adapter)
        elif engine is not None or async_engine is not None:
            raise ArgumentTypeError("engine is made by tallow.LM itself; to use another engine, take dspy.LM")
        else:
            found = _model(model, load, progress)
            engine = Engine(found, timeout=timeout, adapter=adapter)
            async_engine = AsyncEngine(found, timeout=timeout, adapter=engine.adapter)
        early.say(LM)
        cached = kwargs.get("cache", True)
        super().__init__(
            model=adapted.model_string(engine.model, engine.adapter, cached=cached, progress=progress),
            engine=engine,
            async_engine=async_engine,
            num_retries=num_retries,
            **_folded(kwargs, {}),
        )

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """A list of answers to ``prompt`` (a str) or ``messages`` (dicts as OpenAI's API has them). The
        ``kwargs`` are for this call, over those of the LM. Ours come as DSPy's errors."""
        kwargs = _folded(kwargs, self.kwargs)
        self._name_for_cache(kwargs)
        with planned(self._plan(kwargs)):
            return super().__call__(prompt, messages=messages, **kwargs)

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """The same as a call, to await: ``prompt`` or ``messages``, and ``kwargs``. No thread waits."""
        kwargs = _folded(kwargs, self.kwargs)
        if kwargs.get("cache", self.cache) and self.engine.model._shared.exact is None:
            await asyncio.to_thread(self.engine.model._exact_name)
        self._name_for_cache(kwargs)
        with planned(self._plan(kwargs)):
            return await super().acall(prompt, messages=messages, **kwargs)

    if hasattr(
        dspy.LM, "generate"
    ):  # the way to an explicit request in DSPy 3.5, which ``__call__`` may take, too

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            """DSPy's own ``generate`` (3.5): ``args`` and ``kwargs`` are handed on."""
            with self._joined(kwargs):
                return super().generate(*args, **kwargs)

    if hasattr(dspy.LM, "agenerate"):

        async def agenerate(self, *args: Any, **kwargs: Any) -> Any:
            """DSPy's own ``agenerate`` (3.5): ``args`` and ``kwargs`` are handed on."""
            with self._joined(kwargs):
                return await super().agenerate(*args, **kwargs)

    def _joined(self, kwargs: dict[str, Any]) -> AbstractContextManager[Any]:
        """The plan of a call within a call is that of the outer one, unless it says otherwise."""
        self._name_for_cache(kwargs)
        if running(self.model) and not {"n", "rollout_id"} & kwargs.keys():
            return nullcontext()
        return planned(self._plan(kwargs))

    def _plan(self, kwargs: dict[str, Any]) -> Plan:
        merged = {**self.kwargs, **kwargs}
        n = merged.get("n")
        if n is not None:
            arguments.integer("n", n, 1, arguments.MAX_CANDIDATES)
        return Plan(self.model, n=n or 1, rollout_id=merged.get("rollout_id"))

    def _name_for_cache(self, kwargs: dict[str, Any]) -> None:
        """An LM without cache is not worth hashing its files for; where one call or a copy has a cache after
        all, its answers are kept under the exact name."""
        if kwargs.get("cache", self.cache):
            self.model = adapted.model_string(self.engine.model, self.adapter, cached=True)

    def copy(self, **kwargs: Any) -> LM:
        """The same model with other settings (``kwargs``) and a history of its own. ``adapter`` may be
        another one of the model, and None is the model alone; in DSPy's own words, ``model`` is the string of
        such an LM. What else belongs to the model is refused: make another LM for that."""
        _check_copy(self, kwargs)
        if "adapter" in kwargs and "model" in kwargs:
            raise InvalidRequestError("model and adapter are given together; the string names the adapter")
        adapter = self.adapter
        if "adapter" in kwargs:
            adapter = adapted.chosen(self.engine.model, kwargs.pop("adapter"))
        if "model" in kwargs:
            adapter = adapted.named(self.engine.model, kwargs.pop("model"))
        copied = super().copy(**_folded(kwargs, self.kwargs))
        if adapter is not self.adapter:
            copied._engine_spec = self._engine_spec.with_adapter(adapter)
            copied._async_engine_spec = self._async_engine_spec.with_adapter(adapter)
            copied.model = adapted.model_string(self.engine.model, adapter, cached=copied.cache)
        copied._name_for_cache({})
        return copied

    @property
    def adapter(self) -> Adapter | None:
        """The LoRA adapter that it answers with; None is the model alone."""
        return self.engine.adapter

    # Training: DSPy calls these

    def infer_provider(self) -> Provider:
        """What DSPy trains by, unless a ``provider`` was given: this process."""
        return Provider(self.engine.model)

    def reinforce(self, train_kwargs: Any) -> NoReturn:
        """Refused, whatever the ``train_kwargs``: there is no reinforcement learning (GRPO) here."""
        raise LMUnsupportedFeatureError(
            "tallow trains on answers (dspy.BootstrapFinetune, lm.finetune) and not by rewards: there is no "
            "GRPO here. BootstrapFinetune with a metric learns the answers that the metric accepts",
            model=self.model,
            provider="tallow",
            features=["reinforce"],
        )

    def stats(self) -> dict[str, Any]:
        """What the engine has done so far, as ``Model.stats``."""
        return self.engine.model.stats()

    def save_prefix(self, path: Any, prompt: Any, **options: Any) -> int:
        """``Model.save_prefix``: keeps what was computed of ``prompt`` (messages, as DSPy's history shows
        them) at ``path`` for other processes; returns tokens. ``options`` are those of Model's."""
        return self.engine.model.save_prefix(path, prompt, adapter=self.adapter, **options)

    def load_prefix(self, path: Any) -> int:
        """``Model.load_prefix``: takes up what ``save_prefix`` wrote at ``path``; returns tokens."""
        return self.engine.model.load_prefix(path, adapter=self.adapter)

    def close(self) -> None:
        """Ends the native engine of the model and frees its cache; requests in work fail. The next call
        starts another, for this LM and everything else that uses the model."""
        super().close()
        self.engine.close()

    def __repr__(self) -> str:
        given = {name: value for name, value in self.kwargs.items() if value is not None}
        if self.adapter is not None:
            given = {"adapter": self.adapter.name, **given}
        return (
            f"<tallow.LM {self.model!r}"
            + "".join(f" {name}={value!r}" for name, value in given.items())
            + ">"
        )


def _model(model: str | Model, load: dict[str, Any], progress: Any) -> Model:
    if not isinstance(model, Model):
        return Model(model, **load, progress=progress)
    for name in load:
        raise InvalidRequestError(
            f"{name} belongs to loading, and this model is loaded; give it to tallow.Model"
        )
    return model


#: What one call may be told, as DSPy names it; the LM takes the same as defaults.
_CALL_ARGUMENTS = frozenset(
    (
        *("temperature", "max_tokens", "max_completion_tokens", "top_p", "top_k", "stop", "seed", "n"),
        *("frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs", "metadata"),
        *("response_format", "reasoning_effort", "tools", "tool_choice", "parallel_tool_calls"),
        *("rollout_id", "prompt_cache", "user", "store", "service_tier"),
    )
)


#: Arguments of a client, which users of other LMs bring along. (``timeout`` is one of ours.)
_CLIENT_ARGUMENTS = frozenset(
    (
        *("api_key", "api_base", "base_url", "headers", "extra_headers", "extra_query", "api_version"),
        *("organization", "project", "custom_llm_provider"),
    )
)


def _is_given(name: str, value: object) -> bool:
    """Users who switch from a server leave its arguments at None."""
    return value is not None or name not in _CLIENT_ARGUMENTS


def _check(kwargs: dict[str, Any]) -> None:
    for name in kwargs:
        if name in _CLIENT_ARGUMENTS:
            raise InvalidRequestError(
                f"{name} is for a server, and this model runs in this process; leave it out"
            )
    if kwargs.get("model_type", "chat") != "chat":
        arguments.wrong_value(
            "model_type", kwargs["model_type"], '"chat"; for plain prompts use tallow.Model.generate'
        )
    _refuse_hidden(kwargs)
    _check_training(kwargs)
    known = {
        *inspect.signature(dspy.LM.__init__).parameters,
        *_CALL_ARGUMENTS,
        *METADATA_KEYS,
        *LOAD_OPTIONS,
        "timeout",
    }
    for name in kwargs:
        if name not in known:
            arguments.unknown("LM()", name, sorted(known - {"self", "kwargs"}))


def _check_training(kwargs: dict[str, Any]) -> None:
    if kwargs.get("launch_kwargs"):
        raise InvalidRequestError(
            "launch_kwargs are for a server that is launched, and this model runs in this process; leave "
            "them out"
        )
    if kwargs.get("finetuning_model") is not None:
        raise InvalidRequestError(
            "finetuning_model names another model to train, and here an adapter is trained for the one that "
            "answers; leave it out"
        )
    if kwargs.get("provider") is None:  # another provider has names of its own
        train_kwargs.read(kwargs.get("train_kwargs") or {})


def _refuse_hidden(kwargs: dict[str, Any]) -> None:
    for name in ("filters", "sampler"):
        if kwargs.get(name):
            raise InvalidRequestError(
                f"{name} cannot go through DSPy, whose cache would not see it; use it with "
                "tallow.Model.generate, and give an LM the fields themselves (temperature=..., min_p=...)"
            )


def _check_copy(lm: LM, kwargs: dict[str, Any]) -> None:
    """A copy is the same model with other settings; DSPy itself would take any name."""
    _refuse_hidden(kwargs)
    for name in kwargs:
        if name in LOAD_OPTIONS or name in ("model_type", "engine", "async_engine"):
            raise InvalidRequestError(
                f"{name} belongs to the model, which copies share; make another tallow.LM"
            )
        known = name in _CALL_ARGUMENTS or name in METADATA_KEYS or name in lm.kwargs or hasattr(lm, name)
        if not known and name not in (*_CLIENT_ARGUMENTS, "timeout"):  # those are refused by DSPy
            arguments.unknown(
                "LM.copy()", name, sorted(_CALL_ARGUMENTS | {*METADATA_KEYS, "adapter", "cache", "callbacks"})
            )


def _folded(kwargs: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Moves what DSPy has no name for into ``metadata``, over what the LM already has there."""
    kwargs = dict(kwargs)
    extra = {name: kwargs.pop(name) for name in METADATA_KEYS if name in kwargs}
    if not extra and "metadata" not in kwargs:
        return kwargs
    extra = {**(kwargs.get("metadata") or {}), **extra}
    constraints.check(extra)
    for name, read in arguments.CONSTRAINTS.items():
        if extra.get(name) is not None:  # metadata is JSON, and neither a class nor a tuple is
            extra[name] = read(name, extra[name])
    merged = {**(defaults.get("metadata") or {}), **extra}
    if any(extra.get(name) is not None for name in constraints.OWN):  # takes the place of the LM's own
        merged = {
            name: value for name, value in merged.items() if name in extra or name not in constraints.OWN
        }
    if (
        merged.get(constraints.SWITCH) == "auto"
    ):  # the default, and the same to DSPy's cache as saying nothing
        del merged[constraints.SWITCH]
    kwargs["metadata"] = {name: value for name, value in merged.items() if value is not None} or None
    if kwargs["metadata"] is None and not defaults.get("metadata"):
        del kwargs["metadata"]  # to DSPy's cache, None is another question than nothing
    return kwargs
