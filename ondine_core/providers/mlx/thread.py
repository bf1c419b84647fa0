"""The one thread of a process that MLX runs on, and the models it has loaded.

MLX takes calls from one thread only. Everything that touches it is done here, in turns: what has arrived is taken in,
then each model writes one more token of every text it is at. So a call joins the others whenever it arrives and leaves
them when it is done; no call waits for a batch to fill or to end.

A model stays loaded for later calls, until another one is needed and no run has it open: two may not fit.
"""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TypeVar

from ondine_core.providers.mlx.writer import Weights, Writer

__all__ = ["close_writer", "on_mlx_thread", "open_writer"]

T = TypeVar("T")

_inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
_thread: threading.Thread | None = None
_starting = threading.Lock()  # guards _thread: two event loops may be first at the same time
_users: dict[Writer, int] = {}
"""The models that are loaded, and how many have them open. Only the thread looks at it."""

_LAST_WORDS_S = 10.0


def on_mlx_thread(task: Callable[[], T]) -> Future[T]:
    """Do `task` on the thread, after what was asked before."""
    done: Future[T] = Future()

    def run() -> None:
        if not done.set_running_or_notify_cancel():
            return
        try:
            done.set_result(task())
        except Exception as error:  # noqa: BLE001  (the waiting call raises it; the thread goes on)
            done.set_exception(error)
        except BaseException as error:  # noqa: BLE001  (what Rust calls a panic)
            done.set_exception(RuntimeError(repr(error)))

    _start()
    _inbox.put(run)
    return done


def open_writer(weights: Weights) -> Writer:
    """The loaded model for `weights`; on the thread."""
    writer = next((writer for writer in _users if writer.weights == weights), None)
    if writer is None:
        for idle in [writer for writer, users in _users.items() if not users]:
            del _users[idle]
            idle.unload()
        writer = Writer(weights)
    _users[writer] = _users.get(writer, 0) + 1
    return writer


def close_writer(writer: Writer) -> None:
    """Give back what `open_writer` gave; on the thread."""
    _users[writer] -= 1
    if not _users[writer]:
        writer.forget()


def _start() -> None:
    global _thread  # noqa: PLW0603  (MLX has one thread a process, so this is a process's)
    with _starting:
        # After a fork there is a thread that does not live.
        if _thread is None or not _thread.is_alive():
            _thread = threading.Thread(target=_run, name="ondine-mlx", daemon=True)
            _thread.start()


def _run() -> None:
    while True:
        try:
            task = _inbox.get(block=not any(writer.is_busy for writer in _users))
        except Empty:
            for writer in _users:
                writer.step()
            continue
        if task is None:
            _leave()
            return
        task()


def _leave() -> None:
    """MLX wants its streams given up by the thread that used them, or the process may abort as it ends."""
    for writer in _users:
        writer.unload()
    _users.clear()
    if "mlx.core" in sys.modules:
        sys.modules["mlx.core"].clear_streams()


@atexit.register
def _stop() -> None:
    if _thread is not None and _thread.is_alive():
        _inbox.put(None)
        _thread.join(_LAST_WORDS_S)
