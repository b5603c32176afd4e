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

# A small model keeps to a format best when it is greedy. No cache, so that every run really computes.
lm = tallow.LM(model, temperature=0.0, max_tokens=200, cache=False)
dspy.configure(lm=lm, track_usage=True)


def ask(name: str, program: dspy.Module) -> None:
    print(f"{name}: {options.question}")
    try:
        prediction = program(question=options.question)
    except dspy.utils.AdapterParseError as error:
        # 135 million parameters do not always keep to DSPy's format. Then this is what it said instead.
        print(f"   (not in DSPy's format) {error.lm_response.strip()}\n")
        return
    for field, value in prediction.items():
        print(f"   {field}: {value}")
    usage = prediction.get_lm_usage()[lm.model]
    speed = lm.history[-1]["response"][-1].provider_data["tokens_per_second"]
    print(f"   [{usage['prompt_tokens']} + {usage['completion_tokens']} tokens, {speed:.0f} tokens/s]\n")


ask("dspy.Predict", dspy.Predict("question -> answer"))
ask("dspy.ChainOfThought", dspy.ChainOfThought("question -> answer"))

print("Streamed, without DSPy:\n   ", end="")
messages = [{"role": "user", "content": "Why is the sky blue? Answer in two sentences."}]
with model.stream(messages, max_tokens=80, temperature=0.0) as chunks:
    for chunk in chunks:
        print(chunk.text, end="", flush=True)
usage = chunk.usage
print(f"\n   [{usage.prompt_tokens} + {usage.completion_tokens} tokens in {chunk.timings.total:.2f} s]\n")

stats = lm.stats()
print(f"In all: {stats['requests']} requests, {stats['completion_tokens']} tokens generated")
