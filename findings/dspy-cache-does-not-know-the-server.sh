#!/usr/bin/env bash
# dspy.LM("openai/NAME", api_base=...) asks a server of one's own; its answers are cached, in memory and on disk.
#
# Usual guess: two servers are two models. Whoever serves the old weights on one port and the new ones on another, under one
#   name, compares the two.
# Seen (dspy 3.4.1): "api_base" is left out of the key. The second server is never asked, and the comparison finds no
#   difference. It holds across processes, by the disk. `cache=False`, or another name for each, asks both.
#
# Output seen:
#   old server says: old
#   new server says: old
#   requests to the new server: 0
#   with cache=False: new
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "dspy==3.4.1"
cat > "$work/run.py" <<'PY'
import http.server
import json
import threading

import dspy


def serve(text, seen):
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            seen.append(self.rfile.read(int(self.headers["content-length"])))
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "mine"}
            body = json.dumps({**reply, "choices": [choice], "usage": usage}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/v1"


asked = []
old = {"model": "openai/mine", "api_key": "none", "api_base": serve("old", [])}
new = {"model": "openai/mine", "api_key": "none", "api_base": serve("new", asked)}
says = [dspy.LM(**which)("Which are you?")[0] for which in (old, new)]
requests = len(asked)
without = dspy.LM(**new, cache=False)("Which are you?")[0]
print("old server says:", says[0])
print("new server says:", says[1])
print("requests to the new server:", requests)
print("with cache=False:", without)
raise SystemExit((says, requests, without) != (["old", "old"], 0, "new"))
PY
LITELLM_LOCAL_MODEL_COST_MAP=true DSPY_CACHEDIR="$work/cache" "$work/venv/bin/python" "$work/run.py"
