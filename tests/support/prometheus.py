"""A real Prometheus and its push gateway on the loopback, if Debian's packages of them are installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.deployment import free_port, listens, until

PROGRAMS = (shutil.which("prometheus"), shutil.which("prometheus-pushgateway"))
_START_TIMEOUT_S = 60.0


@contextmanager
def push_gateway() -> Iterator[str]:
    """The address of a gateway without persistence, with its admin API for deleting."""
    port = free_port()
    with _server(PROGRAMS[1], port, "--web.enable-admin-api", "--persistence.file="):
        yield f"127.0.0.1:{port}"


def empty(gateway: str) -> None:
    """Delete all groups of a gateway by its admin API."""
    request = urllib.request.Request(f"http://{gateway}/api/v1/admin/wipe", method="PUT")
    with urllib.request.urlopen(request, timeout=30):  # noqa: S310  (our own server)
        pass


@contextmanager
def prometheus(folder: Path, gateway: str) -> Iterator[str]:
    """The URL of a server that scrapes the gateway twice a second."""
    job = {"job_name": "gateway", "honor_labels": True, "static_configs": [{"targets": [gateway]}]}
    config = {"global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"}, "scrape_configs": [job]}
    file = folder / "prometheus.yml"
    file.write_text(json.dumps(config), encoding="utf-8")  # YAML can be written as JSON
    port = free_port()
    with _server(PROGRAMS[0], port, f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"):
        yield f"http://127.0.0.1:{port}"


def query(server: str, expression: str) -> list[tuple[dict[str, str], float]]:
    """Labels and value of each series of an expression."""
    url = f"{server}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(url, timeout=30) as reply:  # noqa: S310  (our own server)
        answer: dict[str, Any] = json.load(reply)
    return [(series["metric"], float(series["value"][1])) for series in answer["data"]["result"]]


@contextmanager
def _server(program: str | None, port: int, *arguments: str) -> Iterator[None]:
    command = [str(program), f"--web.listen-address=127.0.0.1:{port}", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: listens(port), _START_TIMEOUT_S, f"server {program}")
            yield
        finally:
            process.terminate()
