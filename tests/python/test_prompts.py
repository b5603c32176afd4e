"""Messages on their way to the engine: one preparation for ``Model`` and ``tallow.LM``, and templates that
know less than people say."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import struct

import pytest

import tallow
from conftest import copy_family, needed, write_tokenizer
from tallow import prompts
from tallow.dspy.questions import measure

dspy = needed("dspy")
pydantic = needed("pydantic")
chat = needed("openai").types.chat
from dspy.adapters.baml_adapter import BAMLAdapter  # noqa: E402

U = {"role": "user", "content": "what is up?"}
ANSWER = {"role": "assistant", "content": "not much"}
BYE = {"role": "user", "content": "bye"}
SHOW = "{% for m in messages %}{{ '<|im_start|>' + m.role + ' ' + m.content + '<|im_end|>' }}{% endfor %}"
#: As Gemma 1 and 2 have it: no system message, the roles alternate, and the assistant is called model.
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles of the conversation must alternate user/assistant') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<|im_start|>' + role + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\\n' }}{% endif %}"
)
#: As the first two Mistral 7B have it: users in brackets, answers plain, and no other role.
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles of the conversation must alternate user/assistant') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}{% endfor %}"
)
#: Knows two roles, and drops the others without a word.
SILENT = (
    "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}\n"
    "{% elif m.role == 'assistant' %}A: {{ m.content }}\n{% endif %}{% endfor %}A:"
)
#: Shows tools and calls, as Hermes' and Qwen's do.
TOOLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.role + ':' }}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}"
    "<tool_call>{{ c.function.name }} {{ c.function.arguments | tojson }}</tool_call>"
    "{% endfor %}{% endif %}{{ m.content + ';' }}{% endfor %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny checkpoint with room for the prompts of DSPy's adapters."""
    made = copy_family("llama-gqa-tied", tmp_path_factory.mktemp("models") / "wide")
    config = json.loads((made / "config.json").read_text())
    # More rows than characters that a grammar may want, braces among them.
    more = {"max_position_embeddings": 16384, "vocab_size": widen(made / "model.safetensors", 64)}
    (made / "config.json").write_text(json.dumps({**config, **more}))
    write_tokenizer(made, more["vocab_size"])
    return made


def widen(file, rows):
    """Repeats the first rows of the embedding at its end; returns how many there are."""
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    (name,) = (name for name in header if "embed_tokens" in name)
    begin, end = header[name]["data_offsets"]
    count, width = header[name]["shape"]
    more = body[begin : begin + rows * (end - begin) // count]
    for entry in header.values():
        offsets = entry.get("data_offsets", [0, 0])
        entry["data_offsets"] = [at + len(more) * (at >= end) for at in offsets]
    header.pop("__metadata__", None)
    header[name] |= {"shape": [count + rows, width], "data_offsets": [begin, end + len(more)]}
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + body[:end] + more + body[end:])
    return count + rows


@pytest.fixture(scope="module")
def of(folder):
    """The model with a template."""
    made = {}
    return lambda template: made.setdefault(
        template, tallow.Model(folder, chat_template=template, progress=False)
    )


@pytest.fixture
def seen(monkeypatch):
    """Every prompt that is rendered."""
    found = []
    real = prompts.rendered

    def spy(*given, **named):
        found.append(real(*given, **named))
        return found[-1]

    monkeypatch.setattr(prompts, "rendered", spy)
    return found


# What a turn may be


@dataclasses.dataclass
class Turn:
    role: str
    content: str


class Pydantic(pydantic.BaseModel):
    role: str
    content: str | None
    tool_calls: list[dict] | None = None


CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "5 degrees"}
SPOKEN = chat.ChatCompletionMessage(role="assistant", content="not much")
CALLING = chat.ChatCompletionMessage(role="assistant", content=None, tool_calls=[CALL])
NULLS = dict.fromkeys(("tool_calls", "function_call", "refusal", "audio", "name"))

