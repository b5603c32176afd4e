"""Brings a float GGUF to Q4_K_M by llama.cpp, whose mixture of types people download.

target/peers/llama.cpp/bin/python benches/peers/quantize.py FROM.gguf TO.gguf
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from pathlib import Path

import llama_cpp as lib


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="FROM.gguf")
    parser.add_argument("target", type=Path, metavar="TO.gguf")
    args = parser.parse_args()
    options = lib.llama_model_quantize_default_params()
    options.ftype, options.nthread = lib.LLAMA_FTYPE_MOSTLY_Q4_K_M, os.cpu_count() or 1
    lib.llama_backend_init()
    # Under another name until it is whole.
    part = args.target.with_suffix(".part")
    if lib.llama_model_quantize(str(args.source).encode(), str(part).encode(), ctypes.byref(options)):
        sys.exit(f"llama.cpp did not quantize {args.source}")
    part.rename(args.target)


if __name__ == "__main__":
    main()
