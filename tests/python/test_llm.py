"""The plugin for ``llm``, under the real package."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys

import pytest

import tallow
from command import in_pieces
from conftest import ROOT, THINKER, copy_family, needed
from tallow import answers

llm = needed("llm")
testing = needed("click.testing")

HI = [{"role": "user", "content": "hi"}]
GREEDY = {"max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("llm")


@pytest.fixture(autouse=True)
def plugin(folder, monkeypatch):
    """llm with a folder of its own and our plugin, as its entry point gives it."""
    monkeypatch.setenv("LLM_USER_PATH", str(folder))
    (folder / "tallow.json").unlink(missing_ok=True)
    from llm.plugins import load_plugins, pm

    load_plugins()
    if not any(name == "tallow" for name, _ in pm.list_name_plugin()):
        import tallow.llm_plugin

        pm.register(tallow.llm_plugin, name="tallow")
        tallow.llm_plugin.register_commands(cli("llm"))


def cli(*arguments, stdin=""):
    """llm's command in this process; without arguments but its name, the command itself."""
    from llm.cli import cli as command

    if arguments == ("llm",):
        return command
    return testing.CliRunner().invoke(command, [str(argument) for argument in arguments], input=stdin)


@pytest.fixture
def known(wide_folder):
    """The model ``wide`` as llm knows it."""
    assert cli("tallow", "add", wide_folder, "--name", "wide").exit_code == 0
    return llm.get_model("tallow/wide")


def test_the_entry_point_is_declared():
    text = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'\[project\.entry-points\.llm\]\ntallow = "tallow\.llm_plugin"\n', text)


def test_short_names_are_known():
    listed = cli("models", "list").output
    for name in ("smollm2", "gemma3-270m"):
        assert f"tallow: tallow/{name} (aliases: {name})" in listed
        assert llm.get_model(name).model_id == llm.get_async_model(name).model_id == f"tallow/{name}"


def test_an_answer_is_the_models_own(known, wide):
    whole = wide.generate(HI, **GREEDY)
    streamed = known.prompt("hi", **GREEDY)
    pieces = list(streamed)
    assert len(pieces) > 1 and "".join(pieces) == whole.text
    usage = streamed.usage()
    assert (usage.input, usage.output) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)
    assert streamed.response_json["finish_reason"] == whole.finish_reason
    assert known.prompt("hi", stream=False, **GREEDY).text() == whole.text


def test_async(known, wide):
    async def ask():
        response = llm.get_async_model("tallow/wide").prompt("hi", **GREEDY)
        return [piece async for piece in response], await response.usage()

    pieces, usage = asyncio.run(ask())
    assert "".join(pieces) == wide.generate(HI, **GREEDY).text and usage.output == 8


def test_options_reach_the_model(known, wide):
    given = {"temperature": 1.0, "top_k": 9, "seed": 3, "max_tokens": 12, "repetition_penalty": 1.2}
    assert known.prompt("hi", **given).text() == wide.generate(HI, **given).text
    assert (
        known.prompt("hi", stop=["a", "e"], **given).text()
        == wide.generate(HI, stop=["a", "e"], **given).text
    )
    assert known.prompt("hi", regex="[0-9]{3}").text().isdecimal()


#: Options that are wrong, and what is said of them.
WRONG = [
    (["-o", "top_p", "2"], "top_p"),
    (["-o", "temperature", "warm"], "temperature"),
    (["-o", "flavour", "sweet"], "flavour"),
    (["-o", "think", "true"], "knows no thoughts"),
    (["-o", "regex", "a", "--schema", "x int"], "exclude each other"),
]


@pytest.mark.parametrize(("given", "part"), WRONG, ids=lambda value: str(value)[:30])
def test_wrong_options(known, given, part):
    done = cli("-m", "tallow/wide", "hi", "--no-log", *given)
    assert done.exit_code != 0 and part in done.output, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
}


def test_a_schema_is_enforced(known, smollm2):
    for model in (known, llm.get_model("smollm2")):
        said = json.loads(model.prompt("A person:", schema=SCHEMA, max_tokens=60).text())
        assert len(said["name"]) <= 8 and said["age"] <= 99
    done = cli("-m", "tallow/wide", "--schema", json.dumps(SCHEMA), "A person:", "--no-log")
    assert {*json.loads(done.output)} == {"name", "age"}
    assert {*json.loads(known.prompt("A person:", schema=llm.schema_dsl("a, b int"), seed=1).text())} == {
        "a",
        "b",
    }


def test_a_conversation_remembers(known, wide):
    talk = known.conversation()
    first = talk.prompt("hi", system="be brief", **GREEDY).text()
    turns = [{"role": "system", "content": "be brief"}, *HI, {"role": "assistant", "content": first}]
    expected = wide.generate([*turns, {"role": "user", "content": "and?"}], **GREEDY).text
    assert talk.prompt("and?", **GREEDY).text() == expected


