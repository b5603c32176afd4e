#!/usr/bin/env bash
# minijinja can tell which variables a template looks up and does not define, as jinja2's `meta.find_undeclared_variables` does:
# the way to find out whether an argument means anything to a chat template.
#
# Usual guess: a variable that a render would look up is among them.
# Seen (minijinja 3.1.0 of the index): `{% set x = x | default('d') %}`, the usual way to give an argument a default, reads x from outside and
#   then assigns it, and x is left out; jinja2 3.1.6 names it. The render does look it up.
#
# Output seen:
#   minijinja names []
#   jinja2 names    ['x']
#   rendered with x: given
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "minijinja==3.1.0" "jinja2==3.1.6"
cat > "$work/run.py" <<'PY'
import jinja2
import jinja2.meta
import minijinja

template = "{% set x = x | default('d') %}{{ x }}"
ours = sorted(minijinja.Environment().undeclared_variables_in_str(template))
theirs = sorted(jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(template)))
rendered = minijinja.Environment().render_str(template, x="given")
print("minijinja names", ours)
print("jinja2 names   ", theirs)
print("rendered with x:", rendered)
raise SystemExit((ours, theirs, rendered) != ([], ["x"], "given"))
PY
"$work/venv/bin/python" "$work/run.py"
