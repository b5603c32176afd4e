"""Sixty-four requests on one event loop. No thread a request; a cancelled task ends its request at once."""

import asyncio
import time

import tallow

model = tallow.Model("smollm2")


async def main() -> None:
    began = time.perf_counter()
    prompts = [f"{number} plus {number} is" for number in range(64)]
    answers = await asyncio.gather(
        *(model.agenerate(prompt, max_tokens=8, temperature=0) for prompt in prompts)
    )
    print(f"{prompts[2]}{answers[2]!s}")
    tokens = sum(answer.usage.completion_tokens for answer in answers)
    print(f"{len(answers)} answers, {tokens} tokens in {time.perf_counter() - began:.1f} s")

    try:
        await asyncio.wait_for(
            model.agenerate("Once upon a time", max_tokens=4000, temperature=0), timeout=0.2
        )
        print("it was quick enough")
    except asyncio.TimeoutError:
        print("given up after 0.2 s, and the engine with it:", model.stats()["running"], "running")


asyncio.run(main())
