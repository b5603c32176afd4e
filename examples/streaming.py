"""The answer as it is written, and how to stop early: leaving the `with` block ends the request."""

import tallow

model = tallow.Model("smollm2")
messages = [{"role": "user", "content": "Write a short story about a lighthouse."}]

sentences = 0
with model.stream(messages, max_tokens=200, seed=1) as chunks:
    for chunk in chunks:
        print(chunk.text, end="", flush=True)
        sentences += chunk.text.count(".")
        if sentences >= 3:
            break

print("\n\n(Three sentences are enough: left there, and the request has ended.)")
