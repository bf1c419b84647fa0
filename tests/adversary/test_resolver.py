"""A DNS server that never answers delays neither an interrupt nor the exit of a process."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

_HANGS_S = 3600
_BOUND_S = 30
_CHILD = f"""
import signal, sys, time
from functools import partial
from ondine_core import Options, enrich_sync
from ondine_core.providers.http import HttpModel
from ondine_core.providers.http_client import Endpoint
from ondine_core.providers.openai_http import chat_body, chat_reply

def end(number, frame):
    sys.exit(128 + number)

def hang(*_, **__):
    print("asked", flush=True)
    time.sleep({_HANGS_S})

if sys.argv[1] == "handled":
    signal.signal(signal.SIGTERM, end)
endpoint = Endpoint("http://no-answer.invalid/v1/chat/completions", {_HANGS_S}, resolve=hang)
model = HttpModel(endpoint, partial(chat_body, {{}}), chat_reply)
rows = {{"text": ["a", "b", "c"]}}
enrich_sync(rows, prompt="Say: {{text}}", output="said", model=model, options=Options(store=sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("number", "handler", "code"),
    [
        pytest.param(signal.SIGINT, "default", -signal.SIGINT, id="keyboard-interrupt"),
        pytest.param(signal.SIGTERM, "default", -signal.SIGTERM, id="terminated"),
        pytest.param(signal.SIGTERM, "handled", 128 + signal.SIGTERM, id="terminated-with-a-handler"),
    ],
)
def test_signal_ends_a_process_whose_resolver_hangs(
    number: signal.Signals, handler: str, code: int, tmp_path: Path
) -> None:
    """The process ends on the signal, long before the look-up does."""
    command = [sys.executable, "-c", _CHILD, handler, str(tmp_path / "answers.db")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "asked\n"
            child.send_signal(number)
            assert child.wait(_BOUND_S) == code
        finally:
            child.kill()
