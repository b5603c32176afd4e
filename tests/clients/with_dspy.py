"""DSPy: a server of ours is found by its name, gets schemas, and enforces what the adapters ask for."""

from typing import Literal

import dspy

import tallow  # noqa: F401  (tells DSPy of "tallow/": at TALLOW_BASE_URL, or this machine's port 8000)


class Review(dspy.Signature):
    """Judge a review."""

    review: str = dspy.InputField()
    mood: Literal["good", "bad"] = dspy.OutputField()
    stars: int = dspy.OutputField()


lm = dspy.LM("tallow/smollm2", max_tokens=100, cache=False)
for adapter in (dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()):
    with dspy.context(lm=lm, adapter=adapter):
        found = dspy.Predict(Review)(review="A lovely film, a little long.")
    print(type(adapter).__name__, found.mood, found.stars)
    assert found.mood in ("good", "bad") and isinstance(found.stars, int)
assert len(lm.history) == 3, "an answer was asked for twice"
