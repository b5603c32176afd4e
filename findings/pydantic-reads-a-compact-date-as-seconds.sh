#!/usr/bin/env bash
# ISO 8601 writes the last day of 2026 as 2026-12-31 or, in its basic form, 20261231. Models and spreadsheets write both.
#
# Usual guess: a `datetime` field takes the basic form, as datetime.fromisoformat does since Python 3.11, or refuses it.
# Seen (pydantic 2.14.4): text of digits alone is a number of seconds since 1970. "20261231" is a day in August 1970, "2026" is half
#   past midnight on its first day. Nothing is said, and the value has a zone. A field of type `date` refuses both.
#
# Output seen:
#   "2026-12-31"  2026-12-31 00:00:00
#   "20261231"    1970-08-23 12:07:11+00:00
#   "2026"        1970-01-01 00:33:46+00:00
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "pydantic==2.14.4"
cat > "$work/run.py" <<'PY'
import datetime

import pydantic

moment = pydantic.TypeAdapter(datetime.datetime)
seen = []
for text in ('"2026-12-31"', '"20261231"', '"2026"'):
    value = str(moment.validate_json(text))
    seen.append(value)
    print(f"{text:13} {value}")
raise SystemExit(seen != ["2026-12-31 00:00:00", "1970-08-23 12:07:11+00:00", "1970-01-01 00:33:46+00:00"])
PY
"$work/venv/bin/python" "$work/run.py"
