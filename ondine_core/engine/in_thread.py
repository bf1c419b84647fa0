"""Runs a coroutine from ordinary code, in a thread with its own event loop, which an interrupt of the caller stops."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any, NoReturn, TypeVar

from ondine_core.types.forking import make_event_loop

T = TypeVar("T")

_TICK_S = 0.25
_CLEAN_UP_S = 5.0
"""Maximum time for the cleanup: closing connections and a last commit take milliseconds, on a busy machine seconds."""


def run_in_thread(main: Callable[[], Coroutine[Any, Any, T]], tick: Callable[[], None] = lambda: None) -> T:
    """Run a coroutine on an event loop in another thread, and return its result.

    An exception that is raised in the waiting thread (KeyboardInterrupt, or one of an orchestrator) cancels the
    coroutine, and is raised again after its cleanup. `tick` is called in the waiting thread about four times a second.
    """
    result: Future[T] = Future()
    started = threading.Event()
    cancel: list[Callable[[], object]] = []

    async def cancellable() -> T:
        task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(partial(_handle_exception, os.getpid()))
        cancel.append(lambda: loop.call_soon_threadsafe(task.cancel) if task else None)
        started.set()
        return await main()

    def thread() -> None:
        try:
            with asyncio.Runner(loop_factory=make_event_loop) as runner:
                result.set_result(_run_or_end_fork(runner, cancellable()))
        except BaseException as error:  # noqa: BLE001  (it is raised in the waiting thread)
            result.set_exception(error)

    # In the caller's context, so that spans of the run are children of the active span.
    worker = threading.Thread(target=copy_context().run, args=(thread,), name="ondine", daemon=True)
    worker.start()
    try:
        while True:
            try:
                return result.result(timeout=_TICK_S)
            except TimeoutError:
                if result.done():
                    return result.result()
                tick()
    except BaseException:
        if not result.done():
            started.wait()
            with suppress(RuntimeError):  # the loop may just have been closed
                cancel[0]()
        raise
    finally:
        # Also after the result: a process that forks next must not copy a thread that is still closing its loop.
        worker.join(_CLEAN_UP_S)


def _run_or_end_fork(runner: asyncio.Runner, main: Coroutine[Any, Any, T]) -> T:
    """Return the result of `main`; end the process if it was forked by a user function that has returned or raised."""
    process = os.getpid()
    try:
        return runner.run(main)
    except BaseException as error:
        if os.getpid() != process:
            _end_fork(error)
        raise


def _handle_exception(process: int, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """End a process that a user function forked; leave the exceptions of this process to the loop.

    Python 3.14 forgets the running loop in a fork, and reports that instead of what the function raised.
    """
    if os.getpid() != process:
        error = context.get("exception")
        _end_fork(error.__context__ if error else None)
    loop.default_exception_handler(context)


def _end_fork(error: BaseException | None) -> NoReturn:
    """Exit as an interpreter does that `error` ends."""
    code = error.code if isinstance(error, SystemExit) else 1
    os._exit(code if isinstance(code, int) else int(code is not None))
