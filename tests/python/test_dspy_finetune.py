"""DSPy's BootstrapFinetune and BetterTogether in this process: what is trained, when and how it is told, that
a tuned LM is kept apart from its model, and saved programs.

Most tests hold the provider to DSPy's protocol by a training that they steer themselves; those at the end
train for real.
"""

from __future__ import annotations

import asyncio
import copy
import json
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import tallow
from conftest import copy_family, needed

dspy = needed("dspy")
cloudpickle = needed("cloudpickle")
from dspy.clients.utils_finetune import TrainDataFormat, TrainingStatus  # noqa: E402

import tallow.dspy  # noqa: E402
from scripted import call, request  # noqa: E402
from tallow.dspy import early, train_kwargs  # noqa: E402
from test_never_fails import widen  # noqa: E402

ROW = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}


class Sort(dspy.Signature):
    """Sort the message."""

    message: str = dspy.InputField()
    team: Literal["kitchen", "rooms"] = dspy.OutputField()


class Twice(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = dspy.Predict(Sort), dspy.Predict(Sort)

    def forward(self, message: str) -> Any:
        self.first(message=message)
        return self.second(message=message)


EXAMPLES = [dspy.Example(message=f"Message {at}", team="rooms").with_inputs("message") for at in range(6)]


def always(example: Any, prediction: Any, trace: Any = None) -> bool:
    return True


# Adapters of random numbers, and a training that tests steer


def write_adapter(folder: Path, model: tallow.Model, seed: int) -> Path:
    """A folder as peft writes it, for the query projections."""
    draw, config = np.random.default_rng(seed), model.config
    inputs, outputs = config["hidden_size"], config["num_heads"] * config["head_dim"]
    header, body = {}, b""
    for layer in range(config["num_layers"]):
        for half, shape in (("A", (2, inputs)), ("B", (outputs, 2))):
            numbers = draw.normal(scale=0.5, size=shape).astype("<f4").tobytes()
            place = {"dtype": "F32", "shape": shape, "data_offsets": [len(body), len(body) + len(numbers)]}
            header[f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{half}.weight"] = place
            body += numbers
    written = json.dumps(header).encode()
    folder.mkdir(parents=True, exist_ok=True)
    whole = len(written).to_bytes(8, "little") + written + body
    (folder / "adapter_model.safetensors").write_bytes(whole)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@dataclass
class Steered:
    """A training that ends when it is told to: at once, by ``ended.set()`` or by ``cancel``."""

    world: World
    model: tallow.Model
    rows: list[Any]
    options: dict[str, Any]
    ended: threading.Event = field(default_factory=threading.Event)
    history: list[Any] = field(default_factory=list)
    cancelled: bool = False

    def result(self, timeout: float | None = None) -> tallow.Adapter:
        assert self.ended.wait(30), "nobody ended the training"
        if self.cancelled:
            raise tallow.Cancelled("the training was cancelled")
        if self.world.failure is not None:
            raise self.world.failure
        self.world.made += 1
        return self.model.load_adapter(
            write_adapter(Path(self.options["output"]), self.model, self.world.made)
        )

    def cancel(self) -> None:
        self.cancelled = True
        self.ended.set()


@dataclass
class World:
    """Trainings end as soon as they begin, unless ``at_once`` is False, and then fail if ``failure`` is
    set."""

    trainings: list[Steered] = field(default_factory=list)
    at_once: bool = True
    failure: BaseException | None = None
    made: int = 0

    def train(self, model: tallow.Model, rows: list[Any], **options: Any) -> Steered:
        training = Steered(self, model, rows, options)
        self.trainings.append(training)
        if self.at_once:
            training.ended.set()
        return training


@pytest.fixture
def world(monkeypatch, tmp_path):
    made = World()
    monkeypatch.setenv("DSPY_FINETUNEDIR", str(tmp_path / "finetune"))
    train = lambda self, rows, **options: made.train(self, rows, **options)
    monkeypatch.setattr(tallow.Model, "train", train, raising=False)
    return made


@pytest.fixture
def model(tmp_path_factory):
    """Of its own for each test, and with it its adapters."""
    folder = copy_family("llama-gqa-tied", tmp_path_factory.mktemp("models") / "finetune")
    widen(folder)
    return tallow.Model(folder)


@pytest.fixture
def one(model, tmp_path):
    return model.load_adapter(write_adapter(tmp_path / "one", model, 101), name="one")


@pytest.fixture
def lm(model):
    return tallow.LM(model, max_tokens=60, cache=False)


@pytest.fixture
def student(lm):
    return ready(lm)


def ready(lm: tallow.LM) -> Any:
    program = dspy.Predict(Sort)
    program.set_lm(lm)
    return program


def started(lm: Any, rows: Any = (ROW,), form: Any = TrainDataFormat.CHAT, **given: Any) -> Any:
    return lm.finetune(train_data=list(rows), train_data_format=form, train_kwargs=given)


def until(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# The optimizers, to their end


def test_nothing_but_set_lm(world, lm, student):
    optimizer = dspy.BootstrapFinetune(metric=always, num_threads=8, train_kwargs={"num_train_epochs": 2})
    compiled = optimizer.compile(student, trainset=EXAMPLES)
    assert compiled is student, "the student itself, changed in place"
    (training,) = world.trainings
    assert len(training.rows) == len(EXAMPLES) and training.options["epochs"] == 2
    assert training.rows[0]["messages"][-1]["content"].endswith("[[ ## completed ## ]]\n")
    tuned = student.lm
    assert isinstance(tuned, tallow.LM) and [tuned.adapter] == lm.engine.model.adapters()
    assert tuned.engine.model is lm.engine.model and lm.adapter is None
    assert tuned.kwargs["max_tokens"] == 60
    assert student(message="Hello").team in ("kitchen", "rooms")


@pytest.mark.parametrize("multitask", [True, False])
def test_predictors_together_or_one_by_one(world, lm, multitask):
    program = Twice()
    program.set_lm(lm)
    dspy.BootstrapFinetune(metric=always, multitask=multitask, num_threads=8).compile(
        program, trainset=EXAMPLES
    )
    assert [len(training.rows) for training in world.trainings] == ([12] if multitask else [6, 6])
    assert len({predictor.lm.model for predictor in program.predictors()}) == (1 if multitask else 2)


def test_a_teacher_of_another_model(world, lm, student, tmp_path):
    folder = copy_family("qwen3-tied", tmp_path / "teacher")
    widen(folder)
    teacher = dspy.Predict(Sort)
    teacher.set_lm(tallow.LM(folder, max_tokens=60, cache=False))
    dspy.BootstrapFinetune(metric=always, num_threads=8).compile(student, trainset=EXAMPLES, teacher=teacher)
    assert student.lm.engine.model is lm.engine.model and student.lm.adapter is not None
    assert teacher.lm.adapter is None and not lm.history, "the teacher alone has answered"


def test_without_demos(world, student):
    student.demos = [dspy.Example(message="a", team="kitchen")]
    dspy.BootstrapFinetune(metric=always, exclude_demos=True).compile(student, trainset=EXAMPLES)
    assert [message["role"] for message in world.trainings[0].rows[0]["messages"]] == [
        *("system", "user", "assistant")
    ]
    assert student.demos == []


def test_the_settings_of_the_lm_are_used_where_the_optimizer_has_none(world, model):
    program = dspy.Predict(Sort)
    program.set_lm(tallow.LM(model, max_tokens=60, cache=False, train_kwargs={"r": 4}))
    dspy.BootstrapFinetune(metric=always).compile(program, trainset=EXAMPLES)
    assert world.trainings[0].options["rank"] == 4


def test_better_together(world, student):
    optimizer = dspy.BetterTogether(
        metric=always,
        p=dspy.BootstrapFewShot(metric=always, max_labeled_demos=1),
        w=dspy.BootstrapFinetune(metric=always, num_threads=8),
    )
    best = optimizer.compile(student, trainset=EXAMPLES, valset=EXAMPLES[:2], strategy="w -> p -> w")
    assert not best.flag_compilation_error_occurred
    assert len(world.trainings) == 2
    assert {one["strategy"] for one in best.candidate_programs} == {"", "w", "w -> p", "w -> p -> w"}
    assert best(message="Hello").team in ("kitchen", "rooms"), "nothing was closed"


# Said before the teacher runs


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda lm: (dspy.Predict(Sort), {}), "student.set_lm(lm) first"),
        (lambda lm: (ready(lm), {"train_kwargs": {"num_train_epoch": 3}}), "'num_train_epochs'"),
        (lambda lm: (ready(lm), {"adapter": dspy.JSONAdapter()}), "tallow.dspy.JSONAdapter()"),
        (lambda lm: (ready(lm), {"adapter": dspy.TwoStepAdapter(lm)}), "derive from dspy.ChatAdapter"),
    ],
    ids=["set_lm", "train_kwargs", "JSONAdapter", "TwoStepAdapter"],
)
def test_before_the_teacher(world, lm, make, part):
    program, given = make(lm)
    with dspy.context(lm=lm), pytest.raises(tallow.InvalidRequestError, match=re.escape(part)):
        dspy.BootstrapFinetune(metric=always, **given).compile(program, trainset=EXAMPLES)
    assert not lm.history and not world.trainings


