"""The one thread of a process that MLX runs on, and the models it has loaded.

MLX takes calls from one thread only. That thread runs an event loop, so a call is accepted between two steps of
generation: none waits for a batch to fill or to end.

A model stays loaded for later calls, until another one is needed and no run has it open: two may not fit.
"""

from __future__ import annotations

import asyncio
import atexit
import sys
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from ondine_core.providers.mlx.writer import Weights, Writer

T = TypeVar("T")

_loop: asyncio.AbstractEventLoop
_thread: threading.Thread | None = None
_starting = threading.Lock()  # guards _thread: two event loops may be first at the same time
_users: dict[Writer, int] = {}
"""The models that are loaded, and how many have them open. Only the thread looks at it."""

_EXIT_TIMEOUT_S = 10.0


def on_mlx_thread(task: Coroutine[Any, Any, T]) -> Future[T]:
    """Run `task` on the thread; cancelling the future cancels it."""
    global _loop, _thread  # noqa: PLW0603  (MLX has one thread a process, so this is a process's)
    with _starting:
        # After a fork there is a thread that does not live.
        if _thread is None or not _thread.is_alive():
            runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
            _loop = runner.get_loop()
            _thread = threading.Thread(target=_run, args=(runner,), name="ondine-mlx", daemon=True)
            _thread.start()
    return asyncio.run_coroutine_threadsafe(task, _loop)


async def open_writer(weights: Weights) -> Writer:
    """The loaded model for `weights`; on the thread."""
    writer = next((writer for writer in _users if writer.weights == weights), None)
    if writer is None:
        for idle in [writer for writer, users in _users.items() if not users]:
            del _users[idle]
            idle.unload()
        writer = Writer(weights)
    _users[writer] = _users.get(writer, 0) + 1
    return writer


async def close_writer(writer: Writer) -> None:
    """Give back what `open_writer` gave; on the thread."""
    _users[writer] -= 1
    if not _users[writer]:
        writer.forget()


def _run(runner: asyncio.Runner) -> None:
    with runner:
        runner.get_loop().run_forever()
    # MLX streams must be released by the thread that used them, or the process may abort at its exit.
    for writer in _users:
        writer.unload()
    _users.clear()
    if "mlx.core" in sys.modules:
        sys.modules["mlx.core"].clear_streams()


@atexit.register
def _stop() -> None:
    if _thread is not None and _thread.is_alive():
        _loop.call_soon_threadsafe(_loop.stop)
        _thread.join(_EXIT_TIMEOUT_S)
