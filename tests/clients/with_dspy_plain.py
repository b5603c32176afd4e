"""DSPy by its providers for any server, against ``tallow serve smollm2 --dspy``."""

import os
from typing import Literal

import dspy

URL = os.environ.get("TALLOW_BASE_URL", "http://127.0.0.1:8000/v1")


class Review(dspy.Signature):
    """Judge a review."""

    review: str = dspy.InputField()
    mood: Literal["good", "bad"] = dspy.OutputField()
    stars: int = dspy.OutputField()


for name in ("openai/smollm2", "hosted_vllm/smollm2"):
    lm = dspy.LM(name, api_base=URL, api_key="none", max_tokens=100, cache=False)
    with dspy.context(lm=lm):
        found = dspy.Predict(Review)(review="A lovely film, a little long.")
    print(name, found.mood, found.stars, lm.history[-1]["response"].provider_data["format"])
    assert len(lm.history) == 1, "an answer was asked for twice"
