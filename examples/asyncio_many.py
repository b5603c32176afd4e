"""Sixty-four requests on one event loop. No thread a request; a cancelled task ends its request at once."""

import asyncio
import time

import tallow

model = tallow.Model("smollm2")


async def next_number(first: int) -> str:
    prompt = f"{first}, {first + 1}, {first + 2},"
    return str(await model.agenerate(prompt, max_tokens=6, stop=",", temperature=0))


async def main() -> None:
    began = time.perf_counter()
    answers = await asyncio.gather(*(next_number(first) for first in range(64)))
    print(f"7, 8, 9,{answers[7]}")
    right = sum(answer.strip() == str(first + 3) for first, answer in enumerate(answers))
    print(f"{len(answers)} answers in {time.perf_counter() - began:.1f} s, {right} of them right")

    endless = model.agenerate(
        "Once upon a time", temperature=0, logit_bias=dict.fromkeys(model.eos_ids, -100)
    )
    try:
        await asyncio.wait_for(endless, timeout=0.2)
    except asyncio.TimeoutError:
        print("a story without an end: given up after 0.2 s")
    while model.stats()["running"]:  # the engine sees it at its next step, some milliseconds later
        await asyncio.sleep(0.001)
    print("and the engine works at nothing any more")


asyncio.run(main())
