"""Reports a running step in the log and as observations, at intervals, from the main thread.

The event log takes a few hundred events a second, so rows are never reported one by one. Observations stay on the
asset's page, so they become rarer the longer a run takes.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

import dagster as dg

from ondine_core.types.progress import Progress
from ondine_dagster.reporting.metadata import partition_keys, progress_line, progress_metadata

_SHARE_OF_ELAPSED = 0.1
"""The interval between observations grows to this share of the time that the run has taken."""
_MAX_WAIT_S = 600.0
"""The longest interval between observations."""
_CANCELLED = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)


class Watch:
    """Reports a running step from its main thread: a log line every `every_s` seconds, and observations."""

    def __init__(self, context: dg.AssetExecutionContext, now: Callable[[], float] = monotonic) -> None:
        self._context, self._now = context, now
        self._checked_at = now()
        self._line_due = self._observation_due = math.inf
        self.every_s = 10.0
        self._messages: deque[tuple[int, str]] = deque()
        self.latest: Progress | None = None

    def keep(self, progress: Progress) -> None:
        """Keep the progress for the next tick; called on the event loop's thread."""
        self.latest = progress

    def log(self, level: int, message: str) -> None:
        """Keep a message for the next tick; called on any thread."""
        self._messages.append((level, message))

    def warn(self, message: str) -> None:
        """Keep a warning for the next tick; called on any thread."""
        self.log(logging.WARNING, message)

    def inform(self, message: str) -> None:
        """Keep a notice for the next tick; called on any thread."""
        self.log(logging.INFO, message)

    def wait(self, seconds: float) -> None:
        """Warn that another process has the lease; called on the event loop's thread."""
        self.warn(
            "Another process is running on this asset and partition; this step waits for it and will use its answers. "
            f"If that process is dead, its work is taken over in {seconds:.0f} s."
        )

    def tick(self) -> None:
        """Report what is due; called in the main thread, several times a second.

        Raises:
            DagsterExecutionInterruptedError: The run was cancelled, and no signal has reached this process.
        """
        self.flush()
        self._check_cancellation()
        now = self._now()
        if self.latest is None or self._line_due == math.inf:
            # A step that takes less time than this has no progress to report, only its end.
            self._line_due = self._observation_due = now + self.every_s
            return
        if now >= self._line_due:
            self._line_due = now + self.every_s
            self._context.log.info(progress_line(self.latest))
        if now >= self._observation_due:
            interval_s = min(_SHARE_OF_ELAPSED * self.latest.elapsed_s, _MAX_WAIT_S)
            self._observation_due = now + max(self.every_s, interval_s)
            self.observe()

    def _check_cancellation(self) -> None:
        """Raise an interrupt if the run was cancelled, since not all executors send a signal to their steps."""
        if self._now() - self._checked_at < self.every_s:
            return
        self._checked_at = self._now()
        instance, run_id = self._context.instance, self._context.run.run_id
        run = instance.get_run_by_id(run_id)
        if run is None:
            return
        cancelled = run.status in _CANCELLED
        if run.status == dg.DagsterRunStatus.FAILURE:
            # A run that exceeds `dagster/max_runtime` is cancelled and marked as failed within a moment. A run that
            # failed because its worker was killed was not cancelled, and its step goes on.
            cancelled = bool(instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.RUN_CANCELING).records)
        if cancelled:
            raise dg.DagsterExecutionInterruptedError(f"The run {run_id} was cancelled.")

    def flush(self) -> None:
        """Log the kept messages."""
        while self._messages:
            self._context.log.log(*self._messages.popleft())

    def observe(self) -> None:
        """Log the latest figures as an observation, without which the asset's page shows none of a failed step."""
        self.flush()
        if self.latest is not None:
            log_observation(self._context, progress_metadata(self.latest))


def log_observation(context: dg.AssetExecutionContext, metadata: Mapping[str, Any]) -> None:
    """Log an observation of the asset and partition of the step."""
    keys = partition_keys(context)
    partition = keys[0] if len(keys) == 1 else None
    context.log_event(dg.AssetObservation(context.asset_key_for_output(), partition=partition, metadata=metadata))
