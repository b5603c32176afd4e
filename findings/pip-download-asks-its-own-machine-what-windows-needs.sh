#!/usr/bin/env bash
# `pip download --platform win_amd64 --python-version 3.12 --only-binary=:all:` fills a folder of wheels for a machine that has
# no network. tqdm needs colorama on Windows: 'colorama; platform_system == "Windows"' stands in its metadata.
#
# Usual guess: such conditions are judged for the platform and the Python that were named, as the wheels' tags are.
# Seen (pip 26.3, on Linux): they are judged for the machine and the Python that run pip. colorama is not downloaded, pip ends
#   well, and the install on the other side fails. Conditions on Python's version are the same: click 8.1.8 needs
#   importlib-metadata on Python 3.7, and a download for 3.7 lacks it.
#
# Output seen:
#   tqdm for Windows: tqdm-4.70.1
#   click for Python 3.7: click-8.1.8
#
# Exits with 0 if it is still so, with 1 if not; it must run on Linux or macOS.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "pip==26.3"
fill() {
    local folder="$work/$1"
    shift
    "$work/venv/bin/python" -m pip download --quiet --disable-pip-version-check --only-binary=:all: --dest "$folder" "$@"
    (cd "$folder" && printf '%s\n' *.whl | cut -d- -f1,2 | paste -sd ' ')
}
windows=$(fill windows --platform win_amd64 --python-version 3.12 "tqdm==4.70.1")
older=$(fill older --python-version 3.7 "click==8.1.8")
echo "tqdm for Windows: $windows"
echo "click for Python 3.7: $older"
[ "$windows" = "tqdm-4.70.1" ] && [ "$older" = "click-8.1.8" ]
