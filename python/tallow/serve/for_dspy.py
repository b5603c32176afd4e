"""How ``dspy.LM("tallow/NAME")`` reaches a server of ours: what DSPy is told of it.

DSPy does not know what an unknown server can do, and then asks for less: no JSON schemas, no measured
probabilities. A provider that is registered says it. ``import tallow`` registers one for the server on this
machine, or at ``TALLOW_BASE_URL``; ``dspy_provider`` registers others. An LM keeps what was registered when
it was made.
"""

from __future__ import annotations

import os
from typing import Any

from .. import arguments

#: Where ``tallow serve`` listens unless told otherwise.
ADDRESS = "http://127.0.0.1:8000"
#: Says what ``"format"`` says in a body, for clients that cannot add to theirs.
HEADER = "x-tallow-format"
#: What may be asked of the format of an answer.
FORMATS = ("auto", "none")


def register(
    url: str | None = None,
    *,
    name: str = "tallow",
    format: str = "auto",
    reasoning: bool = False,
    replace: bool = True,
) -> Any:
    """As ``tallow.serve.dspy_provider``. Without ``replace`` a provider of that name stays."""
    from dspy.lm15 import (  # type: ignore[import-untyped]
        AccessPolicy,
        ModelSupport,
        OpenAIChatCompat,
        ProviderDefinition,
        register_provider,
        registered_providers,
    )

    arguments.choice("format", format, FORMATS)
    arguments.boolean("reasoning", reasoning)
    if not replace and any(one.id == name for one in registered_providers()):
        return None
    # DSPy wants either a variable that must be set or a key that stands for none.
    key = ("TALLOW_API_KEY",) if os.environ.get("TALLOW_API_KEY") else ()
    access = AccessPolicy(
        provider=arguments.text("name", name),
        env_keys=key,
        headers=((HEADER, format),),
        base_url=_base(url or os.environ.get("TALLOW_BASE_URL") or ADDRESS),
    )
    compat = OpenAIChatCompat(
        instruction_role="system",
        max_tokens_field="max_tokens",
        stream_usage="include",
        thinking_format="reasoning_effort",
        thinking_replay="native",
        tool_result_name="omit",
        strict_tools="omit",
        cache_control="none",
        token_scoring="logprob_token_ids",
    )
    return register_provider(
        ProviderDefinition.chat(access, compat=compat, placeholder_key=None if key else "local"),
        supports=ModelSupport(response_schema=True, function_calling=True, reasoning=reasoning),
        replace=replace,
    )


def _base(url: str) -> str:
    url = arguments.text("url", url).rstrip("/")
    if not url.startswith(("http://", "https://")):
        arguments.wrong_value("url", url, f'the address of a server, as "{ADDRESS}"')
    return url if url.endswith("/v1") else url + "/v1"
