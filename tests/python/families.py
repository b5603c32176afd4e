"""Small chat templates in the style of the families: they show tools, calls, results and thoughts as a family
does, and nothing of what else its own template does."""

from __future__ import annotations

_TOOLS = "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}"


def _chat(turn: str, *, call: str, tool: str, prompt: str, tools: str = _TOOLS, opening: str = "") -> str:
    """``turn``: before every message; ``call``: a call in a loop; ``tool``: a result."""
    return (
        f"{tools}{{% for message in messages %}}{{% if message.role == 'tool' %}}{tool}"
        f"{{% else %}}{turn}{{{{ message.content or '' }}}}{{% if message.tool_calls %}}{opening}"
        f"{{% for call in message.tool_calls %}}{{% set call = call.function %}}{call}{{% endfor %}}"
        f"{{% endif %}}{{% endif %}}{{% endfor %}}{{% if add_generation_prompt %}}{prompt}{{% endif %}}"
    )


_CHATML = "<|im_start|>{{ message.role }}\n"
_RESULT = "<tool_response>{{ message.content }}</tool_response>"
_JSON = '{"name": "{{ call.name }}", "arguments": {{ call.arguments | tojson }}}'
_PAIRS = "{% for key, value in call.arguments.items() %}"
_VALUE = "{{ value if value is string else value | tojson }}"
TEMPLATES: dict[str, str] = {
    "hermes": _chat(
        _CHATML,
        call=f"<tool_call>\n{_JSON}\n</tool_call>",
        tool=_RESULT,
        prompt="<|im_start|>assistant\n",
    ),
    "lfm": _chat(
        _CHATML,
        opening="<|tool_call_start|>",
        call="[{{ call.name }}(" + _PAIRS + "{{ key }}={{ value | tojson }},{% endfor %})]",
        tool="<|tool_response_start|>{{ message.content }}<|tool_response_end|>",
        prompt="<|im_start|>assistant\n",
    ),
    "olmo": _chat(
        _CHATML,
        call="<function_calls>{{ call.name }}(" + _PAIRS + "{{ key }}={{ value | tojson }},{% endfor %})",
        tool="<|im_start|>environment\n{{ message.content }}",
        prompt="<|im_start|>assistant\n",
    ),
    "xml": _chat(
        _CHATML,
        call="<tool_call>\n<function={{ call.name }}>\n"
        + _PAIRS
        + "<parameter={{ key }}>\n"
        + _VALUE
        + "\n</parameter>\n{% endfor %}</function>\n</tool_call>",
        tool=_RESULT,
        prompt="<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
        "<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}",
    ),
    "seed": _chat(
        "<seed:bos>{{ message.role }}\n",
        call="<seed:tool_call>\n<function={{ call.name }}>\n"
        + _PAIRS
        + "<parameter={{ key }}>"
        + _VALUE
        + "</parameter>\n{% endfor %}</function>\n</seed:tool_call>",
        tool="<seed:bos>tool\n{{ message.content }}",
        prompt="<seed:bos>assistant\n{% if thinking_budget == 0 %}<seed:think></seed:think>{% endif %}",
    ),
    "glm": _chat(
        "<|{{ message.role }}|>",
        call="<tool_call>{{ call.name }}"
        + _PAIRS
        + "<arg_key>{{ key }}</arg_key><arg_value>"
        + _VALUE
        + "</arg_value>{% endfor %}</tool_call>",
        tool="<|observation|>" + _RESULT,
        prompt="<|assistant|>{% if enable_thinking == false %}</think>{% else %}<think>{% endif %}",
    ),
    "muse": _chat(
        "<|start|>{{ message.role }}<|message|>",
        call='<atem:function_calls>\n<atem:invoke name="{{ call.name }}">\n'
        + _PAIRS
        + '<atem:parameter name="{{ key }}">'
        + _VALUE
        + "</atem:parameter>\n{% endfor %}</atem:invoke>\n</atem:function_calls>",
        tool="<|start|>tool<|message|>{{ message.content }}",
        prompt="{# to=self<|message|> #}{{ reasoning_strength }}<|start|>assistant",
    ),
    "gemma4": _chat(
        "<|turn>{{ message.role }}\n",
        call="<|tool_call>call:{{ call.name + '{' }}"
        + _PAIRS
        + "{{ key }}:{{ value | tojson }},{% endfor %}}<tool_call|>",
        tool="<|tool_response>{{ message.content }}<tool_response|>",
        prompt="<|turn>model\n{% if not enable_thinking %}<|channel>thought\n<channel|>{% endif %}",
    ),
    "function_gemma": _chat(
        "<start_of_turn>{{ message.role }}\n",
        call="<start_function_call>call:{{ call.name + '{' }}"
        + _PAIRS
        + "{{ key }}:<escape>{{ value }}<escape>,{% endfor %}}<end_function_call>",
        tool="<start_function_response>{{ message.content }}<end_function_response>",
        prompt="<start_of_turn>model\n",
    ),
    "harmony": _chat(
        "<|start|>{{ message.role }}<|channel|>final<|message|>",
        call="<|start|>assistant to=functions.{{ call.name }}<|channel|>commentary json<|message|>"
        "{{ call.arguments | tojson }}<|call|>",
        tool="<|start|>functions.f to=assistant<|channel|>commentary<|message|>{{ message.content }}<|end|>",
        prompt="Reasoning: {{ reasoning_effort }}{# analysis #}<|start|>assistant",
    ),
    "granite": _chat(
        "<|start_of_role|>{{ message.role }}<|end_of_role|>",
        call="<|tool_call|>{{ call.name }}{{ call.arguments }}",
        tool="<|start_of_role|>tool<|end_of_role|>{{ message.content }}",
        prompt="<|start_of_role|>assistant{{ thinking }}<|end_of_role|>{# <think></think><response> #}",
    ),
    "cohere": _chat(
        "<|START_OF_TURN_TOKEN|>{{ message.role }}",
        opening="<|START_ACTION|>",
        call='{"tool_name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}},',
        tool="<|START_TOOL_RESULT|>{{ message.content }}<|END_TOOL_RESULT|>",
        prompt="<|CHATBOT_TOKEN|>{% if not enable_thinking %}<|START_THINKING|><|END_THINKING|>{% endif %}",
    ),
    "apertus": _chat(
        "<|{{ message.role }}_start|>",
        opening="<|tools_prefix|>",
        call='{"{{ call.name }}": {{ call.arguments | tojson }}}',
        tool="[{{ message.content }}]",
        prompt="{{ enable_thinking }}{# <|inner_prefix|><|inner_suffix|> #}<|assistant_start|>",
    ),
    "nemotron": _chat(
        "<SPECIAL_10>{{ message.role }}\n",
        opening="<TOOLCALL>",
        call=_JSON,
        tool="<TOOL_RESPONSE>{{ message.content }}</TOOL_RESPONSE>",
        prompt="<SPECIAL_11>Assistant\n",
    ),
    "hunyuan": _chat(
        "<｜hy_{{ message.role }}｜>",
        opening="<tool_calls>",
        call=_JSON,
        tool="<tool_response>{{ message.content }}</tool_response>",
        prompt="<｜hy_Assistant｜>{{ enable_thinking }}{# <think></think><answer> #}",
    ),
    "mistral_args": _chat(
        "[{{ message.role }}]",
        call="[TOOL_CALLS]{{ call.name }}[ARGS]{{ call.arguments | tojson }}",
        tool="[TOOL_RESULTS]{{ message.content }}[/TOOL_RESULTS]",
        prompt="{# [THINK][/THINK] #}",
    ),
    "phi": (
        "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
        "{% if message['tools'] %}<|tool|>{{ message['tools'] }}<|/tool|>{% endif %}{% endfor %}"
    ),
    "gemma": "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>{% endfor %}",
    "prompted": "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}",
    "llama": _chat(
        "<|start_header_id|>{{ message.role }}<|end_header_id|>",
        call='{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}',
        tool="<|start_header_id|>ipython<|end_header_id|>{{ message.content }}",
        prompt="<|start_header_id|>assistant<|end_header_id|>",
    ),
    "mistral": _chat(
        "[{{ message.role }}]",
        opening="[TOOL_CALLS][",
        call=_JSON + ",",
        tool="[TOOL_RESULTS]{{ message.content }}[/TOOL_RESULTS]",
        prompt="",
    ),
}
