"""The one thread of a process on which MLX runs, and the models that are loaded there.

MLX takes calls from one thread only. That thread runs an event loop, so calls are accepted between two steps of
generation, and no call waits for a batch to fill or to end.

A model stays loaded for later calls until another one is needed and no run has it open: two may not fit into memory.
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
"""The loaded models, with the number of objects that have each open. Only the MLX thread uses it."""

_EXIT_TIMEOUT_S = 10.0


def on_mlx_thread(task: Coroutine[Any, Any, T]) -> Future[T]:
    """Run `task` on the MLX thread; cancelling the future cancels the task."""
    global _loop, _thread  # noqa: PLW0603  (MLX has one thread a process, so this is a process's)
    with _starting:
        # In a forked child the thread object exists, but the thread does not run.
        if _thread is None or not _thread.is_alive():
            runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
            _loop = runner.get_loop()
            _thread = threading.Thread(target=_run, args=(runner,), name="ondine-mlx", daemon=True)
            _thread.start()
    return asyncio.run_coroutine_threadsafe(task, _loop)


async def open_writer(weights: Weights) -> Writer:
    """Load the model for `weights` unless it is loaded, and open it; on the MLX thread."""
    writer = next((writer for writer in _users if writer.weights == weights), None)
    if writer is None:
        for idle in [writer for writer, users in _users.items() if not users]:
            del _users[idle]
            idle.unload()
        writer = Writer(weights)
    _users[writer] = _users.get(writer, 0) + 1
    return writer


async def close_writer(writer: Writer) -> None:
    """Close a model that `open_writer` returned; on the MLX thread."""
    _users[writer] -= 1
    if not _users[writer]:
        writer.drop_caches()


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