def test_programs_of_others_are_left_alone(lm):
    early.say(tallow.LM)
    program = dspy.Predict(Sort)
    with dspy.context(lm=None):
        assert dspy.teleprompt.bootstrap_finetune.all_predictors_have_lms(program) is False
    program.set_lm(dspy.utils.DummyLM([{"team": "rooms"}]))
    assert dspy.teleprompt.bootstrap_finetune.all_predictors_have_lms(program) is True


def test_a_tuned_lm_is_trained_anew_and_that_is_said(world, lm, one, caplog):
    """What it had learned is not in the rows, so it would be lost in silence."""
    started(lm).result(20)
    assert not caplog.records
    started(lm.copy(adapter=one)).result(20)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "not at adapter 'one'" in record.message
    assert "give all rows" in record.message


# Jobs


def test_the_life_of_a_job(world, lm):
    world.at_once = False
    first, second = started(lm), started(lm)
    until(lambda: first.training and second.training)
    assert second.status() == TrainingStatus.pending, "it may wait for its turn"
    first.training.history.append("a step")
    assert first.status() == TrainingStatus.running
    first.training.ended.set()
    one = first.result(20).adapter
    assert first.status() == TrainingStatus.succeeded and first.exception() is None
    second.training.ended.set()
    assert second.result(20).adapter not in (one, None)
    for job in (first, second):
        job.thread.join(20)
        assert not job.thread.is_alive() and not job.cancel()


