"""What the source of a chat template tells without running it: its variables, and what it writes last."""

from __future__ import annotations

import re

_BLOCK = re.compile(r"\{([{%])-?(.*?)-?[%}]\}", re.DOTALL)
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_LITERAL = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", re.DOTALL)
_WORD = re.compile(r"(?<![\w.])[A-Za-z_]\w*")


def variables(template: str) -> set[str]:
    """The names in its code: neither attributes, nor words of the text that it writes."""
    code = " ".join(_LITERAL.sub("''", block) for _, block in _BLOCK.findall(_COMMENT.sub("", template)))
    return set(_WORD.findall(code))


def last_texts(template: str) -> list[str]:
    """The pieces of text that it may write for the generation prompt, which is where templates end."""
    _, found, tail = _COMMENT.sub("", template).rpartition("add_generation_prompt")
    if not found:
        return []
    tail = "{%" + tail
    written = [literal[1:-1] for _, block in _BLOCK.findall(tail) for literal in _LITERAL.findall(block)]
    return [text.replace("\\n", "\n") for text in [*written, *_BLOCK.sub("\0", tail).split("\0")] if text]
