"""The canary: 64 threads, 200 requests each, a secret in every prompt; nobody ever gets what belongs to
another.

Each answer must be, token by token and bit by bit where log probabilities were asked for, the answer that the
same request gets alone, on an engine that keeps nothing from one request to the next. What requests share is
mixed to tempt the engine: beginnings of prompts (whole pages and parts of one), whole requests that run
several times at once, adapters, lengths from 1 to 300 tokens, streams, tasks, streams that are closed
half-way, and filters in Python that spell the secret.
"""

from __future__ import annotations

import asyncio
import json
import random
import string
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import tallow
from conftest import assert_idle, copy_family
from test_adapters import shapes_of, write

THREADS, EACH = 64, 200
LETTERS = string.ascii_lowercase + string.digits
SECRET = 8  # characters: no answer holds one of 12,800 by chance
SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0, "logprobs": 0},
    {"temperature": 0, "repetition_penalty": 1.3},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 20, "logprobs": 2},
    {"temperature": 1.2, "top_p": 0.9, "min_p": 0.02},
]
ADAPTERS = ["first", "second"]
WAYS = ["whole"] * 10 + ["stream"] * 4 + ["cancelled"] * 3


@dataclass(frozen=True)
class Call:
    prompt: str
    secret: str
    way: str
    options: dict[str, Any] = field(hash=False)
    #: The answer is forced to be the secret, by a filter.
    spelled: bool = False

    @property
    def key(self) -> str:
        return json.dumps([self.prompt, self.options, self.spelled and self.secret])


@dataclass(frozen=True)
class Answer:
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[tallow.TokenLogprob, ...] | None
    prompt_tokens: int | None


def calls(count: int) -> list[Call]:
    rng = random.Random(20)
    word = lambda length: "".join(rng.choices(LETTERS + "   ", k=length))
    beginnings = ["", word(7), word(16), word(40), word(41), word(200)]
    made: list[Call] = []
    for _ in range(count):
        if made and rng.random() < 0.1:  # once more, perhaps while the first still runs
            same = rng.choice(made[-100:])
            made.append(Call(same.prompt, same.secret, rng.choice(WAYS), same.options, same.spelled))
            continue
        secret = "".join(rng.choices(LETTERS, k=SECRET))
        length = int(300 ** rng.random())
        prompt = (rng.choice(beginnings) + secret + word(length))[: max(length, 1)] if length > 20 else secret
        options = {**rng.choice(SAMPLING), "max_tokens": rng.randint(1, 12)}
        if options["temperature"]:
            options["seed"] = rng.randrange(2**64)
        if rng.random() < 0.4:
            options["adapter"] = rng.choice(ADAPTERS)
        spelled = rng.random() < 0.05
        if spelled:
            options["max_tokens"] = SECRET
        prompt = prompt[:length] if length < SECRET else prompt
        made.append(Call(prompt, secret, rng.choice(WAYS), options, spelled))
    return made


def arguments(model: tallow.Model, call: Call) -> dict[str, Any]:
    if not call.spelled:
        return call.options
    first, ids = len(model.tokenize(call.prompt)), model.tokenize(call.secret)

    def spell(logits, tokens):
        logits[ids[len(tokens) - first]] = 1e6

    return {**call.options, "filters": [spell]}


def answer(model: tallow.Model, call: Call) -> Answer:
    options = arguments(model, call)
    if call.way == "whole":
        done = model.generate(call.prompt, **options)
        return Answer(done.text, done.tokens, done.logprobs or None, done.usage.prompt_tokens)
    chunks = []
    with model.stream(call.prompt, **options) as stream:
        for chunk in stream:
            chunks.append(chunk)
            if call.way == "cancelled" and len(chunks) == 2:
                break
    return joined(chunks)


async def awaited(model: tallow.Model, call: Call) -> Answer:
    options = arguments(model, call)
    if call.way == "whole":
        done = await model.agenerate(call.prompt, **options)
        return Answer(done.text, done.tokens, done.logprobs or None, done.usage.prompt_tokens)
    chunks = []
    async with model.astream(call.prompt, **options) as stream:
        async for chunk in stream:
            chunks.append(chunk)
            if call.way == "cancelled" and len(chunks) == 2:
                break
    return joined(chunks)


def joined(chunks: list[tallow.Chunk]) -> Answer:
    usage = chunks[-1].usage
    return Answer(
        "".join(chunk.text for chunk in chunks),
        tuple(token for chunk in chunks for token in chunk.tokens),
        tuple(entry for chunk in chunks for entry in chunk.logprobs or ()) or None,
        usage and usage.prompt_tokens,
    )


