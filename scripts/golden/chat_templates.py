# The templates and expressions that chat.py renders. Written for this test, in the manner of the families.

TEMPLATES = {
    "chatml": """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "chatml_default_system": """{%- for message in messages %}
    {%- if loop.first and messages[0].role != 'system' %}
        {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
""",
    "llama3": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "01 Jan 2025" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {{- "Call one of these with JSON.\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("one call at a time, got " ~ message.tool_calls|length) }}
        {%- endif %}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "mistral": """{%- if messages[0]["role"] == "system" %}{%- set system = messages[0]["content"] %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{{- bos_token }}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.tool_calls is defined) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system is defined %}
            {{- "[INST] " + system + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content|string + ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user, assistant and tool roles are known") }}
    {%- endif %}
{%- endfor %}
""",
    "gemma": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate: user/assistant/user') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}""",
    "gemma3": """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<image>' }}{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
""",
    "phi3": """{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}""",
    "phi4": """{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}""",
    "qwen25": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'Default helper.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n{\\"name\\": <function-name>}\\n<|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "qwen3": """{%- if tools %}
    {{- '<|im_start|>system\\n' + (messages[0].content + '\\n\\n' if messages[0].role == 'system' else '') }}
    {{- tools | map('tojson') | join('\\n') }}{{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '<tool_call>\\n{"name": "' ~ tool_call.name ~ '", "arguments": ' }}
                {%- if tool_call.arguments is string %}{{- tool_call.arguments }}{%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""",
    "smollm3": """{%- set mode = "/think" if (enable_thinking | default(true)) else "/no_think" -%}
{%- if messages[0].role == "system" -%}
  {%- set system_message = messages[0].content -%}
  {%- if "/no_think" in system_message -%}{%- set mode = "/no_think" -%}{%- endif -%}
  {%- set custom = system_message.replace("/no_think", "").replace("/think", "").rstrip() -%}
{%- endif -%}
{{- "<|im_start|>system\\n## Meta\\nMode: " -}}{{ mode + "\\n" }}
{%- if custom -%}{{ custom + "\\n\\n" }}{%- endif -%}
{%- if tools -%}
  {%- set ns = namespace(xml="Tools:\\n") -%}
  {%- for tool in tools -%}
    {%- set ns.xml = ns.xml ~ (tool | string) ~ "\\n" -%}
  {%- endfor -%}
  {{- ns.xml -}}
{%- endif -%}
{{- "<|im_end|>\\n" -}}
{%- for message in messages -%}
    {%- set content = message.content if message.content is string else "" -%}
    {%- if message.role == "user" -%}
        {{ "<|im_start|>" + message.role + "\\n"  + content + "<|im_end|>\\n" }}
    {%- elif message.role == "assistant" -%}
        {%- generation -%}
        {{ "<|im_start|>assistant\\n" + ("<think>\\n\\n</think>\\n" if mode == "/no_think" else "") + content.lstrip("\\n") + "<|im_end|>\\n" }}
        {%- endgeneration -%}
    {%- elif message.role == "tool" -%}
    {{ "<|im_start|>" + "user\\n"  + content + "<|im_end|>\\n" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<|im_start|>assistant\\n" }}{%- endif -%}
""",
    "zephyr": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "deepseek": """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<|User|>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and message['tool_calls'] %}{%- set ns.is_tool = false -%}{%- for tool in message['tool_calls']%}{%- if not ns.is_first %}{{'<|calls|><|call|>' + tool['type'] + '<|sep|>' + tool['function']['name'] + '\\n' + '```json' + '\\n' + tool['function']['arguments']|tojson + '\\n' + '```' + '<|end|>'}}{%- set ns.is_first = true -%}{%- else %}{{'\\n' + '<|call|>' + tool['type'] + tool['function']['name']}}{%- endif %}{%- endfor %}{{'<|calls_end|>'}}{%- elif message['role'] == 'assistant' %}{%- if ns.is_tool %}{{'<|outputs_end|>' + message['content'] + eos_token}}{%- set ns.is_tool = false -%}{%- else %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<|Assistant|>' + content + eos_token}}{%- endif %}{%- endif %}{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}{%- if ns.is_output_first %}{{'<|outputs|><|output|>' + message['content'] + '<|output_end|>'}}{%- set ns.is_output_first = false %}{%- else %}{{'\\n<|output|>' + message['content'] + '<|output_end|>'}}{%- endif %}{%- endif %}{%- endfor -%}{% if ns.is_tool %}{{'<|outputs_end|>'}}{% endif %}{% if add_generation_prompt and not ns.is_tool %}{{'<|Assistant|><think>\\n'}}{% endif %}""",
    "command_r": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = '# Preamble
Basic rules.' %}{% endif %}{{ '<|SYSTEM|>' }}{{ system_message }}{{ '<|END|>'}}{% for message in loop_messages %}{% set content = message['content'] %}{% if message['role'] == 'user' %}{{ '<|USER|>' + content.strip() + '<|END|>' }}{% elif message['role'] == 'assistant' %}{{ '<|CHATBOT|>'  + content.strip() + '<|END|>' }}{% endif %}{% endfor %}{% if documents %}{{ '<results>' }}{% for document in documents %}{{ '\\nDocument: ' }}{{ loop.index0 }}
{% for key, value in document.items() %}{{ key }}: {{value}}
{% endfor %}{% endfor %}{{ '</results>' }}{% endif %}{% if add_generation_prompt %}{{ 'Write it.' }}{{ '<|CHATBOT|>' }}{% endif %}""",
    "granite": """{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set system_message = "Cutoff: 2024." %}
{%- if tools and documents %}{%- set system_message = system_message + " Both." %}
{%- elif tools %}{%- set system_message = system_message + " Tools." %}
{%- elif documents %}{%- set system_message = system_message + " Documents." %}{%- endif %}
{%- set loop_messages = messages %}{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\\n' }}
{%- if tools %}{{- '<|start_of_role|>tools<|end_of_role|>' }}{{- tools | tojson(indent=4) }}{{- '<|end_of_text|>\\n' }}{%- endif %}
{%- if documents %}{{- '<|start_of_role|>documents<|end_of_role|>' }}
{%- for document in documents %}{{- 'Document ' + loop.index0 | string + '\\n' }}{{- document['text'] }}
{%- if not loop.last %}{{- '\\n\\n'}}{%- endif%}{%- endfor %}{{- '<|end_of_text|>\\n' }}{%- endif %}
{%- for message in loop_messages %}
{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\\n' }}
{%- if loop.last and add_generation_prompt %}{{- '<|start_of_role|>assistant' }}{%- if controls %}{{- ' ' + controls | tojson() }}{%- endif %}{{- '<|end_of_role|>' }}{%- endif %}{%- endfor %}""",
    "macros": """{%- macro header(role, sep='\\n', *rest) -%}[{{ role|upper }}]{{ sep }}{%- endmacro -%}
{%- macro body(m) %}{% for line in m.content.splitlines() %}> {{ line }}
{% endfor %}{% endmacro -%}
{%- for m in messages -%}{{ header(m.role) }}{{ body(m) }}{{ header(role='x', sep='|') }}{% endfor -%}""".replace(
        ", *rest", ""
    ),
    "call_block": """{%- macro turn(role) -%}<{{ role }}>{{ caller() }}</{{ role }}>
{% endmacro -%}
{%- for m in messages -%}{%- call turn(m.role) -%}{{ m.content }}{%- endcall -%}{%- endfor -%}""",
    "loop_things": """{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ loop.revindex }} {{ loop.revindex0 }} {{ loop.first }} {{ loop.last }} {{ loop.cycle('a', 'b', 'c') }} {{ loop.depth }} {{ loop.previtem.role if loop.previtem is defined }} {{ loop.nextitem.role if not loop.last }} {{ loop.changed(m.role) }}
{% else %}none
{% endfor %}""",
    "controls": """{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{% if loop.index > 3 %}{% break %}{% endif %}{{ m.role }}:{{ m.content }};{% endfor %}""",
    "filters_in_loop": """{% for m in messages if m.role in ['user', 'assistant'] %}{{ loop.index0 }}{{ m.content | replace('e', '3', 1) | title }}
{% endfor %}{{ messages | map(attribute='role') | unique | join(',') }} {{ messages | rejectattr('role', 'in', ['tool']) | list | length }} {{ messages | map(attribute='role') | unique | sort | join('+') }}""",
    "set_blocks": """{% set header %}
[{{ messages|length }}]
{% endset %}
{% set shout | upper %}{{ messages[-1].content }}{% endset %}
{{ header }}{{ shout -}}
{% filter lower %}ABC{{ header }}{% endfilter %}
{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a }}""",
    "whitespace": """
  {# comment #}
  {% if true %}
    kept
  {%+ if true %} plus {% endif +%}
   {% endif %}
x {%- if true -%}   y   {%- endif -%}  z
	{{ messages[0].role }}
{%- raw %} {{ raw }} {% not %} {% endraw -%}
  end  {#- gone -#}  
 
  tail

""",
    "repr": """{{ messages }}
{{ tools }}
{{ documents }} {{ messages[0] | string | length }}
{{ (tools or [])|map(attribute='function')|map(attribute='name')|list }}""",
    "tool_types": """{%- macro kind(spec) -%}
{%- if spec.type == "array" -%}{{ kind(spec['items']) }}[]
{%- elif spec.type is iterable and spec.type is not string -%}{{ spec.type | join(' | ') }}
{%- elif spec.type == "object" -%}{ {%- for k, v in spec.properties.items() -%}{{ k }}: {{ kind(v) }}{{ ", " if not loop.last }}{%- endfor -%} }
{%- else -%}{{ spec.type }}{%- endif -%}
{%- endmacro -%}
{% for t in tools or [] %}
type {{ t.function.name }} = (_: {{ kind(t.function.parameters) }}) => any; // {{ t['function']['description'] }}
{% for name, p in t.function.parameters.properties|dictsort %}
{{ name }}{{ '?' if name not in t.function.parameters.required }}: {{ p|tojson(sort_keys=true) }} {{ p.get('default', 'nothing') }}
{% endfor %}
{% endfor %}""",
    "olmo": """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' and not loop.last %}{{ '<|assistant|>\\n' + message['content'] + eos_token + '\\n' }}{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\\n' + message['content'] + eos_token }}{% else %}{{ '<|' + message.role + '|>\\n' + message.content + '\\n' }}{% endif %}{{ '<|assistant|>\\n' if loop.last and add_generation_prompt }}{% endfor %}""",
    "vicuna": """{% for m in messages %}{{ {'user': 'USER: ', 'assistant': 'ASSISTANT: '}.get(m.role, '') ~ m.content ~ (eos_token if m.role == 'assistant' else ' ') }}{% endfor %}{{ 'ASSISTANT:' if add_generation_prompt else '' }}""",
    "recursive": """{%- for m in messages recursive %}{{ loop.depth0 }}{{ m.role if m is mapping else m }}{% if m.tool_calls is defined %}({{ loop(m.tool_calls|map(attribute='id')) }}){% endif %};{% endfor %}""",
    "functions": """{% set parts = [] %}{% for m in messages %}{% set parts = parts + [m.role[0]|upper ~ ':' ~ m.content|length] %}{{ parts|last }} {% endfor %}{{ parts }}{% set ns = namespace(seen=[], d={}) %}{% for m in messages %}{% if m.role not in ns.seen %}{% set ns.seen = ns.seen + [m.role] %}{% set ns.d = dict(ns.d, **{m.role: loop.index}) %}{% endif %}{% endfor %}{{ ns.seen }} {{ ns.d }} {{ ns.d|tojson }} {{ range(3)|list }} {{ range(5, 0, -2)|list }}""",
}

MICRO = (
    r"""
{{ True }} {{ true }} {{ None }} {{ none }} {{ False }}
{{ 1.0 }} {{ 1e16 }} {{ 1e-5 }} {{ 123456789.125 }} {{ 1e15 }} {{ 0.1 + 0.2 }} {{ 1.5e300 }}
{{ 7 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 4 / 2 }}
{{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 2 ** 0.5 }} {{ -2 ** 2 }}
{{ 1 / 0 }}
{{ 1 // 0 }}
{{ 1 % 0 }}
{{ n + f }} {{ n - 10 }} {{ n * 2.0 }} {{ -n }} {{ - f }}
{{ 'a' 'b' "c" }} {{ 'it''s' }}
{{ 'a' + 1 }}
{{ 1 + 'a' }}
{{ 'a' ~ 1 ~ none ~ 2.0 ~ true }}
{{ 'ab' * 3 }} {{ 3 * 'ab' }} {{ [1] * 2 }} {{ (1, 2) * 2 }} {{ 'x' * -1 }}|
{{ l + [4] }} {{ l }} {{ (1,) + (2,) }} {{ [] + [] }}
{{ l + (1,) }}
{{ {} }} {{ [] }} {{ () }} {{ (1,) }} {{ (1, 2) }}
{{ ["it's", 'say "x"', 'both \' and "', "tab\t nl\n back\\"] }}
{{ u }} {{ [u] }} {{ ["\x07\x7f\u200b\u00a0\ufeff"] }}
{{ d }} {{ d.a }} {{ d['items'] }} {{ d.a.x[1] }}
{{ d.items() | list }} {{ d.keys() | list }} {{ d.values() | list }}
{{ d.get('b') }} {{ d.get('zz') }} {{ d.get('zz', 5) }} {{ d.zz }}| {{ d.zz is defined }}
{{ d.zz.yy }}
{{ missing.x }}
{{ missing }}| {{ missing is defined }} {{ missing is undefined }} {{ missing | default('d') }} {{ missing or 'o' }}
{{ missing + 1 }}
{{ missing() }}
{{ missing | length }} {{ missing | list }} {{ 'a' in missing }} {{ missing == missing }} {{ missing ~ 'x' }}
{% for x in missing %}x{% else %}none{% endfor %}
{% for x in z %}x{% endfor %}
{% for x in 5 %}x{% endfor %}
{% for c in 'añb' %}{{ c }}.{% endfor %}
{% for k in d %}{{ k }},{% endfor %}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}
{% for a, (b, c) in [(1, (2, 3)), (4, (5, 6))] %}{{ a + b + c }} {% endfor %}
{{ z.x }}| {{ z['x'] }}| {{ n.x }}| {{ s.x }}|
{{ l[0] }} {{ l[-1] }} {{ l[5] }}| {{ s[0] }} {{ s[-1] }} {{ s[99] }}|
{{ l[1:] }} {{ l[:1] }} {{ l[::-1] }} {{ l[-2:] }} {{ l[:-1] }} {{ l[::2] }} {{ l[5:] }} {{ l[2:0:-1] }} {{ l[-9:9] }}
{{ s[1:4] }} {{ s[::-1] }} {{ s[-3:] }} {{ s[:-3] }} {{ s[::3] }} {{ s[10:2:-2] }} {{ (1,2,3)[1:] }}
{{ l[::0] }}
{{ s[1:2:3] }} {{ u[0:3] }} {{ u[-2:-1] }}
{{ 1 == 1.0 }} {{ 1 == true }} {{ '1' == 1 }} {{ [1, 2] == [1, 2] }} {{ {'a': 1} == {'a': 1.0} }} {{ none == false }} {{ (1,) == [1] }}
{{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ 1 != 2 }} {{ n > 6 }} {{ n <= 6 }} {{ n >= 7.0 }}
{{ 1 < 'a' }}
{{ none < 1 }}
{{ 'a' in 'abc' }} {{ 'x' not in 'abc' }} {{ 2 in l }} {{ 'b' in d }} {{ 1 in (1, 2) }} {{ not 2 in l }} {{ '' in '' }}
{{ 1 in 'abc' }}
{{ 1 in 5 }}
{{ 'a' and 'b' }} {{ '' or 'x' }} {{ 0 or none }} {{ not '' }} {{ 1 and 0 }} {{ not 1 == 2 }} {{ true and not false }}
{{ 'yes' if n > 5 else 'no' }} {{ 'yes' if n > 9 }}| {{ 1 if false else 2 if false else 3 }}
{{ (n if n else 0) + 1 }} {{ 1 + 2 * 3 - 4 / 2 }} {{ (1 + 2) * 3 }} {{ 2 + 3 ~ 4 }} {{ 'a' ~ 1 + 2 }} {{ 1 ~ 2 * 3 }}
{{ -3 | string }} {{ 5 - '3' | int }} {{ - 3 ** 2 }}
{{ 'x' | upper ~ 'y' }} {{ s | lower | replace('l', 'L') | length }} {{ 1 + '5' | int }}
{{ 'a.b.c'.split('.') }} {{ 'a.b.c'.split('.', 1) }} {{ ' a  b '.split() }} {{ ''.split() }} {{ ''.split(',') }} {{ 'a,b'.split(sep=',') }}
{{ 'a.b.c'.rsplit('.', 1) }} {{ 'a.b'.rsplit('.') }} {{ 'abc'.split('abc') }} {{ 'x'.split('.', maxsplit=1) }}
{{ 'abc'.split('') }}
{{ '  x '.strip() }}| {{ '  x '.lstrip() }}| {{ '  x '.rstrip() }}| {{ 'xxaxx'.strip('x') }} {{ 'abcba'.strip('ab') }} {{ '\n\tx\n'.strip('\n') }}|
{{ 'hello'.startswith('he') }} {{ 'hello'.startswith(('x', 'he')) }} {{ 'hello'.endswith('lo') }} {{ 'hello'.endswith(('x',)) }} {{ ''.startswith('') }}
{{ 'hello'.startswith(['he']) }}
{{ "they're bill's friends x2y".title() }} {{ "they're bill's-friends (one)" | title }} {{ 'ABC def'.capitalize() }} {{ 'ABC def' | capitalize }}
{{ 'aaa'.replace('a', 'b') }} {{ 'aaa'.replace('a', 'b', 2) }} {{ 'aaa' | replace('a', 'b', 1) }} {{ 'ab'.replace('', '-') }} {{ 123 | replace(2, 'x') }}
{{ '%s-%s|' | format('a', none) }} {{ ', '.join(['a', 'b']) }} {{ ''.join(['x']) }} {{ '-'.join('abc') }} {{ ','.join(d) }}
{{ ', '.join([1, 2]) }}
{{ 'abc'.find('c') }} {{ 'abc'.find('z') }} {{ 'abcabc'.rfind('b') }} {{ 'abab'.count('ab') }} {{ 'añc'.find('c') }}
{{ 'a\nb\r\nc'.splitlines() }} {{ 'a\nb\n'.splitlines() }} {{ ''.splitlines() }} {{ '\n'.splitlines() }}
{{ 'x'.nope() }}
{{ [1].append(2) }}
{{ d.update({'x': 1}) }}
{{ d.pop('b') }}
{{ ''.__class__ }}
{{ ''.__class__.__mro__[1].__subclasses__() }}
{{ [].__class__.__base__ }}
{{ ''['__class__'] }}
{{ namespace.__init__.__globals__ }}
{{ cycler.__init__.__globals__.os.popen('id').read() }}
{{ raise_exception.__globals__ }}
{{ messages.__class__ }}
{{ s | length }} {{ l | count }} {{ d | length }} {{ 'ñ🦀' | length }} {{ e | length }} {{ (1,2) | length }}
{{ 5 | length }}
{{ l | first }} {{ l | last }} {{ [] | first }}| {{ s | first }} {{ s | last }}
{{ l | sort }} {{ l | sort(reverse=true) }} {{ ['b', 'A', 'c'] | sort }} {{ ['b', 'A'] | sort(case_sensitive=true) }} {{ rows | sort(attribute='age') | map(attribute='name') | list }}
{{ [1, 'a'] | sort }}
{{ l | reverse | list }} {{ 'abc' | reverse }} {{ l | join('-') }} {{ l | join }} {{ rows | join(', ', attribute='name') }} {{ [1, none, 'x', 2.5] | join('|') }} {{ [[1], {'a': 'b'}] | join(' ') }}
{{ rows | map(attribute='name') | list }} {{ ['a', 'b'] | map('upper') | list }} {{ rows | map(attribute='tags', default='-') | list }} {{ l | map('string') | join(',') }} {{ ['x'] | map('replace', 'x', 'y') | list }}
{{ rows | selectattr('age', 'gt', 26) | map(attribute='name') | list }} {{ rows | selectattr('tags') | list | length }} {{ rows | rejectattr('name', 'equalto', 'Ann') | map(attribute='name') | join }} {{ rows | selectattr('tags', 'defined') | list | length }} {{ rows | selectattr('age', '==', 30) | list | length }}
{{ [0, 1, 2, '', 'a'] | select | list }} {{ l | select('odd') | list }} {{ l | reject('gt', 1) | list }} {{ [1, 'a', none] | select('string') | list }} {{ [1, 2] | select('in', [2]) | list }}
{{ rows | selectattr('age', 'nope') | list }}
{{ d | dictsort }} {{ {'B': 1, 'a': 3, 'C': 2} | dictsort }}
{{ d | items | list }} {{ [1, 1, 2, 'A', 'a'] | unique | list }}
{{ d | tojson }} {{ l | tojson }} {{ s | tojson }} {{ none | tojson }} {{ 1.0 | tojson }} {{ 1e20 | tojson }} {{ true | tojson }} {{ '<a href="x">&\'' | tojson }} {{ u | tojson }}
{{ d | tojson(indent=2) }} {{ [] | tojson(indent=2) }} {{ {} | tojson(indent=2) }} {{ [[], {}] | tojson(indent=1) }}
{{ d | tojson(separators=(',', ':')) }} {{ d | tojson(sort_keys=true) }} {{ u | tojson(ensure_ascii=true) }} {{ d | tojson(indent=4, separators=(',', ': ')) }} {{ "a\u0001\u001f\n\t\b\f/\u007f" | tojson }}
{{ {1: 'a', none: 2, true: 3, 1.5: 4} | tojson }} {{ (1, 2) | tojson }} {{ d | tojson(indent='--') }} {{ d | tojson(indent=0) }}
{{ missing | tojson }}
{{ d.keys() | tojson }}
{{ '3' | int }} {{ 'x' | int }} {{ 'x' | int(7) }} {{ 3.9 | int }} {{ '3.7' | int }} {{ -3.9 | int }} {{ true | int }} {{ none | int }} {{ ' 5 ' | int }}
{{ 'a\nb\n\nc' | indent }} {{ 'a\nb' | indent(2, true) }} {{ 'a\n\nb' | indent(2, blank=true) }} {{ 'a\nb\n' | indent('>') }}|
{{ '  x ' | trim }}| {{ 'xxaxx' | trim('x') }} {{ 5 | string ~ 'x' }} {{ [1] | string }} {{ 'abc' | list }} {{ d | list }} {{ none | string }}
{{ '<b>' | safe }}
{{ none | default('x') }} {{ none | default('x', true) }} {{ '' | d('x', true) }} {{ missing | d }}| {{ false | default('a', boolean=true) }}
{{ 5 | nope }}
{{ none | upper }} {{ 5 | upper }} {{ missing | upper }}| {{ none | trim }} {{ true | lower }}
{{ 5 is number }} {{ true is number }} {{ 5 is integer }} {{ true is integer }} {{ 5.0 is float }} {{ 's' is string }} {{ d is mapping }} {{ l is sequence }} {{ s is sequence }} {{ d is sequence }} {{ l is iterable }} {{ 5 is iterable }} {{ missing is iterable }} {{ none is none }} {{ true is boolean }} {{ 1 is boolean }}
{{ 3 is odd }} {{ 4 is even }} {{ true is true }} {{ 1 is true }} {{ false is false }} {{ 1 is eq 1 }} {{ 1 is in [1] }} {{ 2 is ne 1 }} {{ 1 is lt 2 }} {{ 2 is ge 2 }}
{{ n is not none }} {{ missing is not defined }} {{ not n is none }} {{ n is defined and n is not none }} {{ 1 + 1 is odd }} {{ d.a is mapping and d.b is number }}
{{ 5 is nope }}
{{ range(3) | list }} {{ range(1, 4) | list }} {{ range(4, 0, -2) | list }} {{ range(0) | list }} {{ range(10, 0) | list }} {{ range(3) | length }}
{{ range(1, 2, 0) }}
{{ range(1000000) | list }}
{{ dict(a=1, b=2) }} {{ dict({'a': 1}, b=2) }} {{ {'a': 1, 'a': 2} }} {{ {1: 'x', 1.0: 'y'} }} {{ dict() }}
{{ {[1]: 2} }}
{% set ns = namespace(x=1, y='a') %}{% for i in range(3) %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}{{ ns.y }}{{ ns.zz }}
{% set ns = namespace(a=1) %}{% set ns.b = ns.a %}{{ ns.a + ns.b }}
{% set ns = namespace(_x=1) %}{{ ns._x }}
{% set x = 1 %}{% for i in [1, 2] %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }} {% if true %}{% set x = 9 %}{% endif %}{{ x }}
{% set a, b = 1, 2 %}{{ a }}{{ b }} {% set a, b = [3, 4] %}{{ a }}{{ b }} {% set t = 1, %}{{ t }}
{% set a, b = [1] %}{{ a }}
{% set ns = 5 %}{% set ns.x = 1 %}
{% macro m(a, b=2, c='x') %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }} {{ m(1, c=5) }} {{ m(b=1, a=2) }} {{ m() }}
{% macro m(a) %}{{ a }}{{ inner }}{% endmacro %}{% set inner = 'i' %}{{ m(1) ~ m(2) | upper }} {{ m(1) is string }} {{ m('x') | length }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
{% macro fact(k) %}{% if k < 2 %}1{% else %}{{ k * fact(k - 1) | int }}{% endif %}{% endmacro %}{{ fact(10) }}
{{ raise_exception('no way: ' ~ n) }}
{% if n == 7 %}{{ raise_exception("it's <bad>") }}{% endif %}
{% if false %}{{ raise_exception('x') }}{% endif %}fine
{{ 0x1f }} {{ 0b101 }} {{ 0o17 }} {{ 1_000 }} {{ 1_0.5 }} {{ 1E3 }}
{{ "a\tb\\n\x41\u00e9\101\q" }} {{ 'a\
b' }}
{{ (1, 2)[0] }} {{ [1, 2,] }} {{ {'a': 1,} }} {{ [[1, 2], [3]][0][1] }} {{ {'a': [1]}.a[0] }} {{ 'abc'[1] | upper }} {{ l.0 }}
{{ [x for x in l] }}
{{ l.append }}{{ 1 if }}
{{ }}
{% if %}x{% endif %}
{% for x in %}{% endfor %}
{% endif %}
{% unknown %}
{{ 'unclosed }}
{{ (1 }}
{% include 'x' %}
{% do l.append(1) %}
{{ lipsum.__globals__ }}
{{ self.__init__ }}
{{ config }}| {{ request }}|
{% for i in l %}{{ loop.index }}{{ loop.nope }}{% endfor %}{{ loop is defined }}
{% for i in l if i > 1 %}{{ loop.index }}:{{ i }}/{{ loop.length }} {% endfor %}
{% for i in [1, 2, 3] %}{% for j in [1, 2] %}{{ loop.index }}{{ loop.depth }}{% endfor %}{{ loop.index }} {% endfor %}
{% for i in [] %}{% else %}empty{% endfor %}{% for i in [1] %}{% else %}empty{% endfor %}
{% for i in [1,2,3,4] %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}
{{ multi | trim }}| {{ multi.splitlines() | length }} {{ multi.strip().split('\n\n') }}
{{ [1, 2] is sequence and not [1, 2] is string }} {{ {} is mapping }} {{ 'a' if {} else 'b' }} {{ 'a' if [0] else 'b' }} {{ 'a' if 0.0 else 'b' }}
{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ tools is none }}{{ documents is none }}{{ tools is defined }} {{ add_generation_prompt }}
{{ messages }} {{ messages[0] }} {{ messages[-1]['content'] }} {{ messages[5] }}|
{{ 10000000000000000000000 }} {{ 2 ** 70 }} {{ -1 }} {{ 9223372036854775807 + 1 }} {{ 1e400 }}
{{- 'tight' -}}   x   {{- 'er' }}
a {%- if true %} b {% endif -%} c {#- d -#} e
{{ '}}' }} {{ {'a': {'b': {}}} }} {{ "{%" }} {{ '{{' }} {# {{ no }} #}{% raw %}{{ x }}{% endraw %}
{% generation %}a{% set q = 1 %}{% endgeneration %}{{ q }}
{{ rows[0].name.upper().lower()[:2] }} {{ (rows | first).tags | first }} {{ rows[0]['tags'][0] ~ rows | length }}
{{ 'A' < 'a' }} {{ 'Z' > 'a' }} {{ 'é' > 'z' }} {{ [] < [1] }} {{ 1.5 >= 1 }} {{ true > false }}
{{ 'a' if missing is undefined else 'b' }} {{ missing is none }} {{ missing == none }} {{ missing != 1 }} {{ not missing }} {{ missing | string }}|
{{ 1 is 1 }}
{{ not not 1 }} {{ 1 if 1 is odd else 0 }} {{ l | length > 2 }} {{ l | length == 3 and 'y' or 'n' }} {{ 5 * 'a' | length }}
{% call(x) m2() %}[{{ x }}]{% endcall %}{% macro m2() %}{% endmacro %}
{% macro m2() %}<{{ caller(1) }}{{ caller(2) }}>{% endmacro %}{% call(x) m2() %}[{{ x }}]{% endcall %}
{% macro v() %}{{ varargs }} {{ kwargs }}{% endmacro %}{{ v(1, a=2) }}
{% filter upper %}a{{ s }}{% endfilter %} {% set q %}x{{ n }}{% endset %}{{ q }} {% set q | upper %}x{% endset %}{{ q }} {% with q = 2 %}{{ q }}{% endwith %}{{ q }}
""".strip("\n")
    .replace("'a\\\nb'", "'a\\nb'")
    .split("\n")
)
