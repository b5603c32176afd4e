#!/usr/bin/env bash
# A pydantic model as an output field may give its fields other names outside: first_name: str = Field(alias="firstName").
#
# Usual guess: prompt, demonstrations and parser use one set of names.
# Seen (dspy 3.4.1): the prompt's schema and the parser say firstName, the demonstrations first_name. Each shows the model an
#   answer that DSPy itself would not read, and the more demonstrations an optimizer adds, the more answers fail.
#   `ConfigDict(serialize_by_alias=True)` in the model makes them agree.
#
# Output seen:
#   the schema asks for   {"firstName": ...}
#   a demonstration says  {"first_name": "Ann"}
#   read as an answer     AdapterParseError
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "dspy==3.4.1" "pydantic==2.14.4"
cat > "$work/run.py" <<'PY'
import dspy
import pydantic
from dspy.utils.exceptions import AdapterParseError


class Person(pydantic.BaseModel):
    first_name: str = pydantic.Field(alias="firstName")


class Agreed(Person):
    model_config = pydantic.ConfigDict(serialize_by_alias=True)


def look(kind):
    """Whether the schema has the alias, a demonstration's text, and what the parser makes of it."""
    signature = dspy.Signature("text -> person", "Find the person.").with_updated_fields("person", type_=kind)
    demo = dspy.Example(text="Ann was here.", person=kind(firstName="Ann"))
    adapter = dspy.ChatAdapter()
    system, _, answer, _ = (message["content"] for message in adapter.format(signature, [demo], {"text": "x"}))
    try:
        adapter.parse(signature, answer)
        fate = "read"
    except AdapterParseError as error:
        fate = type(error).__name__
    return '"firstName"' in system, answer.splitlines()[1], fate


schema, shown, fate = look(Person)
print("the schema asks for  ", '{"firstName": ...}' if schema else "another name")
print("a demonstration says ", shown)
print("read as an answer    ", fate)
wrong = (schema, shown, fate) == (True, '{"first_name": "Ann"}', "AdapterParseError")
agreed = look(Agreed)[1:] == ('{"firstName": "Ann"}', "read")
raise SystemExit(not (wrong and agreed))
PY
DSPY_CACHEDIR="$work/cache" "$work/venv/bin/python" "$work/run.py"
