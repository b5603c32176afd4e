"""tallow: a language model inside your Python process.

    >>> import tallow
    >>> model = tallow.Model("smollm2")
    >>> print(model.generate("The capital of France is", max_tokens=8))

``Model`` is weights, tokenizer and chat template; ``Sampler`` is how a token is picked; ``LM`` is a
``dspy.LM`` over a Model. For DSPy there are an embedder and a decision client, too, ``Embed`` and ``Judge``
(``pip install "tallow[dspy]"``; DSPy is imported only when one of the three is first used).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._core import Sampler, __version__, features
from ._with_dspy import when_imported as _when_dspy_is_imported
from .adapter import Adapter
from .errors import (
    ArgumentTypeError,
    Cancelled,
    ConstraintError,
    ContextLengthError,
    DeviceError,
    Error,
    HubError,
    InvalidRequestError,
    ModelFileError,
    OutOfMemoryError,
    TemplateError,
    Timeout,
    UnsupportedModelError,
)
from .merged import Merged, MergedTensor
from .model import AsyncStream, Model, Stream
from .results import Chunk, Completion, Score, Scores, Timings, TokenLogprob, Usage
from .training import Training, TrainingStep

if TYPE_CHECKING:
    from .dspy import LM as LM
    from .dspy import Embed as Embed
    from .dspy import Judge as Judge
    from .dspy import Provider as Provider

#: Loaded when first used, for they need DSPy.
_LAZY = ("LM", "Embed", "Judge", "Provider")

# Without those: a star import must work where DSPy is not installed.
__all__ = [
    "Adapter",
    "ArgumentTypeError",
    "AsyncStream",
    "Cancelled",
    "Chunk",
    "Completion",
    "ConstraintError",
    "ContextLengthError",
    "DeviceError",
    "Error",
    "HubError",
    "InvalidRequestError",
    "Merged",
    "MergedTensor",
    "Model",
    "ModelFileError",
    "OutOfMemoryError",
    "Sampler",
    "Score",
    "Scores",
    "Stream",
    "TemplateError",
    "Timeout",
    "Timings",
    "TokenLogprob",
    "Training",
    "TrainingStep",
    "UnsupportedModelError",
    "Usage",
    "__version__",
    "features",
    "show_versions",
]


_when_dspy_is_imported()


def show_versions(as_json: bool = False) -> None:
    """Prints what a bug report should have: versions, processor, kernels, threads, caches.

    ``as_json``: as one JSON object instead of a table."""
    from .versions import show_versions  # what it asks is slow to import

    show_versions(as_json)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'tallow' has no attribute {name!r}")
    from . import dspy

    globals()[name] = found = getattr(dspy, name)
    return found


def __dir__() -> list[str]:
    """What inspectors look at, so without what needs DSPy where that is not installed."""
    from importlib.util import find_spec

    return [*__all__, *(_LAZY if find_spec("dspy") else ())]
