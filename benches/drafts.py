"""What drafts bring where answers repeat their prompts, and what they cost where they do not.

    python benches/drafts.py [--model smollm2] [--draft MODEL]

The same answers with and without speculation, in turns; the best of three rounds of each. The tokens must be
the same. With a draft model, "right" is the share of its tokens that were right. (What one of a given quality
would bring, `cargo bench --bench drafts` tells.)
"""

from __future__ import annotations

import argparse

import tallow

PASSAGE = (
    "The harbour lies at the mouth of the river. Fishing boats leave before dawn and return at noon, and the "
    "market on the quay opens when the first of them has landed. On Sundays the boats stay in, and the quay "
    "belongs to children, dogs and the band of the fire brigade."
)
PROMPTS = {
    "copies a passage": [{"role": "user", "content": f"Repeat this text exactly:\n{PASSAGE}"}],
    "counts": "Numbers: one, two, three, four, five, six,",
    "tells a story": "Once upon a time, in a small village by the sea,",
    "explains": [{"role": "user", "content": "Explain what photosynthesis is and why it matters."}],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=160, help="tokens of an answer at most")
    parser.add_argument("--draft", help="a smaller model of the same vocabulary")
    given = parser.parse_args()
    models = {
        False: tallow.Model(given.model, speculation=False),
        True: tallow.Model(given.model, draft=given.draft),
    }
    for model in models.values():
        model.generate("Once", max_tokens=20)
    print("| answer | without, tokens/s | with, tokens/s | ratio | right |\n|---|---|---|---|---|")
    for name, prompt in PROMPTS.items():
        best = dict.fromkeys(models, 0.0)
        tokens, before = set(), models[True].stats()
        for _ in range(3):
            for on, model in models.items():
                answer = model.generate(prompt, max_tokens=given.tokens, temperature=0)
                best[on] = max(best[on], len(answer.tokens) / answer.timings.decode)
                tokens.add(answer.tokens)
        assert len(tokens) == 1, "drafts changed an answer"
        after = models[True].stats()
        counts = ("model_accepted", "model_drafted") if given.draft else ("accepted", "drafted")
        right, drafted = (after[count] - before[count] for count in counts)
        print(
            f"| {name} | {best[False]:.1f} | {best[True]:.1f} | {best[True] / best[False]:.2f} "
            f"| {right / max(drafted, 1):.2f} of {drafted} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
