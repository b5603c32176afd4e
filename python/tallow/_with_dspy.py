"""What is done when DSPy is imported, before or after tallow: it is told how to reach a server of ours.

DSPy is not imported for it, nor is anything else: ``import tallow`` is to stay quick.
"""

from __future__ import annotations

import sys
from typing import Any

from . import _log

_PROVIDERS = "dspy.lm15"


def when_imported() -> None:
    if _PROVIDERS in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _Waiting())


class _Waiting:
    """Sees DSPy's module of providers being imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != _PROVIDERS:
            return None
        import importlib.util

        if self in sys.meta_path:
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)  # as the others find it
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def then_register(module: Any) -> None:
                run(module)
                _register()

            spec.loader.exec_module = then_register  # type: ignore[method-assign]
        return spec


def _register() -> None:
    from .serve import for_dspy

    try:
        for_dspy.register(replace=False)
    except Exception as error:  # whatever a later DSPy does: who only wants DSPy must get it
        _log.warning('dspy.LM("tallow/...") will not find a server: %s', error)
