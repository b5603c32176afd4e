"""Fine-tuning in this process: SmolLM2-135M learns to sort the mails of a shop; asked before and after.

What is asked are wordings that it has not seen in training. The labels are learned as DSPy's program would
ask for them; with `dspy.BootstrapFinetune` it would be a teacher's answers. A few minutes on two cores.
"""

import random
from typing import Literal

import dspy

import tallow
import tallow.dspy

#: Of each kind, what the mails that are learned say, and what those that are asked say.
WORDINGS = {
    "billing": (
        [
            "I was charged twice for the {thing}",
            "the invoice for the {thing} shows the wrong amount",
            "my card was debited but I never ordered a {thing}",
            "please send me a receipt for the {thing} that I paid for",
            "why is there an extra fee of {number} euros on my bill",
            "the discount code was not taken off the price of the {thing}",
        ],
        [
            "you took {number} euros too much from my bank account",
            "I need a corrected bill for the {thing}, with VAT on it",
            "there is a payment for a {thing} on my statement that I do not know",
        ],
    ),
    "delivery": (
        [
            "the {thing} has still not arrived",
            "where is my parcel, it was due on {day}",
            "the tracking of order {number} has not moved for a week",
            "the courier left the {thing} with a neighbour who is away",
            "can you ship the {thing} to another address",
            "the driver did not ring and took the {thing} away again",
        ],
        [
            "when will the {thing} be at my door",
            "order {number} should have come on {day}, and nothing came",
            "the postman says that he has no package for me",
        ],
    ),
    "returns": (
        [
            "I want to send the {thing} back, it is too small",
            "how do I return the {thing} that I bought on {day}",
            "the {thing} is not what I expected and I would like my money back",
            "please send me a return label for order {number}",
            "I changed my mind about the {thing}, can I give it back",
            "can I exchange the {thing} for a larger one",
        ],
        [
            "I do not like the {thing}, how can I hand it back to you",
            "is it possible to swap the {thing} for one in blue",
            "I would like a refund for the {thing}, it is unopened",
        ],
    ),
    "account": (
        [
            "I cannot log in, it says that my password is wrong",
            "please change the email address of my profile",
            "how do I delete my account",
            "the link to reset my password does not work",
            "I did not get the code to confirm my registration",
            "my user name is blocked since {day}",
        ],
        [
            "I forgot my password and cannot sign in any more",
            "please close my customer account and erase my data",
            "how can I update the phone number in my profile",
        ],
    ),
    "repair": (
        [
            "the {thing} does not switch on any more",
            "the {thing} makes a loud noise and then stops",
            "the screen of the {thing} stays black",
            "the {thing} broke after {number} days, can it be repaired",
            "the battery of the {thing} is empty within an hour",
            "a button of the {thing} came off, do you have spare parts",
        ],
        [
            "the {thing} stopped working on {day}",
            "the {thing} gets hot and smells of smoke",
            "can one of your technicians fix my {thing}",
        ],
    ),
}
THINGS = ["kettle", "lamp", "radio", "drill", "phone", "toaster", "mixer", "camera", "fan", "printer"]
DAYS = ["Monday", "Tuesday", "Thursday", "Friday", "Saturday"]
OPENINGS = ["Hello,", "Dear team,", "Hi,", "Good morning,", "To whom it may concern:"]
ENDINGS = ["Thank you.", "Please answer soon.", "Kind regards, Ana", "Best, Tom", "I wait for your reply."]


class Sort(dspy.Signature):
    """Which desk does the mail go to?"""

    mail: str = dspy.InputField()
    desk: Literal["billing", "delivery", "returns", "account", "repair"] = dspy.OutputField()


def mails(count: int, seed: int, asked: bool) -> list[dspy.Example]:
    """So many mails, equally many of each kind; ``asked``: in the wordings that are kept for the end."""
    pick, kinds, found = random.Random(seed), list(WORDINGS), []
    for at in range(count):
        desk = kinds[at % len(kinds)]
        wording = pick.choice(WORDINGS[desk][asked])
        said = wording.format(thing=pick.choice(THINGS), number=pick.randint(3, 99), day=pick.choice(DAYS))
        mail = f"{pick.choice(OPENINGS)} {said}. {pick.choice(ENDINGS)}"
        found.append(dspy.Example(mail=mail, desk=desk).with_inputs("mail"))
    pick.shuffle(found)
    return found


def right(example: dspy.Example, answer: dspy.Prediction, trace: object = None) -> bool:
    return example.desk == answer.desk


def main() -> None:
    dspy.disable_logging()  # what is printed below says it all
    lm = tallow.LM("smollm2", temperature=0.0, max_tokens=30, cache=False)
    program = dspy.Predict(Sort)
    program.set_lm(lm)
    asked = mails(60, seed=2, asked=True)
    evaluate = dspy.Evaluate(devset=asked, metric=right, num_threads=8, display_progress=False)
    print(f"before: {evaluate(program).score:.0f} % of {len(asked)} mails go to the right desk")

    rows = tallow.dspy.finetune_rows(program, mails(200, seed=1, asked=False))
    job = lm.finetune(rows, "chat", {"num_train_epochs": 2})
    program.set_lm(job.result())
    for step in job.training.history[:: max(1, len(job.training.history) // 10)]:
        print(f"   step {step.step:3} of {step.steps}: loss {step.loss:.3f}")
    print(f"after:  {evaluate(program).score:.0f} %, with {program.lm.adapter}")
    program.save("sort-mails.json")
    print(f"kept in sort-mails.json, which finds the adapter in {program.lm.adapter.path}")


if __name__ == "__main__":
    main()