TURNS = [
    ({**ANSWER, **NULLS}, ANSWER),
    ({**ANSWER, "tool_calls": []}, ANSWER),
    ({**ANSWER, "content": [{"type": "text", "text": "not much"}]}, ANSWER),
    ({"role": "assistant", "content": None, "refusal": "not much"}, ANSWER),
    (SPOKEN, ANSWER),
    (SPOKEN.model_dump(), ANSWER),
    (Turn("assistant", "not much"), ANSWER),
    (Pydantic(role="assistant", content="not much"), ANSWER),
    (CALLING, CALLED),
    (CALLING.model_dump(), CALLED),
    ({"role": "assistant", "content": None, "tool_calls": CALLING.tool_calls}, CALLED),
    ({"role": "assistant", "tool_calls": [CALL]}, CALLED),
    ({**CALLED, "content": ""}, CALLED),
    ({"role": "assistant", "content": None, "function_call": CALL["function"]}, CALLED),
]


@pytest.mark.parametrize(("given", "plain"), TURNS, ids=range(len(TURNS)))
@pytest.mark.parametrize("template", [TOOLS, SHOW], ids=["tools", "none"])
def test_a_turn_may_come_in_many_spellings(of, template, given, plain):
    model = of(template)
    rest = [RESULT] if plain is CALLED else []
    want = model.render([U, plain, *rest])
    assert model.render([U, given, *rest]) == want
    assert ("Rome" if plain is CALLED else "not much") in want and "None" not in want and "null" not in want
    assert model.generate([U, given, *rest], max_tokens=3) is not None


def test_smollm2_reads_a_call_of_openais(smollm2):
    text = smollm2.render([U, CALLED, RESULT])
    assert "weather" in text and "Rome" in text and "5 degrees" in text


def asked(turns, **config):
    """The turns as DSPy hands them over."""
    made = []
    for turn in turns:
        calls = turn.get("tool_calls") or []
        if turn["role"] == "tool":
            part = dspy.lm15.ToolResultPart(turn["tool_call_id"], (dspy.lm15.TextPart(turn["content"]),))
            made.append(dspy.lm15.Message("tool", (part,)))
            continue
        parts = [dspy.lm15.TextPart(turn["content"])] if turn.get("content") else []
        parts += [
            dspy.lm15.ToolCallPart(
                id=c["id"], name=c["function"]["name"], input=json.loads(c["function"]["arguments"])
            )
            for c in calls
        ]
        made.append(dspy.lm15.Message(turn["role"], tuple(parts)))
    return dspy.lm15.Request(model="m", messages=tuple(made), config=dspy.lm15.Config(max_tokens=2, **config))


@pytest.mark.parametrize("template", [GEMMA, MISTRAL, SILENT, TOOLS, SHOW])
@pytest.mark.parametrize(
    "turns", [[U], [U, ANSWER, BYE], [U, CALLED, RESULT], [U, CALLED, RESULT, ANSWER, BYE]]
)
def test_model_and_lm_make_the_same_prompt(of, seen, template, turns):
    model = of(template)
    lm = tallow.LM(model, cache=False)
    lm.engine.complete(asked(turns))
    assert seen.pop().text == model.render(turns)


# Templates that know less


ADAPTERS = [dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter, BAMLAdapter]


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("template", [GEMMA, MISTRAL, SILENT], ids=["gemma", "mistral", "silent"])
def test_dspy_answers_without_a_system_role(of, seen, template, adapter):
    lm = tallow.LM(of(template), temperature=1.0, max_tokens=200, cache=False)
    program = dspy.Predict("question -> n: int")
    program.demos = [dspy.Example(question="seven?", n=7)]
    with dspy.context(lm=lm, adapter=adapter()):
        assert isinstance(program(question="eight?").n, int)
    text = seen[-1].text
    assert text.index("fields") < text.index("seven?") < text.index("eight?")
    (note,) = lm.history[-1]["response"].provider_data["notes"]
    assert "no system message" in note


def test_the_answer_says_what_was_done(of):
    model = of(GEMMA)
    turns = [{"role": "system", "content": "Be brief."}, U]
    assert (
        model.render(turns) == "<s><|im_start|>user\nBe brief.\n\nwhat is up?<|im_end|>\n<|im_start|>model\n"
    )
    answer = model.generate(turns, max_tokens=2)
    assert len(answer.notes) == 1 and "no system message" in answer.notes[0]
    assert [one.notes for one in model.generate(turns, max_tokens=2, n=2)] == [answer.notes] * 2
    assert asyncio.run(model.agenerate(turns, max_tokens=2)).notes == answer.notes
    with model.stream(turns, max_tokens=2) as chunks:
        assert chunks.notes == answer.notes and "".join(map(str, chunks))
    assert model.generate([U], max_tokens=2).notes == model.generate("x", max_tokens=2).notes == ()
    assert measure(model, turns, ["a", "b"]).notes == answer.notes


