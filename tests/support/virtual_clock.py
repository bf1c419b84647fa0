"""An event loop whose time advances to the next timer: a day of waiting takes milliseconds, a deadlock is an error."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ondine_core.types.clock import Clock

T = TypeVar("T")


class DeadlockError(AssertionError):
    """All tasks wait and no timer is set."""


class _Selector(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            raise DeadlockError("All tasks wait and no timer is set.")
        self.now += max(0.0, timeout)
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now

    def run_in_executor(self, executor: object, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Run the function synchronously, because a thread's result would not wake the virtual loop."""
        del executor
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001
            future.set_exception(error)
        return future


def run_virtually(main: Callable[[Clock], Coroutine[Any, Any, T]], seed: int = 0) -> T:
    """Run a coroutine on virtual time; it gets the loop's clock with a seeded random generator."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        time = runner.get_loop().time
        clock = Clock(now=time, sleep=asyncio.sleep, rng=random.Random(seed), elapsed=time, boot=time)
        return runner.run(main(clock))
