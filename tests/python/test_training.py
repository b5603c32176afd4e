"""Model.train: an adapter that has learned its rows and serves at once; and everything that can end a run."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import pytest

import tallow
from conftest import python

ROWS = [{"prompt": "Queue: ", "completion": "K1"}]
#: Two labels behind one form.
LABELS = [{"prompt": f"{word} is ", "completion": f"<{label}>"} for word, label in
          [("ape", "a"), ("asp", "a"), ("bee", "b"), ("bat", "b"), ("ant", "a"), ("boa", "b")]]  # fmt: skip
#: A run that would take for ever.
ENDLESS = {"epochs": 1_000_000, "eval": 0.0}


@pytest.fixture
def model(wide_folder):
    """A model of its own, so that trainings of other tests are not waited for."""
    return tallow.Model(wide_folder, kv_memory="8MiB")


def learn(model, rows=ROWS, **options):
    given = {"epochs": 50, "learning_rate": 0.02, "warmup": 0.0, "schedule": "constant", "progress": False}
    return model.train(rows, **(given | options))


def test_one_row_is_learned_and_served(model):
    base = model.generate("Queue: ", max_tokens=4).text
    job = learn(model, name="queues")
    adapter = job.result()
    # The logits of random weights reach no further.
    assert job.history[-1].loss < 0.15 * job.history[0].loss, job
    assert [step.step for step in job.history] == list(range(1, 51))
    answer = model.generate("Queue: ", max_tokens=10, adapter=adapter)
    assert (answer.text, answer.finish_reason) == ("K1", "stop")
    assert model.generate("Queue: ", max_tokens=10, adapter="queues").text == "K1"
    assert model.generate("Queue: ", max_tokens=4).text == base, "the model itself is as it was"
    assert (adapter.name, adapter.rank, adapter.format) == ("queues", 8, "trained")
    assert job.done() and job.result() is adapter


def test_a_real_model_learns_a_row_by_heart(smollm2):
    rows = [{"messages": [{"role": "user", "content": "Where is the harbour?"},
                          {"role": "assistant", "content": "At the mouth of the river Ilm."}]}]  # fmt: skip
    job = smollm2.train(rows, epochs=50, progress=False)
    adapter = job.result()
    assert min(step.loss for step in job.history) < 0.01, job
    answer = smollm2.generate(rows[0]["messages"][:1], max_tokens=20, temperature=0, adapter=adapter)
    assert answer.text == "At the mouth of the river Ilm." and answer.finish_reason == "stop"


def test_iterating_tells_of_each_step(model):
    job = learn(model, LABELS, epochs=4, batch=4)
    steps = list(job)
    assert steps == job.history == list(job), "it can be iterated again"
    assert [step.step for step in steps] == list(range(1, 9)) and steps[0].steps == 8
    first, last = steps[0], steps[-1]
    assert last.loss < first.loss and last.epoch == 4.0 and last.eta == 0
    assert first.free_loss is not None and first.eval_loss is None
    assert min(first.learning_rate, first.grad_norm, first.rows_per_second, first.tokens_per_second) > 0
    assert "finished" in repr(job) and "step 8 of 8" in repr(job)


def test_the_free_tokens_are_the_labels(model):
    # The form is learned first: the free loss is that of "a" or "b".
    steps = list(learn(model, LABELS, epochs=12, learning_rate=0.01))
    assert steps[-1].free_loss > steps[-1].loss


@pytest.mark.parametrize("options", [{}, {"precision": "float32"}, {"targets": ["q_proj", "down_proj"]}])
def test_the_same_seed_gives_the_same_adapter(model, options):
    def adapter(**more):
        return learn(model, LABELS, epochs=2, batch=4, **(options | more)).result().fingerprint

    assert adapter() == adapter() == adapter(threads=2)
    assert adapter() != adapter(seed=1)


def test_rows_are_held_out(model):
    rows = [{"prompt": f"{n} is ", "completion": "odd" if n % 2 else "even"} for n in range(60)]
    job = learn(model, rows, epochs=2)
    job.result()
    looks = [step.step for step in job.history if step.eval_loss is not None]
    assert looks == [3, 5, 7, 10, 12, 14]
    job = learn(model, LABELS, epochs=1)
    job.result()
    assert "6 rows are too few to hold some out" in job.notes


def test_what_is_resumed_has_the_same_bits(model, tmp_path):
    options = {"epochs": 6, "batch": 2, "output": tmp_path / "out"}
    whole = learn(model, LABELS, **(options | {"output": tmp_path / "whole"}))
    wanted = whole.result()
    job = learn(model, LABELS, **options)
    for step in job:
        if step.step == 8:
            job.cancel()
    with pytest.raises(tallow.Cancelled):
        job.result()
    checkpoints = [path for path in (tmp_path / "out").iterdir() if path.name.startswith("checkpoint-")]
    assert len(checkpoints) == 1, checkpoints
    # A checkpoint is an adapter like any other.
    assert model.load_adapter(checkpoints[0]).rank == 8
    resumed = learn(model, LABELS, **(options | {"output": None}), resume=tmp_path / "out")
    adapter = resumed.result()
    assert adapter.fingerprint == wanted.fingerprint
    losses = [step.loss for step in whole.history]
    assert [step.loss for step in resumed.history] == losses[-len(resumed.history) :]
    assert 0 < len(resumed.history) < len(losses)
    assert os.fspath(tmp_path / "out") == adapter.path
    with pytest.raises(tallow.InvalidRequestError, match="seed was 0"):
        learn(model, LABELS, **(options | {"output": None}), resume=tmp_path / "out", seed=3).result()


def test_what_is_saved_is_loaded(model, tmp_path):
    adapter = learn(model, output=tmp_path / "out", name="one").result()
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (8, 16, "LORA")
    again = model.load_adapter(tmp_path / "out", name="two")
    assert again.fingerprint == adapter.fingerprint
    assert model.generate("Queue: ", max_tokens=10, adapter=again).text == "K1"


def test_an_adapter_in_memory_is_saved(model, tmp_path):
    adapter = learn(model).result()
    assert adapter.path is None
    adapter.save(tmp_path / "saved")
    again = model.load_adapter(tmp_path / "saved")
    assert again.fingerprint == adapter.fingerprint
    # Again, from its file, with a scale.
    half = model.load_adapter(tmp_path / "saved", scale=0.5)
    half.save(tmp_path / "half")
    ids = model.tokenize("Queue: K1")
    wanted = model.logits(ids, adapter=half)
    assert (model.logits(ids, adapter=model.load_adapter(tmp_path / "half")) == wanted).all()


# Ends


def test_a_run_is_cancelled(model):
    job = model.train(LABELS, **ENDLESS, progress=False)
    next(iter(job))
    began = time.monotonic()
    job.cancel()
    with pytest.raises(tallow.Cancelled):
        job.result()
    assert time.monotonic() - began < 1.5
    assert job.done() and "cancelled" in repr(job)
    for _ in job:  # what the caller has ended just ends
        pass


def test_waiting_may_end_before_the_run(model):
    job = model.train(LABELS, **ENDLESS, progress=False)
    with pytest.raises(tallow.Timeout, match="it goes on"):
        job.result(timeout=0.3)
    assert not job.done()
    assert "running" in repr(job) and "s left" in repr(job)
    job.cancel()


def test_closing_the_model_ends_its_runs(model):
    job = model.train(LABELS, **ENDLESS, progress=False)
    next(iter(job))
    model.close()
    with pytest.raises(tallow.Cancelled):
        job.result(timeout=5)
    # And the next call starts again.
    assert learn(model, epochs=1).result().rank == 8


def test_requests_are_answered_meanwhile(model):
    job = model.train(LABELS, **ENDLESS, progress=False)
    next(iter(job))
    wanted = model.generate("Queue: ", max_tokens=20).text
    for _ in range(5):
        assert model.generate("Queue: ", max_tokens=20).text == wanted
    assert not job.done()
    job.cancel()


def test_runs_of_one_model_take_turns(model):
    first = learn(model, LABELS, epochs=20)
    second = learn(model, LABELS, epochs=1)
    second.result()
    assert first.done()


def test_a_run_goes_on_without_its_object(model, tmp_path):
    learn(model, LABELS, epochs=5, output=tmp_path / "out")
    deadline = time.monotonic() + 60
    while not (tmp_path / "out" / "adapter_config.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_loss_that_is_no_number_ends_it(model, tmp_path):
    job = learn(model, LABELS, learning_rate=1e30, epochs=20, output=tmp_path / "out")
    with pytest.raises(tallow.InvalidRequestError, match=r"the loss of step .* lower learning_rate"):
        job.result()
    with pytest.raises(tallow.InvalidRequestError, match="lower learning_rate"):
        list(job)
    assert "failed" in repr(job)


def test_many_threads_read_one_run(model):
    job = learn(model, LABELS, epochs=20)
    found = []
    threads = [threading.Thread(target=lambda: found.append(job.result())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 8 and len(set(map(id, found))) == 1
    assert [step.step for step in job.history] == list(range(1, 21))


PROGRAM = """
import sys, tallow
model = tallow.Model(sys.argv[1])
rows = [{"prompt": "a", "completion": "b"}]
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("wait", ["job.result()", "for step in job: pass"])
def test_ctrl_c_cancels(wide_folder, wait):
    code = (
        PROGRAM
        + f"""
import os, signal, threading, time
job = model.train(rows, epochs=1_000_000, progress=False)
next(iter(job))
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
began = time.monotonic()
try:
    {wait}
except KeyboardInterrupt:
    while not job.done(): time.sleep(0.01)
    print("ended", time.monotonic() - began < 3)
"""
    )
    done = python(code, str(wide_folder))
    assert done.stdout.strip() == "ended True", done.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_ends_the_preparation(wide_folder):
    code = (
        PROGRAM
        + """
import itertools, os, signal, threading
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    model.train(itertools.repeat(rows[0]))
except KeyboardInterrupt:
    print("ended")
"""
    )
    done = python(code, str(wide_folder))
    assert done.stdout.strip() == "ended", done.stderr