def test_cancel(world, lm):
    world.at_once = False
    job = started(lm)
    until(lambda: job.training is not None)
    assert job.cancel()
    with pytest.raises(CancelledError):
        job.result(20)
    job.thread.join(20)
    assert job.status() == TrainingStatus.cancelled and job.training.cancelled and not job.thread.is_alive()


def test_cancelled_before_it_has_read_its_rows(world, lm, monkeypatch):
    world.at_once = False
    reading, go_on = threading.Event(), threading.Event()
    rows = tallow.dspy.provider._rows
    monkeypatch.setattr(
        tallow.dspy.provider, "_rows", lambda *given: (reading.set(), go_on.wait(20), rows(*given))[2]
    )
    job = started(lm)
    assert reading.wait(20) and job.cancel()
    go_on.set()
    job.thread.join(20)
    assert not job.thread.is_alive() and all(training.cancelled for training in world.trainings)


def test_ctrl_c_ends_what_waits_too(world, lm, monkeypatch):
    world.at_once = False
    running, waiting = started(lm), started(lm)
    until(lambda: running.training and waiting.training)

    def interrupted(self, timeout=None):
        raise KeyboardInterrupt

    monkeypatch.setattr("concurrent.futures.Future.result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        running.result()
    for job in (running, waiting):
        job.thread.join(20)
        assert job.cancelled()


class PanicException(BaseException):
    pass


@pytest.mark.parametrize(
    ("failure", "raised"),
    [(tallow.OutOfMemoryError("no room"), tallow.OutOfMemoryError), (PanicException("boom"), tallow.Error)],
)
def test_a_failure_has_its_cause(world, lm, student, failure, raised):
    world.failure = failure
    job = started(lm)
    with pytest.raises(raised, match=str(failure)):
        job.result(20)
    assert job.status() == TrainingStatus.failed and isinstance(job.exception(), raised)
    with pytest.raises(raised, match=str(failure)):
        dspy.BootstrapFinetune(metric=always).compile(student, trainset=EXAMPLES)
    assert student.lm is lm, "the student is as it was"


@pytest.mark.parametrize(
    ("rows", "form", "part"),
    [
        ([], TrainDataFormat.CHAT, "the metric accepted none"),
        ([ROW], TrainDataFormat.GRPO_CHAT, "train_data_format"),
        ([{"prompt": "a"}], TrainDataFormat.COMPLETION, "train_data[0]"),
        ([{"prompt": "a", "completion": "b"}], TrainDataFormat.CHAT, "train_data[0]"),
    ],
)
def test_rows_that_are_none(world, lm, rows, form, part):
    with pytest.raises(tallow.InvalidRequestError, match=re.escape(part)):
        started(lm, rows, form).result(20)


def test_completions_are_rows_too(world, lm):
    row = {"prompt": "a", "completion": "b"}
    assert started(lm, [row], "completion").result(20).adapter and world.trainings[0].rows == [row]


def test_no_rewards(lm):
    with pytest.raises(dspy.LMUnsupportedFeatureError, match="BootstrapFinetune"):
        lm.reinforce({})


def test_launch_and_kill(world, lm):
    for _ in range(2):
        lm.launch()
        lm.kill()
    assert lm("hello", max_tokens=2), "the engine lives"
    with pytest.raises(tallow.InvalidRequestError, match="launch_kwargs"):
        lm.launch({"port": 1})


# Settings


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"rank": 4, "epochs": 1}, {"rank": 4, "epochs": 1}),
        ({"num_train_epochs": 3.0}, {"epochs": 3}),
        ({"n_epochs": 2, "batch_size": 4}, {"epochs": 2, "batch": 4}),
        ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}, {"batch": 16}),
        ({"gradient_accumulation_steps": 8}, {"batch": 8}),
        ({"r": 4, "lora_alpha": 8}, {"rank": 4, "alpha": 8}),
        ({"target_modules": "all-linear"}, {"targets": "all"}),
        ({"target_modules": ["q_proj"]}, {"targets": ["q_proj"]}),
        ({"learning_rate": 1e-4, "seed": 3}, {"learning_rate": 1e-4, "seed": 3}),
        ({"output_dir": "here"}, {"output": "here"}),
        ({"bf16": True}, {"precision": "bfloat16"}),
        ({"bf16": False}, {"precision": "float32"}),
        ({"max_steps": -1, "warmup_ratio": 0.1}, {"max_steps": None, "warmup": 0.1}),
        ({"lr_scheduler_type": "constant"}, {"schedule": "constant", "warmup": 0.0}),
        ({"lr_scheduler_type": "constant_with_warmup"}, {"schedule": "constant"}),
        # What DSPy's LocalProvider takes, with its defaults.
        (
            {"device": None, "use_peft": True, "num_train_epochs": 5, "per_device_train_batch_size": 1}
            | {"gradient_accumulation_steps": 8, "learning_rate": 1e-5, "max_seq_length": None}
            | {"packing": True, "bf16": True, "output_dir": "x"},
            {"epochs": 5, "batch": 8, "learning_rate": 1e-5, "precision": "bfloat16", "output": "x"},
        ),
    ],
)  # fmt: skip
def test_names_of_settings(given, options):
    assert train_kwargs.read(given).options == options


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"learnin_rate": 1}, "'learning_rate'"),
        ({"r": 4, "rank": 8}, "'r' and 'rank'"),
        ({"use_peft": False}, "never the model's own weights"),
        ({"lora_dropout": 0.05}, "no dropout"),
        ({"assistant_only_loss": False}, "the answer's tokens"),
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type"),
        ({"lr_scheduler_type": "constant", "warmup_ratio": 0.1}, "warmup"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps"),
        ({"bf16": "yes"}, "bf16"),
        ([("r", 4)], "a dict"),
    ],
)
def test_settings_that_are_refused(model, given, part):
    with pytest.raises(tallow.InvalidRequestError, match=re.escape(part)):
        train_kwargs.read(given)
    with pytest.raises(tallow.InvalidRequestError, match=re.escape(part)):
        tallow.LM(model, train_kwargs=given)


