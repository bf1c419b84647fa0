"""Log lines through structlog: a run's beginning, pace and end, and each new kind of trouble; calls only when asked.

A line carries the ids of the run, asset, partition, batch and call that it is about, and nothing that was said. A
million rows make a dozen lines: how far a run is, is told every ten seconds, and a reason for failed rows once.
"""

from __future__ import annotations

import datetime as dt
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from ondine_core.errors import ConfigError
from ondine_core.telemetry.events import (
    BatchEnded,
    Booked,
    CallEnded,
    Event,
    Held,
    Observer,
    Progressed,
    Retried,
    RowsFailed,
    Run,
    RunEnded,
    RunStarted,
)

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor

__all__ = ["LineLogger", "open_log"]

Level = Literal["debug", "info", "warning"]
Form = Literal["json", "console"]
_EVERY_S = 10.0
_QUIET = frozenset({RunStarted, Progressed, RunEnded, RowsFailed})


class LineLogger(Protocol):
    """What takes finished lines, such as a `logging.Logger`."""

    def log(self, level: int, message: str, /) -> object:
        """Take a line."""


def open_log(
    *, level: Level = "info", form: Form | None = None, every_s: float = _EVERY_S, logger: LineLogger | None = None
) -> Observer:
    """An observer that logs.

    Args:
        level: `"debug"` has a line for every call, batch, hold and booking; `"warning"` only for what went wrong.
        form: `"json"` or `"console"`; by default what the program has configured structlog to, or else console lines
            if somebody looks at a terminal, and JSON if not.
        every_s: Seconds between two lines about how far a run is.
        logger: Takes the lines, by default standard error.

    Raises:
        ConfigError: An option is not one of these.
    """
    if level not in get_args(Level):
        raise ConfigError(
            f"observers: level={level!r} of 'logging'; valid are {', '.join(map(repr, get_args(Level)))}."
        )
    if form not in (None, *get_args(Form)):
        raise ConfigError(f"observers: form={form!r} of 'logging'; valid are {', '.join(map(repr, get_args(Form)))}.")
    return _Log(_make_logger(level, form, logger), level, every_s)


class _Log:
    """Says what happens; an observer."""

    def __init__(self, log: FilteringBoundLogger, level: Level, every_s: float) -> None:
        self._log, self._every_s = log, every_s
        self.wants = None if level == "debug" else _QUIET
        self._told_at: dict[Run, float] = {}
        self._reasons: set[tuple[Run, str]] = set()

    def __call__(self, event: Event) -> None:
        """Take account of an event."""
        match event:
            case RunStarted():
                self._told_at[event.run] = event.at
                self._of(event.run, event.at).info("run started", model=event.run.model, rows=event.run.rows)
            case Progressed():
                if event.at - self._told_at.get(event.run, event.at) >= self._every_s:
                    self._told_at[event.run] = event.at
                    self._of(event.run, event.at).info("run goes on", **_progress(event))
            case RunEnded():
                self._end(event)
            case RowsFailed():
                self._rows_failed(event)
            case BatchEnded() | CallEnded() | Retried() | Held() | Booked():
                self._of(event.batch.run, event.at).bind(batch=event.batch.number).debug(
                    _NAMES[type(event)], **_detail(event)
                )

    def _of(self, run: Run, at: float) -> FilteringBoundLogger:
        when = dt.datetime.fromtimestamp(at, dt.UTC).isoformat(timespec="milliseconds")
        named = {"timestamp": when, "run": run.origin.run, "asset": run.origin.asset, "partition": run.origin.partition}
        bound: FilteringBoundLogger = self._log.bind(**{key: value for key, value in named.items() if value})
        return bound

    def _end(self, event: RunEnded) -> None:
        log = self._of(event.run, event.at)
        if event.error_type is None:
            log.info("run ended", **_progress(event))
        else:
            said = {} if event.error is None else {"error": event.error}
            log.warning("run ended early", error_type=event.error_type, **said, **_progress(event))
        self._told_at.pop(event.run, None)
        self._reasons = {known for known in self._reasons if known[0] is not event.run}

    def _rows_failed(self, event: RowsFailed) -> None:
        """The first failure for a reason is news, the rest is in the figures at the end."""
        known = (event.run, event.reason)
        log = self._of(event.run, event.at)
        if event.batch is not None:
            log = log.bind(batch=event.batch.number)
        say = log.debug if known in self._reasons else log.warning
        self._reasons.add(known)
        say("rows failed", reason=event.reason, detail=event.detail, rows=event.rows)


