"""The native half of tallow. Mechanism only: keyword defaults, checks and documentation stand in the Python
half."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import EllipsisType
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CONVERT_TYPES",
    "MAX_STOPS",
    "MAX_STOP_CHARS",
    "MAX_TOP_LOGPROBS",
    "SAMPLER_FIELDS",
    "Adapter",
    "Cancelled",
    "ConstraintError",
    "ContextLengthError",
    "DeviceError",
    "Engine",
    "Error",
    "Generation",
    "HubError",
    "InvalidRequestError",
    "Model",
    "ModelFileError",
    "OutOfMemoryError",
    "Prompt",
    "Sampler",
    "TemplateError",
    "Timeout",
    "Training",
    "UnsupportedModelError",
    "Waker",
    "__doc__",
    "__version__",
    "_tile_probe",
    "anywhere",
    "cache_folder",
    "convert",
    "end_filters",
    "features",
    "finish_packed",
    "hub_cache_folder",
    "locate",
    "offline_variable",
    "packed_files",
    "plain_messages",
]

__version__: str

#: Fields of a Sampler in their order: name, and kind ("number", "count", "bias" or "filters").
SAMPLER_FIELDS: list[tuple[str, str]]
#: Stop strings a request, characters of each, and alternatives that are told of a token, at most.
MAX_STOPS: int
MAX_STOP_CHARS: int
MAX_TOP_LOGPROBS: int

def features() -> dict[str, Any]:
    """What this build and this machine offer: ``isa`` (the tier of CPU instructions in use, such as
    "avx512"), ``isa_opt_in`` (tiers of this machine that TALLOW_ISA alone turns on), ``threads``
    (how many a Model takes unless told), ``cuda``, ``metal`` and ``hub`` (whether they were built in)."""

def _tile_probe(threads: int, seconds: float) -> float:
    """For benchmarks: byte operations a second that the inner loop of products does now, on so many threads,
    for about so long."""

def end_filters(seconds: float) -> None: ...
def cache_folder() -> Path:
    """The folder of tallow's own cache: TALLOW_CACHE, or one below the user's cache folder."""

def hub_cache_folder() -> Path:
    """The folder of the Hugging Face hub's cache, with its ``models--org--name`` folders: HF_HUB_CACHE,
    HF_HOME/hub, or one below the user's cache folder."""

def offline_variable() -> str | None:
    """The environment variable that forbids the network, if one does."""