def test_a_dropped_message_is_named(of):
    last = of("{{ messages[-1].content }}")
    for ask in (
        last.render,
        lambda turns: last.generate(turns, max_tokens=1),
        lambda t: last.score(t, ["a"]),
    ):
        with pytest.raises(tallow.TemplateError, match=r"drops messages\[0\] \(role 'user'\)|\"user\""):
            ask([U, ANSWER, BYE])
    assert last.render([U]) == "what is up?"


WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object"}, "strict": True},
}


@dataclasses.dataclass
class Tool:
    name: str
    description: str | None = None
    parameters: dict | None = None


@pytest.mark.parametrize("tool", [WEATHER, WEATHER["function"], Tool("weather")])
@pytest.mark.parametrize("template", [TOOLS, SHOW, GEMMA], ids=["tools", "none", "gemma"])
def test_tools_are_shown_by_every_template(of, template, tool):
    model = of(template)
    text = model.render([U], tools=[tool])
    assert text.count('"name": "weather"') == 1 and "what is up?" in text
    assert ("strict" in text) is (template is TOOLS and tool is WEATHER)  # as transformers, byte for byte
    if template is not TOOLS:  # and a call is written in the words that were shown
        text = model.render([U, CALLED, RESULT], tools=[tool])
        assert '{"name": "weather", "arguments": {"city": "Rome"}}' in text and "5 degrees" in text


def test_calls_are_shown_where_a_template_shows_tools_alone(of):
    model = of("{% if xml_tools %}{{ xml_tools }}<tool_call>{% endif %}" + SHOW)
    text = model.render([U, CALLED, RESULT], tools=[WEATHER])
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>' in text
    assert "'strict': True" in text and "<tool_response>\n5 degrees\n</tool_response>" in text


def test_a_role_of_the_templates_own(of):
    model = of("{% for m in messages %}{% if m.role == 'control' %}C{% endif %}{{ m.content }}{% endfor %}")
    assert model.render([{"role": "control", "content": "x"}, U]) == "Cxwhat is up?"
    with pytest.raises(tallow.InvalidRequestError, match="'user'"):
        model.render([{"role": "uzer", "content": "x"}])


# Arguments


UNREAD = [
    ("enable_thinkin", "enable_thinking"),
    ("chat_template", "when the model is loaded"),
    ("tokenize", "as a text"),
    ("add_generation_promt", "add_generation_prompt"),
    ("return_dict", "text"),
    ("documents", "never reads"),
]


@pytest.mark.parametrize(("name", "part"), UNREAD)
def test_an_argument_that_nothing_reads_is_refused(of, name, part):
    model = of(SHOW + "{% if enable_thinking %}x{% endif %}")
    value = [{"text": "x"}] if name == "documents" else True
    lm = tallow.LM(model, cache=False, max_tokens=2, template_arguments={name: value})
    calls = [
        lambda: model.render([U], **{name: value}),
        lambda: model.generate([U], max_tokens=1, template_arguments={name: value}),
        lambda: model.stream([U], max_tokens=1, template_arguments={name: value}),
        lambda: model.score([U], ["a"], template_arguments={name: value}),
        lambda: lm("x"),
    ]
    for call in calls:
        with pytest.raises((tallow.InvalidRequestError, dspy.LMInvalidRequestError)) as caught:
            call()
        assert name in str(caught.value) and part in str(caught.value)


def test_documents_are_for_templates_that_read_them(of):
    model = of(SHOW + "{% for d in documents or [] %}{{ d.text }}{% endfor %}")
    assert model.render([U], documents=[{"text": "<|im_end|> is text"}]).endswith("<|im_end|> is text")
    with_control = model.generate(
        [U], template_arguments={"documents": [{"text": "<|im_end|>"}]}, max_tokens=1
    )
    without = model.generate([U], template_arguments={"documents": [{"text": "abc"}]}, max_tokens=1)
    # A control token that stands in a document is text: ten characters, a token each.
    assert with_control.usage.prompt_tokens - without.usage.prompt_tokens == len("<|im_end|>") - 3


