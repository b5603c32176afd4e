"""``tallow.Embed``: a model's embeddings as DSPy wants them, ``dspy.Embedder(tallow.Embed("org/name"))``.

DSPy's cache knows a callable by its ``__name__`` and copies it deeply for every lookup. So the name holds all
that changes a vector (every byte of the model, pooling, prefixes), and a copy is the object itself.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import arguments
from ..errors import InvalidRequestError
from ..model import POOLINGS, Model

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_KINDS = ("document", "query")


class Embed:
    """Texts to vectors: ``Embed(model)(["a text", ...])`` is float32 [texts, dimensions], as ``Model.embed``.

    - ``model``: a ``tallow.Model``, or what one is made from, with Model's own arguments (``load``).
    - ``pooling``: as for ``Model.embed``.
    - ``query_prefix``, ``document_prefix``: what some models were trained to see before a question and before
      a text ("query: ", "passage: "); without one, the model's default prompt if it names one. A text is a
      document, unless the call says ``kind="query"``; so for questions make a second
      ``dspy.Embedder(embed, kind="query")``.

    Any number of threads may call one.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Model,
        *,
        pooling: str = "auto",
        query_prefix: str = "",
        document_prefix: str = "",
        **load: Any,
    ) -> None:
        if isinstance(model, Model):
            for name in load:
                raise InvalidRequestError(
                    f"{name} belongs to loading, and this model is loaded; give it to tallow.Model"
                )
        self.model = model if isinstance(model, Model) else Model(model, **load)
        self.pooling = arguments.choice("pooling", pooling, POOLINGS)
        self.prefixes = {
            "query": arguments.text("query_prefix", query_prefix),
            "document": arguments.text("document_prefix", document_prefix),
        }

    @property
    def __name__(self) -> str:
        given = "\0".join((self.pooling, *(self.prefixes[kind] for kind in _KINDS)))
        digest = hashlib.sha256(given.encode()).hexdigest()[:8]
        return f"tallow/{self.model.name}@{self.model._exact_name()}:{self.pooling}:{digest}"

    def __call__(self, texts: Sequence[str], *, kind: str = "document") -> NDArray[np.float32]:
        """One vector for each of ``texts``, float32 [len(texts), dimensions]; ``kind`` is "document" or
        "query". Errors are those of ``Model.embed``."""
        prefix = self.prefixes[arguments.choice("kind", kind, _KINDS)]
        return self.model.embed(texts, self.pooling, prompt=prefix or None)

    # As a value

    def __copy__(self) -> Embed:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Embed:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as where the model came from, never as its weights."""
        return _rebuilt, (self.model, self.pooling, self.prefixes)

    def __repr__(self) -> str:
        given = "".join(f" {kind}_prefix={text!r}" for kind, text in self.prefixes.items() if text)
        return f"<tallow.Embed {self.model.name!r} pooling={self.pooling}{given}>"


def _rebuilt(model: Model, pooling: str, prefixes: dict[str, str]) -> Embed:
    return Embed(model, pooling=pooling, query_prefix=prefixes["query"], document_prefix=prefixes["document"])
