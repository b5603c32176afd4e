"""Has a real Prometheus scrape a server, and asks it all that the dashboard asks.

    apt-get install prometheus
    python scripts/prometheus.py [--model MODEL] [--prometheus PATH]

No part of the tests, for Prometheus is no Python package. It prints a line for each query and fails where a
scrape failed or a query has no series.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

DOCS = Path(__file__).resolve().parents[1] / "docs" / "serving"
VARIABLES = {"$__rate_interval": "20s", "$job": "tallow", "$instance": ".*", "$model": ".*"}
CHAT = {"messages": [{"role": "user", "content": "Count to ten."}], "max_tokens": 24}
AGAIN = {"prompt": "1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6, 1, 2,", "max_tokens": 32, "temperature": 0}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def asked(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, data, {"content-type": "application/json"}), timeout=60) as answer:
        return json.load(answer)


@contextlib.contextmanager
def running(command: list[str], ready: str) -> Iterator[None]:
    """A process, from when ``ready`` answers."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                urlopen(ready, timeout=5).close()
                break
            if process.poll() is not None or time.monotonic() > until:
                sys.exit(f"{command[0]} does not answer")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(30)


def queries() -> Iterator[tuple[str, str]]:
    """Title and expression of all that the dashboard shows, its variables filled in."""
    for panel in json.loads((DOCS / "grafana.json").read_text())["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            yield f"{panel['title']} {target['legendFormat']}".strip(), expression


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prometheus", default=shutil.which("prometheus"))
    args = parser.parse_args()
    if args.prometheus is None:
        parser.error("no prometheus on the PATH; install it, or say where it is by --prometheus")
    here, there = free_port(), free_port()
    server, prometheus = f"http://127.0.0.1:{here}", f"http://127.0.0.1:{there}"
    command = [sys.executable, "-m", "tallow", "serve", args.model, "--port", str(here), "--log", "off"]
    with tempfile.TemporaryDirectory() as folder, running(command, f"{server}/ready"):
        settings = (DOCS / "prometheus.yml").read_text()
        Path(folder, "prometheus.yml").write_text(
            settings.replace("127.0.0.1:8000", f"127.0.0.1:{here}").replace("5s", "1s")
        )
        command = [args.prometheus, f"--config.file={folder}/prometheus.yml"]
        command += [f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{there}"]
        with running(command, f"{prometheus}/-/ready"):
            ask(server)
            missing = look(prometheus)
    sys.exit(f"no series: {', '.join(missing)}" if missing else 0)


def ask(server: str) -> None:
    for seed in range(6):
        asked(f"{server}/v1/chat/completions", {**CHAT, "seed": seed})
        asked(f"{server}/v1/completions", AGAIN)
        with contextlib.suppress(OSError):  # refused, to be counted as such
            asked(f"{server}/v1/chat/completions", {**CHAT, "max_tokens": -1})
        time.sleep(1)


def look(prometheus: str) -> list[str]:
    """The queries that found nothing."""
    (target,) = asked(f"{prometheus}/api/v1/targets")["data"]["activeTargets"]
    print(f"{target['scrapeUrl']}: {target['health']} {target['lastError']}")
    if target["health"] != "up":
        sys.exit("the scrape failed")
    missing = []
    for title, expression in queries():
        found = asked(f"{prometheus}/api/v1/query?{urlencode({'query': expression})}")["data"]["result"]
        print(f"{title}: {', '.join(one['value'][1] for one in found) or 'nothing'}")
        if not found:
            missing.append(title)
    return missing


if __name__ == "__main__":
    main()
