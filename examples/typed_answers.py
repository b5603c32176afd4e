"""Answers with types, from a model that could not keep to a format by itself."""

from concurrent.futures import ThreadPoolExecutor

import dspy
from pydantic import BaseModel, Field

import tallow


class Person(BaseModel):
    name: str = Field(max_length=30)
    age: int = Field(ge=0, le=120)
    city: str = Field(max_length=30)


model = tallow.Model("smollm2")

# A form for one answer: a schema, a list, an expression or a grammar.
text = "Maria Lopez is 34 years old and lives in Madrid."
ask = [{"role": "user", "content": f"Extract the name, age and city as JSON. {text}"}]
print(repr(Person.model_validate_json(model.generate(ask, json_schema=Person, temperature=0).text)))
languages = [" English", " French", " German"]
language = model.generate("The language of the text 'Guten Tag' is", choices=languages, temperature=0)
print(f"Guten Tag:{language}")
moon = [{"role": "user", "content": "In which year did a human first walk on the Moon?"}]
print("on the moon:", model.generate(moon, regex="(19|20)[0-9]{2}", temperature=0))


# DSPy: nothing to configure. Four threads ask at once, and every answer parses at the first call. The form is
# enforced whatever the model; for sense, a small one should have seen a few answers.
class Register(dspy.Signature):
    """Who is the text about?"""

    text: str = dspy.InputField()
    person: Person = dspy.OutputField()


lm = tallow.LM(model, temperature=0.0, max_tokens=80, cache=False)
dspy.configure(lm=lm)
register = dspy.Predict(Register)
register.demos = [
    dspy.Example(text=text, person=Person(name=name, age=age, city=city))
    for text, name, age, city in [
        ("Lena Fischer (28) works in Hamburg.", "Lena Fischer", 28, "Hamburg"),
        ("At 45, Aisha Khan opened a bakery in Leeds.", "Aisha Khan", 45, "Leeds"),
        ("In Toronto we met Dr. Chen, who is 61.", "Dr. Chen", 61, "Toronto"),
    ]
]
TEXTS = [
    "Sofia Rossi is 41 and has a shop in Rome.",
    "Nina, aged 9, goes to school in Ghent.",
    "Hugo Klein, 88, lives in Prague.",
    "Ravi Patel, who lives in Delhi, is 63.",
]
with ThreadPoolExecutor(4) as pool:
    for text, found in zip(TEXTS, pool.map(lambda text: register(text=text), TEXTS), strict=True):
        print(f"{text}\n   {found.person!r}")
print("enforced:", lm.history[-1]["response"].provider_data["format"]["constrained"])
stats = model.stats()
print(
    f"{stats['forced']} of {stats['completion_tokens']} tokens could only be one thing and were not sampled"
)