@pytest.mark.parametrize("name", train_kwargs.UNCHANGED)
def test_what_changes_nothing_has_a_value_and_a_reason(name):
    values, why = train_kwargs.UNCHANGED[name]
    for value in values or (1, "any"):
        assert train_kwargs.read({name: value}).options == {}
    assert why


def test_a_length_that_would_cut(world, lm):
    assert started(lm, max_seq_length=4096).result(20)
    with pytest.raises(tallow.InvalidRequestError, match="never cut"):
        started(lm, max_seq_length=3).result(20)


def test_a_device_that_it_is_not_on(world, lm):
    assert started(lm, device="cpu").result(20)
    with pytest.raises(tallow.InvalidRequestError, match="where the model is"):
        started(lm, device="cuda").result(20)


@pytest.mark.parametrize("name", ["finetuning_model", "launch_kwargs"])
def test_arguments_without_meaning(model, name):
    with pytest.raises(tallow.InvalidRequestError, match=name):
        tallow.LM(model, **{name: {"a": 1} if name == "launch_kwargs" else "other"})


def test_where_it_is_kept(world, lm, tmp_path):
    started(lm).result(20), started(lm).result(20)
    folders = [Path(training.options["output"]) for training in world.trainings]
    assert len(set(folders)) == 2 and {folder.parent for folder in folders} == {tmp_path / "finetune"}


