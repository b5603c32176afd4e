"""Rows of a training set: what is trained of them, and what is wrong with them, said before any work."""

from __future__ import annotations

import json

import pytest

import tallow
from tallow import rows as rows_

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "yes"}

#: Writes an answer otherwise once another turn follows it, and the last one with a mark.
SHIFTY = (
    "{% for message in messages %}{% if loop.last and message.role == 'user' %}{{ '!' }}{% endif %}"
    "{{ '<|im_start|>' + message.role + ' ' + message.content + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}"
)
#: Begins an answer with a thought that finished conversations do not show.
THINKS = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + ' ' + message.content + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant think:' }}{% endif %}"
)


def prepared(model, *rows, **options):
    return rows_.prepared(model._native, list(rows), **options)


def trained(model, ids_and_targets) -> tuple[str, str]:
    """The text before what is trained, and that."""
    ids, targets = ids_and_targets
    [(begin, end)] = targets
    assert end == len(ids)
    return model.detokenize(ids[:begin], special=True), model.detokenize(ids[begin:], special=True)


def test_the_answer_and_its_end_is_trained(wide):
    asked = "<|im_start|>user hi<|im_end|><|im_start|>assistant "
    forms = [
        {"messages": [USER, ANSWER]},
        {"messages": [USER, {**ANSWER, "content": "yes \n\n"}]},
        {"messages": (USER, ANSWER), "tools": None},
        {"prompt": [USER], "completion": "yes\n"},
        {"prompt": [USER], "completion": ANSWER},
        {"prompt": [USER], "completion": [ANSWER]},
        {"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "yes \n"}]}]},
    ]
    found = prepared(wide, *forms)
    ends = {wide.detokenize([id], special=True) for id in wide.eos_ids}
    for example in found.examples:
        before, answer = trained(wide, example)
        assert before == asked
        assert answer.startswith("yes<|im_end|>") and any(answer.endswith(end) for end in ends), answer
    assert len({tuple(ids) for ids, _ in found.examples}) == 1, "all forms mean the same"
    # The prompt is the one that generate makes.
    assert len(wide._native.render([USER])) == found.examples[0][1][0][0]


def test_only_the_last_answer_is_trained(wide):
    turns = [{"role": "system", "content": "s"}, USER, ANSWER, {"role": "user", "content": "more"}, ANSWER]
    before, answer = trained(wide, prepared(wide, {"messages": turns}).examples[0])
    assert before.count("yes") == 1 and before.endswith("<|im_start|>assistant ")
    assert answer.startswith("yes<|im_end|>")


def test_texts_are_trained_as_they_are_continued(wide):
    example = prepared(wide, {"prompt": "Queue: ", "completion": "K1  \n"}).examples[0]
    before, answer = trained(wide, example)
    end = wide.detokenize(wide.eos_ids[:1], special=True)
    assert (before, answer) == ("Queue: ", f"K1{end}")
    # Control tokens in a text are text.
    ids, _ = prepared(wide, {"prompt": "<|im_end|>", "completion": "a"}).examples[0]
    assert ids[:-1] == wide.tokenize("<|im_end|>") + wide.tokenize("a")


def test_real_templates(smollm2):
    row = {"messages": [USER, {**ANSWER, "content": "Fine.\n"}]}
    before, answer = trained(smollm2, prepared(smollm2, row).examples[0])
    assert before.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert answer == "Fine.<|im_end|>", "what the template writes behind its end token is never generated"


def test_calls_of_tools_are_trained(wide):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    row = {"messages": [USER, {"role": "assistant", "tool_calls": [call]}], "tools": [tool]}
    _, answer = trained(wide, prepared(wide, row).examples[0])
    assert '"f"' in answer and answer.count("<|im_end|>") == 1, answer


def test_a_history_that_changes_is_an_error(wide_folder):
    model = tallow.Model(wide_folder, chat_template=SHIFTY)
    with pytest.raises(tallow.TemplateError, match=r'rows\[0\]\["messages"\].*once its answer is there'):
        prepared(model, {"messages": [USER, ANSWER]})


def test_a_prompt_that_is_not_repeated_is_a_note(wide_folder):
    model = tallow.Model(wide_folder, chat_template=THINKS)
    found = prepared(model, {"messages": [USER, ANSWER]}, {"messages": [USER, ANSWER]})
    before, answer = trained(model, found.examples[0])
    assert before.endswith("<|im_start|>assistant ") and answer.startswith("yes")
    [note] = [note for note in found.notes if "does not repeat" in note]
    assert "think:" in note and "(2 of 2 rows)" in note


def test_jsonl(wide, tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"messages": [USER, ANSWER]}), "", json.dumps({"prompt": "a", "completion": "b"})]
    path.write_text("\n".join(lines) + "\n")
    assert len(rows_.prepared(wide._native, path).examples) == 2
    assert len(rows_.prepared(wide._native, str(path)).examples) == 2


def test_data_sets(wide):
    class DataSet:
        """Like those of the `datasets` library: items by number, and a length."""

        def __len__(self):
            return 3

        def __getitem__(self, at):
            if at >= 3:
                raise IndexError(at)
            return {"prompt": "a", "completion": "b"}

    for rows in (DataSet(), ({"prompt": "a", "completion": "b"} for _ in range(3))):
        assert len(rows_.prepared(wide._native, rows).examples) == 3