@pytest.mark.parametrize("how", ["argument", "template_arguments"])
def test_a_last_message_is_continued(of, how):
    model = of(SHOW + "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}")
    turns = [U, {"role": "assistant", "content": "it is "}]
    want = "<|im_start|>user what is up?<|im_end|><|im_start|>assistant it is "
    given = {"continue_final_message": True}
    given = given if how == "argument" else {"template_arguments": given}
    assert model.render(turns, continue_final_message=True) == want
    assert model.render(turns, continue_final_message=True, add_generation_prompt=False) == want
    ids = model.tokenize(want, special=True)
    options = {"max_tokens": 12, "temperature": 0}
    answer = model.generate(turns, **options, **given)
    assert answer.tokens == model.generate(ids, **options).tokens
    assert "".join(map(str, model.stream(turns, **options, **given))) == answer.text
    scores = model.score(turns, ["ab", "c"], **given)
    assert [one.logprob for one in scores] == [one.logprob for one in model.score(ids, ["ab", "c"])]
    if how == "template_arguments":
        lm = tallow.LM(model, cache=False, **options, template_arguments=given["template_arguments"])
        assert lm(messages=turns) == [answer.text]


CONTINUED = [
    ({"continue_final_message": True, "add_generation_prompt": True}, "exclude each other"),
    ({"continue_final_message": "thinking"}, "no text in"),
    ({"continue_final_message": 3}, "True, False or a field"),
]


@pytest.mark.parametrize(("given", "part"), CONTINUED)
def test_what_cannot_be_continued(of, given, part):
    with pytest.raises(tallow.InvalidRequestError, match=part):
        of(SHOW).render([U, ANSWER], **given)
    with pytest.raises(tallow.InvalidRequestError, match="list of messages"):
        of(SHOW).generate("plain", continue_final_message=True)


@pytest.mark.parametrize("template", ["chatml", "<|user|>{prompt}<|assistant|>", "{% if x %}y{% endif %}z"])
def test_a_template_without_messages_is_an_error(folder, template):
    with pytest.raises(tallow.Error, match="chat_template"):
        tallow.Model(folder, chat_template=template)


def test_a_file_whose_template_reads_no_messages_loads_and_says_so(tmp_path):
    model = tallow.Model(copy_family("llama-gqa-tied", tmp_path / "fixed", template="{{ prompt }}"))
    assert model.generate("plain", max_tokens=1).text is not None
    with pytest.raises(tallow.TemplateError, match="reads no messages"):
        model.render([U])


# Lone surrogates


