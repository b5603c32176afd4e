"""Decisions with probabilities: a `Judge` measures how likely each answer is, and writes nothing.

DSPy asks it for every output of a signature that has finitely many answers. What a small model ranks well but
answers too eagerly with yes, DSPy's ReAnchor puts right from a handful of examples.
"""

import dspy
from dspy.experimental import Noul, ReAnchor

import tallow


class Triage(dspy.Signature):
    """Sort the reviews of a shop."""

    review: str = dspy.InputField()
    happy: Noul = dspy.OutputField(desc="Is the review positive?")


seen = [
    ("I loved every minute of this film.", True),
    ("A wonderful book, I could not put it down.", True),
    ("Great value, it works perfectly.", True),
    ("The soup was cold and the staff were rude.", False),
    ("It broke after two days, a waste of money.", False),
    ("The concert was a complete disaster.", False),
]
new = ["This phone is terrible.", "An inspiring and beautiful story.", "The parcel came late and damaged."]
dspy.disable_logging()  # what is printed below says it all


def show(title: str, program: dspy.Module) -> None:
    print(title)
    for review in new:
        happy = program(review=review).happy
        print(f"   {'happy' if happy else 'not  '}  {happy.probability:.3f}  {review}")


dspy.configure(lm=tallow.Judge("smollm2"))
program = dspy.Predict(Triage)
show("As the model sees it:", program)

examples = [dspy.Example(review=review, happy=happy).with_inputs("review") for review, happy in seen]
reanchor = ReAnchor(lambda example, prediction: example.happy == bool(prediction.happy))
program = reanchor.compile(program, trainset=examples)
threshold = program.fields["happy"]["threshold"]
show(f"After ReAnchor, which moved the threshold from 0.5 to {threshold}:", program)
