"""Native tool calls: how each model family shows tools, writes calls, and how both are read again.

``detect(template)`` -> ``ToolFormat``, which is data. ``prepare`` shows tools in a conversation the family's
way, ``call_grammar`` allows an answer nothing but text and well-formed calls, ``parse`` reads a whole answer
and ``Splitter`` a streamed one. Formats are rows of a table (``formats.FORMATS``), told apart by their chat
template alone: a file's name says nothing sure about what the model was trained on.

================  ========================  =============================================================
name              families                  a call (J is the object of its arguments)
================  ========================  =============================================================
``hermes``        Qwen2.5, Qwen3, SmolLM3   ``<tool_call>``, ``{"name": "f", "arguments": J}``,
                                            ``</tool_call>``, a line each; the three again for each call
``llama``         Llama 3.1, 3.2, 3.3       ``{"name": "f", "parameters": J}``: the whole answer, one call
``mistral``       Mistral v3 to v7          ``[TOOL_CALLS][{"name": "f", "arguments": J}, ...]``
``mistral_args``  Mistral v11, v13          ``[TOOL_CALLS]f[ARGS]J``, again for each call
``phi``           Phi-4-mini                ``<|tool_call|>[{"name": "f", "arguments": J}]<|/tool_call|>``
``gemma``         Gemma 1 to 3, by prompt   a fence ``tool_code`` around ``{"name": "f", "parameters": J}``
``prompted``      every other template      as ``hermes``; the tools stand in the system message
================  ========================  =============================================================
"""

from __future__ import annotations

from .conversation import prepare
from .formats import FORMATS, ToolFormat, detect
from .functions import Function, functions
from .grammar import call_grammar
from .reader import Call, Event, Splitter, parse

__all__ = [
    "FORMATS",
    "Call",
    "Event",
    "Function",
    "Splitter",
    "ToolFormat",
    "call_grammar",
    "detect",
    "functions",
    "parse",
    "prepare",
]
