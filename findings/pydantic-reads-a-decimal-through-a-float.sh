#!/usr/bin/env bash
# A field of type Decimal is chosen so that an amount stays as it was written.
#
# Usual guess: model_validate_json, which parses the text itself, hands the digits of a JSON number to Decimal.
# Seen (pydantic 2.14.4): a number with a point is made a float first. From the 17th digit on the amount is another one, and
#   1.10 has lost its second place; nothing is said, in strict mode neither. Whole numbers and numbers in quotes are kept.
#   json.loads(text, parse_float=Decimal) and msgspec 0.23.0 keep the digits.
#
# Output seen:
#   written                 12345678901234567.89  1.10
#   pydantic                12345678901234568  1.1
#   pydantic, in quotes     12345678901234567.89  1.10
#   msgspec                 12345678901234567.89  1.10
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "pydantic==2.14.4" "msgspec==0.23.0"
cat > "$work/run.py" <<'PY'
from decimal import Decimal

import msgspec
import pydantic

WRITTEN = ["12345678901234567.89", "1.10"]


class Amount(pydantic.BaseModel, strict=True):
    value: Decimal


def read(number):
    return str(Amount.model_validate_json(f'{{"value": {number}}}').value)


seen = {
    "written": WRITTEN,
    "pydantic": [read(number) for number in WRITTEN],
    "pydantic, in quotes": [read(f'"{number}"') for number in WRITTEN],
    "msgspec": [str(msgspec.json.decode(number.encode(), type=Decimal)) for number in WRITTEN],
}
for name, values in seen.items():
    print(f"{name:23} {'  '.join(values)}")
raise SystemExit(list(seen.values()) != [WRITTEN, ["12345678901234568", "1.1"], WRITTEN, WRITTEN])
PY
"$work/venv/bin/python" "$work/run.py"
