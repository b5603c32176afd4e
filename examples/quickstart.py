"""A DSPy program on a model in this process: no server, no key, nothing but `pip install "tallow[dspy]"`."""

import argparse
import time

import dspy

import tallow

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument(
    "--model", default="smollm2", help="any source that tallow.Model takes (default: smollm2)"
)
parser.add_argument("--question", default="What is the capital of France?")
options = parser.parse_args()

began = time.perf_counter()
model = tallow.Model(options.model)
print(f"{model}\nloaded in {time.perf_counter() - began:.2f} s\n")

# Greedy, and no cache, so that every run really computes. The format is enforced, whatever the model; for
# sense, one of 135 million parameters should have seen two answers.
lm = tallow.LM(model, temperature=0.0, max_tokens=200, cache=False)
dspy.configure(lm=lm, track_usage=True)
seen = [
    dspy.Example(
        question="Which planet is closest to the Sun?",
        reasoning="The planets in order from the Sun begin with Mercury.",
        answer="Mercury",
    ),
    dspy.Example(
        question="Who wrote Hamlet?",
        reasoning="Hamlet is a play of Shakespeare.",
        answer="William Shakespeare",
    ),
]


def ask(name: str, program: dspy.Module) -> None:
    for predictor in program.predictors():
        predictor.demos = seen
    print(f"{name}: {options.question}")
    prediction = program(question=options.question)
    for field, value in prediction.items():
        print(f"   {field}: {value.strip()}")
    usage = prediction.get_lm_usage()[lm.model]
    speed = lm.history[-1]["response"].provider_data["tokens_per_second"]
    tokens = f"{usage['prompt_tokens']} + {usage['completion_tokens']} tokens"
    print(f"   [{tokens}, {speed:.0f} tokens a second]\n")


ask("dspy.Predict", dspy.Predict("question -> answer"))
ask("dspy.ChainOfThought", dspy.ChainOfThought("question -> answer"))

print("The same model without DSPy, streamed:\n   ", end="")
messages = [{"role": "user", "content": "What is photosynthesis? Answer in two sentences."}]
with model.stream(messages, max_tokens=80, temperature=0.0) as chunks:
    for chunk in chunks:
        print(chunk.text, end="", flush=True)
usage = chunk.usage
print(f"\n   [{usage.prompt_tokens} + {usage.completion_tokens} tokens in {chunk.timings.total:.2f} s]\n")

stats = lm.stats()
print(f"In all: {stats['requests']} requests, {stats['completion_tokens']} tokens generated")
