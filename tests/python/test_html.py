"""What a notebook shows: the HTML of values, always escaped, and how bars and streams go there and elsewhere.

``test_notebook.py`` has what needs a running kernel.
"""

from __future__ import annotations

import asyncio
import math
from html.parser import HTMLParser

import pytest

import tallow
from tallow import html
from tallow.results import Completion, Score, Scores, Timings, TokenLogprob, Usage

HOSTILE = "<script>alert('x')</script>&amp; \"><img src=x onerror=y> {{7*7}} </div>\x00\x1b[31m"
INF = math.inf


class Page(HTMLParser):
    """The text of a page, its titles, and the fills of its spans; everything else is refused."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.titles, self.spans = "", [], []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        assert tag in {"div", "span", "table", "tr", "td", "b"}, tag
        assert {name for name, _ in attrs} <= {"style", "title"}, attrs
        given = dict(attrs)
        assert not {"color", "url(", "position"} & set(given.get("style", "").replace(":", " ").split())
        if "title" in given:
            self.titles.append(given["title"])
            self.spans.append([given["style"], ""])
        self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.spans and self._open and self._open[-1] == "span":
            self.spans[-1][1] += data

    def handle_comment(self, data):
        raise AssertionError(data)

    handle_decl = handle_pi = unknown_decl = handle_comment


def token(data: bytes, logprob: float, *top: TokenLogprob, id: int | None = None) -> TokenLogprob:
    return TokenLogprob(hash(data) if id is None else id, data.decode("utf-8", "replace"), logprob, data, top)


def answer(text: str, *entries: TokenLogprob, **more) -> Completion:
    usage, timings = Usage(3, max(len(entries), 1)), Timings(0.0, 0.1, 0.2)
    return Completion(text, (1,), "stop", usage, timings, entries or None, **more)


SUN = "☀".encode()
COMPLETIONS = {
    # name: (the answer, what its text says, what its titles say)
    "plain": (answer("Paris"), ["Paris", "3 + 1 tokens", "stop"], []),
    "empty": (answer(""), ["3 + 1 tokens"], []),
    "hostile": (answer(HOSTILE, notes=(HOSTILE,)), [HOSTILE], []),
    "hostile token": (
        answer(HOSTILE, token(HOSTILE.encode(), -1.0, token(b"<b>", -2.0))),
        ["<script>"],
        ["36.8%  " + repr(HOSTILE), "13.5%  '<b>'"],
    ),
    "alternatives": (
        answer(" a", token(b" a", -0.1, token(b" a", -0.1), token(b"\n", -3.0))),
        [" a"],
        ["90.5%  ' a'\n   5.0%  '\\n'"],
    ),
    "pieces of a character": (
        answer("☀!", *(token(SUN[at : at + 1], -0.5, id=at) for at in range(3)), token(b"!", -0.1)),
        ["☀!"],
        ["60.7%  bytes e2\n60.7%  bytes 98\n60.7%  bytes 80", "90.5%  '!'"],
    ),
    "cut in a character": (answer("�", token(SUN[:2], -0.5)), ["�"], ["bytes e2 98"]),
    "no character": (answer("�a", token(b"\xff", -0.5), token(b"a", -0.5)), ["�a"], ["bytes ff", "'a'"]),
    "no bytes": (answer("a", token(b"", -0.5), token(b"a", -0.5)), ["·a"], ["''", "'a'"]),
    "line break": (answer("\n", token(b"\n", -0.5)), ["↵\n"], ["'\\n'"]),
    "odd numbers": (
        answer("abc", token(b"a", math.nan), token(b"b", -INF, token(b"x", INF)), token(b"c", 1e-9)),
        ["abc"],
        ["?  'a'", "0.0%  'b'\n   100.0%  'x'", "100.0%  'c'"],
    ),
    "turned round": (answer("a\u202eb\tc"), ["a\\u202eb\tc"], []),
    "unlikely": (answer("a", token(b"a", -30.0)), ["a"], ["<0.1%  'a'"]),
}


def written(text: str) -> str:
    return text.replace("\x00", "\\x00").replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")


@pytest.mark.parametrize("name", COMPLETIONS)
def test_completion(name):
    done, texts, titles = COMPLETIONS[name]
    page = Page(done._repr_html_())
    # What cannot be seen is written out.
    assert all(written(text) in page.text for text in texts), page.text
    shown = "\n".join(page.titles)
    assert all(title in shown for title in titles), page.titles
    assert bool(page.titles) == (done.logprobs is not None)


def test_the_stronger_the_colour_the_less_probable():
    entries = [token(b"abcdef"[at : at + 1], -logprob) for at, logprob in enumerate((0, 0.1, 1, 10, INF))]
    fills = [style for style, _ in Page(html.tokens(entries, "abcde")).spans]
    strengths = [float(style.rsplit(",", 1)[1].rstrip(")")) for style in fills]
    assert strengths[0] == 0 and strengths == sorted(strengths) and strengths[-1] == 0.7


def test_a_stop_text_is_struck_through(smollm2):
    done = smollm2.generate("1 2 3 4 5", max_tokens=20, temperature=0, logprobs=1, stop=" 8")
    page = Page(html.tokens(done.logprobs, done.text))
    kept = "".join(text for style, text in page.spans if "line-through" not in style)
    gone = "".join(text for style, text in page.spans if "line-through" in style)
    assert (done.text, kept) == (" 6 7", " 6 7") and gone == " 8"


def test_every_token_is_there(smollm2):
    done = smollm2.generate("🌦☃", max_tokens=12, temperature=0, logprobs=2)
    page = Page(done._repr_html_())
    assert done.text in page.text
    assert sum(title.count("\n") + 1 for title in page.titles) >= len(done.tokens)


def test_scores_are_a_list_with_bars(smollm2):
    candidates = [" white", HOSTILE.replace("\x00", "")]
    scores = smollm2.score("Snow is", candidates)
    assert isinstance(scores, list) and isinstance(scores, Scores) and scores == list(scores)
    page = Page(scores._repr_html_())
    assert all(text in page.text for text in candidates) and "100.0%" in page.text


BARS = {
    "nothing": [],
    "odd": [("a", math.nan, ""), ("b", INF, ""), ("c", -1.0, "")],
    "all unknown": [("a", math.nan, "")],
    "usual": [("a", 0.25, "x"), ("b", 0.75, "y")],
}


@pytest.mark.parametrize("name", BARS)
def test_bars(name):
    page = html.bars(BARS[name])
    Page(page)
    widths = [float(part.split("%")[0]) for part in page.split("width:")[1:] if "%" in part.split(";")[0]]
    assert all(0 <= width <= 100 for width in widths) and len(widths) == len(BARS[name])
    assert page.count("bold") == (0 if name in ("nothing", "all unknown") else 1)


def test_answers_of_a_judge():
    answers = {
        HOSTILE: {"noul": 0.9},
        "topic": {"probabilities": {HOSTILE: 0.25, "food": 0.75}, "confidence": 0.75},
        "stars": {"probabilities": {0: 0.5, 1: 0.5}, "confidence": 0.5},
    }
    text = Page(html.answers(answers)).text
    assert all(part in text for part in ("<script>", "true90.0%", "false10.0%", "food75.0%", "150.0%"))


def test_model(tiny, tiny_folder):
    page = Page(tiny._repr_html_())
    native = tiny._native
    for part in (native.name, "family", "llama", native.device, "128 tokens", "chat templateyes", "F32"):
        assert part in page.text, part
    fresh = tallow.Model(tiny_folder, kv_memory="3MB", chat_template="{{ messages }}")
    assert "at most 2.9 MiB" in Page(fresh._repr_html_()).text
    assert fresh._shared.running_stats() is None, "to look at a model starts no engine"


def test_show_prints_elsewhere(tiny, capsys):
    options = {"max_tokens": 20, "temperature": 0, "logprobs": 1}
    whole = tiny.generate("once upon", **options)
    shown = tiny.stream("once upon", **options).show()
    assert capsys.readouterr().out == f"{whole.text}\n"
    assert (shown.text, shown.tokens, shown.logprobs) == (whole.text, whole.tokens, whole.logprobs)
    assert (shown.usage.completion_tokens, shown.finish_reason) == (20, whole.finish_reason)

    async def later():
        return await tiny.astream("once upon", **options).show()

    assert asyncio.run(later()).text == whole.text == capsys.readouterr().out.removesuffix("\n")


def test_show_after_reading_has_begun(tiny, capsys):
    whole = tiny.generate("once upon", max_tokens=20, temperature=0)
    stream = tiny.stream("once upon", max_tokens=20, temperature=0)
    next(stream)
    assert stream.show().text == whole.text and capsys.readouterr().out == f"{whole.text}\n"
    assert stream.show().text == whole.text, "and again, from what was read"
    closed = tiny.stream("once upon", max_tokens=20, temperature=0)
    closed.close()
    with pytest.raises(tallow.Cancelled, match="closed before its answer ended"):
        closed.show()


def test_a_stream_tells_how_far_it_is(tiny):
    with tiny.stream("once upon", max_tokens=40, temperature=0) as stream:
        assert repr(stream) == "<tallow.Stream open, 0 tokens read: ''>"
        first = next(stream)
        assert repr(stream).startswith(
            f"<tallow.Stream open, {len(first.tokens)} tokens read: {first.text!r}"
        )
        text = first.text + "".join(chunk.text for chunk in stream)
        assert repr(stream).startswith("<tallow.Stream ended, 40 tokens read: ") and text[:60] in repr(stream)
    with tiny.stream("once upon") as left:
        pass
    assert "closed" in repr(left)

    async def later():
        return repr(tiny.astream("once upon", max_tokens=1))

    assert asyncio.run(later()) == "<tallow.AsyncStream open, 0 tokens read: ''>"


def test_a_long_answer_is_shown_whole_in_little_html():
    done = answer("ab" * 5000, *(token(b"ab", -1.0, *(token(b"c", -2.0),) * 20) for _ in range(5000)))
    html = done._repr_html_()
    assert "ab" * 5000 in Page(html).text and len(html) < 2_000_000


def test_slices_of_scores_are_scores():
    scores = Scores([Score("a", -1.0, 1.0, (1,), (-1.0,))] * 3)
    assert isinstance(scores[:2], Scores) and isinstance(scores[0], Score) and len(scores[:2]) == 2
