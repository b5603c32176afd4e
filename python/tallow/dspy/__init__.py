"""tallow as a language model for DSPy (3.4 and 3.5): ``dspy.configure(lm=tallow.LM("smollm2"))``.

- ``lm``: ``LM``, the ``dspy.LM`` that users make; what DSPy does not tell an engine (``n``, ``rollout_id``)
  is handed over here.
- ``engine``: ``Engine`` and ``AsyncEngine``, DSPy's engine protocol over a ``tallow.Model``.
- ``convert``: DSPy's requests to our arguments, our errors to its errors; plain functions.
- ``constraints``: what bounds an answer; ``formats``: the formats of DSPy's adapters as constraints.
- ``prepare``: a request made ready to run. ``answer``: our answers to its responses and stream events.
- ``plan``: what belongs to one call of the LM.
- ``embed``: ``Embed``, a callable for ``dspy.Embedder``.
- ``provider``: what DSPy trains by (``train_kwargs`` reads its settings, ``finetune`` makes rows, ``adapted``
  says which adapter an LM answers with, ``early`` tells a missing LM in time).
- ``judge``: ``Judge``, DSPy's decision client (``decisions`` reads its protocol).
- ``probabilities``: requests whose answers are measured and not written; ``questions`` is what both ask by.
"""

from __future__ import annotations

try:
    import dspy.lm15  # type: ignore[import-untyped]  # noqa: F401  (its engine protocol came with 3.4)
except ImportError as error:
    raise ImportError(
        'tallow.LM, Embed and Judge need DSPy 3.4 or newer; install it with: pip install "tallow[dspy]"'
    ) from error

from .embed import Embed
from .engine import AsyncEngine, Engine
from .finetune import JSONAdapter, finetune_rows
from .judge import Judge
from .lm import LM
from .provider import Provider, TrainingJob

__all__ = [
    "LM",
    "AsyncEngine",
    "Embed",
    "Engine",
    "JSONAdapter",
    "Judge",
    "Provider",
    "TrainingJob",
    "finetune_rows",
]
