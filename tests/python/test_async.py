"""asyncio: the same answers, many at once, cancelled when their task is, on any number of loops."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

import tallow

PROMPTS = [f"number {i} is" for i in range(64)]
ENDLESS = "once upon a time"


def never_ends(model) -> dict:
    return {"temperature": 0, "logit_bias": dict.fromkeys(model.eos_ids, -100.0)}


def wait_until_idle(model) -> None:
    deadline = time.monotonic() + 60
    while model.stats()["running"] or model.stats()["waiting"]:
        assert time.monotonic() < deadline, model.stats()
        time.sleep(0.01)


def test_many_at_once_are_what_they_are_alone(tiny):
    async def all_of_them():
        return await asyncio.gather(*(tiny.agenerate(p, max_tokens=8, temperature=0) for p in PROMPTS))

    before = threading.active_count()
    answers = asyncio.run(all_of_them())
    assert [a.text for a in answers] == [tiny.generate(p, max_tokens=8, temperature=0).text for p in PROMPTS]
    assert threading.active_count() <= before + 2  # one thread for all, and the engine's own


def test_astream_is_generate(tiny):
    async def stream():
        return [
            chunk async for chunk in tiny.astream(ENDLESS, max_tokens=20, seed=1, temperature=1.0, logprobs=1)
        ]

    chunks = asyncio.run(stream())
    whole = tiny.generate(ENDLESS, max_tokens=20, seed=1, temperature=1.0, logprobs=1)
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert tuple(entry for chunk in chunks for entry in chunk.logprobs or ()) == whole.logprobs
    assert chunks[-1].usage == whole.usage


def test_agenerate_with_n_is_generate_with_n(tiny):
    options = {"n": 3, "seed": 4, "temperature": 1.0, "max_tokens": 12}
    answers = asyncio.run(tiny.agenerate(ENDLESS, **options))
    assert [a.text for a in answers] == [a.text for a in tiny.generate(ENDLESS, **options)]


def test_a_cancelled_task_cancels_its_request(smollm2):
    async def cancel():
        task = asyncio.create_task(smollm2.agenerate(ENDLESS, **never_ends(smollm2)))
        deadline = time.monotonic() + 60
        while smollm2.stats()["running"] != 1:  # a busy machine may take its time
            assert time.monotonic() < deadline, smollm2.stats()
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    wait_until_idle(smollm2)


def test_leaving_a_stream_cancels_its_request(smollm2):
    async def leave():
        async with smollm2.astream(ENDLESS, **never_ends(smollm2)) as chunks:
            async for _ in chunks:
                break

    asyncio.run(leave())
    wait_until_idle(smollm2)


def test_the_loop_goes_on_while_the_model_works(smollm2):
    async def beat():
        task = asyncio.create_task(smollm2.agenerate(ENDLESS, max_tokens=40, **never_ends(smollm2)))
        longest, last = 0.0, time.monotonic()
        while not task.done():
            await asyncio.sleep(0.002)
            now = time.monotonic()
            longest, last = max(longest, now - last), now
        return longest

    # The best of three: a busy machine may keep any thread waiting.
    assert min(asyncio.run(beat()) for _ in range(3)) < 0.1


def test_several_loops_in_several_threads(tiny):
    expected = tiny.generate(ENDLESS, max_tokens=20, temperature=0).text
    found: list[str] = []

    def loop() -> None:
        async def some():
            return await asyncio.gather(
                *(tiny.agenerate(ENDLESS, max_tokens=20, temperature=0) for _ in range(8))
            )

        found.extend(answer.text for answer in asyncio.run(some()))

    threads = [threading.Thread(target=loop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 32


def test_errors_are_raised_where_they_are_awaited(tiny):
    def breaks(logits, tokens):
        raise KeyError("my own mistake")

    async def run():
        with pytest.raises(tallow.ContextLengthError):
            await tiny.agenerate("x" * 500)
        with pytest.raises(tallow.InvalidRequestError, match="'max_tokens'"):
            await tiny.agenerate("x", max_token=3)
        with pytest.raises(KeyError, match="my own mistake"):
            await tiny.agenerate("x", filters=[breaks])
        with pytest.raises(tallow.Timeout):
            await tiny.agenerate("x", timeout=1e-6)
        return await tiny.agenerate("x", max_tokens=2, temperature=0)

    assert asyncio.run(run()).tokens == tiny.generate("x", max_tokens=2, temperature=0).tokens


def test_a_stream_that_nobody_reads_harms_nobody(tiny):
    async def run():
        idle = tiny.astream(ENDLESS, max_tokens=60, temperature=0)
        await tiny.agenerate(ENDLESS, max_tokens=10, temperature=0)
        await idle.aclose()

    asyncio.run(run())
    wait_until_idle(tiny)
