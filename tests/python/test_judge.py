"""tallow.Judge and requests for probabilities: exact likelihoods, DSPy's decision protocol, ReAnchor."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import enum
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import pydantic
import pytest

import tallow
from conftest import copy_family, needed

dspy = needed("dspy")
cloudpickle = needed("cloudpickle")
lm15 = dspy.lm15

from dspy.experimental import Choice, Noul, ReAnchor, Score  # noqa: E402

from tallow.dspy import probabilities  # noqa: E402
from tallow.dspy.decisions import conversation, decision, state  # noqa: E402
from test_adapters import shapes_of, write  # noqa: E402


@pytest.fixture(scope="module")
def roomy(tmp_path_factory):
    """The tiny model with random weights and room for a prompt of a token a character."""
    folder = copy_family("llama-gqa-tied", tmp_path_factory.mktemp("judge") / "tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    return tallow.Model(folder)


@pytest.fixture(scope="module")
def judge(roomy):
    return tallow.Judge(roomy, cache=False)


@pytest.fixture(scope="module")
def real(smollm2):
    return tallow.Judge(smollm2, cache=False)


STATE = {
    "instructions": "Judge the review.",
    "input_fields": "1. `text` (str):",
    "inputs": {"text": "The soup was delicious."},
    "demos": [
        {"text": "I want my money back.", "mood": "negative", "good": False},
        {
            "text": "Highly recommended.",
            "mood": {"value": "positive", "confidence": 0.9},
            "stars": {"level": 2},
        },
        {"text": "No answer in this one."},
    ],
}
QUESTIONS = {
    "mood": {
        "type": "choice",
        "instructions": "What is the sentiment of the text?",
        "criteria": {"positive": None, "negative": "it complains", "neutral": {"see": "else"}},
    },
    "good": {"type": "noul", "instructions": "Is the text positive?", "criteria": {"true": "happy"}},
    "stars": {"type": "score", "instructions": ["How", "good?"], "criteria": ["poor", "fair", "excellent"]},
}


def alone(model, turns, text):
    """The log likelihood of one text after a prompt, by the softmax of the logits of the two together."""
    prompt = model.render(turns)
    before, whole = (model.tokenize(each, special=True) for each in (prompt, prompt + text))
    assert whole[: len(before)] == before
    rows = model.logits(whole).astype(np.float64)[len(before) - 1 : -1]
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return sum(row[id] for row, id in zip(rows, whole[len(before) :], strict=True))


def shares(logprobs):
    weights = np.exp(np.array(logprobs) - max(logprobs))
    return weights / weights.sum()


# The numbers


@pytest.mark.parametrize(("name", "given"), [("roomy", STATE), ("smollm2", "The soup was delicious.")])
def test_probabilities_are_those_of_brute_force(name, given, request):
    model = request.getfixturevalue(name)
    answers = tallow.Judge(model, cache=False)(state=given, questions=QUESTIONS)
    every = [decision(*item) for item in QUESTIONS.items()]
    for one in every:
        turns = conversation(state(given), every, one)
        expected = shares([alone(model, turns, text) for text in one.answers()])
        answer = answers[one.name]
        found = (
            [answer["noul"], 1 - answer["noul"]]
            if one.kind == "noul"
            else list(answer["probabilities"].values())
        )
        assert abs(sum(found) - 1) < 1e-9
        assert np.abs(np.array(found) - expected).max() < 1e-5
        if one.kind != "noul":
            assert answer["confidence"] == max(found)
    assert list(answers["mood"]["probabilities"]) == ["positive", "negative", "neutral"]
    assert list(answers["stars"]["probabilities"]) == [0, 1, 2]


def test_the_prompt_is_a_conversation_that_questions_share():
    every = [decision(*item) for item in QUESTIONS.items()]
    prompts = [conversation(state(STATE), every, one) for one in every]
    assert [turn["role"] for turn in prompts[0]] == ["system", *["user", "assistant"] * 4, "user"]
    assert prompts[0][:-1] == prompts[1][:-1] == prompts[2][:-1]
    assert [turn["content"] for turn in prompts[0] if turn["role"] == "assistant"] == [
        '{"mood": "negative"}',
        '{"good": false}',
        '{"mood": "positive"}',
        '{"stars": 2}',
    ]
    last = prompts[0][-1]["content"]
    assert last.startswith("text: The soup was delicious.\n\nQuestion: What is the sentiment of the text?\n")
    assert '- "negative": it complains\n- "neutral": {"see": "else"}\n' in last
    assert all(prompt[-1]["content"].startswith("text: The soup was delicious.\n\n") for prompt in prompts)


def test_no_answer_is_the_beginning_of_another(judge):
    labels = {"Yes": None, "Yes, but": None, 'Yes"': None, "Ye": None}
    one = decision("x", {"type": "choice", "criteria": labels})
    texts = one.answers()
    assert not any(a != b and b.startswith(a) for a in texts for b in texts)
    answer = judge(state="hello", questions={"x": {"type": "choice", "criteria": labels}})["x"]
    assert list(answer["probabilities"]) == list(labels)


def test_temperature_and_calibration(roomy):
    plain = tallow.Judge(roomy, cache=False)(state=STATE, questions=QUESTIONS)
    warm = tallow.Judge(roomy, cache=False, temperature=2.0)(state=STATE, questions=QUESTIONS)
    for name in ("mood", "stars"):
        wanted = np.sqrt(list(plain[name]["probabilities"].values()))
        assert np.allclose(list(warm[name]["probabilities"].values()), wanted / wanted.sum())
    fair = tallow.Judge(roomy, cache=False, calibrate=True)(state=STATE, questions=QUESTIONS)
    assert fair["good"] == plain["good"] and fair["stars"] == plain["stars"]
    blank = tallow.Judge(roomy, cache=False)(state={**STATE, "inputs": {"text": "N/A"}}, questions=QUESTIONS)
    wanted = np.array(
        [plain["mood"]["probabilities"][k] / p for k, p in blank["mood"]["probabilities"].items()]
    )
    assert np.allclose(list(fair["mood"]["probabilities"].values()), wanted / wanted.sum())


REVIEWS = [
    ("I loved every minute of this film.", True),
    ("A wonderful book, I could not put it down.", True),
    ("Great value, it works perfectly.", True),
    ("An inspiring and beautiful story.", True),
    ("The soup was cold and the staff were rude.", False),
    ("It broke after two days, a waste of money.", False),
    ("The concert was a complete disaster.", False),
    ("This phone is terrible.", False),
]
POSITIVE = {"good": {"type": "noul", "instructions": "Is the text positive?"}}


def test_it_makes_sense(real):
    """SmolLM2 without demos: it says yes to all, and to the positive ones with more confidence."""
    chances = [real(state=text, questions=POSITIVE)["good"]["noul"] for text, _ in REVIEWS]
    good = [chance for chance, (_, positive) in zip(chances, REVIEWS, strict=True) if positive]
    bad = [chance for chance, (_, positive) in zip(chances, REVIEWS, strict=True) if not positive]
    assert np.mean([a > b for a in good for b in bad]) >= 0.9


def test_what_questions_share_is_computed_once(roomy):
    long = {**STATE, "instructions": "Judge the review. " * 40}

    def computed(count):
        roomy.close()  # a new engine, with nothing in its cache
        asked = {f"good{i}": {"type": "noul", "instructions": f"{i}?"} for i in range(count)}
        tallow.Judge(roomy, cache=False)(state={**long, "demos": []}, questions=asked)
        return roomy.stats()["computed_tokens"]

    assert computed(8) < 3 * computed(1)


# In DSPy


Topic = Choice[("food", "meals and drinks"), (3, "the number three")]
Stars = Score["poor", "fair", "excellent"]


class Review(dspy.Signature):
    """Judge the review."""

    text: str = dspy.InputField()
    mood: Literal["positive", "negative"] = dspy.OutputField(desc="What is the sentiment of the text?")
    good: bool = dspy.OutputField(desc="Is the text positive?")
    sure: Noul = dspy.OutputField(desc="Is it certain?")
    topic: Topic = dspy.OutputField(desc="About?")
    stars: Stars = dspy.OutputField(desc="How good is it?")


DEMO = {"text": "I want my money back.", "mood": "negative", "good": False, "sure": True, "topic": 3}


def test_predict(judge):
    program = dspy.Predict(Review)
    program.demos = [dspy.Example(**DEMO)]
    with dspy.context(lm=judge):
        found = program(text="The soup was delicious.")
        again = asyncio.run(program.acall(text="The soup was delicious."))
    assert found.mood in ("positive", "negative") and isinstance(found.good, bool)
    assert found.sure.value is (found.sure.probability >= 0.5)
    assert found.topic.value in ("food", 3) and set(found.topic.probabilities) == {"food", "3"}
    assert abs(sum(found.topic.probabilities.values()) - 1) < 1e-9
    assert found.stars.level in (0, 1, 2) and 0 <= float(found.stars) <= 2
    assert found.toDict() == again.toDict()


def test_what_a_judge_cannot_do_is_refused(judge):
    with dspy.context(lm=judge):
        with pytest.raises(ValueError, match="reasoning"):
            dspy.ChainOfThought("text -> good: bool")(text="hello")
        with pytest.raises(dspy.LMInvalidRequestError, match=r"tallow\.LM"):
            judge("Write a poem.")
        with pytest.raises(dspy.LMInvalidRequestError, match=r"tallow\.LM"):
            judge(messages=[{"role": "user", "content": "Write a poem."}])
        with pytest.raises(dspy.ContextWindowExceededError, match="8192"):
            judge(state="x" * 9000, questions=POSITIVE)
        image = dspy.Image("data:image/png;base64,AAAA")
        shown = dspy.Signature("picture: dspy.Image -> good: bool").with_updated_fields("good", desc="good?")
        with pytest.raises(dspy.LMUnsupportedFeatureError, match="text only"):
            dspy.Predict(shown)(picture=image)


def test_cache_history_usage_and_callbacks(roomy):
    calls = []

    class Watch(dspy.utils.BaseCallback):
        def on_lm_start(self, call_id, instance, inputs):
            calls.append(inputs)

    judge = tallow.Judge(roomy, callbacks=[Watch()])
    with dspy.track_usage() as tracker:
        first = judge(state=STATE, questions=QUESTIONS)
        first["mood"]["probabilities"]["positive"] = 9.0  # what a caller does to its answer stays its own
        second = judge(state=STATE, questions=QUESTIONS)
    assert second["mood"]["probabilities"]["positive"] < 1 and len(calls) == 2
    entry, cached = judge.history
    assert not entry["cache_hit"] and cached["cache_hit"] and cached["usage"] == {}
    assert tracker.get_total_tokens()[judge.model]["total_tokens"] == entry["usage"]["total_tokens"] > 0
    every = [decision(*item) for item in QUESTIONS.items()]
    lengths = [
        len(roomy.tokenize(roomy.render(conversation(state(STATE), every, one)), True)) for one in every
    ]
    assert entry["usage"]["prompt_tokens"] == sum(lengths)
    assert all(0 < share <= 1 for share in entry["response"]["coverage"].values())
    judge.inspect_history(2, file=open(os.devnull, "w"))  # noqa: SIM115
    for other in (judge.copy(temperature=2.0), judge.copy(calibrate=True)):
        other(state=STATE, questions=QUESTIONS)
        assert not other.history[-1]["cache_hit"]


def test_threads_and_tasks_agree(judge):
    texts = [f"text number {i}" for i in range(24)]
    expected = [judge(state=text, questions=QUESTIONS) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: judge(state=text, questions=QUESTIONS), texts)) == expected

    async def all_at_once():
        return await asyncio.gather(*(judge.acall(state=text, questions=QUESTIONS) for text in texts))

    assert asyncio.run(all_at_once()) == expected


def test_it_is_a_value(roomy, tmp_path):
    judge = tallow.Judge(roomy, temperature=1.5, calibrate=True, cache=False)
    expected = judge(state=STATE, questions=QUESTIONS)
    stored = dspy.BaseLM.load_state(json.loads(json.dumps(judge.dump_state())), allow_custom_lm_class=True)
    for other in (judge.copy(), copy.deepcopy(judge), cloudpickle.loads(cloudpickle.dumps(judge)), stored):
        assert type(other) is tallow.Judge and other.language_model == roomy
        assert (other.model, other.temperature, other.calibrate) == (judge.model, 1.5, True)
        assert other(state=STATE, questions=QUESTIONS) == expected
    # DSPy's BestOfN asks for other samples so; a measurement has only one.
    assert judge.copy(rollout_id=1, temperature=1.0).temperature == 1.5
    program = dspy.Predict(Review)
    program.set_lm(judge)
    program.save(tmp_path / "program.json")
    fresh = dspy.Predict(Review)
    fresh.load(tmp_path / "program.json", allow_unsafe_lm_state=True)
    assert fresh(text="hello").toDict() == program(text="hello").toDict()
    assert "temperature=1.5" in repr(judge) and judge.model in repr(judge)


def test_an_adapter_is_measured_with(roomy, tmp_path):
    """Its probabilities, its entries in the cache, and itself again in copies and saved programs."""
    shapes, layers = shapes_of(roomy.config), roomy.config["num_layers"]
    one, two = (roomy.load_adapter(write(tmp_path / str(at), shapes, layers, seed=at)) for at in (1, 2))
    plain = tallow.Judge(roomy, cache=False)
    tuned = tallow.Judge(roomy, adapter=one, cache=False)
    base, own = (judge(state=STATE, questions=QUESTIONS) for judge in (plain, tuned))
    assert base != own and tuned.model != plain.model and tuned.adapter == one
    assert "adapter='1'" in repr(tuned)
    turns, answers = [{"role": "user", "content": "Good?"}], ["yes", "no"]
    measured = probabilities.measure(roomy, turns, answers, adapter=one).logprobs
    assert measured == tuple(score.logprob for score in roomy.score(turns, answers, adapter=one))
    stored = dspy.BaseLM.load_state(json.loads(json.dumps(tuned.dump_state())), allow_custom_lm_class=True)
    for other in (
        *(tuned.copy(), copy.deepcopy(tuned), cloudpickle.loads(cloudpickle.dumps(tuned)), stored),
        *(plain.copy(adapter=one), tallow.Judge(roomy, adapter=two, cache=False).copy(adapter="1")),
    ):
        assert (other.adapter, other.model) == (one, tuned.model)
        assert other(state=STATE, questions=QUESTIONS) == own
    back = tuned.copy(adapter=None)
    assert back.model == plain.model and back(state=STATE, questions=QUESTIONS) == base
    cached = [tallow.Judge(roomy, adapter=adapter) for adapter in (None, one, two)]
    first, again = ([judge(state=STATE, questions=QUESTIONS) for judge in cached] for _ in range(2))
    assert first == again and first[:2] == [base, own] and first[2] not in first[:2]
    assert [judge.history[-1]["cache_hit"] for judge in cached] == [True] * 3
    for judge in (tuned, plain.copy(adapter=two)):
        with pytest.raises(tallow.InvalidRequestError, match="'1'"):
            judge.copy(adapter="three")


def test_reanchor(smollm2):
    """The thresholds of a small model are off; what it ranks well, ReAnchor puts right."""
    program = dspy.Predict(
        dspy.Signature("text -> good: bool").with_updated_fields("good", desc="Is the text positive?")
    )
    train = [dspy.Example(text=text, good=good).with_inputs("text") for text, good in REVIEWS]
    with dspy.context(lm=tallow.Judge(smollm2)):
        optimizer = ReAnchor(lambda example, found, trace=None: example.good == found.good, num_threads=4)
        tuned = optimizer.compile(program, trainset=train)
        assert optimizer.report["train_score_before"] <= 0.75 < optimizer.report["train_score"]
        assert tuned(text="What a lovely evening it was.").good is True
    assert tuned.fields["good"]["threshold"] != 0.5


# Wrong arguments


CALLS = [
    ({"state": 3}, "state"),
    ({"state": {"inputs": {}, "demo": []}}, "'demos'?"),
    ({"state": {"instructions": "x"}}, 'state["inputs"]'),
    ({"state": {"inputs": {"x": object()}}}, "state[\"inputs\"]['x']"),
    ({"state": {"inputs": {}, "demos": ["x"]}}, 'state["demos"][0]'),
    ({"state": {"inputs": {}, "demos": [{"good": "maybe"}]}}, "state[\"demos\"][0]['good']"),
    ({"questions": {}}, "questions"),
    ({"questions": {"x": {"type": "text"}}}, "noul"),
    ({"questions": {"x": {"type": "choice"}}}, "criteria"),
    ({"questions": {"x": {"type": "score", "criteria": ["one"]}}}, "two descriptions"),
    ({"questions": {"x": {"type": "noul", "criteria": {"yes": "?"}}}}, "criteria"),
    ({"questions": {"x": {"type": "noul", "instruction": "?"}}}, "'instructions'?"),
    ({"question": {}}, "'questions'?"),
]


@pytest.mark.parametrize(("given", "part"), CALLS, ids=[part for _, part in CALLS])
def test_wrong_arguments_of_a_call(judge, given, part):
    with pytest.raises(dspy.LMInvalidRequestError) as caught:
        judge(**{"state": "hello", "questions": POSITIVE, **given})
    assert part in str(caught.value)


MAKING = [
    ({"temperature": 0}, "temperature"),
    ({"calibrate": 1}, "calibrate"),
    ({"cache": "yes"}, "cache"),
    ({"temprature": 1}, "'temperature'?"),
    ({"quantize": "q8_0"}, "quantize"),
    ({"adapter": 3}, "adapter"),
]


@pytest.mark.parametrize(("given", "part"), MAKING, ids=[part for _, part in MAKING])
def test_wrong_arguments_of_a_judge(roomy, given, part):
    with pytest.raises(tallow.InvalidRequestError) as caught:
        tallow.Judge(roomy, **given)
    assert part in str(caught.value)


# Explicit requests


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Answer(pydantic.BaseModel):
    good: bool
    mood: Literal["positive", "negative"] = pydantic.Field(description="What is the sentiment?")
    color: Color
    stars: Literal[1, 2, 3]
    maybe: bool | None
    only: Literal["x"]


def request(shape, text="The soup was delicious.", **config):
    config = {"probabilities": "required", "response_format": shape, **config}
    return lm15.Request(model="m", messages=(lm15.Message.user(text),), config=lm15.Config(**config))


def json_schema(schema):
    return {"type": "json_schema", "schema": schema}


JUDGMENTS = lm15.judgments(
    mood=lm15.choice("What is the sentiment?", {"positive": "praise", "negative": None}),
    good=lm15.yes_no("Is the text positive?"),
    stars=lm15.score("How good is it?", {"low": "poor", "high": "excellent"}),
)
KEYS = [
    (JUDGMENTS, {"mood": ["positive", "negative"], "good": ["true", "false"], "stars": ["0", "1"]}),
    (
        json_schema(Answer.model_json_schema()),
        {
            "good": ["true", "false"],
            "mood": ["positive", "negative"],
            "color": ["red", "blue"],
            "stars": ["1", "2", "3"],
            "maybe": ["true", "false", "null"],
            "only": ["x"],
        },
    ),
]


@pytest.mark.parametrize(("shape", "keys"), KEYS, ids=["judgments", "pydantic"])
@pytest.mark.parametrize("policy", ["required", "if_available"])
def test_probabilities_of_a_request(roomy, shape, keys, policy):
    asked = request(shape, probabilities=policy)
    assert probabilities.measures(asked) and probabilities.unmeasured(asked) == ()
    response = probabilities.answer(roomy, asked)
    assert response == asyncio.run(probabilities.aanswer(roomy, asked))
    assert response.method == "candidate_sequence_likelihood" and response.finish_reason == "stop"
    assert {name: list(found) for name, found in response.probabilities.items()} == keys
    for name, found in response.probabilities.items():
        assert abs(sum(found.values()) - 1) < 1e-9
        value = response.data[name]
        assert found[value if isinstance(value, str) else json.dumps(value)] == max(found.values())
    assert response.usage.input_tokens > 0 and set(response.provider_data["coverage"]) == set(keys)


def test_probabilities_of_a_request_by_brute_force(smollm2):
    shape = json_schema({"properties": {"mood": {"enum": ["positive", "negative"], "description": "Mood?"}}})
    found = probabilities.answer(smollm2, request(shape)).probabilities["mood"]
    text = (
        'The soup was delicious.\n\nQuestion: Mood?\nOptions: "positive", "negative"\n'
        'Respond with a JSON object that has the one key "mood".'
    )
    turns = [{"role": "user", "content": text}]
    expected = shares([alone(smollm2, turns, json.dumps({"mood": mood})) for mood in found])
    assert np.abs(np.array(list(found.values())) - expected).max() < 1e-5


TOOL = lm15.FunctionTool(name="f", description="?", parameters={"type": "object", "properties": {}})
HINDRANCES = [
    (request(None), "config.response_format"),
    (request({"type": "json_object"}), "config.response_format"),
    (request(json_schema({"properties": {"x": {"type": "string"}, "y": {"type": "boolean"}}})), "'x'"),
    (request(json_schema({"properties": {"x": {"enum": [1, "1"]}}})), "written alike"),
    (request(json_schema({"properties": {"x": {"$ref": "#"}}})), "'x'"),
    (request(json_schema({"type": "string"})), "no properties"),
    (request(JUDGMENTS, reasoning=lm15.Reasoning(effort="high")), "config.reasoning"),
    (dataclasses.replace(request(JUDGMENTS), tools=(TOOL,)), "tools"),
]


@pytest.mark.parametrize(("asked", "part"), HINDRANCES, ids=[part for _, part in HINDRANCES])
def test_what_cannot_be_measured(asked, part):
    with pytest.raises(lm15.UnsupportedFeatureError, match="if_available") as caught:
        probabilities.measures(asked)
    assert part in str(caught.value) and caught.value.feature.split(".")[0] in ("config", "tools")
    softer = dataclasses.replace(
        asked, config=dataclasses.replace(asked.config, probabilities="if_available")
    )
    assert not probabilities.measures(softer)
    [note] = probabilities.unmeasured(softer)
    assert (note.field, note.action) == ("config.probabilities", "dropped") and part in note.reason


def test_streams_and_requests_that_want_none():
    with pytest.raises(lm15.UnsupportedFeatureError, match="stream"):
        probabilities.measures(request(JUDGMENTS), stream=True)
    for policy in (None, "off"):
        asked = request(JUDGMENTS, probabilities=policy)
        assert not probabilities.measures(asked) and probabilities.unmeasured(asked) == ()


def test_settings_without_effect_are_noted(roomy):
    extra = {"metadata": {"template_arguments": {"bos_token": "<s>"}, "min_p": 0.1}, "logit_bias": {"1": 2}}
    asked = request(JUDGMENTS, temperature=0.5, seed=1, stop=("x",), extensions=extra)
    fields = {note.field for note in probabilities.answer(roomy, asked).adaptations}
    sampling = {"config.temperature", "config.seed", "config.stop"}
    assert fields == sampling | {"config.extensions.logit_bias", "metadata.min_p"}
    with pytest.raises(lm15.InvalidRequestError, match="'min_p'"):
        probabilities.answer(roomy, request(JUDGMENTS, extensions={"metadata": {"minp": 1}}))
