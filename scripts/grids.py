#!/usr/bin/env python3
"""Make `src/weights/blocks/grids.bin`: the points that GGUF's IQ1, IQ2 and IQ3 formats choose from.

A grid is a set of points with eight coordinates (four in IQ3), each one of three levels (eight in IQ3). Which
points are in it was chosen by the authors of the formats from the weights of real models, so the sets are
facts that no formula gives; they come from the tables of the `gguf` package, by the values of its arrays. The
file holds a little-endian u16 a point, the coordinates as places among the levels, the first in the lowest
bits: two bits each, in IQ3 three bits.

Made with Python 3.11, gguf 0.19.0, numpy 2.4.6.
"""

import sys
from pathlib import Path

import numpy as np
from gguf import quants

ROOT = Path(__file__).resolve().parents[1]
# In the order of the file.
GRIDS = ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S", "IQ3_XXS", "IQ3_S"]


def points(name):
    """The points of a format's grid as u16."""
    kind = getattr(quants, name)
    kind.init_grid()
    values = kind.grid.reshape(kind.grid_shape).astype(int)
    places = np.searchsorted(np.array(kind.grid_map), values)
    assert (np.array(kind.grid_map)[places] == values).all(), name
    bits = 16 // values.shape[1] if values.shape[1] == 8 else 3
    return (places << (bits * np.arange(values.shape[1]))).sum(axis=1).astype("<u2")


def main():
    data = b"".join(points(name).tobytes() for name in GRIDS)
    (ROOT / "src/weights/blocks/grids.bin").write_bytes(data)
    print(f"{len(data)} bytes")


if __name__ == "__main__":
    sys.exit(main())
