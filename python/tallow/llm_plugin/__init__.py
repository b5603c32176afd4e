"""Models of tallow in ``llm``, the command line tool and library (https://llm.datasette.io).

    llm -m smollm2 "Why is the sky blue?"
    llm -m smollm2 --schema "name, age int" "A person:"        enforced while it is written
    llm tallow add org/name -o context_length 4096             any other source, as "tallow/org/name"

llm finds this package by its entry point and imports it at every start, so nothing is loaded here, and an
older llm than this was made for goes on without it.
"""

from __future__ import annotations

import sys

try:
    from .registry import register_commands, register_embedding_models, register_models
except ImportError as error:
    print(f"tallow: its models are left out, for they need llm 0.36 or newer ({error})", file=sys.stderr)
else:
    __all__ = ["register_commands", "register_embedding_models", "register_models"]
