#!/usr/bin/env bash
# A server streams a chat completion as events, then "data: [DONE]", and the last chunk has a finish_reason. A server that is
# stopped, or fails on its way, closes the connection earlier; some send an event named "error".
#
# Usual guess: the client raises where the stream ends before its end, and for an error event.
# Seen (openai 3.57.0): where the body is ended by closing (HTTP without a length, as behind many simple servers), the loop just ends:
#   neither [DONE] nor a finish_reason is missed, and half an event is dropped. An event named "error" comes as a chunk whose
#   `choices` is None, which the usual `if chunk.choices` skips. Only "error" as a key of the data raises.
#
# Output seen:
#   whole             'Pay 100 euros' finish_reason: stop
#   cut               'Pay 10' finish_reason: None
#   cut in an event   'Pay 10' finish_reason: None
#   event: error      'Pay 10' finish_reason: None
#   error in the data 'Pay 10' APIError
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "openai==3.57.0"
cat > "$work/run.py" <<'PY'
import http.server
import json
import threading

import openai


def serve(body):
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            self.wfile.write(body.encode())

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/v1"


def chunk(text, reason=None):
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    head = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "mine"}
    return f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"


def read(body):
    text, reason = "", None
    client = openai.OpenAI(base_url=serve(body), api_key="none", max_retries=0)
    messages = [{"role": "user", "content": "How much?"}]
    try:
        for part in client.chat.completions.create(model="mine", messages=messages, stream=True):
            if part.choices:
                text += part.choices[0].delta.content
                reason = part.choices[0].finish_reason
    except openai.APIError as error:
        return text, type(error).__name__
    return text, f"finish_reason: {reason}"


begin = chunk("Pay ") + chunk("10")
seen = {
    "whole": read(begin + chunk("0 euros", "stop") + "data: [DONE]\n\n"),
    "cut": read(begin),
    "cut in an event": read(begin + chunk("0 euros", "stop")[:40]),
    "event: error": read(begin + 'event: error\ndata: {"message": "out of memory"}\n\n'),
    "error in the data": read(begin + 'data: {"error": {"message": "out of memory"}}\n\n'),
}
for name, (text, end) in seen.items():
    print(f"{name:17} {text!r} {end}")
cut = ("Pay 10", "finish_reason: None")
want = [("Pay 100 euros", "finish_reason: stop"), cut, cut, cut, ("Pay 10", "APIError")]
raise SystemExit(list(seen.values()) != want)
PY
"$work/venv/bin/python" "$work/run.py"
