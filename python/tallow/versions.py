"""``show_versions``: what a bug report should say of the installation and the machine."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib import metadata
from typing import Any

from . import _core

#: What tallow meets: its dependencies, what it is a part of, and what shows it.
_PACKAGES = ("numpy", "tqdm", "dspy", "pydantic", "litellm", "ipykernel", "ipywidgets", "llm")
#: Only whether it is set, for its value is a secret.
_SECRET = ("HF_TOKEN",)
#: What changes where models come from and how they run.
_VARIABLES = (
    *("TALLOW_CACHE", "TALLOW_ISA", "TALLOW_PACKED_CACHE_GB", "TALLOW_TRACE"),
    *("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE"),
    *("DSPY_CACHEDIR", "HTTPS_PROXY"),
)


def show_versions(as_json: bool = False) -> None:
    """Prints what a bug report should have: versions, the processor and the kernels chosen for it, threads,
    caches, and the environment variables that tallow reads. No secret is shown: of a token only that it is
    set, and a proxy's without its password.

    ``as_json``: as one JSON object instead of a table."""
    found = collect()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for title, rows in found.items():
        print(title)
        for name, value in rows.items():
            print(f"  {name:24} {value}")


def collect() -> dict[str, dict[str, Any]]:
    """The same as a dict of dicts."""
    features = _core.features()
    return {
        "tallow": {
            "version": _core.__version__,
            "instructions": features["isa"],
            "instructions by request": ", ".join(f"TALLOW_ISA={name}" for name in features["isa_opt_in"])
            or "none",
            "threads": features["threads"],
            "accelerators": ", ".join(name for name in ("cuda", "metal") if features[name]) or "none",
            "hub": "yes" if features["hub"] else "no, built without",
            "module": _core.__file__,
        },
        "system": {
            "python": f"{platform.python_version()} ({platform.python_implementation()})",
            "executable": sys.executable,
            "free-threaded": "yes" if not getattr(sys, "_is_gil_enabled", lambda: True)() else "no",
            "platform": platform.platform(),
            "processor": _processor(),
            "logical cpus": os.cpu_count(),
            "memory": _memory(),
        },
        "caches": {
            "data wheels": os.path.join(_core.cache_folder(), "wheels"),
            "hub": str(_core.hub_cache_folder()),
        },
        "packages": {name: _version(name) for name in _PACKAGES},
        "environment": {
            **{name: _harmless(value) for name in _VARIABLES if (value := os.environ.get(name)) is not None},
            **{name: "set" for name in _SECRET if name in os.environ},
        },
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """platform.processor() is empty on most Linux systems."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() in ("model name", "Model"):
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> str:
    from ._log import size

    try:
        return size(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return "unknown"


def _harmless(value: str) -> str:
    """An address without the name and password that may stand in it."""
    scheme, mark, rest = value.partition("://")
    return f"{scheme}://...@{rest.rpartition('@')[2]}" if mark and "@" in rest else value