def test_a_provider_of_the_users_own_wins(model):
    own = dspy.clients.provider.Provider()
    assert tallow.LM(model, provider=own).provider is own


# Which adapter


def test_copies(model, lm, one):
    half = model.load_adapter(one.path, name="half", scale=0.5)
    tuned = lm.copy(adapter="one")
    assert tuned.adapter == one and lm.adapter is None and f"+lora:{one.fingerprint}+f" in tuned.model
    assert lm.copy(model=tuned.model).adapter == one
    assert tuned.copy(temperature=0.5).adapter is tuned.adapter
    other = tuned.copy(adapter=half)
    assert other.adapter == half != one and lm.copy(model=other.model).adapter == half
    assert tuned.copy(adapter=None).model == lm.model == tuned.copy(model=lm.model).model
    cached = tallow.LM(model, adapter="one")
    assert cached.model != tuned.model, "the exact name of the model"
    assert cached.copy(model=tuned.model).adapter == lm.copy(model=cached.model).adapter == one
    assert "adapter='one'" in repr(tuned)


@pytest.mark.parametrize(
    "string",
    [
        "gpt-4",
        3,
        "tallow/other@{exact}+f3",
        "tallow/{name}@00000000+f3",
        "tallow/{name}@{exact}+lora:00ff+f3",
    ],
)
def test_copies_of_another_model_are_refused(lm, string):
    if isinstance(string, str):
        string = string.format(name=lm.engine.model.name, exact=lm.engine.model.fingerprint)
    with pytest.raises(tallow.InvalidRequestError, match=r"tallow\.LM|lm\.copy"):
        lm.copy(model=string)


def test_an_unknown_adapter_is_an_error(model, one, tmp_path):
    folder = copy_family("qwen3-tied", tmp_path / "other")
    widen(folder)
    stranger = tallow.Model(folder)
    theirs = stranger.load_adapter(write_adapter(tmp_path / "theirs", stranger, 1))
    for given, part in (("two", "'one'"), (theirs, "load it there")):
        with pytest.raises(tallow.InvalidRequestError, match=part):
            tallow.LM(model, adapter=given)
    with pytest.raises(tallow.ModelFileError, match="no such"):
        tallow.LM(model, adapter=tmp_path / "none")
    with pytest.raises(tallow.ArgumentTypeError):
        tallow.LM(model, adapter=3)


def test_a_folder_is_loaded(model, tmp_path):
    folder = write_adapter(tmp_path / "support", model, 1)
    assert tallow.LM(model, adapter=folder).adapter.name == "support"
    assert tallow.LM(model, adapter=str(folder)).adapter in model.adapters()


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_it_answers_with_its_adapter(model, lm, one, is_async):
    tuned = lm.copy(adapter=one)
    asked = [{"role": "user", "content": "hello"}]
    for said, own in ((lm, None), (tuned, one)):
        (answer,) = call(said, is_async, "hello", max_tokens=9)
        assert answer == model.generate(asked, max_tokens=9, adapter=own).text
    assert lm.history[-1]["outputs"] != tuned.history[-1]["outputs"]


