"""Writes tests/golden/sample/transformers.json: what transformers' logits processors make of random rows.

    python scripts/golden/sampling.py [output]

Needs torch and transformers (made with 2.8.0 and 5.23.0; the file notes its own). Each case holds the
arguments, the ids that are left, and their log probabilities after renormalization. The chain is the one
`generate` builds: bias, repetition penalty, temperature, top-k, top-p, min-p, typical. Rows are multiples of
1/4096, so that JSON holds them exactly; all logits of a row differ, because ties are broken differently.
"""

import json
import pathlib
import sys

import torch
import transformers
from transformers.generation import logits_process as lp

VOCAB = 160

ARGUMENTS = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 1000},
    {"top_p": 0.1},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"min_p": 0.02},
    {"min_p": 0.3},
    {"min_p": 1.0},
    {"typical_p": 0.2},
    {"typical_p": 0.9},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"logit_bias": {"3": 5.0, "150": -100.0, "7": -1.5}},
    {"temperature": 0.7, "top_k": 40, "top_p": 0.9},
    {"temperature": 1.4, "top_k": 50, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.1},
    {"temperature": 1.2, "top_p": 0.97, "typical_p": 0.5, "logit_bias": {"0": 2.0}},
]


def processors(a):
    chain = lp.LogitsProcessorList()
    if "logit_bias" in a:
        bias = {(int(token),): value for token, value in a["logit_bias"].items()}
        chain.append(lp.SequenceBiasLogitsProcessor(bias))
    for name, make in [
        ("repetition_penalty", lp.RepetitionPenaltyLogitsProcessor),
        ("temperature", lp.TemperatureLogitsWarper),
        ("top_k", lp.TopKLogitsWarper),
        ("top_p", lp.TopPLogitsWarper),
        ("min_p", lp.MinPLogitsWarper),
        ("typical_p", lp.TypicalLogitsWarper),
    ]:
        if name in a:
            chain.append(make(a[name]))
    return chain


def row(spread, generator):
    """One row of logits that all differ."""
    while True:
        logits = (torch.randn(VOCAB, generator=generator) * spread * 4096).round() / 4096
        if len(logits.unique()) == VOCAB:
            return logits


def main():
    here = pathlib.Path(__file__).resolve().parents[2]
    output = pathlib.Path(
        sys.argv[1] if len(sys.argv) > 1 else here / "tests/golden/sample/transformers.json"
    )
    generator = torch.Generator().manual_seed(20)
    rows, cases = [], []
    for index, spread in enumerate([0.3, 1.0, 3.0, 8.0]):
        logits = row(spread, generator)
        history = torch.randint(0, VOCAB, (30,), generator=generator)
        rows.append({"logits": logits.tolist(), "history": history.tolist()})
        for arguments in ARGUMENTS:
            scores = processors(arguments)(history[None], logits[None].clone())[0]
            kept = [token for token in range(VOCAB) if scores[token] > float("-inf")]
            logprobs = scores.double().log_softmax(-1)[kept]
            shown = [float(f"{value:.7g}") for value in logprobs.tolist()]
            cases.append({"row": index, "arguments": arguments, "kept": kept, "logprobs": shown})
    made = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}
    output.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(case) for case in cases)
    head = f'"made_with": {json.dumps(made)},\n"rows": {json.dumps(rows)}'
    output.write_text(f'{{{head},\n"cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
