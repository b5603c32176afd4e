"""Beginnings and ends: whatever is dropped, closed, forked, copied or left in flight, nothing hangs or
crashes, pages come back, and who shares the engine never notices.

Three tables: ``ENDINGS`` are ways to end a request, in this process, beside a bystander whose answer must not
change; ``PROGRAMS`` run in a process of their own, because a failure may hang or kill it; ``COPIES`` are
values. Timeouts are generous, for they only tell a hang from a busy machine.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import pickle
import shutil
import sys
import threading
import time

import pytest

import tallow
from conftest import assert_idle, copy_family, pages_are_back, python

BYSTANDER = {"prompt": "The bystander counts: one, two, three,", "max_tokens": 24, "temperature": 0}


def endless(model) -> dict:
    return {"temperature": 0, "logit_bias": dict.fromkeys(model.eos_ids, -100.0)}


@pytest.fixture(scope="module")
def engine(smollm2):
    """SmolLM2 with an engine of its own, so that its pages can be counted."""
    model = tallow.Model("smollm2", kv_memory="500MB", progress=False)
    assert model == smollm2 and model._shared is not smollm2._shared
    yield model
    model.close()


# Requests that end before their time


def closed_stream(model):
    with model.stream("once", **endless(model)) as chunks:
        next(chunks)


def dropped_stream(model):
    chunks = model.stream("once", **endless(model))
    next(chunks)
    del chunks


def dropped_stream_unread(model):
    model.stream("once", **endless(model))


def stream_in_a_cycle(model):
    holder = [model.stream("once", **endless(model))]
    holder.append(holder)
    del holder
    gc.collect()


def stream_closed_by_another_thread(model):
    chunks = model.stream("once", **endless(model))
    seen: list[object] = []

    def read():
        seen.extend(chunks)
        seen.append("end")

    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(0.1)
    chunks.close()
    reader.join(60)
    assert not reader.is_alive() and seen[-1] == "end"


def astream_closed_by_another_task(model):
    async def run():
        chunks = model.astream("word " * 2000, **endless(model))

        async def read():
            return [chunk async for chunk in chunks]

        reading = asyncio.create_task(read())
        await asyncio.sleep(0.1)
        await chunks.aclose()
        assert await asyncio.wait_for(reading, 60) == []

    asyncio.run(run())


def cancelled_task(model):
    async def run():
        task = asyncio.create_task(model.agenerate("once", n=3, **endless(model)))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


def waited_for_too_long(model):
    async def run():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(model.agenerate("once", **endless(model)), 0.2)

    asyncio.run(run())


def task_group_fails(model):
    async def fails():
        await asyncio.sleep(0.1)
        raise KeyError("mine")

    async def run():
        with pytest.raises(KeyError):
            await asyncio.gather(fails(), model.agenerate("once", **endless(model)))
        # gather leaves the others alone; the end of the loop cancels them

    asyncio.run(run())


def dropped_coroutine(model):
    """Begun, and dropped with its loop."""
    coroutine = model.agenerate("once", **endless(model))
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(asyncio.wait([loop.create_task(_begin(coroutine))], timeout=0.2))
    finally:
        loop.close()
    coroutine.close()


async def _begin(coroutine):
    coroutine.send(None)


def dropped_astream(model):
    async def run():
        chunks = model.astream("once", **endless(model))
        async for _ in chunks:
            break
        del chunks
        await wait_until_idle_but_one(model)

    asyncio.run(run())


async def wait_until_idle_but_one(model):
    """Not merely at the end of the loop: the request ends when its stream is dropped."""
    deadline = time.monotonic() + 60
    while model.stats()["running"] > 1:
        assert time.monotonic() < deadline, model.stats()
        await asyncio.sleep(0.01)


def deadline(model):
    with pytest.raises(tallow.Timeout):
        model.generate("once", timeout=0.2, **endless(model))


def deadline_in_a_prompt(model):
    with pytest.raises(tallow.Timeout):
        model.generate("word " * 3000, timeout=0.2)


def filter_raises(model):
    def breaks(logits, tokens):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError):
        model.generate("once", filters=[breaks], **endless(model))


def one_filter_of_many_raises(model):
    """The other candidates end with it, although the traceback still holds them."""
    turns = iter(range(1000))

    def breaks(logits, tokens):
        if next(turns) == 5:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError) as caught:
        model.generate("once", n=4, filters=[breaks], **endless(model))
    assert caught.tb is not None
    asyncio.run(wait_until_idle_but_one(model))


def lm_stream(model):
    import dspy

    request = dspy.lm15.Request(
        model="x", messages=(dspy.lm15.Message.user("hello"),), config=dspy.lm15.Config()
    )
    events = tallow.LM(model, cache=False).engine.stream(request)
    next(events)
    next(events)
    del events


def lm_call_cancelled(model):
    lm = tallow.LM(model, cache=False, n=2, logit_bias=dict.fromkeys(map(str, model.eos_ids), -100.0))

    async def run():
        task = asyncio.create_task(lm.acall("once upon a time"))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


ENDINGS = [
    *(closed_stream, dropped_stream, dropped_stream_unread, stream_in_a_cycle),
    *(
        stream_closed_by_another_thread,
        astream_closed_by_another_task,
        cancelled_task,
        waited_for_too_long,
        task_group_fails,
    ),
    *(dropped_coroutine, dropped_astream, deadline, deadline_in_a_prompt),
    *(filter_raises, one_filter_of_many_raises, lm_stream, lm_call_cancelled),
]


@pytest.fixture(scope="module")
def bystander_alone(engine):
    return engine.generate(logprobs=1, **BYSTANDER)


@pytest.mark.parametrize("end", ENDINGS, ids=lambda end: end.__name__)
def test_a_request_that_ends_early_gives_its_pages_back(end, engine, bystander_alone):
    before = engine.stats()
    with engine.stream(logprobs=1, **BYSTANDER) as beside:
        end(engine)
        chunks = list(beside)
    assert tuple(token for chunk in chunks for token in chunk.tokens) == bystander_alone.tokens
    assert tuple(entry for chunk in chunks for entry in chunk.logprobs or ()) == bystander_alone.logprobs
    assert_idle(engine)
    # Late is a failure, and unwanted is none.
    late = end in (deadline, deadline_in_a_prompt)
    counts = {name: count for name, count in engine.stats().items() if not isinstance(count, dict)}
    more = {name: count - before[name] for name, count in counts.items()}
    sent = more["requests"] - 1  # the coroutine that was dropped may not have come so far
    assert (more["failed"], more["cancelled"]) == ((sent, 0) if late else (0, sent)), more


# close(), the end of a Model, and limits


def test_close_ends_what_is_in_work_and_the_next_request_starts_anew(smollm2):
    model = tallow.Model("smollm2", kv_memory="400MB", progress=False)
    ended: list[object] = []
    long = "word " * 3000

    def ends(call):
        try:
            ended.append(call())
        except BaseException as error:
            ended.append(error)

    calls = [
        lambda: model.generate("once", **endless(model)),
        lambda: model.generate("once", n=3, **endless(model)),
        lambda: list(model.stream("once", **endless(model))),
        lambda: asyncio.run(model.agenerate("once", **endless(model))),
        lambda: asyncio.run(model.agenerate(long)),
        lambda: model.score(long, [" a", " b"]),
        lambda: model.embed([long]),
        lambda: model.logits(model.tokenize(long)),
    ]
    threads = [threading.Thread(target=ends, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    model.close()
    model.close()
    for thread in threads:
        thread.join(120)
    assert [type(one) for one in ended] == [tallow.Cancelled] * len(calls), ended
    expected = smollm2.generate("once", max_tokens=4, temperature=0).text
    assert model.generate("once", max_tokens=4, temperature=0).text == expected
    assert model.stats()["requests"] == 1
    model.close()


def test_a_stream_keeps_what_it_needs_of_a_model_that_is_gone(tiny_folder):
    model = tallow.Model(tiny_folder, context_length=120)
    expected = model.generate("hello", max_tokens=40, temperature=0).text
    chunks = model.stream("hello", max_tokens=40, temperature=0)
    del model
    gc.collect()
    assert "".join(chunk.text for chunk in chunks) == expected


def test_models_that_are_gone_take_their_threads_along(tiny_folder):
    before = threads_of_this_process()
    for turn in range(5):
        lm = tallow.LM(tiny_folder, context_length=110 + turn, cache=False)
        lm("hello", max_tokens=2)
        running = lm.engine.model.stream("hello", max_tokens=100)
        del lm, running
        gc.collect()
    deadline = time.monotonic() + 60
    while threads_of_this_process() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def threads_of_this_process() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("Threads:"))


def test_a_slow_reader_is_not_waited_for(engine):
    expected = engine.generate("once", max_tokens=40, temperature=0)
    chunks = engine.stream("once", max_tokens=40, temperature=0)
    assert_idle(engine)  # all of it is computed, and nothing was read
    assert "".join(chunk.text for chunk in chunks) == expected.text


def test_a_full_queue_says_so(smollm2):
    model = tallow.Model("smollm2", queue=3, kv_memory="400MB", progress=False)
    streams = []
    with pytest.raises(tallow.OutOfMemoryError, match=r"queue is full.*3 "):
        for number in range(1000):
            streams.append(model.stream(f"number {number} is", **endless(model)))
    assert 3 <= len(streams) < 1000
    for stream in streams[1:]:
        stream.close()
    assert next(streams[0]).text
    streams[0].close()
    assert_idle(model)
    assert model.generate("once", max_tokens=2, temperature=0).text
    model.close()


def test_a_cache_that_is_too_small_says_so(tiny_folder):
    with pytest.raises(tallow.OutOfMemoryError, match="kv_memory"):
        tallow.Model(tiny_folder, kv_memory=10).generate("hello")
    cache = tallow.Model(tiny_folder).stats()
    page = cache["kv_bytes"] // cache["pages"]
    model = tallow.Model(tiny_folder, kv_memory=2 * page)
    assert model.stats()["kv_bytes"] == 2 * page
    with pytest.raises(tallow.ContextLengthError, match="kv_memory"):
        model.generate("x" * 60, max_tokens=4)
    expected = tallow.Model(tiny_folder).generate("hello", max_tokens=4, temperature=0).text
    assert model.generate("hello", max_tokens=4, temperature=0).text == expected
    assert pages_are_back(model.stats())


# Values


def test_models_with_other_engine_options_share_weights_alone(tiny_folder):
    one, other = tallow.Model(tiny_folder), tallow.Model(tiny_folder, prefix_cache=False)
    assert one == other and hash(one) == hash(other) and one._native == other._native
    assert one._shared is not other._shared
    assert other._shared is tallow.Model(tiny_folder, prefix_cache=False)._shared
    before = one.stats()["requests"]
    other.generate("hello", max_tokens=1)
    assert one.stats()["requests"] == before and other.stats()["requests"] > 0


OPTIONS = {
    "kv_memory": "3MiB",
    "queue": 77,
    "prefix_cache": False,
    "speculation": False,
    "context_length": 99,
}
COPIES = [
    ("copy", copy.copy),
    ("deepcopy", copy.deepcopy),
    ("pickle", lambda value: pickle.loads(pickle.dumps(value))),
]


@pytest.mark.parametrize("again", [c[1] for c in COPIES], ids=[c[0] for c in COPIES])
def test_copies_are_equal_and_work(again, tiny_folder):
    model = tallow.Model(tiny_folder, **OPTIONS)
    expected = model.generate("hello", max_tokens=4, temperature=0)
    found = again(model)
    assert found == model and found._shared is model._shared
    assert found.generate("hello", max_tokens=4, temperature=0).tokens == expected.tokens
    assert found.to_state() == model.to_state()
    sampler = tallow.Sampler(temperature=0.5, top_k=7, logit_bias={9: 2.0})
    assert again(sampler) == sampler
    assert again(expected) == expected
    lm = tallow.LM(model, max_tokens=4, temperature=0, cache=False, timeout=60)
    other = again(lm)
    assert other("hello") == lm("hello") and other.engine.model == model
    assert (other.model, other.kwargs, other.engine.timeout) == (lm.model, lm.kwargs, 60)
    assert other.engine.model._shared is model._shared


def test_pickles_in_a_fresh_process_rebuild(tiny_folder, tmp_path):
    lm = tallow.LM(tallow.Model(tiny_folder, **OPTIONS), max_tokens=4, temperature=0, cache=False)
    (tmp_path / "lm").write_bytes(pickle.dumps((lm, lm.engine.model, tallow.Sampler(top_k=3))))
    done = python(
        "import pickle, sys, json\n"
        "lm, model, sampler = pickle.load(open(sys.argv[1], 'rb'))\n"
        "assert lm.engine.model._shared is model._shared and sampler.top_k == 3\n"
        "print(json.dumps([lm('hello'), model.to_state()]))",
        str(tmp_path / "lm"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [lm("hello"), lm.engine.model.to_state()]
    assert lm.engine.model.to_state()["kv_memory"] == 3 * 2**20


@pytest.mark.parametrize("place", ["here", "elsewhere", "other"])
def test_a_relative_path_is_pickled_as_the_place_it_was(place, tmp_path, monkeypatch):
    """In folders that hold the model, nothing, and another model of the same name."""
    for name, family in (("here", "llama-gqa-tied"), ("other", "qwen2-tied")):
        copy_family(family, tmp_path / name / "model")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here" / "own.jinja").write_text("{{ messages[0].content }}")
    monkeypatch.chdir(tmp_path / "here")
    models = [tallow.Model(source, chat_template="own.jinja") for source in ("model", "./model")]
    data = [pickle.dumps(model) for model in models]
    monkeypatch.chdir(tmp_path / place)
    assert [pickle.loads(one) for one in data] == models
    assert tallow.Model.from_state(models[0].to_state()) == models[0]


def test_a_pickle_is_the_same_model_or_an_error(tmp_path):
    folder = copy_family("llama-gqa-tied", tmp_path / "model")
    model = tallow.Model(folder)
    data = pickle.dumps(model)
    assert pickle.loads(data) == model
    shutil.rmtree(folder)
    copy_family("qwen2-tied", folder)
    with pytest.raises(tallow.ModelFileError, match="not the model that was pickled"):
        pickle.loads(data)
    shutil.rmtree(folder)
    with pytest.raises(tallow.ModelFileError, match="no such file"):
        pickle.loads(data)


def test_a_model_of_the_hub_is_pickled_with_its_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    repo = tmp_path / "models--some--model"
    (repo / "refs").mkdir(parents=True)
    for commit, family in (("a" * 40, "llama-gqa-tied"), ("b" * 40, "qwen2-tied")):
        copy_family(family, repo / "snapshots" / commit)
    (repo / "refs" / "main").write_text("a" * 40)
    model = tallow.Model("some/model")
    data = pickle.dumps(model)
    (repo / "refs" / "main").write_text("b" * 40)  # the branch has moved on
    assert tallow.Model("some/model") != model
    assert pickle.loads(data) == model


# Programs in a process of their own

PRELUDE = """
import asyncio, atexit, concurrent.futures, gc, multiprocessing, os, signal, sys, threading, time
import tallow

