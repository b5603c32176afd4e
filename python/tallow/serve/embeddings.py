"""``/embeddings``: texts in, a vector for each out."""

from __future__ import annotations

import base64
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from starlette.responses import Response

from .. import arguments
from . import batches
from .call import Call
from .errors import invalid
from .server import Served

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Texts of one request, as with OpenAI.
MAX_TEXTS = 2048
_ONE = {"type": "string", "minLength": 1}
#: What is documented of a field that is looked at here, to say more than that it is wrong.
TEXTS = msgspec.Meta(extra_json_schema={"anyOf": [_ONE, {"type": "array", "items": _ONE, "minItems": 1}]})


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """The body of ``/embeddings``."""

    #: A text, or a list of texts.
    input: Annotated[Any, TEXTS]
    model: str | None = None
    #: "float", or "base64": float32, little-endian.
    encoding_format: str | None = None
    dimensions: int | None = None
    # As for Model.embed.
    pooling: str | None = None
    prompt: str | None = None


async def embeddings(call: Call) -> Response:
    """Makes a vector of each text."""
    given = await call.read(EmbeddingRequest)
    form = arguments.choice("encoding_format", given.encoding_format or "float", ("float", "base64"))
    served = await call.served(given.model)
    inputs = texts("input", given.input, MAX_TEXTS)
    vectors = await embedded(call, served, inputs, given.prompt, given.pooling or "auto")
    _check_dimensions(given.dimensions, vectors.shape[1])
    count = await call.beside(sum(map(len, inputs)), lambda: tokens(served, inputs, given.prompt))
    call.outcome.prompt_tokens = count
    shown = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(_base64(vectors) if form == "base64" else vectors.tolist())
        ],
        "model": given.model or served.name,
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }
    return await call.beside(vectors.size, lambda: call.json(shown))


def texts(name: str, given: Any, most: int) -> list[str]:
    """A text or a list of texts, as a list."""
    if given == []:
        raise invalid(f"{name} is empty; give a text, or a list of texts", name)
    given = [given] if isinstance(given, str) else given
    if _holds_ids(given):
        raise invalid(
            f"{name} is token ids, of a tokenizer that may be another model's; send texts (in LangChain: "
            "OpenAIEmbeddings(check_embedding_ctx_length=False))",
            name,
        )
    if not isinstance(given, list):
        raise invalid(f"{name} must be a text or a list of texts", name)
    found = arguments.texts(name, given)
    for at, text in enumerate(found):
        if not text:
            raise invalid(f"{name}[{at}] is empty; a text has at least one character", name)
    if len(found) > most:
        raise invalid(f"{name} has {len(found)} texts; at most {most} are allowed", name)
    return found


def _holds_ids(given: Any) -> bool:
    first = given[0] if isinstance(given, list) else None
    return type(first) is int or (isinstance(first, list) and all(type(one) is int for one in first))


async def embedded(
    call: Call, served: Served, texts: Sequence[str], prompt: str | None, pooling: str = "auto"
) -> NDArray[np.float32]:
    """A vector for each text."""
    import numpy as np

    work = (
        functools.partial(served.model.embed, batch, pooling, prompt=prompt, adapter=served.adapter)
        for batch in batches.of(served, texts)
    )
    return np.concatenate(await batches.run(call, work))


def tokens(served: Served, texts: Sequence[str], prompt: str | None) -> int:
    """How many tokens these texts were, with what stands around each."""
    return sum(len(served.model._native.embedding_ids(text, prompt)) for text in texts)


def _check_dimensions(wanted: int | None, there: int) -> None:
    """Which models may be cut, their files do not say; one that always is has the cut in them."""
    if wanted is not None and wanted != there:
        raise invalid(
            f"dimensions is {wanted}, and this model's vectors have {there}; leave it out", "dimensions"
        )


def _base64(vectors: NDArray[np.float32]) -> list[str]:
    return [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