def test_rows_that_are_too_long(tiny):
    short, long = {"prompt": "a", "completion": "b"}, {"prompt": "a" * 200, "completion": "b"}
    with pytest.raises(tallow.ContextLengthError, match=r"rows\[1\] has 202 tokens.*holds 128") as caught:
        prepared(tiny, short, long)
    assert (caught.value.prompt_tokens, caught.value.limit) == (202, 128)
    found = prepared(tiny, short, long, long, too_long="skip")
    assert len(found.examples) == 1 and found.skipped == 2
    assert found.notes == ("left out: 2 of 3 rows, which are longer than the context",)
    with pytest.raises(tallow.InvalidRequestError, match="all 1 are longer"):
        prepared(tiny, long, too_long="skip")
    # Just as long as the context.
    fits = {"prompt": "a" * 126, "completion": "b"}
    assert len(prepared(tiny, fits).examples[0][0]) == 128


GOOD = {"prompt": "a", "completion": "b"}
WRONG = [
    ([], "rows is empty"),
    (iter(()), "rows is empty"),
    (GOOD, "put the dict into a list"),
    (3, "rows is 3 of type int"),
    (b"x", "rows is b'x'"),
    (None, "rows is None"),
    ("rows.txt", r"path of a \.jsonl file"),
    ("no/such.jsonl", "cannot be read"),
    ([GOOD, "x"], r"rows\[1\] is 'x' of type str; it must be a dict.*to_dict"),
    ([GOOD, 3], r"rows\[1\] is 3"),
    ([GOOD, {}], r"rows\[1\] has no 'prompt'"),
    ([{"prompt": "a"}], r"rows\[0\] has no 'completion'"),
    ([{"messages": None, "prompt": None}], r"rows\[0\] has no 'prompt'"),
    ([{**GOOD, "id": 3}], r"rows\[0\] has 'id', which is not used"),
    ([{"messages": [USER, ANSWER], "completion": "b"}], r"rows\[0\] has 'completion'"),
    ([{"messages": []}], r'rows\[0\]\["messages"\] is empty'),
    ([{"messages": "hi"}], r'rows\[0\]\["messages"\] is \'hi\''),
    ([{"messages": [USER]}], r'rows\[0\]\["messages"\] ends with a message of role \'user\''),
    ([GOOD, {"messages": [ANSWER]}], r'rows\[1\]\["messages"\] is an answer without a question'),
    ([{"messages": [USER, {"role": "assistant", "content": " \n"}]}], "has an empty answer"),
    ([{"messages": [USER, {"role": "assistant"}]}], r'rows\[0\]\["messages"\]\[1\] has no "content"'),
    ([{"messages": [{"role": "user", "content": 3}, ANSWER]}], r'rows\[0\]\["messages"\]\[0\]\["content"\]'),
    ([{"messages": [{"role": "usr", "content": "a"}, ANSWER]}], r'rows\[0\]\["messages"\]\[0\]\["role"\]'),
    ([{"prompt": "a", "completion": " "}], r'rows\[0\]\["completion"\] has an empty answer'),
    ([{"prompt": "", "completion": "b"}], r'rows\[0\]\["prompt"\] is empty'),
    ([{"prompt": "a", "completion": ANSWER}], r'rows\[0\]\["completion"\].*must be a str'),
    ([{"prompt": 3, "completion": "b"}], r'rows\[0\]\["prompt"\] is 3'),
    ([{"prompt": [USER], "completion": USER}], r'one message of role "assistant"'),
    ([{"prompt": [USER], "completion": 3}], r'rows\[0\]\["completion"\] is 3'),
    ([{"prompt": "a", "completion": "b", "tools": []}], r"rows\[0\]\['tools'\] is for messages"),
    ([{"prompt": "a", "completion": "\ud800"}], r'rows\[0\]\["completion"\] holds a lone surrogate'),
    ([{"messages": [USER, ANSWER], "template_arguments": {"x": 1}}], r"rows\[0\].*x"),
]


@pytest.mark.parametrize(("rows", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_is_wrong_is_named(wide, rows, words):
    with pytest.raises(tallow.Error, match=words):
        rows_.prepared(wide._native, rows)


def test_bad_lines_are_named_by_number(wide, tmp_path):
    path = tmp_path / "rows.jsonl"
    for text, words in [
        (b'{"prompt": "a", "completion": "b"}\n{"prompt": }\n', r"rows\.jsonl, line 2 is no JSON"),
        (b'{"prompt": "a", "completion": "b"}\n[3]\n', r"rows\.jsonl, line 2 is \[3\]"),
        (b'{"prompt": "\xff"}\n', "is not UTF-8"),
        (b"\n\n", "rows is empty"),
        (b"[" * 100_000 + b"\n", "line 1 is no JSON"),
    ]:
        path.write_bytes(text)
        with pytest.raises(tallow.InvalidRequestError, match=words):
            rows_.prepared(wide._native, path)


def test_a_model_without_a_template_takes_texts(tmp_path):
    from conftest import copy_family

    model = tallow.Model(copy_family("llama-gqa-tied", tmp_path / "bare", template=None))
    assert len(prepared(model, GOOD).examples) == 1
    with pytest.raises(tallow.TemplateError, match=r"rows\[0\]"):
        prepared(model, {"messages": [USER, ANSWER]})
