"""Two replicas of a server behind Ray Serve, where prompts that begin with the same instructions reach the
same replica. Run it where Ray is (`make ray`): target/ray/bin/python examples/ray_serve.py"""

import json
import os
import urllib.request

from tallow.serve import ray as on_ray

# Before Ray starts: its proxies make a session of a request's instructions, and its router goes by that.
os.environ.update(on_ray.PROXY)

import ray
from ray import serve

PORT = 8790


def asked(instructions: str, question: str) -> dict:
    messages = [{"role": "system", "content": instructions}, {"role": "user", "content": question}]
    data = json.dumps({"messages": messages, "temperature": 0, "max_tokens": 12}).encode()
    address = f"http://127.0.0.1:{PORT}/v1/chat/completions"
    request = urllib.request.Request(address, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


ray.init("local", num_cpus=3, include_dashboard=False, object_store_memory=200_000_000, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": PORT})
serve.run(on_ray.deployment("smollm2", threads=1, replicas=2, log=None))

for trade in ("cook", "sailor", "gardener"):
    instructions = f"You are an old {trade}, and answer in one short sentence. " * 8
    for question in ("What do you do in the morning?", "What do you like best?", "What is hard?"):
        found = asked(instructions, question)
        usage = found["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        print(f"{trade}: {cached} of {usage['prompt_tokens']} tokens of the prompt were in the cache")
serve.shutdown()
ray.shutdown()
