"""What the server answers, for its document. Handlers write dicts, for that is quicker to read and to write;
the tests hold every answer to these shapes, in which nothing may be left out."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType


class Shape(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An object with these fields and no others."""


# Errors


class ErrorInfo(Shape):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(Shape):
    error: ErrorInfo


# What is generated


class PromptTokensDetails(Shape):
    cached_tokens: int


class CompletionTokensDetails(Shape):
    reasoning_tokens: int


class Usage(Shape):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class TopLogprob(Shape):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Shape):
    content: list[TokenLogprob]
    refusal: None


class CalledFunction(Shape):
    name: str
    arguments: str


class ToolCall(Shape):
    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(Shape):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


FinishReason = Literal["stop", "length", "tool_calls"]


class ChatChoice(Shape):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class AdapterFormat(Shape):
    """What was read of a DSPy adapter's format."""

    name: str
    constrained: bool
    why: str | None
    notes: list[str] | UnsetType = UNSET


class ChatCompletion(Shape):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    format: AdapterFormat | UnsetType = UNSET
    notes: list[str] | UnsetType = UNSET


class CompletionLogprobs(Shape):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Shape):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class Completion(Shape):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


# Responses


class OutputText(Shape):
    type: Literal["output_text"]
    text: str
    annotations: list[dict[str, Any]]
    logprobs: list[TokenLogprob]


class ReasoningText(Shape):
    type: Literal["reasoning_text"]
    text: str


Status = Literal["in_progress", "completed", "incomplete"]


class OutputMessage(Shape, tag_field="type", tag="message"):
    id: str
    role: Literal["assistant"]
    content: list[OutputText]
    status: Status


class OutputReasoning(Shape, tag_field="type", tag="reasoning"):
    id: str
    summary: list[dict[str, Any]]
    content: list[ReasoningText]
    status: Status


class OutputCall(Shape, tag_field="type", tag="function_call"):
    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


class InputTokensDetails(Shape):
    cached_tokens: int
    cache_write_tokens: int


class ResponseUsage(Shape):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: CompletionTokensDetails
    total_tokens: int


class IncompleteDetails(Shape):
    reason: Literal["max_output_tokens"]


class ResponseReasoning(Shape):
    effort: str | None
    summary: None


class ResponseText(Shape):
    format: dict[str, Any]


class ResponseObject(Shape):
    id: str
    object: Literal["response"]
    created_at: int
    model: str
    status: Status
    error: None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    output: list[OutputMessage | OutputReasoning | OutputCall]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: ResponseReasoning
    store: bool
    system_fingerprint: str
    temperature: float | None
    text: ResponseText
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float | None
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    format: AdapterFormat | UnsetType = UNSET
    notes: list[str] | UnsetType = UNSET


# Vectors and scores


class PromptUsage(Shape):
    prompt_tokens: int
    total_tokens: int


class Embedding(Shape):
    object: Literal["embedding"]
    index: int
    #: Numbers, or float32 in base64.
    embedding: list[float] | str


class EmbeddingList(Shape):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: PromptUsage


class Document(Shape):
    text: str


class RerankResult(Shape):
    index: int
    relevance_score: float
    document: Document | UnsetType = UNSET


class RerankList(Shape):
    id: str
    object: Literal["list"]
    model: str
    results: list[RerankResult]
    usage: PromptUsage


class Score(Shape):
    index: int
    object: Literal["score"]
    score: float
    # Of candidates.
    text: str | UnsetType = UNSET
    logprob: float | UnsetType = UNSET
    tokens: list[int] | UnsetType = UNSET
    token_logprobs: list[float] | UnsetType = UNSET


class ScoreList(Shape):
    id: str
    object: Literal["list"]
    model: str
    data: list[Score]
    usage: PromptUsage


# Tokens, models, adapters, the server itself


class TokenList(Shape):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | UnsetType = UNSET


class Detokenized(Shape):
    prompt: str


class ServedModel(Shape):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    context_length: int
    max_model_len: int
    fingerprint: str


class ModelList(Shape):
    object: Literal["list"]
    data: list[ServedModel]


class AdapterStatus(Shape):
    status: Literal["loaded", "unloaded"]
    name: str


class Health(Shape):
    status: Literal["ok"]


class Ready(Shape):
    status: Literal["ready"]
    models: list[str]


class OpenApi(msgspec.Struct):
    """An OpenAPI document."""

    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]
    components: dict[str, Any]
