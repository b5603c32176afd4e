"""Writes tests/golden/train/adamw.json: what torch's AdamW and clip_grad_norm_ make of random gradients.

    python scripts/golden/optimizer.py [output]

Needs torch (made with 2.15.0; the file notes its own). Each case holds a weight decay, the longest gradient
that is not clipped, a first value of each parameter, and of each step a learning rate and a gradient; then,
after each step, the length of the gradient and the parameters. Inputs are multiples of 1/4096, so that JSON
holds them exactly.
"""

import json
import pathlib
import sys

import torch

COUNT = 12
STEPS = 8
#: weight decay, longest gradient, size of the gradients, learning rate.
CASES = [
    (0.0, 1e9, 1.0, 1e-3),
    (0.0, 1.0, 1.0, 1e-3),
    (0.1, 1.0, 8.0, 1e-2),
    (0.01, 1e9, 1 / 1024, 0.5),
]


def exact(values: torch.Tensor) -> torch.Tensor:
    return (values * 4096).round() / 4096


def case(decay: float, longest: float, size: float, rate: float, seed: int) -> dict:
    draw = torch.Generator().manual_seed(seed)
    parameter = torch.nn.Parameter(exact(torch.randn(COUNT, generator=draw)))
    optimizer = torch.optim.AdamW([parameter], lr=rate, weight_decay=decay, foreach=False)
    found = {"weight_decay": decay, "max_norm": longest, "params": parameter.tolist(), "steps": []}
    for step in range(STEPS):
        gradient = exact(torch.randn(COUNT, generator=draw) * size)
        gradient[step % COUNT] = 0
        parameter.grad = gradient.clone()
        norm = torch.nn.utils.clip_grad_norm_([parameter], longest)
        optimizer.param_groups[0]["lr"] = rate * (step + 1) / STEPS
        optimizer.step()
        found["steps"].append(
            {
                "rate": rate * (step + 1) / STEPS,
                "gradient": gradient.tolist(),
                "norm": norm.item(),
                "params": parameter.tolist(),
            }
        )
    return found


def main() -> None:
    here = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/train/adamw.json"
    output = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here
    cases = [case(*row, seed) for seed, row in enumerate(CASES)]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"torch": torch.__version__, "cases": cases}) + "\n")


if __name__ == "__main__":
    main()
