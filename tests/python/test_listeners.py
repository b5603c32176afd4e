"""What a listener of ``dspy.streamify`` hears of a field is that field, however long the names in between."""

from __future__ import annotations

import asyncio
import html
from typing import Literal

import pytest

from conftest import needed

dspy = needed("dspy")

import tallow  # noqa: E402
from tallow.dspy.pieces import Pieces  # noqa: E402

NAMES = ["b", "follow_up_question", "zusammenfassung_der_ergebnisse", "a" * 60]


async def heard(program, names):
    listeners = [dspy.streaming.StreamListener(name) for name in names]
    texts, last = dict.fromkeys(names, ""), None
    async for item in dspy.streamify(program, stream_listeners=listeners)(question="?"):
        if isinstance(item, dspy.streaming.StreamResponse):
            texts[item.signature_field_name] += item.chunk
        elif isinstance(item, dspy.Prediction):
            last = item
    return texts, last


@pytest.mark.parametrize(
    "adapter", [dspy.ChatAdapter(), dspy.XMLAdapter()], ids=lambda one: type(one).__name__
)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [str, Literal["yes", "no"]], ids=["str", "Literal"])
def test_a_listener_hears_its_own_field(wide, adapter, name, kind):
    fields = {
        "question": (str, dspy.InputField()),
        "answer": (kind, dspy.OutputField()),
        name: (str, dspy.OutputField()),
        "last": (kind, dspy.OutputField()),
    }
    program = dspy.Predict(dspy.Signature(fields, "Answer."))
    for seed in range(3):
        lm = tallow.LM(wide, temperature=1.0, seed=seed, max_tokens=400, cache=False)
        with dspy.context(lm=lm, adapter=adapter):
            texts, last = asyncio.run(heard(program, ("answer", name, "last")))
        if isinstance(adapter, dspy.XMLAdapter):  # a listener hears the text as it is written
            texts = {field: html.unescape(text) for field, text in texts.items()}
        assert texts == {field: last[field] for field in texts}


@pytest.mark.parametrize(
    ("layout", "text", "wanted"),
    [
        (
            "chat",
            "[[ ## a ## ]]\nx [[ y ]] [\n\n[[ ## b_c ## ]]\n\n[[ ## completed ## ]]",
            ["[[ ## a ## ]]", "\nx [[ y ]] [\n\n", "[[ ## b_c ## ]]", "\n\n", "[[ ## completed ## ]]"],
        ),
        ("xml", "<a>\n1 < 2\n</a>\n\n<b>", ["<a>", "\n1 < 2\n", "</a>", "\n\n", "<b>"]),
        ("json", '{"a": 1}', ['{"a": 1}']),
    ],
)
def test_pieces_are_the_text(layout, text, wanted):
    """Cut at every place, headers stay whole and nothing is lost."""
    marks = [piece for piece in wanted if piece.startswith(("[[ ##", "<"))]
    for size in (1, 2, 3, 5, 8, 100):
        pieces = Pieces(layout)
        found = [piece for at in range(0, len(text), size) for piece in pieces.push(text[at : at + size])]
        found += pieces.push("", last=True)
        assert "".join(found) == text
        assert [piece for piece in found if piece in marks] == marks
    pieces = Pieces(layout)
    assert list(pieces.push(text, last=True)) == wanted
