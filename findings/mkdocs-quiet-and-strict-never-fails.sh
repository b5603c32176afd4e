#!/usr/bin/env bash
# `mkdocs build --strict` fails when something is wrong with the documentation, a link to a page that does not exist for one. In
# a continuous build `--quiet` keeps the log short.
#
# Usual guess: --quiet is about what is shown, --strict about what is found, and the two together fail quietly.
# Seen (mkdocs 1.6.1): strict mode counts the warnings that reach the log, and --quiet keeps them from it. Together they pass
#   whatever is broken, with status 0.
#
# Output seen:
#   --strict          status 1
#   --strict --quiet  status 0
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "mkdocs==1.6.1"
mkdir "$work/docs"
echo "site_name: Example" > "$work/mkdocs.yml"
echo "# Home, with a [link to nowhere](missing.md)" > "$work/docs/index.md"
build() {
    local status=0
    "$work/venv/bin/mkdocs" build --config-file "$work/mkdocs.yml" --site-dir "$work/site" "$@" >/dev/null 2>&1 || status=$?
    echo "$status"
}
strict=$(build --strict)
both=$(build --strict --quiet)
echo "--strict          status $strict"
echo "--strict --quiet  status $both"
[ "$strict" = 1 ] && [ "$both" = 0 ]
