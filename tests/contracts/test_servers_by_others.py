"""Real servers that others wrote, on the loopback: what our own provider promises, they must be understood to do."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from ondine_core import Failure, ModelSpec, Options, enrich_sync
from tests.support.tiny_mlx import write_tiny_model

pytestmark = pytest.mark.slow
_START_TIMEOUT_S = 120.0


@pytest.fixture(scope="module")
def mlx_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """`mlx_lm.server` with a tiny model of random weights: its address, and what the model is called."""
    pytest.importorskip("mlx_lm", reason="there are no wheels of MLX for this machine")
    folder = write_tiny_model(tmp_path_factory.mktemp("mlx") / "tiny")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(folder), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(f"http://127.0.0.1:{port}/v1/models", server)
        yield f"http://127.0.0.1:{port}/v1", str(Path(folder))
    finally:
        server.kill()
        server.wait()


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()  # noqa: S310
        except OSError:
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < until, "the server did not start"
            time.sleep(0.2)
        else:
            return


def test_mlx_server_cuts_replies_at_the_bound_and_says_so(mlx_server: tuple[str, str]) -> None:
    """A model that never ends is cut at the bound; no row takes the text, each call is counted with its tokens."""
    base_url, model = mlx_server
    report = enrich_sync(
        {"text": ["a", "b"]},
        prompt="Say: {text}",
        output="said",
        model=ModelSpec(f"openai_compatible/{model}", base_url=base_url, max_output_tokens=5),
        options=Options(store=":memory:"),
    )
    assert report.column("said") == [None, None]
    assert [outcome.reason for outcome in report.outcomes if isinstance(outcome, Failure)] == ["truncated"] * 2
    assert (report.spend.answered, report.spend.usage.output_tokens) == (2, 10)