def together(model: tallow.Model, made: list[Call], threads: int) -> list[Answer | BaseException | None]:
    """All calls, dealt to threads; every eighth thread is an event loop with tasks."""
    found: list[Answer | BaseException | None] = [None] * len(made)
    everyone = threading.Barrier(threads)

    def take(at: int) -> None:
        try:
            found[at] = answer(model, made[at])
        except Exception as error:
            found[at] = error

    async def gather(share: range) -> None:
        for begin in range(0, len(share), 20):
            some = share[begin : begin + 20]
            tasks = [awaited(model, made[at]) for at in some]
            done = await asyncio.gather(*tasks, return_exceptions=True)
            for at, one in zip(some, done, strict=True):
                found[at] = one

    def run(thread: int) -> None:
        share = range(thread, len(made), threads)
        everyone.wait()
        if thread % 8 == 0:
            asyncio.run(gather(share))
        else:
            for at in share:
                take(at)

    workers = [threading.Thread(target=run, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return found


def solo(model: tallow.Model, made: list[Call]) -> dict[str, Answer]:
    """Each different request, whole, one after the other."""
    different = {
        call.key: Call(call.prompt, call.secret, "whole", call.options, call.spelled) for call in made
    }
    return {key: answer(model, call) for key, call in different.items()}


def complaints(made: list[Call], found: list[Any], alone: dict[str, Answer]) -> list[str]:
    secrets = {call.secret for call in made}
    wrong = []
    for at, (call, one) in enumerate(zip(made, found, strict=True)):
        if not isinstance(one, Answer):
            wrong.append(f"{at} {call}: {one!r}")
            continue
        windows = {one.text[i : i + SECRET] for i in range(len(one.text))}
        foreign = (windows & secrets) - {call.secret}
        if foreign:
            wrong.append(f"{at} {call}: a secret of others, {foreign}")
        own = alone[call.key]
        if not same(one, own, call.way == "cancelled"):
            wrong.append(f"{at} {call}:\n  {one}\n  alone: {own}")
    return wrong


def same(one: Answer, own: Answer, part: bool) -> bool:
    if not part or one.prompt_tokens is not None:  # an answer may be over before it could be cancelled
        return one == own
    cut = len(one.tokens)
    return (
        one.tokens == own.tokens[:cut]
        and own.text.startswith(one.text)
        and (own.logprobs is None or one.logprobs == own.logprobs[:cut])
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = copy_family("llama-gqa-tied", tmp_path_factory.mktemp("canary") / "tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 512}))
    return folder


def adapted(folder: Path, **options: Any) -> tallow.Model:
    """The model with the adapters that calls name."""
    model = tallow.Model(folder, **options)
    config = model.config
    for seed, name in enumerate(ADAPTERS):
        adapter = write(folder.parent / name, shapes_of(config), config["num_layers"], seed=seed)
        model.load_adapter(adapter, name=name)
    return model


def test_no_request_gets_what_belongs_to_another(folder):
    made = calls(THREADS * EACH)
    model, lonely = adapted(folder), adapted(folder, prefix_cache=False, speculation=False)
    assert lonely == model and lonely._shared is not model._shared
    alone = solo(lonely, made)
    # The requests are worth comparing: most answers differ, and what is spelled is a secret.
    assert len({(a.tokens, a.logprobs) for a in alone.values()}) > len(alone) / 2
    spelled = [call for call in made if call.spelled]
    assert len(spelled) > 300 and all(alone[call.key].text == call.secret for call in spelled)
    wrong = complaints(made, together(model, made, THREADS), alone)
    assert not wrong, f"{len(wrong)} of {len(made)}\n" + "\n".join(wrong[:5])
    assert_idle(model)
    assert model.stats()["largest_batch"] > 16


def test_it_holds_when_pages_are_scarce(folder):
    """With room for three of the longest: requests wait, lose their pages, and come back."""
    made = calls(1500)
    cache = tallow.Model(folder).stats()
    page = cache["kv_bytes"] // cache["pages"]
    model = adapted(folder, kv_memory=60 * page)
    alone = solo(adapted(folder, prefix_cache=False, speculation=False), made)
    wrong = complaints(made, together(model, made, THREADS), alone)
    assert not wrong, f"{len(wrong)} of {len(made)}\n" + "\n".join(wrong[:5])
    assert_idle(model)
    assert model.stats()["kv_bytes"] <= 60 * page


def test_the_check_would_see_a_leak(folder):
    made = calls(300)
    model = adapted(folder)
    alone = solo(model, made)
    found = [alone[call.key] for call in made]
    assert not complaints(made, found, alone)
    rng = random.Random(2)
    for _ in range(20):
        one, other = rng.sample(range(len(made)), 2)
        if alone[made[one].key] == alone[made[other].key]:
            continue
        mixed = list(found)
        mixed[one], mixed[other] = found[other], found[one]
        assert complaints(made, mixed, alone), (made[one], made[other])


def test_a_real_model_keeps_secrets(smollm2):
    """SmolLM2 repeats the code that it was told, and never one that somebody else was told."""
    rng = random.Random(7)
    codes = [str(rng.randrange(10_000, 100_000)) for _ in range(16)]
    prompts = [f"Remember the code {code}. Say the code {code} again: the code is" for code in codes]
    options: list[dict[str, Any]] = [
        {"max_tokens": 7, "temperature": 0}
        | ({} if at % 3 else {"temperature": 0.5, "seed": at, "logprobs": 1})
        for at in range(len(codes))
    ]
    lonely = tallow.Model("smollm2", prefix_cache=False, speculation=False, progress=False)
    assert lonely == smollm2 and lonely._shared is not smollm2._shared
    alone = [lonely.generate(prompt, **given) for prompt, given in zip(prompts, options, strict=True)]
    lonely.close()
    found: list[Any] = [None] * len(codes)

    def run(at: int) -> None:
        found[at] = smollm2.generate(prompts[at], **options[at])

    threads = [threading.Thread(target=run, args=(at,)) for at in range(len(codes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = lambda answer: (answer.text, answer.tokens, answer.logprobs)
    assert [content(one) for one in found] == [content(one) for one in alone]
    told = [{code for code in codes if code in answer.text} for answer in found]
    assert not [at for at, seen in enumerate(told) if seen - {codes[at]}]
    assert sum(codes[at] in seen for at, seen in enumerate(told)) > len(codes) / 2
    assert_idle(smollm2)
