"""Native tool calls: how each model family shows tools, writes calls, and how both are read again.

``detect(template)`` -> ``ToolFormat``. It ``prepare``s a conversation (tools shown the family's way), gives
the ``grammar`` under which only well-formed calls can be written, ``parse``s a whole answer and ``splitter``s
a streamed one. Formats are rows of a table (``formats.FORMATS``), told apart by their chat template alone: a
file's name says nothing sure about what the model was trained on.

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

from .formats import FORMATS, ToolFormat, detect
from .functions import Function, functions
from .reader import Call, Event, Splitter

__all__ = ["FORMATS", "Call", "Event", "Function", "Splitter", "ToolFormat", "detect", "functions"]
