"""A filter written in Python: it sees the logits before each token, and edits them in place."""

import numpy as np

import tallow

model = tallow.Model("smollm2")
with_e = np.array([token for token in range(model.vocab_size) if "e" in model.detokenize([token]).lower()])


def no_e(logits: np.ndarray, tokens: np.ndarray) -> None:
    """Forbids every token that has the letter e in it, as Georges Perec did for a whole novel."""
    logits[with_e] = -np.inf


prompt = [{"role": "user", "content": "Describe a cat in one sentence."}]
for name, filters in (("free", []), ("without e", [no_e])):
    answer = model.generate(prompt, max_tokens=40, temperature=0, filters=filters).text
    print(f"{name}: {answer}  [e: {answer.lower().count('e')}]")