def test_probabilities_are_those_of_the_adapter(lm, one):
    shape = {"type": "json_schema", "schema": {"type": "object", "properties": {"good": {"type": "boolean"}}}}
    plain, tuned = (
        said.engine.complete(request(said, response_format=shape, probabilities="required"))
        for said in (lm, lm.copy(adapter=one))
    )
    assert plain.message.parts[0].probabilities != tuned.message.parts[0].probabilities


def test_the_cache_knows_adapters(model, one):
    """Equal prompts to the model, to an adapter and to the same at another scale are asked three times."""
    model.load_adapter(one.path, name="half", scale=0.5)
    lms = [tallow.LM(model, max_tokens=3, adapter=adapter) for adapter in (None, "one", "half")]
    before = model.stats()["requests"]
    for lm in [*lms, *lms]:
        lm("the cache knows adapters")
    assert model.stats()["requests"] - before == 3


def test_other_weights_under_the_same_name(model, lm, one, tmp_path):
    """The LM stays with what it began with, and its name in the cache as well."""
    tuned = lm.copy(adapter="one")
    before = tuned("hello", max_tokens=9)
    other = model.load_adapter(write_adapter(tmp_path / "other", model, 102), name="one")
    assert tuned("hello", max_tokens=9) == before and tuned.adapter == one
    assert lm.copy(adapter="one").adapter == other != one


# Values and saved programs


def test_a_tuned_lm_as_a_value(lm, one):
    tuned = lm.copy(adapter="one")
    for other in (copy.deepcopy(tuned), cloudpickle.loads(cloudpickle.dumps(tuned))):
        assert other.model == tuned.model and other.adapter == one
        assert other._async_engine_spec.adapter == one


@pytest.fixture
def saved(world, student, tmp_path):
    dspy.BootstrapFinetune(metric=always).compile(student, trainset=EXAMPLES)
    student.save(tmp_path / "program.json")
    return tmp_path / "program.json"


def loaded(path):
    program = dspy.Predict(Sort)
    program.load(path, allow_unsafe_lm_state=True)
    return program


def test_a_saved_program_finds_its_adapter(student, saved):
    tuned = student.lm
    again = loaded(saved).lm
    assert (again.adapter, again.model) == (tuned.adapter, tuned.model)
    assert again._async_engine_spec.adapter == again.adapter
    assert again("hello", max_tokens=9) == tuned("hello", max_tokens=9)
    assert len(tuned.engine.model.adapters()) == 1, "it is the one that is loaded"


def test_its_name_is_taken_here(model, student, saved, tmp_path):
    mine = student.lm.adapter
    other = model.load_adapter(write_adapter(tmp_path / "other", model, 9), name=mine.name)
    again = loaded(saved).lm.adapter
    assert again == mine and other in model.adapters(), "nobody has lost a name"


@pytest.mark.parametrize("what", ["changed", "gone"])
def test_an_adapter_that_is_not_what_it_was(model, student, saved, what):
    folder = Path(student.lm.adapter.path)
    model.unload_adapter(student.lm.adapter)
    if what == "gone":
        folder.rename(folder.with_suffix(".moved"))
    else:
        write_adapter(folder, model, 55)
    with pytest.raises(tallow.ModelFileError, match="program was saved with"):
        loaded(saved)
    assert not model.adapters()


def test_an_adapter_in_memory_is_not_saved(lm, one, tmp_path, monkeypatch):
    monkeypatch.setattr(tallow.Adapter, "path", None)
    with pytest.raises(tallow.InvalidRequestError, match=r"adapter\.save"):
        ready(lm.copy(adapter="one")).save(tmp_path / "program.json")


def test_many_threads_and_tasks(lm, one):
    """Base and tuned at once: each answers as it does alone."""
    programs = [ready(lm), ready(lm.copy(adapter=one))]
    alone = [[program(message=f"Message {at}").team for at in range(8)] for program in programs]

    async def together():
        calls = [dspy.asyncify(program)(message=f"Message {at}") for program in programs for at in range(8)]
        return [found.team for found in await asyncio.gather(*calls)]

    assert asyncio.run(together()) == alone[0] + alone[1]
    pairs = [
        (program, dspy.Example(message=f"Message {at}").with_inputs("message"))
        for program in programs
        for at in range(8)
    ]
    found = dspy.Parallel(num_threads=8, disable_progress_bar=True)(pairs)
    assert [one.team for one in found] == alone[0] + alone[1]