def load(**options):
    return tallow.Model("smollm2", progress=False, **options)

def daemon(function):
    threading.Thread(target=function, daemon=True).start()

def child(work, normal=False):
    "Runs work in a fork; None is a hang, else how it exited."
    pid = os.fork()
    if pid == 0:
        if normal:
            work()
            sys.exit(0)
        try:
            work()
        except BaseException as error:
            sys.stderr.write(f"in the child: {error!r}\\n")
            os._exit(1)
        os._exit(0)
    return ended(pid)

def ended(pid):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

model = load()
ENDLESS = dict(temperature=0, logit_bias=dict.fromkeys(model.eos_ids, -100.0))
SHORT = dict(temperature=0, max_tokens=4)
expected = model.generate("once", **SHORT).text

def works(model=model):
    assert model.generate("once", **SHORT).text == expected
"""

PROGRAMS = {
    # The interpreter exits.
    "exit: a daemon thread generates": """
        daemon(lambda: model.generate("once", **ENDLESS))
        time.sleep(0.2)
    """,
    "exit: daemon threads begin again and again": """
        def again():
            while True:
                model.generate("once", max_tokens=1)
        for _ in range(8): daemon(again)
        time.sleep(0.5)
    """,
    "exit: a daemon thread computes a prompt": """
        daemon(lambda: model.generate("word " * 3000))
        time.sleep(0.2)
    """,
    "exit: a daemon thread is in a filter": """
        def slow(logits, tokens): time.sleep(0.005)
        daemon(lambda: model.generate("once", filters=[slow], **ENDLESS))
        time.sleep(0.2)
    """,
    "exit: a stream is open": """
        chunks = model.stream("once", **ENDLESS)
        next(chunks)
    """,
    "exit: daemon threads read streams": """
        for _ in range(4): daemon(lambda: list(model.stream("once", **ENDLESS)))
        time.sleep(0.2)
    """,
    "exit: tasks run": """
        async def main():
            tasks = [asyncio.create_task(model.agenerate("once", **ENDLESS)) for _ in range(8)]
            await asyncio.sleep(0.2)
        asyncio.run(main())
    """,
    "exit: a loop runs in a daemon thread": """
        async def main():
            await asyncio.gather(*(model.agenerate("once", **ENDLESS) for _ in range(8)))
        daemon(lambda: asyncio.run(main()))
        time.sleep(0.2)
    """,
    "exit: an astream is open and its loop is closed": """
        async def main():
            chunks = model.astream("once", **ENDLESS)
            async for _ in chunks: return chunks
        loop = asyncio.new_event_loop()
        chunks = loop.run_until_complete(main())
        loop.close()
    """,
    "exit: a pool of threads is waited for": """
        pool = concurrent.futures.ThreadPoolExecutor(4)
        done = [pool.submit(works) for _ in range(8)]
        atexit.register(lambda: [one.result() for one in done])
    """,
    "exit: atexit uses the model": """
        atexit.register(works)
    """,
    "exit: a model is in a cycle with a finalizer": """
        class Holder:
            def __del__(self): self.model.close()
        holder = Holder()
        holder.self, holder.model, holder.stream = holder, model, model.stream("once", **ENDLESS)
    """,
    "exit: at once after the request": """
        chunks = [model.stream("once", **ENDLESS) for _ in range(20)]
        print("ok", flush=True)
        os._exit(0)
    """,
    "exit: a model is being loaded by a daemon thread": """
        daemon(lambda: load(context_length=1000))
    """,
    # Garbage.
    "garbage: a model with threads in it": """
        def use():
            mine = load(context_length=1000)
            threads = [threading.Thread(target=works, args=(mine,)) for _ in range(8)]
            for thread in threads: thread.start()
            return threads
        threads = use()
        gc.collect()
        for thread in threads: thread.join()
    """,
    "garbage: an LM with a stream in flight": """
        lm = tallow.LM(load(context_length=1000), cache=False)
        chunks = lm.engine.model.stream("once", **ENDLESS)
        del lm
        next(chunks)
        del chunks
        gc.collect()
        works()
    """,
    "garbage: close() in a loop beside requests": """
        stop = time.monotonic() + 2
        def use():
            while time.monotonic() < stop:
                try: works()
                except tallow.Cancelled: pass
        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads: thread.start()
        while time.monotonic() < stop:
            model.close()
            time.sleep(0.02)
        for thread in threads: thread.join()
        works()
    """,
    # Ctrl-C, with the traceback kept as a notebook keeps it.
    "interrupt: all candidates end": """
        timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        try:
            model.generate("once", n=5, **ENDLESS)
        except KeyboardInterrupt as error:
            kept = error
        deadline = time.monotonic() + 60
        while model.stats()["running"]:
            assert time.monotonic() < deadline, model.stats()
            time.sleep(0.01)
        works()
    """,
    # Forks.
    "fork: an idle engine": """
        assert child(works) == 0
        works()
    """,
    "fork: a busy engine": """
        for _ in range(4): daemon(lambda: model.generate("once", **ENDLESS))
        time.sleep(0.2)
        assert [child(works) for _ in range(5)] == [0] * 5
        works()
    """,
    "fork: a busy prompt": """
        daemon(lambda: model.generate("word " * 3000))
        time.sleep(0.2)
        assert [child(works) for _ in range(3)] == [0] * 3
    """,
    "fork: the child exits as a program does": """
        daemon(lambda: model.generate("once", **ENDLESS))
        chunks = model.stream("once", **ENDLESS)
        time.sleep(0.2)
        assert child(lambda: None, normal=True) == 0
        assert child(works, normal=True) == 0
        next(chunks)
    """,
    "fork: the child of a child": """
        def again():
            works()
            assert child(works) == 0
        assert child(again) == 0
    """,
    "fork: threads in the child": """
        def many():
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda _: works(), range(16)))
            assert model.stats()["requests"] == 16
        daemon(lambda: model.generate("once", **ENDLESS))
        time.sleep(0.1)
        assert child(many) == 0
    """,
    "fork: everything a model does": """
        def every():
            model.logits([1, 2, 3]), model.embed(["a"]), model.score("a", ["b"]), model.tokenize("a")
            "".join(chunk.text for chunk in model.stream("once", **SHORT))
            load(context_length=500).generate("once", **SHORT)
            model.close()
            works()
        assert child(every) == 0
        works()
    """,
    "fork: a stream of the parent": """
        chunks = model.stream("once", **ENDLESS)
        next(chunks)
        def read():
            try:
                for _ in range(10_000): next(chunks)
            except tallow.Error as error:
                assert "fork" in str(error), error
            else:
                raise AssertionError("no error")
        assert child(read) == 0
        assert child(chunks.close) == 0
        next(chunks)
    """,
    "fork: a stream that a thread of the parent reads": """
        chunks = model.stream("word " * 3000)
        daemon(lambda: list(chunks))
        time.sleep(0.2)
        assert child(chunks.close) == 0
    """,
    "fork: a program that used asyncio": """
        def run(): assert asyncio.run(model.agenerate("once", **SHORT)).text == expected
        run()
        assert child(run) == 0
        assert child(run, normal=True) == 0
        run()
    """,
    "fork: tasks run in another thread": """
        async def main():
            await asyncio.gather(*(model.agenerate("once", **ENDLESS) for _ in range(8)))
        daemon(lambda: asyncio.run(main()))
        time.sleep(0.2)
        def run(): assert asyncio.run(model.agenerate("once", **SHORT)).text == expected
        assert [child(run) for _ in range(3)] == [0] * 3
        assert [child(gc.collect, normal=True) for _ in range(3)] == [0] * 3
    """,
    "fork: a model is being loaded": """
        for length in range(1000, 1020):
            loading = threading.Thread(target=load, kwargs={"context_length": length})
            loading.start()
            time.sleep(0.004 * (length - 1000))
            assert child(lambda: works(load(context_length=length))) == 0
            loading.join()
    """,
    "fork: a subprocess with a hook": """
        import subprocess
        daemon(lambda: model.generate("once", **ENDLESS))
        subprocess.run([sys.executable, "-c", ""], preexec_fn=lambda: None, check=True, timeout=60)
    """,
    "multiprocessing: fork": """
        daemon(lambda: model.generate("once", **ENDLESS))
        with multiprocessing.get_context("fork").Pool(2) as pool:
            done = [pool.apply_async(model.generate, ("once",), SHORT) for _ in range(4)]
            assert [one.get(60).text for one in done] == [expected] * 4
    """,
    "multiprocessing: spawn": """
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply_async(model.generate, ("once",), SHORT).get(60).text == expected
    """,
    "multiprocessing: forkserver": """
        with multiprocessing.get_context("forkserver").Pool(1) as pool:
            assert pool.apply_async(model.generate, ("once",), SHORT).get(60).text == expected
    """,
    "multiprocessing: fork, the child ends with work in flight": """
        def leave():
            daemon(lambda: model.generate("once", **ENDLESS))
            time.sleep(0.2)
        process = multiprocessing.get_context("fork").Process(target=leave)
        process.start()
        process.join(60)
        assert process.exitcode == 0, process.exitcode
        works()
    """,
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.skipif(sys.platform == "win32", reason="forks and signals")
def test_program(name, smollm2):
    lines = PROGRAMS[name].strip("\n").splitlines()
    code = PRELUDE + "\n".join(line[8:] for line in lines) + "\nprint('ok', flush=True)\n"
    done = python(code, timeout=120)
    assert done.returncode == 0 and "ok" in done.stdout, (done.returncode, done.stderr)
    assert not any(word in done.stderr for word in ("panicked", "Fatal Python", "in the child")), done.stderr


# What stays

MEMORY = """
import gc, json, os, sys
import tallow

