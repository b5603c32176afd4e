# Plain server-sent events, as web pages and shell scripts read them.
URL=${TALLOW_BASE_URL:-http://127.0.0.1:8000/v1}
curl --silent --fail --no-buffer "$URL/chat/completions" -H 'content-type: application/json' -d '{
  "model": "smollm2", "stream": true, "max_tokens": 20,
  "messages": [{"role": "user", "content": "The capital of France is?"}]
}' | tail -n 2 | grep --max-count 1 '^data: \[DONE\]$'
