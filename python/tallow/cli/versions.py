"""``tallow versions``: ``tallow.show_versions()``, for who has no Python prompt at hand."""

from __future__ import annotations

import argparse

from ..versions import show_versions


def versions(options: argparse.Namespace) -> None:
    show_versions(options.json)
