"""Counters and histograms of runs, as a fold over events; exporters only translate them.

Names, units and buckets are those of OpenTelemetry's conventions for generative AI where it has any. Folding here costs
a call a few microseconds; the instruments of a metrics library cost it ten times as much.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeAlias

from ondine_core.telemetry.events import (
    Booked,
    CallEnded,
    Endpoint,
    Event,
    Held,
    Progressed,
    Retried,
    RowsFailed,
    Run,
    RunEnded,
)
from ondine_core.telemetry.names import OPERATION, provider_name

__all__ = ["Distribution", "Instrument", "Metrics", "Series"]

Labels: TypeAlias = tuple[str | int | None, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Instrument:
    """What is counted or measured.

    Args:
        name: As OpenTelemetry writes names.
        unit: As UCUM writes units.
        description: In a sentence.
        keys: By what it is told apart.
        bounds: Upper bounds of the buckets of a histogram; `None` for a counter.
    """

    name: str
    unit: str
    description: str
    keys: tuple[str, ...]
    bounds: tuple[float, ...] | None = None


class Total:
    """A sum that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: int | Decimal = 0


class Distribution:
    """How often values fell between the bounds of a histogram: `counts` has one bucket more, for what is above all."""

    __slots__ = ("bounds", "counts", "highest", "lowest", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts = bounds, [0] * (len(bounds) + 1)
        self.sum, self.lowest, self.highest = 0.0, float("inf"), float("-inf")

    def add(self, value: float) -> None:
        """Take a value; one that equals a bound is below it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value
        # This is the innermost of all; the builtins would take half of its time.
        if value < self.lowest:  # noqa: PLR1730
            self.lowest = value
        if value > self.highest:  # noqa: PLR1730
            self.highest = value

    def copy(self) -> Distribution:
        """What it is now."""
        other = Distribution(self.bounds)
        other.counts, other.sum, other.lowest, other.highest = [*self.counts], self.sum, self.lowest, self.highest
        return other


Series: TypeAlias = tuple[Mapping[str, str | int], int | Decimal | Distribution]
"""What tells a series of an instrument apart from the others, and what it has come to."""


_MODEL = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "server.address", "server.port")
_SECONDS = tuple(0.01 * 2**power for power in range(14))
"""0.01 to 81.92 s, as the convention has them."""

TOKENS = Instrument(
    "gen_ai.client.token.usage",
    "{token}",
    "Tokens that were billed, call by call.",
    (*_MODEL, "gen_ai.token.type", "ondine.asset"),
    tuple(float(4**power) for power in range(14)),
)
DURATION = Instrument(
    "gen_ai.client.operation.duration",
    "s",
    "Seconds that calls took, failed ones included.",
    (*_MODEL, "error.type", "ondine.asset"),
    _SECONDS,
)
COST = Instrument(
    "ondine.cost.usd", "{USD}", "What calls cost, where the price is known.", (*_MODEL, "ondine.stage", "ondine.asset")
)
ROWS = Instrument(
    "ondine.rows", "{row}", "Rows that are settled, one way or the other.", ("ondine.outcome", "ondine.asset")
)
REUSED = Instrument("ondine.rows.reused", "{row}", "Those of them that were settled before the run.", ("ondine.asset",))
FAILURES = Instrument("ondine.row.failures", "{row}", "Rows without an answer.", ("ondine.reason", "ondine.asset"))
RETRIES = Instrument("ondine.retries", "{call}", "Calls that were made again.", (*_MODEL, "ondine.asset"))
WAITS = Instrument(
    "ondine.wait.duration", "s", "Seconds that calls waited.", ("ondine.wait.reason", "ondine.asset"), _SECONDS
)


class Metrics:
    """Folds events; may be read in another thread meanwhile."""

    wants = frozenset({CallEnded, Progressed, RunEnded, RowsFailed, Retried, Held, Booked})

    def __init__(self) -> None:
        self._totals: dict[tuple[Instrument, Labels], Total] = {}
        self._distributions: dict[tuple[Instrument, Labels], Distribution] = {}
        self._calls: dict[tuple[Endpoint, Run, str, str | None], _Calls] = {}
        self._rows: dict[Run, Counter[str]] = {}
        # Who reads in another thread must not meet a series that is just being added.
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Take account of an event."""
        with self._lock:
            match event:
                case CallEnded():
                    self._call(event)
                case Progressed() | RunEnded():
                    self._progress(event)
                case RowsFailed():
                    self._total(FAILURES, (event.reason, _asset(event.run))).value += event.rows
                case Retried():
                    self._total(RETRIES, (*_model(event.batch.endpoint), _asset(event.batch.run))).value += 1
                case Held() | Booked():
                    reason = "budget" if isinstance(event, Held) else "rate"
                    self._distribution(WAITS, (reason, _asset(event.batch.run))).add(event.waited_s)

    def read(self) -> dict[Instrument, list[Series]]:
        """Every instrument that was used, and its series."""
        found: dict[Instrument, list[Series]] = {}
        with self._lock:
            copies = {key: series.copy() for key, series in self._distributions.items()}
            for (instrument, labels), value in (
                *copies.items(),
                *((key, total.value) for key, total in self._totals.items()),
            ):
                named = {key: label for key, label in zip(instrument.keys, labels, strict=True) if label is not None}
                found.setdefault(instrument, []).append((named, value))
        return found

    def _call(self, event: CallEnded) -> None:
        batch, stage = event.batch, event.sent.stage
        key = (batch.endpoint, batch.run, stage, event.error_type)
        calls = self._calls.get(key)
        if calls is None:
            model, asset = _model(batch.endpoint), _asset(batch.run)
            calls = self._calls[key] = _Calls(
                self._distribution(DURATION, (*model, event.error_type, asset)),
                self._distribution(TOKENS, (*model, "input", asset)),
                self._distribution(TOKENS, (*model, "output", asset)),
                self._total(COST, (*model, stage, asset)),
            )
        calls.duration.add(event.duration_s)
        if (usage := event.usage) is not None:
            calls.input_tokens.add(usage.input_tokens)
            calls.output_tokens.add(usage.output_tokens)
        if event.usd is not None:
            calls.cost.value += event.usd

    def _progress(self, event: Progressed | RunEnded) -> None:
        told, asset = self._rows.setdefault(event.run, Counter()), _asset(event.run)
        if (progress := event.progress) is not None:
            now = {"answered": progress.rows_done - progress.rows_failed}
            if isinstance(event, RunEnded):  # before that, a fallback may still answer what has failed
                now["failed"] = progress.rows_failed
                self._total(REUSED, (asset,)).value += progress.rows_reused
            for outcome, rows in now.items():
                self._total(ROWS, (outcome, asset)).value += rows - told[outcome]
                told[outcome] = rows
        if isinstance(event, RunEnded):
            del self._rows[event.run]
            self._calls = {key: calls for key, calls in self._calls.items() if key[1] is not event.run}

    def _total(self, instrument: Instrument, labels: Labels) -> Total:
        return self._totals.setdefault((instrument, labels), Total())

    def _distribution(self, instrument: Instrument, labels: Labels) -> Distribution:
        return self._distributions.setdefault((instrument, labels), Distribution(instrument.bounds or ()))


@dataclass(frozen=True, slots=True)
class _Calls:
    """The series that calls of one kind go to; found once, since calls are many."""

    duration: Distribution
    input_tokens: Distribution
    output_tokens: Distribution
    cost: Total


def _asset(run: Run) -> str | None:
    return run.origin.asset or None


def _model(endpoint: Endpoint) -> Labels:
    return (OPERATION, provider_name(endpoint.provider), endpoint.model, endpoint.address, endpoint.port)