def test_llm_c_goes_on_from_the_log(known, wide):
    options = ["-o", "max_tokens", "8", "-o", "temperature", "0"]
    first = cli("-m", "tallow/wide", "hi", *options)
    assert first.output == wide.generate(HI, **GREEDY).text + "\n"
    turns = [*HI, {"role": "assistant", "content": first.output.removesuffix("\n")}]
    expected = wide.generate([*turns, {"role": "user", "content": "and?"}], **GREEDY).text
    assert cli("-c", "and?", *options).output == expected + "\n"


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>'


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def test_tools_are_called(known, monkeypatch):
    prompts = []
    real = answers.prepare

    def spy(model, prompt, **options):
        asked = real(model, prompt, **options)
        prompts.append(asked.prompt.text)
        return asked

    monkeypatch.setattr(answers, "prepare", spy)
    in_pieces(monkeypatch, CALL[:20], CALL[20:], *[""] * 6, "It is 5.")
    chain = known.chain("2 + 3?", tools=[add], options=GREEDY)
    assert chain.text() == "It is 5."
    first, second = chain._responses
    assert [(call.name, call.arguments) for call in first.tool_calls()] == [("add", {"a": 2, "b": 3})]
    assert "Adds two numbers." in prompts[0] and "2 + 3?" in prompts[0]
    assert prompts[1].startswith(prompts[0].removesuffix("<|im_start|>assistant ")[:40])
    assert '"a": 2' in prompts[1] and "<tool_response>\n5\n</tool_response>" in prompts[1]
    assert second.tool_calls() == []


def test_tools_called_async(known, monkeypatch):
    in_pieces(monkeypatch, CALL, *[""] * 7, "It is 5.")
    chain = llm.get_async_model("tallow/wide").chain("2 + 3?", tools=[add], options=GREEDY)
    assert asyncio.run(chain.text()) == "It is 5."


def test_a_call_is_well_formed(known):
    """Held to the grammar of calls, random weights write a call that is read or none."""
    for seed in range(4):
        response = known.prompt("2 + 3?", tools=[add], seed=seed, temperature=1.5, max_tokens=60)
        for call in response.tool_calls():
            assert call.name == "add" and {*call.arguments} == {"a", "b"}


def test_thoughts_are_reasoning(roomy, monkeypatch, tmp_path):
    (tmp_path / "thinker.jinja").write_text(THINKER)
    template = ["-o", "chat_template", tmp_path / "thinker.jinja"]
    cli("tallow", "add", roomy.to_state()["source"], "--name", "thinker", *template)
    in_pieces(monkeypatch, "<think>so", "</think>", "It is.")
    response = llm.get_model("tallow/thinker").prompt("hi", **GREEDY)
    assert [(event.type, event.chunk) for event in response.stream_events()] == [
        ("reasoning", "so"),
        ("text", "It is."),
    ]


def test_a_base_model_continues_text(tmp_path):
    cli("tallow", "add", copy_family("llama-gqa-tied", tmp_path / "base", template=None), "--name", "base")
    expected = tallow.Model(tmp_path / "base").generate("hi", **GREEDY).text
    assert llm.get_model("tallow/base").prompt("hi", **GREEDY).text() == expected
    done = cli("-m", "tallow/base", "hi", "-s", "be brief", "--no-log")
    assert done.exit_code == 1 and "no chat template" in done.output


def test_embeddings(known, wide):
    model = llm.get_embedding_model("tallow/wide")
    assert model.embed("one") == wide.embed(["one"])[0].tolist()
    assert list(model.embed_multi(["one", "two"])) == wide.embed(["one", "two"]).tolist()
    done = cli("embed", "-m", "tallow/wide", "-c", "one")
    assert json.loads(done.output) == pytest.approx(model.embed("one"))


# llm tallow


def test_add_list_remove(wide_folder):
    assert cli("tallow", "list").output == ""
    added = cli("tallow", "add", "org/name", "-o", "context_length", "4096", "-o", "quantize", "q8_0")
    assert added.output == "use it with llm -m tallow/org/name\n"
    assert cli("tallow", "list").output == "tallow/org/name  org/name  context_length=4096  quantize=q8_0\n"
    assert "tallow: tallow/org/name" in cli("models", "list").output
    assert cli("tallow", "remove", "tallow/org/name").output == ""
    assert "org/name" not in cli("models", "list").output


REFUSED = [
    (["add", "smollm2"], "is there already"),
    (["add", "smolm2"], "Did you mean smollm2"),
    (["add", "org/name", "-o", "colour", "red"], "has no argument 'colour'"),
    (["add", "org/name", "-o", "threads", "many"], "threads"),
    (["add", "org/name", "-o", "quantize", "q99"], "q99"),
    (["add", "org/name", "-o", "kv_memory", "2G"], "kv_memory"),
    (["remove", "org/name"], "was not added"),
]


@pytest.mark.parametrize(("given", "part"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_add_refuses(given, part):
    done = cli("tallow", *given)
    assert done.exit_code == 1 and part in done.output and cli("tallow", "list").output == ""


def test_a_broken_file_stops_nothing_else(capsys):
    (llm.user_dir() / "tallow.json").write_text("nothing")
    assert "tallow/smollm2" in [one.model.model_id for one in llm.get_models_with_aliases()]
    assert "cannot be read" in capsys.readouterr().err


def test_an_older_llm_goes_on_without_us():
    code = "import llm, sys; sys.modules['llm.parts'] = None; import tallow.llm_plugin as p; print(dir(p))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "llm 0.36 or newer" in done.stderr and "register_models" not in done.stdout
