"""Native tool calls: how each model family shows tools, writes calls, and how both are read again.

``detect(template)`` -> ``ToolFormat``, which is data. ``prepare`` shows tools in a conversation the family's
way, ``call_grammar`` allows an answer nothing but text and well-formed calls, ``parse`` reads a whole answer
and ``Splitter`` a streamed one. Formats are rows of a table (``formats.FORMATS``), told apart by their chat
template alone: a file's name says nothing sure about what the model was trained on.

==================  ============================  =======================================================
name                families                      a call (J is the object of its arguments)
==================  ============================  =======================================================
``hermes``          Qwen2.5, Qwen3, SmolLM3,      ``<tool_call>``, ``{"name": "f", "arguments": J}``,
                    Granite 4, EXAONE 4, Falcon,  ``</tool_call>``, a line each; the three again for each
                    AFM                           call
``xml``             Qwen3-Coder, Qwen3.5 and 3.6, ``<tool_call>``, ``<function=f>``, for each argument
                    Nemotron 3 Nano               ``<parameter=k>``, its value, ``</parameter>``, then
                                                  ``</function>``, ``</tool_call>``, a line each
``seed``            Seed-OSS                      the same in ``<seed:tool_call>``, values without lines
``glm``             GLM 4.5 to 4.7, Laguna        ``<tool_call>f<arg_key>k</arg_key><arg_value>v
                                                  </arg_value></tool_call>``
``muse``            Muse Glimmer                  a message to f: ``<atem:function_calls>``, ``<atem:invoke
                                                  name="f">``, ``<atem:parameter name="k">v
                                                  </atem:parameter>``, and their ends
``lfm``             LFM2, LFM2.5, LFM3            ``<|tool_call_start|>[f(k="v"), ...]<|tool_call_end|>``
``olmo``            OLMo 3                        ``<function_calls>``, ``f(k="v")`` a line each,
                                                  ``</function_calls>``
``gemma4``          Gemma 4                       ``<|tool_call>call:f{k:<|"|>v<|"|>}<tool_call|>``
``function_gemma``  FunctionGemma                 ``<start_function_call>call:f{k:<escape>v<escape>}
                                                  <end_function_call>``
``harmony``         gpt-oss                       ``<|channel|>commentary to=functions.f
                                                  <|constrain|>json<|message|>J<|call|>``; it ends the turn
``llama``           Llama 3.1, 3.2, 3.3           ``{"name": "f", "parameters": J}``: the whole answer, one
                                                  call
``mistral``         Mistral v3 to v7              ``[TOOL_CALLS][{"name": "f", "arguments": J}, ...]``
``mistral_args``    Mistral v11, v13; Ministral 3 ``[TOOL_CALLS]f[ARGS]J``, again for each call
``phi``             Phi-4-mini                    ``<|tool_call|>[{"name": "f", "arguments": J}]
                                                  <|/tool_call|>``
``granite``         Granite 3                     ``<|tool_call|>[{"name": "f", "arguments": J}, ...]``
``cohere``          Command R7B                   ``<|START_ACTION|>[{"tool_call_id": "0", "tool_name":
                                                  "f", "parameters": J}, ...]<|END_ACTION|>``
``apertus``         Apertus                       ``<|tools_prefix|>[{"f": J}, ...]<|tools_suffix|>``
``nemotron``        Nemotron Nano 2               ``<TOOLCALL>[{"name": "f", "arguments": J}]</TOOLCALL>``
``hunyuan``         Hunyuan                       ``<tool_calls>[{"name": "f", "arguments": J}]
                                                  </tool_calls>``
``gemma``           Gemma 1 to 3, by prompt       a fence ``tool_code`` around ``{"name": "f",
                                                  "parameters": J}``
``prompted``        every other template          as ``hermes``; the tools stand in the system message
==================  ============================  =======================================================

Values between tags stand as they are if they are strings, and as JSON else; the schemas of the tools tell one
from the other when they are read. A marker that is a control token of the vocabulary is that token in the
grammar, and shows in the text of an answer that is read for calls.
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
