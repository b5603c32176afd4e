"""``/tokenize`` and ``/detokenize``: the ids that a prompt is to the model, and the text of ids."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from .. import arguments, prompts
from .call import Call
from .errors import invalid
from .server import Served


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """The body of ``/tokenize``: a text, or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    #: Of a text: with what the tokenizer puts around it, as it is before it is continued.
    add_special_tokens: bool | None = None
    # Of messages.
    add_generation_prompt: bool | None = None
    continue_final_message: bool | str | None = None
    tools: list[Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    #: Tell the text of each token, too.
    return_token_strs: bool | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """The body of ``/detokenize``."""

    model: str | None = None
    tokens: list[int]


async def tokenize(call: Call) -> Response:
    """The ids that a prompt is to the model."""
    given = await call.read(TokenizeRequest)
    call.names = {"template_arguments": "chat_template_kwargs"}
    served = await call.served(given.model)
    # Large ones beside the loop; how large messages are is not worth counting.
    size = len(given.prompt or "") + 4096 * len(given.messages or ())
    ids = await call.beside(size, lambda: _ids(given, served))
    model = served.model
    answer: dict[str, Any] = {"count": len(ids), "max_model_len": model.context_length, "tokens": ids}
    if given.return_token_strs:
        answer["token_strs"] = [model.detokenize([id], special=True) for id in ids]
    return call.json(answer)


async def detokenize(call: Call) -> Response:
    """The text of ids."""
    given = await call.read(DetokenizeRequest)
    served = await call.served(given.model)
    call.names = {"ids": "tokens"}
    ids = arguments.token_ids("tokens", given.tokens)
    return call.json({"prompt": served.model.detokenize(ids, special=True)})


def _ids(given: TokenizeRequest, served: Served) -> list[int]:
    native = served.model._native
    if (given.prompt is None) == (given.messages is None):
        raise invalid("give prompt or messages, one of them", "prompt")
    if given.prompt is not None:
        for name in ("add_generation_prompt", "continue_final_message", "tools", "chat_template_kwargs"):
            if getattr(given, name):
                raise invalid(f"{name} is for messages; this is a prompt", name)
        if given.add_special_tokens is False:
            return served.model.tokenize(given.prompt, special=True)
        return native.prompt_ids(arguments.text("prompt", given.prompt)) if given.prompt else []
    if given.add_special_tokens:
        raise invalid(
            "add_special_tokens is for a prompt; messages have what their template writes",
            "add_special_tokens",
        )
    own = dict(given.chat_template_kwargs or {})
    if given.add_generation_prompt is not None:
        own["add_generation_prompt"] = given.add_generation_prompt
    messages = arguments.messages("messages", given.messages or [], served.model.chat_template)
    ready = prompts.rendered(
        native,
        messages,
        tools=given.tools or None,
        template_arguments=own,
        continue_final_message=given.continue_final_message or False,
    )
    return native.prompt_ids(ready)
