"""Answers with types, from a model that could not keep to a format by itself."""

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import dspy
from pydantic import BaseModel, Field

import tallow


class Ticket(BaseModel):
    subject: str = Field(max_length=40)
    team: Literal["kitchen", "rooms", "desk"]
    urgent: bool


MESSAGES = [
    "Water is coming through the ceiling of my room!",
    "Could I have the recipe of yesterday's soup?",
    "I would like to stay one night longer.",
    "The eggs were cold, again.",
]
model = tallow.Model("smollm2")

# A form for one answer: a schema, a list, an expression or a grammar.
ask = [{"role": "user", "content": f"Make a ticket of this message: {MESSAGES[0]}"}]
print(repr(Ticket.model_validate_json(model.generate(ask, json_schema=Ticket, max_tokens=60).text)))
print(model.generate("The answer to everything is", regex=r" [0-9]{2}\.", max_tokens=8))


# DSPy: nothing to configure. Four threads ask at once, and every answer parses at the first call.
class Sort(dspy.Signature):
    """Sort the guest's message."""

    message: str = dspy.InputField()
    ticket: Ticket = dspy.OutputField()
    days_to_answer: int = dspy.OutputField(ge=0, le=7)


lm = tallow.LM(model, max_tokens=120, cache=False)
dspy.configure(lm=lm)
sort = dspy.Predict(Sort)
with ThreadPoolExecutor(4) as pool:
    for message, found in zip(MESSAGES, pool.map(lambda text: sort(message=text), MESSAGES), strict=True):
        print(f"{message}\n   {found.ticket!r}, within {found.days_to_answer} days")
print(lm.history[-1]["response"].provider_data["format"])
stats = model.stats()
print(f"{stats['forced']} of {stats['completion_tokens']} tokens were never sampled")