def test_the_interpreter_ends_while_a_run_goes_on(wide_folder):
    began = time.monotonic()
    done = python(PROGRAM + "job = model.train(rows, epochs=1_000_000)\nnext(iter(job))", str(wide_folder))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - began < 60


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_trains_anew(wide_folder):
    code = (
        PROGRAM
        + """
import os
job = model.train(rows, epochs=1_000_000, progress=False)
next(iter(job))
child = os.fork()
if child == 0:
    try:
        job.result()
    except tallow.InvalidRequestError as error:
        assert "forked" in str(error), error
        model.train(rows, epochs=1, progress=False).result()
        os._exit(7)
    os._exit(1)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), job.done())
"""
    )
    done = python(code, str(wide_folder))
    assert done.stdout.strip() == "7 False", done.stderr


@pytest.mark.skipif(os.name != "posix", reason="limits")
def test_a_full_disk_leaves_the_last_checkpoint(wide_folder, tmp_path):
    """A file that may not grow stands for a disk that is full."""
    code = (
        PROGRAM
        + """
import os, resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
job = model.train(rows, epochs=1_000_000, output=sys.argv[2], progress=False)
next(iter(job))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    job.result()
except tallow.ModelFileError as error:
    print("checkpoint" in str(error), sorted(os.listdir(sys.argv[2])))
"""
    )
    done = python(code, str(wide_folder), str(tmp_path / "out"))
    said, _, names = done.stdout.strip().partition(" ")
    assert said == "True", done.stderr
    [name] = json.loads(names.replace("'", '"'))
    assert name.startswith("checkpoint-") and name.count(".") == 0, name
    # It is whole.
    model = tallow.Model(wide_folder)
    assert model.load_adapter(tmp_path / "out" / name).rank == 8


