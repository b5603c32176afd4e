"""A wrong command line, and argparse for what is left to it."""

from __future__ import annotations

import argparse
import os
import re
import sys
from typing import NoReturn


class UsageError(Exception):
    """A wrong command line."""


def prog() -> str:
    """How the command was called, for examples that can be typed as they stand."""
    return "python -m tallow" if os.path.basename(sys.argv[0]) == "__main__.py" else "tallow"


class Parser(argparse.ArgumentParser):
    """argparse without its positionals, and with our way to complain."""

    #: Options that belong to no other group; ``--help`` is one.
    others: argparse._ArgumentGroup

    def error(self, message: str) -> NoReturn:
        # Types raise whole sentences that name the option.
        own = re.fullmatch(r"argument [^:]+: (--.*)", message, re.DOTALL)
        raise UsageError(f"{self.name}{own[1] if own else message} ({self.prog} --help tells more)")

    @property
    def name(self) -> str:
        _, *command = self.prog.split("tallow ", 1)
        return f"{command[0]}: " if command else ""
