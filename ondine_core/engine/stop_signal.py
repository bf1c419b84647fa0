"""Ends a run early: waits end immediately, and calls in flight, which are paid for, continue."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from ondine_core.errors import FatalError, OndineError


class StopSignal:
    """Ends a run early; `error` is the first error that ended it, `None` while it continues."""

    def __init__(self) -> None:
        self.error: OndineError | None = None
        self._waiting: set[asyncio.Task[object]] = set()
        self._interrupted: set[asyncio.Task[object]] = set()

    def stop(self, error: OndineError) -> None:
        """Let no further call leave, and end the waits of calls that have not left."""
        if self.error is None:
            self.error = error
            self._interrupted |= self._waiting
            for task in self._waiting:
                task.cancel()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Run the body, a wait, and end it with `FatalError` when the run is stopped."""
        if self.error is not None:
            raise FatalError(str(self.error))
        task = cast("asyncio.Task[object]", asyncio.current_task())
        self._waiting.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if task in self._interrupted and task.uncancel() == 0:
                raise FatalError(str(self.error)) from None
            raise
        finally:
            self._waiting.discard(task)
