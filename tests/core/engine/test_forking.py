"""Processes that are forked while the threads of a run are at work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")

PROGRAM = """
import os, signal, sys, threading
from ondine_core import Options, ScriptedModel, enrich_sync

def ask(texts, clean=()):
    model = ScriptedModel({"": "x"})
    options = Options(store=sys.argv[1])
    report = enrich_sync({"text": texts}, prompt="{text}", output="said", model=model, options=options, clean=clean)
    assert report.column("said") == ["x"] * len(texts)

def end_of_child(act):
    process = os.fork()
    if not process:
        signal.alarm(30)  # ends a child that hangs
        act()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
"""
IN_A_FUNCTION = """
ends = set()

def clean(text):
    ends.add((end_of_child(lambda: ask(["in the child"])), end_of_child(lambda: sys.exit(3)), end_of_child(int)))
    return text

ask([f"row {number}" for number in range(10)], [clean])
print(ends)
"""
IN_ANOTHER_THREAD = """
run = threading.Thread(target=ask, args=[[f"row {number}" for number in range(3000)]])
run.start()
ends = set()
while run.is_alive():
    ends.add(end_of_child(lambda: ask([f"in the child {os.getpid()}"])))
print(ends)
"""
IN_NESTED_LOCKS = """
from ondine_core.types.forking import make_lock
locks = [make_lock() for _ in range(6)]
ended = threading.Event()

def use(newer, older):
    while not ended.is_set():
        with newer, older:
            pass

for newer, older in zip(locks[1:], locks):
    threading.Thread(target=use, args=(newer, older)).start()
ends = {end_of_child(int) for _ in range(20)}
ended.set()
print(ends)
"""
WHILE_LOCKS_ARE_MADE = """
from ondine_core.types.forking import make_lock
sys.setswitchinterval(1e-5)
older = [make_lock() for _ in range(300)]
ended = threading.Event()

def make():
    while not ended.is_set():
        [make_lock() for _ in range(50)]

for _ in range(3):
    threading.Thread(target=make).start()
ends = {end_of_child(int) for _ in range(60)}
ended.set()
print(ends)
"""


@pytest.mark.parametrize(
    ("program", "ends"),
    [
        (IN_A_FUNCTION, "{(0, 3, 0)}"),
        (IN_ANOTHER_THREAD, "{0}"),
        (IN_NESTED_LOCKS, "{0}"),
        (WHILE_LOCKS_ARE_MADE, "{0}"),
    ],
    ids=["function", "thread", "nested", "new"],
)
def test_process_may_be_forked_during_a_run(program: str, ends: str, tmp_path: Path) -> None:
    """Neither process hangs; the new one may use the same store, and leaves event loop and locks of the first alone."""
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM + program, str(tmp_path / "answers.db")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.stdout.strip(), ended.stderr) == (ends, "")
