"""``tallow info``, ``bench``, ``embed``, ``score`` and ``completion``."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest

import tallow
from command import run
from conftest import copy_family
from tallow.cli import commands, info


def test_info_is_for_a_person(smollm2):
    done = run("info", "smollm2")
    for part in ("smollm2", smollm2.fingerprint, "llama", "8192 tokens", "hidden size", "92.8 MiB"):
        assert part in done.stdout
    assert "None" not in done.stdout and len(done.stdout.splitlines()) < 45
    assert [line for line in done.stdout.splitlines() if not line.startswith(" ")] == [
        *("model:", "shape:", "text:", "chat:", "sampling:", "memory:", "runs:")
    ]


def test_info_as_json(tiny, tiny_folder):
    told = json.loads(run("info", tiny_folder, "--json").stdout)
    assert told["model"]["fingerprint"] == tiny.fingerprint and told["config"]["family"] == "llama"
    assert told["memory"]["needs_about_bytes"] == tiny.weight_bytes + told["memory"]["kv_bytes_full_context"]
    assert told["memory"]["kv_bytes_full_context"] == 128 * told["memory"]["kv_bytes_a_token"] > 0
    assert told["chat"]["system_message"] == "yes" and told["chat"]["thoughts"] == "no"


@pytest.mark.parametrize(
    ("family", "layers", "full", "window"),
    [("llama-gqa-tied", 2, 2, 0), ("gemma3-classic", 6, 1, 8), ("gptoss-bf16", 2, 1, 9)],
)
def test_info_counts_memory_by_windows(tmp_path, family, layers, full, window):
    model = tallow.Model(copy_family(family, tmp_path / family))
    told, shape = info._memory(model), model.config
    layer = 2 * 2 * shape["num_kv_heads"] * shape["head_dim"]  # a key and a value of 2 bytes a number
    assert told["kv_bytes_a_token"] >= layers * layer  # rows are padded to whole vectors
    each = told["kv_bytes_a_token"] / layers
    positions = full * model.context_length + (layers - full) * -(-(window + 16) // 16) * 16
    assert told["kv_bytes_full_context"] == pytest.approx(each * positions, rel=0.02)


def test_info_tells_what_a_template_can_do(thinker):
    told = info._chat(thinker)
    assert told["thoughts"] == "yes, between <think> and </think>; switched by enable_thinking (--think)"
    assert info._shape({"family": "x", "a": None, "b": 2, "sliding_windows": [None, 512, 512]}) == {
        "b": 2,
        "sliding_window": "512 tokens in 2 of 3 layers",
    }


def test_bench(roomy):
    given = ["bench", roomy.to_state()["source"], "--at-once", "1,3", "--prompt-tokens", 20, "-n", 4]
    told = json.loads(run(*given, "--repeat", 2, "--json").stdout)
    assert [row["at_once"] for row in told["results"]] == [1, 3]
    assert all(value is None or value > 0 for row in told["results"] for value in row.values())
    assert told["prompt_tokens"] == 20 and told["threads"] >= 1 and told["repeat"] == 2
    shown = run(*given, "--repeat", 1)
    assert "random prompts, greedy, no prefix cache, no speculation" in shown.stdout
    head, *rows = shown.stdout.splitlines()[-3:]
    assert "prompt tokens/s  answer tokens/s" in head and [row.split()[0] for row in rows] == ["1", "3"]


TEXTS = ["one", "two words", "three"]


def test_embed(tiny, tiny_folder, tmp_path):
    expected = tiny.embed(TEXTS)
    done = run("embed", tiny_folder, *TEXTS)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    assert np.array_equal(np.array([row["embedding"] for row in rows], np.float32), expected)
    assert run("embed", tiny_folder, stdin="\n".join(TEXTS) + "\n") == done
    for name in ("v.npy", "v.jsonl"):
        assert run("embed", tiny_folder, "--output", tmp_path / name, *TEXTS) == (0, "", "")
    saved = np.load(tmp_path / "v.npy")
    assert saved.dtype == np.float32 and np.array_equal(saved, expected)
    assert (tmp_path / "v.jsonl").read_text() == done.stdout


def test_an_empty_line_is_named(tiny_folder):
    done = run("embed", tiny_folder, stdin="a\n\nb\n")
    assert done == (1, "", "tallow: line 2 of stdin is empty; a text has at least one character\n")


def test_embed_pooling_and_prefix(tiny, tiny_folder):
    done = run("embed", tiny_folder, "x", "--pooling", "last", "--prefix", "query: ")
    expected = tiny.embed(["x"], "last", prompt="query: ")[0]
    assert np.allclose(json.loads(done.stdout)["embedding"], expected)


@pytest.mark.parametrize("raw", [False, True])
def test_score(tiny, tiny_folder, raw):
    prompt = "hi" if raw else [{"role": "user", "content": "hi"}]
    given = ["score", tiny_folder, "hi", "yes", "no", *(["--raw"] if raw else [])]
    expected = tiny.score(prompt, ["yes", "no"])
    told = json.loads(run(*given, "--json").stdout)
    assert [(one["text"], one["logprob"]) for one in told] == [(one.text, one.logprob) for one in expected]
    shown = run(*given).stdout.splitlines()
    best = max(expected, key=lambda one: one.probability)
    assert len(shown) == 2 and shown[0].startswith(repr(best.text)) and f"{best.probability:.1%}" in shown[0]
    assert "█" in shown[0]
    assert run("score", tiny_folder, "-", "yes", "no", *given[5:], stdin="hi\n").stdout.splitlines() == shown


# completion


def completed(tmp_path, *typed):
    """What bash offers for the last word of a line."""
    script = tmp_path / "tallow.bash"
    script.write_text(run("completion", "bash").stdout)
    words = " ".join(f"'{word}'" for word in typed)
    command = f"source {script}; COMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}; _tallow; "
    done = subprocess.run(
        ["bash", "-c", command + 'printf "%s\\n" "${COMPREPLY[@]}"'],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


OFFERS = [
    (["tallow", "r"], {"run", "rm"}),
    (["tallow", "run", "smo"], {"smollm2"}),
    (["tallow", "run", "smollm2", "--max"], {"--max-tokens"}),
    (["tallow", "bench", "x", "--at"], {"--at-once"}),
    (["tallow", "list", "--t"], set()),
    (["tallow", "completion", ""], {"bash", "zsh", "fish"}),
]


@pytest.mark.parametrize(("typed", "offered"), OFFERS)
def test_bash_completes(tmp_path, typed, offered):
    assert {*completed(tmp_path, *typed)} == offered


def test_other_shells():
    assert run("completion", "zsh").stdout.endswith(run("completion", "bash").stdout)
    fish = run("completion", "fish").stdout
    for name in commands.COMMANDS:
        assert f"-a {name} -d " in fish
    assert "-l max-tokens -r -d 'end the answer after N tokens" in fish and "%%" not in fish
