"""``/rerank`` and ``/score``: how well documents answer a query, how alike texts are, how likely answers are.

A model that was made for vectors compares them (cosine). Another one is asked whether the document meets the
query, and the score is the exact probability of "yes" against "no"; the query stands first, so what comes
before the document is computed once.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from starlette.responses import Response

from .. import arguments, prompts, results
from . import batches
from .call import Call
from .embeddings import TEXTS, embedded, texts, tokens
from .errors import invalid
from .server import Served
from .wire import check_keys

#: Documents of one request.
MAX_DOCUMENTS = 1024
#: What a document must do, unless the request says it.
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
_SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)


class RerankRequest(msgspec.Struct, kw_only=True):
    """The body of ``/rerank``."""

    query: str
    #: Texts, or objects with a text.
    documents: list[Any]
    model: str | None = None
    top_n: int | None = None
    return_documents: bool | None = None
    #: Of models that judge: what a document must do.
    instruction: str | None = None
    # Of models for vectors: what stands before a query and a document.
    query_prefix: str | None = None
    document_prefix: str | None = None


class ScoreRequest(msgspec.Struct, kw_only=True):
    """The body of ``/score``: two texts or lists of texts, or a prompt with candidates."""

    model: str | None = None
    #: One text for all of ``text_2``, or one for each.
    text_1: Annotated[Any, TEXTS] = None
    text_2: Annotated[Any, TEXTS] = None
    instruction: str | None = None
    query_prefix: str | None = None
    document_prefix: str | None = None
    # How likely each of some texts is after a prompt, as Model.score.
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    candidates: list[str] | None = None


async def rerank(call: Call) -> Response:
    """Sorts documents by how well they answer a query."""
    given = await call.read(RerankRequest)
    served = await call.served(given.model)
    documents = [_text(at, one) for at, one in enumerate(given.documents)]
    _check_length("documents", documents)
    if given.top_n is not None and given.top_n < 1:
        raise invalid(f"top_n is {given.top_n}; it must be at least 1", "top_n")
    found, count = await _compared(call, served, given, [arguments.text("query", given.query)], documents)
    ranked = sorted(range(len(found)), key=lambda at: -found[at])[: given.top_n]
    shown = {
        "id": f"rerank-{uuid.uuid4().hex}",
        "object": "list",
        "model": given.model or served.name,
        "results": [
            {
                "index": at,
                "relevance_score": found[at],
                **({"document": {"text": documents[at]}} if given.return_documents else {}),
            }
            for at in ranked
        ],
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }
    return call.json(shown)


async def score(call: Call) -> Response:
    """Tells how alike texts are, or how likely each of some texts is after a prompt."""
    given = await call.read(ScoreRequest)
    served = await call.served(given.model)
    if given.candidates is not None:
        data, count = await _candidates(call, served, given)
    else:
        data, count = await _pairs(call, served, given)
    shown = {
        "id": f"score-{uuid.uuid4().hex}",
        "object": "list",
        "model": given.model or served.name,
        "data": [{"index": index, "object": "score", **one} for index, one in enumerate(data)],
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }
    return call.json(shown)


# Reading


def _text(at: int, given: Any) -> str:
    text = given
    if isinstance(given, dict):
        text = given.get("text")
        check_keys(f"documents[{at}]", given, ("text",))
    if not isinstance(text, str):
        raise invalid(f'documents[{at}] must be a text, or {{"text": TEXT}}', "documents")
    return arguments.text(f"documents[{at}]", text)


def _check_length(name: str, given: Sequence[str]) -> None:
    if not 1 <= len(given) <= MAX_DOCUMENTS:
        raise invalid(f"{name} has {len(given)} texts; give 1 to {MAX_DOCUMENTS}", name)


async def _pairs(call: Call, served: Served, given: ScoreRequest) -> tuple[list[dict[str, Any]], int]:
    for name in ("prompt", "messages"):
        if getattr(given, name) is not None:
            raise invalid(f"{name} needs candidates; give the texts whose likelihood is asked for", name)
    for name in ("text_1", "text_2"):
        if getattr(given, name) is None:
            raise invalid(f"{name} is missing; give a text, or a list of texts", name, "missing")
    left, right = (texts(name, getattr(given, name), MAX_DOCUMENTS) for name in ("text_1", "text_2"))
    if len(left) not in (1, len(right)):
        raise invalid(f"text_1 has {len(left)} texts and text_2 {len(right)}; give one, or as many", "text_1")
    found, count = await _compared(call, served, given, left, right)
    return [{"score": one} for one in found], count


# Comparing


async def _compared(
    call: Call,
    served: Served,
    given: RerankRequest | ScoreRequest,
    queries: Sequence[str],
    documents: Sequence[str],
) -> tuple[list[float], int]:
    """A score for each document, by the query at its place or the only one; and how many tokens were read."""
    embeds = served.model._native.is_embedder
    for name in ("instruction",) if embeds else ("query_prefix", "document_prefix"):
        if getattr(given, name) is not None:
            kind = "judge; this one compares vectors" if embeds else "compare vectors; this one judges"
            raise invalid(f"{name} is for models that {kind}", name)
    if embeds:
        return await _by_vectors(call, served, given, queries, documents)
    return await _by_judgment(call, served, given.instruction or INSTRUCTION, queries, documents)


async def _by_vectors(
    call: Call,
    served: Served,
    given: RerankRequest | ScoreRequest,
    queries: Sequence[str],
    documents: Sequence[str],
) -> tuple[list[float], int]:
    import numpy as np

    sides = ((queries, given.query_prefix), (documents, given.document_prefix))
    left, right = [await embedded(call, served, side, prefix) for side, prefix in sides]
    count = sum(tokens(served, side, prefix) for side, prefix in sides)
    call.outcome.prompt_tokens = count
    left, right = left.astype(np.float64), right.astype(np.float64)
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    products = (left * right).sum(axis=1)
    return (products / np.where(lengths > 0, lengths, 1)).tolist(), count


async def _by_judgment(
    call: Call, served: Served, instruction: str, queries: Sequence[str], documents: Sequence[str]
) -> tuple[list[float], int]:
    pairs = [(queries[at if len(queries) > 1 else 0], document) for at, document in enumerate(documents)]

    def judged(query: str, document: str) -> tuple[float, int]:
        ready, words = _question(served, instruction, query, document)
        scores = served.model.score(ready, words, adapter=served.adapter)
        return scores[0].probability, len(served.model._native.prompt_ids(ready))

    found = await batches.run(call, (functools.partial(judged, *pair) for pair in pairs))
    count = sum(length for _, length in found)
    call.outcome.prompt_tokens = count
    return [probability for probability, _ in found], count


def _question(
    served: Served, instruction: str, query: str, document: str
) -> tuple[prompts.Prompt, tuple[str, str]]:
    """What the model is asked, as Qwen3-Reranker was trained to be, which others understand; and how it
    says yes and no."""
    asked = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
    if not served.model.has_template:
        return f"{_SYSTEM}\n\n{asked}\n<Answer>:", (" yes", " no")
    turns = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": asked}]
    native, quiet = served.model._native, served.template.quiet
    return prompts.rendered(native, turns, template_arguments=quiet), ("yes", "no")


async def _candidates(call: Call, served: Served, given: ScoreRequest) -> tuple[list[dict[str, Any]], int]:
    """Each candidate's likelihood after the prompt."""
    for name in ("text_1", "text_2", "instruction", "query_prefix", "document_prefix"):
        if getattr(given, name) is not None:
            raise invalid(f"candidates are texts after a prompt; leave {name} out", name)
    if (given.prompt is None) == (given.messages is None):
        raise invalid("candidates need prompt or messages, one of them", "prompt")
    _check_length("candidates", given.candidates or [])
    prompt: Any = given.prompt
    if given.messages is not None:
        prompt = arguments.messages("messages", given.messages, served.model.chat_template)
    native = served.model._native

    def scored() -> tuple[results.Scores, int]:
        ready = prompt if given.messages is None else prompts.rendered(native, prompt)
        scores = served.model.score(ready, given.candidates or [], adapter=served.adapter)
        return scores, len(native.prompt_ids(ready))

    ((scores, count),) = await batches.run(call, [scored])
    call.outcome.prompt_tokens = count
    return [
        {
            "text": one.text,
            "score": one.probability,
            "logprob": one.logprob,
            "tokens": list(one.tokens),
            "token_logprobs": list(one.token_logprobs),
        }
        for one in scores
    ], count
