"""A server of ours in this process, on a port of its own, for tests with real clients."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from tallow.serve import runner


@contextlib.contextmanager
def running(application: Any) -> Iterator[str]:
    """The address of a server that runs ``application``."""
    bound, listens = runner.listening("127.0.0.1", 0), threading.Event()
    made = runner.Runner(application, grace=5.0, started=listens.set)
    thread = threading.Thread(target=made.run, args=([bound],))
    thread.start()
    try:
        assert listens.wait(60), "the server did not start"
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        made.handle_exit(signal.SIGTERM, None)
        made.handle_exit(signal.SIGTERM, None)  # a second one ends at once
        thread.join(30)
        bound.close()
