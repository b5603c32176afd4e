"""What memory a model takes beside its weights, keys, values and states.

    python benches/memory.py FILE.gguf ...

Each file in a process of its own: loaded, a prompt of 512 tokens, then 32 requests at once with 400 tokens
in common, 80 of their own and 48 new ones. The peak is that of the process above an interpreter with numpy.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import threading
from pathlib import Path

from peers.worker import peak_mib

COMMON, OWN, NEW, PROMPT, REQUESTS = 400, 80, 48, 512, 32


def measure(path: str) -> None:
    before = peak_mib()
    import tallow

    model = tallow.Model(path, progress=False, speculation=False)
    draw = random.Random(0)
    ids = lambda count: [draw.randrange(model.vocab_size) for _ in range(count)]
    endless = dict.fromkeys(model.eos_ids, -100.0)
    ask = lambda prompt, new: model.generate(prompt, max_tokens=new, temperature=0, logit_bias=endless)
    ask(ids(PROMPT), 1)
    common = ids(COMMON)
    prompts = [common + ids(OWN) for _ in range(REQUESTS)]
    threads = [threading.Thread(target=ask, args=(prompt, NEW)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    peak, kept = peak_mib() - before, model.stats()["touched_kv_bytes"] / 2**20
    weights = model.weight_bytes / 2**20
    share = peak / (weights + kept)
    print(f"{Path(path).name:32}{peak:8.0f}{weights:10.0f}{kept:18.0f}{share:8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", metavar="FILE.gguf")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        return measure(args.files[0])
    print(f"{'MiB':32}{'peak':>8}{'weights':>10}{'keys and states':>18}{'share':>8}", flush=True)
    for file in args.files:
        subprocess.run([sys.executable, __file__, "--here", file], check=True)


if __name__ == "__main__":
    main()
