"""Lines for the ``logging`` module, from the logger "tallow".

INFO tells of downloads, loads and other work that takes time, and once what of a format no grammar
enforces; WARNING tells, once for each reason, that nothing of a format is enforced, and that a training
begins anew where one might think that it goes on. Prompts and answers are
never logged.
"""

from __future__ import annotations

import sys
from typing import Any

_told: set[tuple[Any, ...]] = set()


def _logger() -> Any:
    # Not imported here, which would make `import tallow` slower: where nobody has imported it, nobody has set
    # a level.
    logging = sys.modules.get("logging")
    return None if logging is None else logging.getLogger("tallow")


def wants_info() -> bool:
    """Whether somebody reads INFO lines (20 is logging.INFO)."""
    logger = _logger()
    return logger is not None and logger.isEnabledFor(20)


def info(text: str, *values: object) -> None:
    if (logger := _logger()) is not None:
        logger.info(text, *values)


def warning(text: str, *values: object) -> None:
    if (logger := _logger()) is not None:
        logger.warning(text, *values)


def once(level: str, text: str, *values: object) -> None:
    """The same text with the same values is one line a process, for a program asks thousands of times."""
    key = (text, *map(str, values))
    if (logger := _logger()) is not None and key not in _told:
        _told.add(key)
        getattr(logger, level)(text, *values)


def size(count: int) -> str:
    """Bytes as a person reads them: ``81.1 MiB``."""
    value, units = float(count), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{count} bytes" if units[0] == "bytes" else f"{value:.1f} {units[0]}"


def error(text: str, *values: object, error: BaseException) -> None:
    """What nobody expected, with its traceback."""
    if (logger := _logger()) is not None:
        logger.error(text, *values, exc_info=error)
