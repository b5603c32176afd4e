"""What is shared between calls: prefixes, in memory and on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tallow
from conftest import copy_family, python

HERE = Path(__file__).parent
SYSTEM = "You answer questions about tea. " * 12
CHAT = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Why is it bitter?"}]


def ask(model, question: str, **options):
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return model.generate(messages, max_tokens=6, temperature=0, logprobs=0, **options)


def test_a_saved_prefix_serves_another_process_with_the_same_bits(smollm2, tmp_path):
    path = tmp_path / "tea.safetensors"
    saved = smollm2.save_prefix(path, CHAT)
    assert saved % 16 == 0 and saved >= 64
    cold = ask(tallow.Model("smollm2", prefix_cache=False, progress=False), "Is it healthy?")
    assert cold.usage.cached_tokens == 0
    program = """
import json, sys
import tallow
from test_prefix import ask
model = tallow.Model("smollm2", progress=False)
loaded = model.load_prefix(sys.argv[1])
answer = ask(model, "Is it healthy?")
print(json.dumps([loaded, answer.usage.cached_tokens, answer.tokens, [l.logprob for l in answer.logprobs]]))
"""
    done = python(program, str(path), cwd=HERE)
    assert done.returncode == 0, done.stderr
    loaded, cached, tokens, logprobs = json.loads(done.stdout)
    assert loaded == saved and 48 <= cached <= saved
    assert tuple(tokens) == cold.tokens
    assert logprobs == [entry.logprob for entry in cold.logprobs]


def test_a_prefix_that_does_not_fit_is_refused(smollm2, tiny, tmp_path):
    path = tmp_path / "p.safetensors"
    smollm2.save_prefix(path, CHAT)
    with pytest.raises(tallow.ModelFileError, match="another model"):
        tiny.load_prefix(path)
    with pytest.raises(tallow.ModelFileError, match=r"nowhere\.safetensors"):
        smollm2.load_prefix(tmp_path / "nowhere.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-3] + b"xyz")
    with pytest.raises(tallow.ModelFileError, match="damaged"):
        smollm2.load_prefix(path)
    with pytest.raises(tallow.InvalidRequestError, match="too short"):
        smollm2.save_prefix(path, "tea")
    with pytest.raises(tallow.ModelFileError, match="cannot be written"):
        smollm2.save_prefix(tmp_path / "no" / "folder.safetensors", CHAT)


def test_n_answers_and_later_calls_share_a_prompt(smollm2):
    smollm2.close()
    before = smollm2.stats()
    assert before["cached_tokens"] == 0
    answers = smollm2.generate(CHAT, n=4, max_tokens=4, temperature=1.0, seed=1)
    prompt = answers[0].usage.prompt_tokens
    computed = smollm2.stats()["computed_tokens"] - smollm2.stats()["drafted"]
    assert computed <= prompt + 4 * (16 + 4), (computed, prompt)
    again = smollm2.generate(CHAT, max_tokens=1)
    assert again.usage.cached_tokens >= prompt - 16


@pytest.mark.parametrize(
    "family", ["mistral-window", "phi3-window", "gemma2-caps", "gemma3-layers", "qwen2-mixed"]
)
def test_windows_see_the_same_through_the_cache(family, tmp_path):
    """Prompts far longer than the window, cold and alone against warm and together."""
    folder = copy_family(family, tmp_path / family)
    options = {"max_tokens": 12, "temperature": 0.8, "seed": 3, "logprobs": 2}
    prompts = ["abcdefghij" * 6 + tail for tail in ("", "k", "lmnop", "qrstuvwxyz0123456789")]
    alone = tallow.Model(folder, prefix_cache=False, speculation=False)
    options["logit_bias"] = dict.fromkeys(alone.eos_ids, -100.0)
    expected = [alone.generate(prompt, **options) for prompt in prompts]
    together = tallow.Model(folder)
    for _ in range(2):
        streams = [together.stream(prompt, **options) for prompt in prompts]
        for stream, one in zip(streams, expected, strict=True):
            chunks = list(stream)
            assert tuple(token for chunk in chunks for token in chunk.tokens) == one.tokens
            assert tuple(entry for chunk in chunks for entry in chunk.logprobs or ()) == one.logprobs
    assert together.stats()["cached_tokens"] > 0
