#!/usr/bin/env bash
# A model's chat template is a Jinja template, and most write tools with `tools | tojson`. transformers renders it; other runtimes
# render the same file with jinja2 or minijinja.
#
# Usual guess: the same template and the same tools give the same prompt, the one that the model was trained on.
# Seen (transformers 5.24.0, jinja2 3.1.6, minijinja 3.1.0): transformers puts a filter of its own in place of tojson. The filter of
#   jinja2 sorts the keys, so that "function" comes before "type" and parameters lose their order, and escapes <, >, &, ' and
#   all beyond ASCII. That of minijinja keeps the order and escapes the first four.
#
# Output seen:
#   transformers {"type": "find", "name": "Müller & Co", "if": "x < 1"}
#   jinja2       {"if": "x \u003c 1", "name": "M\u00fcller \u0026 Co", "type": "find"}
#   minijinja    {"type": "find", "name": "Müller \u0026 Co", "if": "x \u003c 1"}
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
    "transformers==5.24.0" "tokenizers==0.23.3" "jinja2==3.1.6" "minijinja==3.1.0"
cat > "$work/run.py" <<'PY'
import jinja2.sandbox
import minijinja
import transformers
from tokenizers import Tokenizer, models

TEMPLATE = "{{ tools[0] | tojson }}"
tools = [{"type": "find", "name": "Müller & Co", "if": "x < 1"}]

tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), chat_template=TEMPLATE)
messages = [{"role": "user", "content": "hello"}]
seen = {
    "transformers": tokenizer.apply_chat_template(messages, tools=tools, tokenize=False),
    "jinja2": jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(TEMPLATE).render(tools=tools),
    "minijinja": minijinja.Environment().render_str(TEMPLATE, tools=tools),
}
for name, prompt in seen.items():
    print(f"{name:12} {prompt}")
want = [
    r'{"type": "find", "name": "Müller & Co", "if": "x < 1"}',
    r'{"if": "x \u003c 1", "name": "M\u00fcller \u0026 Co", "type": "find"}',
    r'{"type": "find", "name": "Müller \u0026 Co", "if": "x \u003c 1"}',
]
raise SystemExit(list(seen.values()) != want)
PY
PYTHONIOENCODING=utf-8 "$work/venv/bin/python" "$work/run.py" 2>/dev/null