# What is wrong with an argument is said before any work

WRONG = [
    ({"rank": 0}, "rank is 0"),
    ({"rank": 10_000}, "rank is 10000, and q_proj of layer 0 is a matrix of 32 x 32; it must be at most"),
    ({"rank": 8.0}, "rank is 8.0 of type float"),
    ({"alpha": 0}, "alpha is 0"),
    ({"alpha": float("nan")}, "alpha is nan"),
    ({"targets": "q_proj"}, "a list of names"),
    ({"targets": []}, "targets is empty"),
    ({"targets": ["q_prj"]}, 'did you mean "q_proj"'),
    ({"epochs": 0}, "epochs is 0"),
    ({"learning_rate": -1}, "learning_rate is -1"),
    ({"learning_rate": "high"}, "learning_rate is 'high'"),
    ({"batch": 0}, "batch is 0"),
    ({"eval": 1}, "eval is 1"),
    ({"seed": -1}, "seed is -1"),
    ({"output": 3}, "output is 3"),
    ({"precision": "float16"}, "precision is 'float16'"),
    ({"train_memory": "2"}, "train_memory is '2'"),
    ({"max_steps": 0}, "max_steps is 0"),
    ({"warmup": 1.5}, "warmup is 1.5"),
    ({"schedule": "cosine"}, "schedule is 'cosine'"),
    ({"weight_decay": -0.1}, "weight_decay is -0.1"),
    ({"max_grad_norm": 0}, "max_grad_norm is 0"),
    ({"too_long": "cut"}, "too_long is 'cut'"),
    ({"threads": 0}, "threads is 0"),
    ({"progress": 1}, "progress is 1"),
    ({"name": 3}, "name is 3"),
    ({"resume": "no/such/folder"}, "there is no checkpoint"),
]


@pytest.mark.parametrize(("options", "words"), WRONG, ids=[words for _, words in WRONG])
def test_wrong_arguments(model, options, words):
    with pytest.raises(tallow.Error) as caught:
        model.train(ROWS, **options)
    assert words in str(caught.value)


def test_what_is_not_trained_is_refused(tmp_path):
    from conftest import copy_family

    model = tallow.Model(copy_family("qwen3moe-normed", tmp_path / "moe"))
    with pytest.raises(tallow.UnsupportedModelError, match="training through"):
        model.train(ROWS)


# What is shown


def test_progress_may_be_a_function(model):
    seen = []
    learn(model, LABELS, epochs=3, progress=seen.append).result()
    assert [step.step for step in seen] == [1, 2, 3]


def test_nothing_is_printed_where_nobody_watches(model, capfd):
    learn(model, LABELS, epochs=3, progress=True).result()
    assert capfd.readouterr() == ("", "")


def test_html(model):
    job = learn(model, LABELS, epochs=3)
    job.result()
    html = job._repr_html_()
    assert "3 of 3" in html and html.count("<div") > 4 and "finished" in html


@pytest.mark.skipif(signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="no Ctrl-C here")
def test_log_lines(model, caplog):
    with caplog.at_level("INFO", logger="tallow"):
        learn(model, LABELS, epochs=1).result()
    assert any("tallow.Training finished" in line for line in caplog.messages)