BAD = "x\ud800y"
TEXTS = {
    "content": lambda m, lm: m.render([{"role": "user", "content": BAD}]),
    "part": lambda m, lm: m.render([{"role": "user", "content": [{"type": "text", "text": BAD}]}]),
    "name": lambda m, lm: m.render([{**U, "name": BAD}]),
    "role": lambda m, lm: m.render([{"role": BAD, "content": "x"}]),
    "key": lambda m, lm: m.render([{**U, BAD: "x"}]),
    "key of a part": lambda m, lm: m.render(
        [{"role": "user", "content": [{"type": "text", "text": "", BAD: 1}]}]
    ),
    "call": lambda m, lm: m.render([U, {**CALLED, "tool_calls": [{**CALL, "id": BAD}]}]),
    "arguments": lambda m, lm: m.render(
        [U, {**CALLED, "tool_calls": [{"function": {"name": "f", "arguments": {"a": BAD}}}]}]
    ),
    "result": lambda m, lm: m.render([U, CALLED, {**RESULT, "content": BAD}]),
    "tool": lambda m, lm: m.render([U], tools=[{"name": "f", "description": BAD}]),
    "tool, generate": lambda m, lm: m.generate([U], tools=[{"name": "f", "description": BAD}], max_tokens=1),
    "template argument": lambda m, lm: m.render([U], date=BAD),
    "name of one": lambda m, lm: m.generate([U], template_arguments={BAD: 1}),
    "document": lambda m, lm: m.render([U], documents=[{"text": BAD}]),
    "prompt": lambda m, lm: m.generate(BAD),
    "generate": lambda m, lm: m.generate([{"role": "user", "content": [{"type": "text", "text": BAD}]}]),
    "stream": lambda m, lm: m.stream([{"role": "user", "content": [{"type": "text", "text": BAD}]}]),
    "agenerate": lambda m, lm: asyncio.run(m.agenerate(BAD)),
    "stop": lambda m, lm: m.generate("x", stop=[BAD]),
    "one stop": lambda m, lm: m.generate("x", stop=BAD),
    "prediction": lambda m, lm: m.generate("x", prediction=BAD),
    "regex": lambda m, lm: m.generate("x", regex=BAD),
    "grammar": lambda m, lm: m.generate("x", grammar=f'start: "{BAD}"'),
    "choices": lambda m, lm: m.generate("x", choices=["a", BAD]),
    "schema": lambda m, lm: m.generate("x", json_schema={"enum": [BAD]}),
    "key of a schema": lambda m, lm: m.generate("x", json_schema={BAD: 1}),
    "score": lambda m, lm: m.score(BAD, ["a"]),
    "candidate": lambda m, lm: m.score("x", ["a", BAD]),
    "embed": lambda m, lm: m.embed([BAD]),
    "tokenize": lambda m, lm: m.tokenize(BAD),
    "save_prefix": lambda m, lm: m.save_prefix("no/such/file", BAD),
    "path": lambda m, lm: m.save_prefix(BAD, "x"),
    "load_prefix": lambda m, lm: m.load_prefix(BAD),
    "pooling": lambda m, lm: m.embed(["x"], BAD),
    "argument": lambda m, lm: m.generate("x", **{BAD: 1}),
    "source": lambda m, lm: tallow.Model(BAD),
    "chat_template": lambda m, lm: tallow.Model("x", chat_template=BAD),
    "device": lambda m, lm: tallow.Model("x", device=BAD),
    "LM, prompt": lambda m, lm: lm(BAD),
    "LM, messages": lambda m, lm: lm(messages=[{"role": "user", "content": BAD}]),
    "LM, part": lambda m, lm: lm(messages=[{"role": "user", "content": [{"type": "text", "text": BAD}]}]),
    "LM, stop": lambda m, lm: lm("x", stop=[BAD]),
    "LM, choices": lambda m, lm: lm("x", choices=[BAD]),
    "LM, schema": lambda m, lm: lm("x", json_schema={"enum": [BAD]}),
    "LM, prediction": lambda m, lm: lm("x", prediction=BAD),
    "LM, template argument": lambda m, lm: lm("x", template_arguments={"date": BAD}),
}


@pytest.mark.parametrize("call", TEXTS.values(), ids=TEXTS)
def test_lone_surrogates_are_refused_by_name(of, call):
    model = of(TOOLS + "{{ date }}{{ documents }}")
    lm = tallow.LM(model, cache=False, max_tokens=1)
    # DSPy refuses prompts by itself, with a ValueError.
    with pytest.raises((tallow.Error, dspy.LMInvalidRequestError, ValueError)) as caught:
        call(model, lm)
    str(caught.value).encode()  # and the message can be printed
    assert not isinstance(caught.value, UnicodeError)


# Once a call


def test_a_prompt_is_rendered_once_a_call(of, seen):
    model = of(SHOW)
    model.score([U], [f"answer {at}" for at in range(20)])
    model.generate([U], max_tokens=1, n=4, temperature=1.0)
    assert len(seen) == 2
    lm = tallow.LM(model, cache=False, max_tokens=2, temperature=1.0)
    lm(messages=[U], n=4)
    assert len(seen) == 3
    judge = tallow.Judge(model)
    judge(state="so", questions={"good": {"type": "noul", "instructions": "Is it good?"}})
    assert len(seen) == 4


@pytest.mark.parametrize("turns", [[U], [U, ANSWER, BYE], [{"role": "user", "content": "a <|im_end|> b"}]])
def test_candidates_have_the_ids_of_the_whole_text(of, smollm2, turns):
    candidates = ["yes", " yes", "\nno", "<|im_end|>", "it's 12.5 °C", "é"]
    for model in (smollm2, of(SHOW + "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}")):
        if model is not smollm2:
            candidates = ["yes", " yes", "\nno", "<|im_end|>", "it's"]
        together = [one.tokens for one in model.score(turns, candidates)]
        alone = [model.score(turns, [one])[0].tokens for one in candidates]
        assert together == alone
