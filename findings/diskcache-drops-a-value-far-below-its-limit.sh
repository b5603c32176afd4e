#!/usr/bin/env bash
# diskcache.FanoutCache (DSPy's cache on disk is one) keeps values in several shards and takes a limit of its size in bytes.
#
# Usual guess: a value of a quarter of the limit is kept until the cache is full.
# Seen (diskcache 5.6.3): each shard has its share of the limit, and a value above the share is removed by the very call that
#   stores it, which returns True. It is computed again each time, and nothing is said. With 16 shards the bound is a sixteenth
#   of what was asked for. diskcache.Cache, which has no shards, keeps the value.
#
# Output seen:
#   FanoutCache, 8 shards: set True, then there: False
#   Cache:                 set True, then there: True
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "diskcache==5.6.3"
cat > "$work/run.py" <<'PY'
import sys

import diskcache

LIMIT = 8 * 2**20
value = bytes(LIMIT // 4)


def keep(cache):
    return cache.set("answer", value), "answer" in cache


seen = [
    keep(diskcache.FanoutCache(f"{sys.argv[1]}/shards", shards=8, size_limit=LIMIT)),
    keep(diskcache.Cache(f"{sys.argv[1]}/one", size_limit=LIMIT)),
]
for name, (stored, there) in zip(("FanoutCache, 8 shards:", "Cache:"), seen, strict=True):
    print(f"{name:22} set {stored}, then there: {there}")
sys.exit(seen != [(True, False), (True, True)])
PY
"$work/venv/bin/python" "$work/run.py" "$work"
