"""Answers that are held to a form: what is asked for, with whom it is combined, and what is refused."""

from __future__ import annotations

import asyncio
import json
import re
from concurrent.futures import ThreadPoolExecutor
from enum import Enum

import pytest
from pydantic import BaseModel, Field

import tallow

ASK = [{"role": "user", "content": "Describe the city of Paris."}]


class Size(str, Enum):
    SMALL = "small"
    LARGE = "large"


class City(BaseModel):
    name: str = Field(max_length=30)
    size: Size
    tags: list[str] = Field(max_length=3)
    founded: int | None = Field(ge=0, le=2100)


SCHEMA = City.model_json_schema()
GRAMMAR = 'start: "Name: " /[A-Z][a-z]{1,12}/ ("; tag: " /[a-z]{2,8}/){1,2} "."'

#: name, constraint, whether a text has the form
FORMS = [
    ("json_schema", SCHEMA, lambda text: City.model_validate_json(text)),
    ("json_schema", City, lambda text: City.model_validate_json(text)),
    (
        "json_schema",
        {"type": "array", "items": {"type": "boolean"}, "maxItems": 4},
        lambda text: type(json.loads(text)) is list,
    ),
    ("regex", r"[A-C]{2}-\d{3,6}", lambda text: re.fullmatch(r"[A-C]{2}-\d{3,6}", text)),
    ("regex", r"(été|naïve|日本)( (été|naïve|日本)){2}", lambda text: len(text.split()) == 3),
    (
        "grammar",
        GRAMMAR,
        lambda text: re.fullmatch(r"Name: [A-Z][a-z]{1,12}(; tag: [a-z]{2,8}){1,2}\.", text),
    ),
    ("choices", ["yes", "yes, but", "no"], lambda text: text in ("yes", "yes, but", "no")),
    ("choices", ["a line\nbreak and <|im_end|>"], lambda text: text == "a line\nbreak and <|im_end|>"),
]
SAMPLERS = [
    {"temperature": 0},
    {"temperature": 1.5, "seed": 5},
    {"temperature": 1, "top_k": 3, "repetition_penalty": 1.3, "seed": 6},
    {"temperature": 0.8, "min_p": 0.1, "frequency_penalty": 0.5, "seed": 7},
]


@pytest.mark.parametrize("row", range(len(FORMS)), ids=lambda row: f"{FORMS[row][0]}-{row}")
def test_each_form_with_each_sampler(row, smollm2):
    name, form, fits = FORMS[row]
    for sampler in SAMPLERS:
        options = {name: form, "max_tokens": 48, **sampler}
        whole = smollm2.generate(ASK, **options)
        assert fits(whole.text), (sampler, whole.text)
        assert whole.finish_reason in ("stop", "length") and len(whole.tokens) <= 48
        # However it is asked for, it is the same answer.
        with smollm2.stream(ASK, **options) as chunks:
            pieces = list(chunks)
        assert "".join(piece.text for piece in pieces) == whole.text
        assert [token for piece in pieces for token in piece.tokens] == list(whole.tokens)
        if sampler.get("seed") == 7:
            continue
        told = smollm2.generate(ASK, logprobs=2, **options)
        assert told.tokens == whole.tokens and len(told.logprobs) == len(whole.tokens)
        assert asyncio.run(smollm2.agenerate(ASK, **options)).tokens == whole.tokens


def test_several_at_once(smollm2):
    options = {"json_schema": City, "max_tokens": 60, "temperature": 1, "seed": 3}
    answers = smollm2.generate(ASK, n=5, **options)
    assert len({answer.text for answer in answers}) > 1
    for answer in answers:
        City.model_validate_json(answer.text)
    with ThreadPoolExecutor(8) as pool:
        again = list(pool.map(lambda _: smollm2.generate(ASK, n=5, **options), range(8)))
    assert all([one.text for one in batch] == [one.text for one in answers] for batch in again)


def test_an_answer_is_whole_in_any_budget(smollm2):
    prompt = "A list of cities as JSON: "
    with pytest.raises(tallow.ConstraintError, match=r"has (\d+) tokens, and there is room for 3;") as raised:
        smollm2.generate(prompt, json_schema=SCHEMA, max_tokens=3)
    shortest = int(re.search(r"has (\d+) tokens", str(raised.value)).group(1))
    for temperature in (0, 1.2):
        for max_tokens in [*range(shortest, shortest + 12, 2), 90]:
            found = smollm2.generate(
                prompt, json_schema=SCHEMA, max_tokens=max_tokens, temperature=temperature, seed=max_tokens
            )
            City.model_validate_json(found.text)
            assert found.usage.completion_tokens <= max_tokens


def test_an_open_string_is_closed_by_the_budget(smollm2):
    schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    found = smollm2.generate("Once upon a time", json_schema=schema, max_tokens=20, temperature=0)
    assert json.loads(found.text)["text"] and found.finish_reason == "length"


def test_a_filter_cannot_leave_the_form(smollm2):
    def loves_z(logits, tokens):
        logits[:] = 0
        logits[smollm2.tokenize("z")[0]] = 50

    sampler = tallow.Sampler(temperature=0, filters=[loves_z])
    assert smollm2.generate(ASK, sampler=sampler, regex="[a-c]{4}", max_tokens=9).text.strip("abc") == ""
    assert smollm2.generate(ASK, sampler=sampler, regex="[a-z]{4}", max_tokens=9).text == "zzzz"


def test_what_is_forced_is_not_computed_alone(smollm2):
    """A form with little to decide takes few steps."""
    model = smollm2
    before = model.stats()["steps"]
    found = model.generate(ASK, choices=["An answer that is long, and all the same"], max_tokens=40)
    assert len(found.tokens) > 8 and model.stats()["steps"] == before


#: options, error, part of the message
REFUSED = [
    ({"regex": "a", "choices": ["b"]}, tallow.InvalidRequestError, "regex and choices exclude each other"),
    ({"choices": []}, tallow.InvalidRequestError, "choices is empty"),
    ({"choices": "yes"}, TypeError, "choices"),
    ({"choices": ["yes", 1]}, TypeError, "choices[1]"),
    ({"regex": "(a"}, tallow.ConstraintError, "regex"),
    ({"regex": "a(?=b)"}, tallow.ConstraintError, "regex"),
    ({"regex": 3}, TypeError, "regex"),
    ({"grammar": "start: missing"}, tallow.ConstraintError, "missing"),
    ({"json_schema": "{}"}, TypeError, "json_schema"),
    ({"json_schema": {"type": "nothing"}}, tallow.ConstraintError, "nothing"),
    ({"json_schema": {"type": "integer", "minimum": 3, "maximum": 2}}, tallow.ConstraintError, "json_schema"),
    ({"json_schema": {"type": "array", "contains": {"const": 1}}}, tallow.ConstraintError, "contains"),
    ({"regex": "(a{1000}){1000}"}, tallow.ConstraintError, "simpler"),
]


@pytest.mark.parametrize(
    ("options", "error", "part"),
    REFUSED,
    ids=[f"{at}-{next(iter(row[0]))}" for at, row in enumerate(REFUSED)],
)
def test_what_is_refused(options, error, part, smollm2):
    with pytest.raises(error) as raised:
        smollm2.generate(ASK, max_tokens=5, **options)
    assert part in str(raised.value)


def test_a_schema_that_contains_itself_is_refused(smollm2):
    schema: dict = {"type": "object"}
    schema["properties"] = {"again": schema}
    with pytest.raises(tallow.Error, match="json_schema"):
        smollm2.generate(ASK, json_schema=schema)
