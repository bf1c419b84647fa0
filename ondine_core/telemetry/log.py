"""Writes log lines with structlog: beginning, progress and end of a run, each new kind of failure, on request calls.

A line has the ids of its run, asset, partition, batch and call, and no text of prompts or replies. A million rows make
a dozen lines: progress is logged every ten seconds, and each reason for failed rows once.
"""

from __future__ import annotations

import datetime as dt
import logging
import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, get_args

from ondine_core.errors import ConfigError
from ondine_core.telemetry import events
from ondine_core.telemetry.events import Event, Observer, Run, RunEnded, figures_of

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor

Level = Literal["debug", "info", "warning"]
Form = Literal["json", "console"]
_EVERY_S = 10.0
_QUIET = frozenset({events.RunStarted, events.Progressed, RunEnded, events.RowsFailed})
_NAMES: dict[type, str] = {
    events.BatchEnded: "batch ended",
    events.Retried: "call is made again",
    events.Held: "cost held",
    events.Booked: "rate booked",
}


class LineLogger(Protocol):
    """A receiver of finished lines, such as a `logging.Logger`."""

    def log(self, level: int, message: str, /) -> object:
        """Take a line."""


def open_log(
    *, level: Level = "info", form: Form | None = None, every_s: float = _EVERY_S, logger: LineLogger | None = None
) -> Observer:
    """Open an observer that logs.

    Args:
        level: `"debug"` has a line for every call, batch, hold and booking; `"warning"` only for failures.
        form: `"json"` or `"console"`; by default the program's configuration of structlog, without one console lines
            in a terminal and JSON elsewhere.
        every_s: Seconds between two lines about the progress of a run.
        logger: Takes the lines, by default standard error.
    """
    valid_values = {"level": (level, get_args(Level)), "form": (form, (None, *get_args(Form)))}
    for name, (value, valid) in valid_values.items():
        if value not in valid:
            names = ", ".join(repr(choice) for choice in valid if choice is not None)
            raise ConfigError(f"observers: {name}={value!r} of 'logging'; valid are {names}.")
    return _Log(_make_logger(level, form, logger), level, every_s)


class _Log:
    """Writes a line for an event; an observer."""

    def __init__(self, log: FilteringBoundLogger, level: Level, every_s: float) -> None:
        self._log, self._every_s = log, every_s
        self.wants = None if level == "debug" else _QUIET
        self.calls_per_second = None if level == "debug" else 0.0
        self._logged_at: dict[Run, float] = {}
        self._reasons: set[tuple[Run, str]] = set()

    def __call__(self, event: Event) -> None:
        match event:
            case events.RunStarted():
                self._logged_at[event.run] = event.at
                self._write("info", event, event.run, "run started", model=event.run.model, rows=event.run.rows)
            case events.Progressed():
                if event.at - self._logged_at.get(event.run, event.at) >= self._every_s:
                    self._logged_at[event.run] = event.at
                    self._write("info", event, event.run, "run in progress", **_progress(event))
            case RunEnded():
                self._run_ended(event)
            case events.RowsFailed():
                # Only the first failure for a reason is a warning; the figures at the end have the others.
                reason = (event.run, event.reason)
                level: Level = "debug" if reason in self._reasons else "warning"
                self._reasons.add(reason)
                self._write(level, event, event.run, "rows failed", **figures_of(event))
            case events.CallEnded():
                self._write("debug", event, event.batch.run, "call ended", **_call(event))
            case events.BatchEnded() | events.Retried() | events.Held() | events.Booked():
                self._write("debug", event, event.batch.run, _NAMES[type(event)], **figures_of(event))

    def _run_ended(self, event: RunEnded) -> None:
        if event.error_type is None:
            self._write("info", event, event.run, "run ended", **_progress(event))
        else:
            error = {"error_type": event.error_type, "error": event.error}
            self._write("warning", event, event.run, "run ended early", **error, **_progress(event))
        self._logged_at.pop(event.run, None)
        self._reasons = {(run, reason) for run, reason in self._reasons if run is not event.run}

    def _write(self, level: Level, event: Event, run: Run, message: str, **figures: Any) -> None:
        batch = getattr(event, "batch", None)
        line = {
            "timestamp": dt.datetime.fromtimestamp(event.at, dt.UTC).isoformat(timespec="milliseconds"),
            "run": run.origin.run or None,
            "asset": run.origin.asset or None,
            "partition": run.origin.partition or None,
            "batch": batch and batch.number,
            **figures,
        }
        write = getattr(self._log, level)
        write(message, **{key: _plain(value) for key, value in line.items() if value is not None})


def _progress(event: events.Progressed | RunEnded) -> dict[str, Any]:
    progress = event.progress
    if progress is None:
        return {}
    return {
        "rows_done": progress.rows_done,
        "rows_failed": progress.rows_failed,
        "rows_reused": progress.rows_reused,
        "rows_skipped": progress.rows_skipped,
        "rows_per_s": round(progress.rows_per_s, 1),
        "calls": progress.spend.calls,
        "input_tokens": progress.spend.usage.input_tokens,
        "output_tokens": progress.spend.usage.output_tokens,
        "usd": progress.spend.usd,
    }


def _call(event: events.CallEnded) -> dict[str, Any]:
    return {
        "call": event.sent.call.hex(),
        "stage": event.sent.stage,
        "model": event.batch.endpoint.model,
        "prompts": event.batch.prompts,
        "duration_s": event.duration_s,
        "finish_reason": event.finish_reason,
        "request_id": event.request_id,
        "usd": event.usd,
        "error_type": event.error_type,
        "error": event.error,
        "input_tokens": event.usage and event.usage.input_tokens,
        "output_tokens": event.usage and event.usage.output_tokens,
    }


def _plain(value: Any) -> Any:
    """A value for a line: decimals as exact text, floats with four decimals."""
    if isinstance(value, float):
        return round(value, 4)
    return str(value) if isinstance(value, Decimal) else value


def _make_logger(level: Level, form: Form | None, logger: LineLogger | None) -> FilteringBoundLogger:
    import structlog

    if form is None and logger is None and structlog.is_configured():
        configured: FilteringBoundLogger = structlog.get_logger("ondine")
        return configured
    is_terminal = form is None and logger is None and sys.stderr.isatty()
    if form == "json" or (form is None and logger is None and not is_terminal):
        render: Processor = structlog.processors.JSONRenderer()
    else:
        render = structlog.dev.ConsoleRenderer(colors=is_terminal, pad_event_to=0)
    processors: list[Processor] = [structlog.processors.add_log_level, render]
    if logger is not None:
        processors = [_without_time, render, _pass_on]
    wrapped: FilteringBoundLogger = structlog.wrap_logger(
        logger or structlog.WriteLogger(sys.stderr),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        context_class=dict,
    )
    return wrapped


def _without_time(_logger: object, _method: str, line: EventDict) -> EventDict:
    """Remove the time of a line for a logger, which adds its own."""
    line.pop("timestamp", None)
    return line


def _pass_on(logger: LineLogger, method: str, line: Any) -> NoReturn:
    from structlog import DropEvent

    logger.log(getattr(logging, method.upper()), line)
    raise DropEvent  # structlog must not write it as well