# Rows


@pytest.mark.parametrize(
    "adapter", [dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter, tallow.dspy.JSONAdapter]
)
def test_rows_of_examples(adapter):
    program = dspy.Predict(Sort)
    rows = tallow.dspy.finetune_rows(program, EXAMPLES, adapter=adapter())
    assert len(rows) == len(EXAMPLES)
    *asks, answer = rows[0]["messages"]
    assert asks == adapter().format(Sort, [], {"message": "Message 0"})
    assert adapter().parse(Sort, answer["content"]) == {"team": "rooms"}


def test_rows_of_json_are_what_the_grammar_writes(model):
    """One line, with the grammar's spaces: an answer that was learned in another shape could not be given."""
    lm = tallow.LM(model, max_tokens=60, cache=False)
    program = dspy.Predict(Sort)
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        team = program(message="Message 0").team
    example = dspy.Example(message="Message 0", team=team).with_inputs("message")
    (row,) = tallow.dspy.finetune_rows(program, [example], adapter=dspy.JSONAdapter())
    assert row["messages"][-1]["content"] == lm.history[-1]["outputs"][0]


def test_rows_of_chat_are_what_the_grammar_writes(model):
    lm = tallow.LM(model, max_tokens=60, cache=False)
    program = dspy.Predict(Sort)
    with dspy.context(lm=lm):
        team = program(message="Message 0").team
    example = dspy.Example(message="Message 0", team=team).with_inputs("message")
    (row,) = tallow.dspy.finetune_rows(program, [example])
    # DSPy ends it with a newline, which no answer has; training strips it.
    assert row["messages"][-1]["content"].rstrip() == lm.history[-1]["outputs"][0].rstrip()


def test_rows_of_traces(lm):
    program = Twice()
    program.set_lm(lm)
    from dspy.teleprompt.bootstrap_trace import bootstrap_trace_data

    traces = bootstrap_trace_data(program, EXAMPLES[:2], num_threads=2)
    rows = tallow.dspy.finetune_rows(program, traces, adapter=dspy.JSONAdapter())
    assert [json.loads(row["messages"][-1]["content"])["team"] for row in rows]
    assert len(rows) == 4


@pytest.mark.parametrize(
    ("program", "examples", "adapter", "part"),
    [
        (dspy.Predict(Sort), [], None, "examples is empty"),
        (dspy.Predict(Sort), [3], None, "examples[0]"),
        (dspy.Predict(Sort), [dspy.Example(message="a").with_inputs("message")], None, "no 'team'"),
        (Twice(), EXAMPLES, None, "2 predictors"),
        (dspy.Predict(Sort), EXAMPLES, 3, "adapter"),
        (dspy.Predict(Sort), EXAMPLES, dspy.TwoStepAdapter(dspy.utils.DummyLM([])), "TwoStepAdapter"),
    ],
)
def test_rows_that_cannot_be_made(program, examples, adapter, part):
    with pytest.raises(tallow.InvalidRequestError, match=re.escape(part)):
        tallow.dspy.finetune_rows(program, examples, adapter=adapter)


def test_bootstrap_finetune_with_json(world, student):
    adapter = tallow.dspy.JSONAdapter()
    with dspy.context(adapter=adapter):
        dspy.BootstrapFinetune(metric=always).compile(student, trainset=EXAMPLES)
        assert student(message="Hello").team in ("kitchen", "rooms")
    answer = world.trainings[0].rows[0]["messages"][-1]["content"]
    assert set(json.loads(answer)) == {"team"}


# Trainings that are real, of a model so small that they take a second

QUICK = {"num_train_epochs": 8, "learning_rate": 0.02, "rank": 4}


@pytest.fixture
def kept(monkeypatch, tmp_path):
    monkeypatch.setenv("DSPY_FINETUNEDIR", str(tmp_path / "finetune"))
    return tmp_path / "finetune"


@pytest.fixture
def task(lm):
    """A teacher that can only answer what the model itself answers seldom, messages, and the metric that
    accepts that."""
    examples = [dspy.Example(message=f"Message {at}").with_inputs("message") for at in range(16)]
    own = [ready(lm)(message=example.message).team for example in examples]
    seldom = min(("kitchen", "rooms"), key=own.count)

    answer = f"[[ ## team ## ]]\n{seldom}\n\n[[ ## completed ## ]]"

    def metric(example: Any, prediction: Any, trace: Any = None) -> bool:
        return prediction.team == seldom

    return ready(lm.copy(choices=[answer])), examples, metric


