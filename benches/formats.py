"""Answers that DSPy cannot read, over HTTP, with ``--dspy`` and without it.

    python benches/formats.py [--model smollm2] [--prompts 20]

The same prompts to the same model by a plain ``dspy.LM("openai/...", api_base=...)``, once against a server
that enforces the formats it finds in prompts and once against one that does not. An answer counts as failed
where DSPy's adapter cannot parse it; nothing is asked twice. Sampled at temperature 1 with one seed a prompt.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")
import dspy
import uvicorn

import tallow
from tallow.serve import app


class Ticket(dspy.Signature):
    """Sort a customer's message."""

    message: str = dspy.InputField()
    queue: Literal["billing", "access", "delivery", "other"] = dspy.OutputField()
    urgent: bool = dspy.OutputField()
    days: int = dspy.OutputField(desc="how long the customer has waited")
    words: list[str] = dspy.OutputField(desc="what it is about")


THINGS = ("invoice", "password", "parcel", "refund", "account")
WORDINGS = (
    "Where is my {}? I have waited for three days.",
    "My {} is wrong, again.",
    "Thank you for the {}!",
    "I asked about a {} last week and nobody answered.",
    "Please cancel the {}, today if you can.",
)
#: Each reads its own form only, and asks no second time in JSON.
ADAPTERS = {
    "ChatAdapter": dspy.ChatAdapter(use_json_adapter_fallback=False),
    "JSONAdapter": dspy.JSONAdapter(),
    "XMLAdapter": dspy.XMLAdapter(use_json_adapter_fallback=False),
}


@contextlib.contextmanager
def served(model: tallow.Model, **given: Any) -> Iterator[str]:
    """The address of a server in this process."""
    made = app({"served": model}, log=None, **given)
    server = uvicorn.Server(uvicorn.Config(made, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()


def failures(url: str, adapter: dspy.Adapter, messages: list[str]) -> int:
    """How many of the answers cannot be read."""

    def fails(seed: int, message: str) -> bool:
        lm = dspy.LM(
            "openai/served",
            api_base=url,
            api_key="none",
            **{"cache": False, "max_tokens": 200, "temperature": 1.0, "seed": seed, "num_retries": 0},
        )
        try:
            with dspy.context(lm=lm, adapter=adapter):
                dspy.Predict(Ticket)(message=message)
        except dspy.utils.exceptions.AdapterParseError:
            return True
        return False

    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(fails, range(len(messages)), messages))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompts", type=int, default=20)
    options = parser.parse_args()
    pairs = itertools.islice(itertools.product(WORDINGS, THINGS), options.prompts)
    messages = [wording.format(thing) for wording, thing in pairs]
    model = tallow.Model(options.model)
    print(f"of {len(messages)} answers DSPy cannot read\n")
    print("| adapter | without | with `--dspy` |\n|---|---:|---:|")
    with served(model) as free, served(model, dspy=True) as enforced:
        for name, adapter in ADAPTERS.items():
            counts = [failures(url, adapter, messages) for url in (free, enforced)]
            print(f"| {name} | {counts[0]} | {counts[1]} |", flush=True)


if __name__ == "__main__":
    main()