def resident():
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def load():
    tallow.Model(sys.argv[2], progress=False).generate("hello", max_tokens=4)

model = tallow.Model(sys.argv[2], progress=False)

def start():
    model.generate("hello", max_tokens=4)
    model.close()

if sys.argv[1] == "load":
    del model
work = {"load": load, "start": start}[sys.argv[1]]
threads = lambda: len(os.listdir("/proc/self/task"))
files = lambda: len(os.listdir("/proc/self/fd"))
for _ in range(20):
    work()
before = resident(), threads(), files()
for _ in range(100):
    work()
print(json.dumps([before, (resident(), threads(), files())]))
"""


@pytest.mark.parametrize("what", ["load", "start"])
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_nothing_stays_of_a_hundred(what, tiny_folder):
    # The best of three: the allocator keeps now a little more and now a little less. A leak shows each time.
    runs: list[tuple[list[int], list[int]]] = []
    stays = lambda before, after: after[0] > before[0] * 1.02 or after[1:] != before[1:]
    while len(runs) < 3 and all(stays(*run) for run in runs):
        done = python(MEMORY, what, str(tiny_folder))
        assert done.returncode == 0, done.stderr
        runs.append(json.loads(done.stdout))
    assert not stays(*runs[-1]), runs


TICK = """
import json, threading, time
import tallow

