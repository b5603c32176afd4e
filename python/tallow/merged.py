"""``Merged``: what ``Model.save_merged`` wrote, and what rounding took of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ._log import size


@dataclass(frozen=True, slots=True)
class MergedTensor:
    """A tensor that an adapter was merged into."""

    #: As the file calls it.
    name: str
    #: How it is stored now.
    dtype: str
    #: The size of its change relative to its own.
    delta: float
    #: The share of the change that rounding took; from 1 on nothing of it is left.
    lost: float


@dataclass(frozen=True, slots=True)
class Merged:
    """What ``Model.save_merged`` wrote."""

    #: The folder, or the GGUF file.
    path: str
    #: Bytes of all tensors.
    size: int
    #: Those that changed, by name.
    tensors: tuple[MergedTensor, ...]
    #: What is worth knowing.
    notes: tuple[str, ...]

    @property
    def lost(self) -> float:
        """The share that rounding took of the tensor that lost most."""
        return max((tensor.lost for tensor in self.tensors), default=0.0)

    def table(self) -> str:
        """A line for each tensor that changed."""
        width = max((len(tensor.name) for tensor in self.tensors), default=6)
        rows = [f"{'tensor':{width}}  {'stored':>8}  {'change':>7}  {'lost':>6}"]
        rows += [f"{t.name:{width}}  {t.dtype:>8}  {t.delta:7.4f}  {t.lost:6.1%}" for t in self.tensors]
        return "\n".join(rows)

    def __repr__(self) -> str:
        deltas = sorted(tensor.delta for tensor in self.tensors)
        change = f", changed by {deltas[0]:.4f} to {deltas[-1]:.4f} of their size" if deltas else ""
        notes = "".join(f"; {note}" for note in self.notes)
        return (
            f"<tallow.Merged {self.path!r}: {size(self.size)}, {len(self.tensors)} tensors{change}, at most "
            f"{self.lost:.1%} of a change lost{notes}>"
        )


def merged(report: dict[str, Any]) -> Merged:
    """What the native half says of a merge."""
    tensors = tuple(MergedTensor(*row) for row in report["tensors"])
    return Merged(os.fspath(report["path"]), report["size"], tensors, tuple(report["notes"]))
