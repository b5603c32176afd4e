"""A Jupyter kernel of this very interpreter, with nothing of the user's own, for tests of what cells show."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conftest import needed

manager, kernelspec = needed("jupyter_client.manager"), needed("jupyter_client.kernelspec")
needed("ipykernel")

_PATIENCE = 300  # seconds for a message, on a machine with much else to do


class Kernel:
    def __init__(self, manager: Any, client: Any) -> None:
        self._manager, self._client = manager, client

    def cell(self, code: str, interrupt_after: float | None = None) -> list[dict[str, Any]]:
        """Runs a cell; what it shows, in order: the contents of the messages with their ``type``.
        ``interrupt_after``: seconds from its first output to the stop button; ``after`` is then how long
        after that a message came."""
        asked = self._client.execute(code)
        shown: list[dict[str, Any]] = []
        stopped = None
        while True:
            message = self._client.get_iopub_msg(timeout=_PATIENCE)
            if message["parent_header"].get("msg_id") != asked:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                return shown
            if kind in ("status", "execute_input"):
                continue
            shown.append({"type": kind, "after": stopped and time.monotonic() - stopped, **content})
            if interrupt_after is not None and stopped is None:
                time.sleep(interrupt_after)
                stopped = time.monotonic()
                self._manager.interrupt_kernel()


@contextlib.contextmanager
def kernel(folder: Path) -> Iterator[Kernel]:
    """``folder``: for its connection file and its history."""
    running = manager.KernelManager(
        kernel_name="python3",  # without other specs this is the interpreter that runs here
        kernel_spec_manager=kernelspec.KernelSpecManager(kernel_dirs=[]),
        transport="ipc",
        ip=str(folder / "kernel"),
        connection_file=str(folder / "kernel.json"),
    )
    running.start_kernel(env={**os.environ, "IPYTHONDIR": str(folder)})
    client = running.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=_PATIENCE)
        yield Kernel(running, client)
    finally:
        client.stop_channels()
        running.shutdown_kernel(now=True)