model = tallow.Model("smollm2", progress=False)
prompt = "word " * 7900
model.generate("warm", max_tokens=1)
over, gaps = False, []

def tick():
    last = time.perf_counter()
    while not over:
        time.sleep(0.001)
        now = time.perf_counter()
        gaps.append(now - last)
        last = now

ticking = threading.Thread(target=tick)
ticking.start()
try:
    model.generate(prompt, max_tokens=1, timeout=3)
except tallow.Timeout:
    pass
over = True
ticking.join()
gaps.sort()
print(json.dumps({"count": len(gaps), "p999": gaps[-1 - len(gaps) // 1000], "worst": gaps[-1]}))
"""


def test_other_threads_run_while_a_prompt_is_computed(smollm2):
    """Three seconds of 8,000 tokens. On a quiet machine with two cores the longest wait is under 10 ms; on a
    busy one any thread may wait a while, so that the limit is larger here. A step takes a second: whoever
    held the GIL in one would show."""
    runs: list[dict] = []
    while len(runs) < 3 and min((run["p999"] for run in runs), default=1) > 0.03:
        done = python(TICK)
        assert done.returncode == 0, done.stderr
        runs.append(json.loads(done.stdout))
    print(runs)
    assert min(run["p999"] for run in runs) <= 0.03, runs