_NAMES: dict[type, str] = {
    BatchEnded: "batch ended",
    CallEnded: "call ended",
    Retried: "call is made again",
    Held: "cost held",
    Booked: "rate booked",
}


def _progress(event: Progressed | RunEnded) -> dict[str, Any]:
    progress = event.progress
    if progress is None:
        return {}
    spend = progress.spend
    figures = {
        "rows_done": progress.rows_done,
        "rows_failed": progress.rows_failed,
        "rows_reused": progress.rows_reused,
        "rows_skipped": progress.rows_skipped,
        "rows_per_s": round(progress.rows_per_s, 1),
        "calls": spend.calls,
        "input_tokens": spend.usage.input_tokens,
        "output_tokens": spend.usage.output_tokens,
    }
    return figures if spend.usd is None else {**figures, "usd": str(spend.usd)}


def _detail(event: BatchEnded | CallEnded | Retried | Held | Booked) -> dict[str, Any]:
    match event:
        case CallEnded():
            said: dict[str, Any] = {
                "call": event.sent.call.hex(),
                "stage": event.sent.stage,
                "model": event.batch.endpoint.model,
                "prompts": event.batch.prompts,
                "duration_s": round(event.duration_s, 4),
                "finish_reason": event.finish_reason,
                "request_id": event.request_id,
                "usd": None if event.usd is None else str(event.usd),
                "error_type": event.error_type,
                "error": event.error,
            }
            if event.usage is not None:
                said |= {"input_tokens": event.usage.input_tokens, "output_tokens": event.usage.output_tokens}
        case BatchEnded():
            said = {"answered": event.answered, "failed": event.failed, "owed": event.owed}
            said["error_type"] = event.error_type
        case Retried():
            said = {"attempt": event.attempt}
        case Held():
            said = {"usd": str(event.usd), "waited_s": round(event.waited_s, 4)}
        case Booked():
            said = {"tokens": event.tokens, "waited_s": round(event.waited_s, 4)}
    return {key: value for key, value in said.items() if value is not None}


def _make_logger(level: Level, form: Form | None, logger: LineLogger | None) -> FilteringBoundLogger:
    import structlog

    if form is None and logger is None and structlog.is_configured():
        configured: FilteringBoundLogger = structlog.get_logger("ondine")
        return configured
    in_colour = form is None and logger is None and sys.stderr.isatty()
    # Who takes lines has times and levels of his own.
    processors: list[Processor] = [structlog.processors.add_log_level if logger is None else _without_time]
    if form == "json" or (form is None and logger is None and not in_colour):
        processors.append(structlog.processors.JSONRenderer())
    else:
        processors.append(structlog.dev.ConsoleRenderer(colors=in_colour, pad_event_to=0))
    made: FilteringBoundLogger = structlog.wrap_logger(
        structlog.WriteLogger(sys.stderr) if logger is None else _Handing(logger),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        context_class=dict,
    )
    return made


def _without_time(_logger: object, _method: str, line: EventDict) -> EventDict:
    line.pop("timestamp", None)
    return line


class _Handing:
    """A logger for structlog that hands finished lines over."""

    def __init__(self, to: LineLogger) -> None:
        def at(level: int) -> Callable[[str], object]:
            return lambda line: to.log(level, line)

        self.debug = at(logging.DEBUG)
        self.info = at(logging.INFO)
        self.warning = at(logging.WARNING)