def share(program: Any, examples: Any, metric: Any) -> float:
    return dspy.Evaluate(devset=examples, metric=metric, num_threads=8, display_progress=False)(program).score


def test_it_learns_what_the_metric_accepts(kept, lm, student, task):
    teacher, examples, metric = task
    before = share(student, examples, metric)
    optimizer = dspy.BootstrapFinetune(metric=metric, num_threads=8, train_kwargs=QUICK)
    optimizer.compile(student, trainset=examples, teacher=teacher)
    assert before < 60 and share(student, examples, metric) > 90
    assert share(ready(lm), examples, metric) == before, "the model is as it was"
    student.save(kept / "program.json")
    again = loaded(kept / "program.json")
    assert again.lm.adapter == student.lm.adapter and share(again, examples, metric) > 90
    assert Path(student.lm.adapter.path).parent == kept


def test_better_together_learns(kept, student, task):
    teacher, examples, metric = task
    optimizer = dspy.BetterTogether(
        metric=metric,
        p=dspy.BootstrapFewShot(metric=metric, max_labeled_demos=0, max_bootstrapped_demos=1),
        w=dspy.BootstrapFinetune(metric=metric, num_threads=8, train_kwargs=QUICK),
    )
    before = share(student, examples, metric)
    best = optimizer.compile(
        student,
        trainset=examples,
        valset=examples,
        strategy="w -> p",
        num_threads=8,
        # DSPy hands a teacher= on as a list, which BootstrapFewShot does not take.
        optimizer_compile_args={"w": {"teacher": teacher}},
    )
    assert not best.flag_compilation_error_occurred
    assert best.candidate_programs[0]["score"] > 90 > 60 > before
    assert share(best, examples, metric) > 90


def test_a_real_training_is_cancelled(kept, lm):
    job = started(lm, [ROW] * 50, epochs=10_000)
    until(lambda: job.status() == TrainingStatus.running)
    began = time.monotonic()
    assert job.cancel()
    job.thread.join(20)
    assert not job.thread.is_alive() and time.monotonic() - began < 10
    assert lm("hello", max_tokens=2) and not lm.engine.model.adapters()


def test_what_training_refuses_is_told(kept, lm):
    with pytest.raises(tallow.InvalidRequestError, match="rank"):
        started(lm, rank=10_000).result(60)
    empty = {"messages": [ROW["messages"][0], {"role": "assistant", "content": ""}]}
    with pytest.raises(tallow.InvalidRequestError, match=r"rows\[0\]"):
        started(lm, [empty]).result(60)


STOPPED = """
import sys, threading, time
import dspy, tallow
from typing import Literal

class Sort(dspy.Signature):
    message: str = dspy.InputField()
    team: Literal["kitchen", "rooms"] = dspy.OutputField()

lm = tallow.LM(sys.argv[1], max_tokens=60, cache=False, train_kwargs={"epochs": 100_000})
program = dspy.Predict(Sort)
program.set_lm(lm)

def tell():
    from tallow.dspy.provider import _jobs
    while not any(job.status() == "running" for job in list(_jobs)):
        time.sleep(0.01)
    print("running", flush=True)

threading.Thread(target=tell, daemon=True).start()
trainset = [dspy.Example(message=f"Message {at}").with_inputs("message") for at in range(8)]
try:
    dspy.BootstrapFinetune(metric=lambda *_: True).compile(program, trainset=trainset)
except KeyboardInterrupt:
    assert lm("hello", max_tokens=2)
    print("stopped", flush=True)
"""


def test_ctrl_c_stops_the_optimizer_and_the_training(model, kept):
    command = [sys.executable, "-c", STOPPED, model.to_state()["source"]]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while (line := child.stdout.readline()) != "running\n":
            assert line or child.poll() is None, child.stderr.read()
        child.send_signal(signal.SIGINT)
        said, errors = child.communicate(timeout=30)
        assert (said, child.returncode) == ("stopped\n", 0), errors
    finally:
        child.kill()