def plain_messages(messages: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Messages in the one spelling that chat templates know: no null fields, no old names."""

def anywhere(source: str) -> tuple[str, bool]:
    """How a source is named from any working folder, and whether it is on the hub."""

def packed_files() -> list[tuple[Path, int, float | None, str | None, str | None]]:
    """Files of packed weights: path, bytes, last use, what it was packed from, what was quantized at load."""

def finish_packed(seconds: float) -> None:
    """Waits for packed weights that are being written, and gives up what is not done by then."""

def locate(
    source: str,
    *,
    revision: str | None = None,
    offline: bool | None = None,
    progress: Callable[[str, int | None, int], object] | None = None,
) -> tuple[Path, str, str | None]:
    """Finds a model's files and fetches what is missing: path, name, revision."""

#: What ``convert`` can store matrices as.
CONVERT_TYPES: list[str]

def convert(
    source: str,
    path: str,
    kind: str,
    *,
    requantize: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Callable[[str, int | None, int], object] | None = None,
) -> dict[str, Any]:
    """Writes the model of a folder or file as a GGUF file: path, bytes, types, notes."""

@final
class Model:
    """Weights, tokenizer and chat template: immutable, shared, holds no conversation."""

    @staticmethod
    def load(
        source: str,
        *,
        revision: str | None = None,
        offline: bool | None = None,
        device: str = ...,
        dtype: str = ...,
        kv_type: str = ...,
        quantize: str | None = None,
        context_length: int | None = None,
        threads: int | None = None,
        chat_template: str | None = None,
        packed_cache: bool = True,
        progress: Callable[[str, int | None, int], object] | None = None,
        called: tuple[str, str | None] | None = None,
    ) -> Model: ...
    @staticmethod
    def check_options(
        *,
        revision: str | None = None,
        offline: bool | None = None,
        device: str = ...,
        dtype: str = ...,
        kv_type: str = ...,
        quantize: str | None = None,
        context_length: int | None = None,
        threads: int | None = None,
        chat_template: str | None = None,
        packed_cache: bool = True,
    ) -> None: ...
    def check_draft(self, draft: Model) -> None: ...
    @property
    def name(self) -> str: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def fingerprint(self) -> str: ...
    def content_hash(self, progress: Callable[[str, int | None, int], object] | None = None) -> str: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def kv_type(self) -> str: ...
    @property
    def context_length(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def weight_types(self) -> list[str]: ...
    @property
    def packed(self) -> str: ...
    @property
    def packed_again(self) -> str | None: ...
    @property
    def notes(self) -> list[str]: ...
    @property
    def tokenizer_source(self) -> str: ...
    @property
    def eos_ids(self) -> list[int]: ...
    @property
    def has_template(self) -> bool: ...
    @property
    def chat_template(self) -> str | None: ...
    @property
    def pooling(self) -> str: ...
    @property
    def is_embedder(self) -> bool: ...
    @property
    def generation(self) -> dict[str, float]: ...
    def tokenize(self, text: str, special: bool = False) -> list[int]: ...
    def detokenize(self, ids: Sequence[int], special: bool = False) -> str: ...
    def token_bytes(self, id: int) -> bytes: ...
    def prompt_ids(self, prompt: str | Prompt | Sequence[int]) -> list[int]: ...
    def embedding_ids(self, text: str, prompt: str | None = None) -> list[int]: ...
    def continuation_ids(self, prompt: str | Prompt | Sequence[int], text: str) -> list[int]: ...
    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[Any] | None = None,
        arguments: dict[str, Any] | None = None,
        name: str = "messages",
    ) -> Prompt: ...
    @property
    def template_variables(self) -> list[str] | None: ...
    @property
    def shows_calls(self) -> bool: ...

@final
class Prompt:
    """A conversation that a model has rendered, which the engine takes for a prompt. Its length is in
    tokens."""

    @property
    def text(self) -> str: ...
    @property
    def notes(self) -> list[str]: ...
    def __len__(self) -> int: ...

@final
class Engine:
    """A running engine over a Model: queue, scheduler, KV cache."""

    def __new__(
        cls,
        model: Model,
        *,
        kv_memory: int | None = None,
        queue: int | None = None,
        prefix_cache: bool = True,
        speculation: bool = True,
        draft: Model | None = None,
        adapter_memory: int | None = None,
        adapters_of: Engine | None = None,
    ) -> Engine: ...
    def generate(
        self,
        prompt: str | Prompt | Sequence[int],
        *,
        max_tokens: int | None = None,
        sampler: Sampler | None = None,
        fields: dict[str, Any] | None = None,
        stop: Sequence[str] = ...,
        seed: int | None = None,
        logprobs: int | None = None,
        timeout: float | None = None,
        prediction: str | None = None,
        constraint: tuple[str, Any] | None = None,
        shown_tokens: list[int] = ...,
        adapter: Adapter | None = None,
        waker: Waker | None = None,
        key: int = 0,
        every_token: bool = False,
    ) -> Generation: ...
    def compile(self, constraint: tuple[str, Any]) -> None: ...
    def load_adapter(
        self,
        source: str | PathLike[str],
        *,
        revision: str | None = None,
        name: str | None = None,
        scale: float = 1.0,
        progress: Callable[[str, int | None, int], object] | None = None,
    ) -> Adapter: ...
    def save_merged(
        self,
        path: str | PathLike[str],
        adapter: Adapter,
        *,
        dtype: str | None = None,
        format: str | None = None,
        force: bool = False,
        progress: Callable[[str, int | None, int], object] | None = None,
    ) -> dict[str, Any]: ...
    def adapters(self) -> list[Adapter]: ...
    def adapter(self, name: str) -> Adapter: ...
    def unload_adapter(self, name: str) -> None: ...
    def logits(self, ids: Sequence[int], adapter: Adapter | None = None) -> NDArray[np.float32]: ...
    def embed(
        self, texts: list[str], pooling: str, prompt: str | None = None, adapter: Adapter | None = None
    ) -> NDArray[np.float32]: ...
    def score(
        self,
        prompt: str | Prompt | Sequence[int],
        candidates: list[str],
        adapter: Adapter | None = None,
    ) -> list[tuple[list[int], list[float]]]: ...
    def save_prefix(
        self,
        path: str | PathLike[str],
        prompt: str | Prompt | Sequence[int],
        adapter: Adapter | None = None,
    ) -> int: ...
    def load_prefix(self, path: str | PathLike[str], adapter: Adapter | None = None) -> int: ...
    def save_adapter(self, adapter: Adapter, folder: str) -> None: ...
    def train(
        self, examples: Sequence[tuple[list[int], list[tuple[int, int]]]], options: dict[str, Any]
    ) -> Training: ...
    def stats(self) -> dict[str, Any]: ...
    def close(self) -> None: ...
    @property
    def closed(self) -> bool: ...

@final
class Adapter:
    """What changes a model, loaded by an Engine."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def hash(self) -> str: ...
    @property
    def scale(self) -> float: ...
    @property
    def path(self) -> PathLike[str] | None: ...
    @property
    def format(self) -> str: ...
    @property
    def base(self) -> str | None: ...
    @property
    def notes(self) -> list[str]: ...
    @property
    def rank(self) -> int: ...
    @property
    def targets(self) -> list[str]: ...
    @property
    def bytes(self) -> int: ...
    @property
    def loaded(self) -> bool: ...

@final
class Generation:
    """One running request. Dropping it cancels it."""

    def collect(self) -> dict[str, Any]: ...
    def next(self) -> dict[str, Any] | None: ...
    def poll(self) -> dict[str, Any] | EllipsisType | None: ...
    def cancel(self) -> None: ...
    @property
    def has_filters(self) -> bool: ...

@final
class Training:
    """A run that trains an adapter. Dropping it changes nothing: the run goes on."""

    def poll(self, timeout: float) -> dict[str, Any] | None:
        """What comes next, waited for at most ``timeout`` seconds: a step, or with "finished" the end, which
        is told again and again. None if nothing came."""

    def cancel(self) -> None: ...
    def wait(self, timeout: float) -> bool: ...
    @property
    def finished(self) -> bool: ...

@final
class Waker:
    """Tells one waiting thread which generations have news."""

    def __new__(cls) -> Waker: ...
    def wait(self, timeout: float) -> list[int]: ...

@final
class Sampler:
    """How a token is picked. Immutable, hashable, and equal by its fields. A temperature that is not given
    is 1; what else is not given is off. A value out of range raises InvalidRequestError.

    Given to ``generate(sampler=...)``, or field by field (``generate(..., top_p=0.9)``). In this
    order: logit bias, penalties, filters, top-k, temperature, top-p, min-p, typical, then one draw. At
    temperature 0 the narrowing ones have no say, and ties go to the lowest id."""

    def __new__(
        cls,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        typical_p: float | None = None,
        repetition_penalty: float | None = None,
        frequency_penalty: float | None = None,
        presence_penalty: float | None = None,
        logit_bias: Mapping[int, float] | None = None,
        filters: Sequence[Callable[..., None]] | None = None,
    ) -> Sampler: ...
    @property
    def temperature(self) -> float | None:
        """What logits are divided by: finite, at least 0. 0 is greedy: the likeliest token, always."""

    @property
    def top_k(self) -> int | None:
        """Keeps the k likeliest tokens; at least 1."""

    @property
    def top_p(self) -> float | None:
        """Keeps the likeliest tokens that together have this probability; over 0, at most 1."""

    @property
    def min_p(self) -> float | None:
        """Keeps tokens that are at least this times as likely as the likeliest; 0 to 1."""

    @property
    def typical_p(self) -> float | None:
        """Keeps the tokens whose surprise is nearest to the expected one, until together they have this
        probability; over 0, at most 1."""

    @property
    def repetition_penalty(self) -> float | None:
        """Over 1 discourages tokens that prompt or answer hold already (their logit is divided by it, or
        multiplied if it is negative); finite, over 0."""

    @property
    def frequency_penalty(self) -> float | None:
        """Taken from a token's logit for each time that the answer holds it; -2 to 2."""

    @property
    def presence_penalty(self) -> float | None:
        """Taken from a token's logit once if the answer holds it; -2 to 2."""

    @property
    def logit_bias(self) -> dict[int, float] | None:
        """Token id to what is added to its logit: finite, or ``-inf`` to forbid it."""

    @property
    def filters(self) -> tuple[Callable[..., None], ...]:
        """Callables ``(logits, tokens) -> None``, called in order before each token: ``logits`` is float32
        [vocab_size], to be edited in place, and ``tokens`` are the ids of prompt and answer so far. They run
        on the caller's thread while other requests go on; what one raises reaches the caller as it is."""

    def replace(self, **fields: Any) -> Sampler:
        """A sampler with some ``fields`` replaced; None switches a field off."""

    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

class Error(Exception):
    """What every error of tallow is."""

class ModelFileError(Error, OSError):
    """A file is missing, broken, or does not fit its configuration."""

class UnsupportedModelError(Error, ValueError):
    """The file is sound, and holds what is not run here; the message names it."""

class HubError(Error, OSError):
    """A name could not be turned into files: no such model, no network, no access, no room on disk."""

class ContextLengthError(Error, ValueError):
    """The prompt does not fit: ``prompt_tokens`` is its length and ``limit`` the room, in tokens."""

    prompt_tokens: int
    limit: int

class InvalidRequestError(Error, ValueError):
    """An argument is wrong or unknown; the message names it and says what would be right."""

class ConstraintError(Error, ValueError):
    """A schema or grammar is wrong, too large, or has no answer within ``max_tokens``."""

class TemplateError(Error, ValueError):
    """The chat template is missing, broken, reads no messages, or refuses or drops one."""

class OutOfMemoryError(Error, MemoryError):
    """Memory that was asked for is not there, or the queue is full."""

class DeviceError(Error, RuntimeError):
    """The device cannot be opened, or failed."""

class Cancelled(Error, RuntimeError):
    """The engine was closed while the request was in work."""

class Timeout(Error, TimeoutError):
    """The deadline of the request (``timeout=``) passed."""
