"""``tallow convert``: a model of any source as one GGUF file."""

from __future__ import annotations

import argparse
import json
import os

from .. import _core
from .._log import size
from ..progress import reporter
from ..wheels import locate
from .output import tell


def convert(options: argparse.Namespace) -> None:
    report = reporter(True)
    source, name, _ = locate(options.model, options.revision, report)
    written = _core.convert(
        str(source),
        os.path.expanduser(options.file),
        options.kind,
        requantize=options.requantize,
        overwrite=options.overwrite,
        threads=options.threads,
        progress=report,
    )
    if options.json:
        print(json.dumps({"source": name, **written}, ensure_ascii=False, indent=1))
        return
    for note in written["notes"]:
        tell(f"note: {note}")
    types = ", ".join(f"{count} {type}" for type, count in written["types"].items())
    print(f"{written['path']}: {size(written['bytes'])} ({types})")
