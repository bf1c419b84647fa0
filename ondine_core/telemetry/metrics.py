"""Counters and histograms of runs, as a fold over events; exporters only translate them.

Names, units and buckets are those of OpenTelemetry's conventions for generative AI where it has any. Folding here costs
a call a few microseconds; the instruments of a metrics library cost it ten times as much.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeAlias

from ondine_core.telemetry.events import (
    Booked,
    CallEnded,
    CallsEnded,
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
from ondine_core.types.values import Usage

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


class Distribution:
    """How often values fell between the bounds of a histogram: `counts` has one bucket more, for what is above all."""

    __slots__ = ("bounds", "counts", "highest", "lowest", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts = bounds, [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.lowest = float("inf")
        self.highest = float("-inf")

    def add(self, values: Sequence[float]) -> None:
        """Take values; one that equals a bound is below it."""
        if values:
            for value in values:
                self.counts[bisect_left(self.bounds, value)] += 1
            self.sum += sum(values)
            self.lowest, self.highest = min(self.lowest, *values), max(self.highest, *values)

    def copy(self) -> Distribution:
        """What it is now."""
        other = Distribution(self.bounds)
        other.counts = [*self.counts]
        other.sum = self.sum
        other.lowest = self.lowest
        other.highest = self.highest
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

    wants = frozenset({CallEnded, CallsEnded, Progressed, RunEnded, RowsFailed, Retried, Held, Booked})
    calls_per_second = 0.0

    def __init__(self) -> None:
        self._totals: dict[tuple[Instrument, Labels], int | Decimal] = defaultdict(int)
        self._distributions: dict[tuple[Instrument, Labels], Distribution] = {}
        self._rows: dict[Run, Counter[str]] = {}
        # Who reads in another thread must not meet a series that is just being added.
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Take account of an event."""
        with self._lock:
            match event:
                case CallsEnded():
                    self._came(
                        event.endpoint, event.run, event.stage, None, event.durations_s, event.usages, event.usds
                    )
                    self._waited("budget", event.run, event.held_s)
                    self._waited("rate", event.run, event.booked_s)
                case CallEnded():
                    batch, usages = event.batch, () if event.usage is None else (event.usage,)
                    of = (batch.endpoint, batch.run, event.sent.stage, event.error_type)
                    self._came(*of, (event.duration_s,), usages, (event.usd,))
                case Progressed() | RunEnded():
                    self._progress(event)
                case RowsFailed():
                    self._totals[FAILURES, (event.reason, _asset(event.run))] += event.rows
                case Retried():
                    self._totals[RETRIES, (*_model(event.batch.endpoint), _asset(event.batch.run))] += 1
                case Held() | Booked():
                    self._waited("budget" if isinstance(event, Held) else "rate", event.batch.run, (event.waited_s,))

    def read(self) -> dict[Instrument, list[Series]]:
        """Every instrument that was used, and its series."""
        found: dict[Instrument, list[Series]] = {}
        with self._lock:
            copies = {key: series.copy() for key, series in self._distributions.items()}
            for (instrument, labels), value in (*copies.items(), *self._totals.items()):
                named = {key: label for key, label in zip(instrument.keys, labels, strict=True) if label is not None}
                found.setdefault(instrument, []).append((named, value))
        return found

    def _came(  # noqa: PLR0913, PLR0917  (two callers)
        self,
        endpoint: Endpoint,
        run: Run,
        stage: str,
        error_type: str | None,
        durations_s: Sequence[float],
        usages: Sequence[Usage],
        usds: Sequence[Decimal | None],
    ) -> None:
        model, asset = _model(endpoint), _asset(run)
        self._distribution(DURATION, (*model, error_type, asset)).add(durations_s)
        if usages:
            self._distribution(TOKENS, (*model, "input", asset)).add([usage.input_tokens for usage in usages])
            self._distribution(TOKENS, (*model, "output", asset)).add([usage.output_tokens for usage in usages])
        costs = [usd for usd in usds if usd is not None]
        if costs:
            self._totals[COST, (*model, stage, asset)] += sum(costs)

    def _waited(self, reason: str, run: Run, seconds: Sequence[float]) -> None:
        if seconds:
            self._distribution(WAITS, (reason, _asset(run))).add(seconds)

    def _progress(self, event: Progressed | RunEnded) -> None:
        told, asset = self._rows.setdefault(event.run, Counter()), _asset(event.run)
        progress = event.progress
        if progress is not None:
            now = {"answered": progress.rows_done - progress.rows_failed - progress.rows_skipped}
            if progress.rows_skipped:
                now["skipped"] = progress.rows_skipped
            if isinstance(event, RunEnded):  # before that, a fallback may still answer what has failed
                now["failed"] = progress.rows_failed
                self._totals[REUSED, (asset,)] += progress.rows_reused
            for outcome, rows in now.items():
                self._totals[ROWS, (outcome, asset)] += rows - told[outcome]
                told[outcome] = rows
        if isinstance(event, RunEnded):
            del self._rows[event.run]

    def _distribution(self, instrument: Instrument, labels: Labels) -> Distribution:
        return self._distributions.setdefault((instrument, labels), Distribution(instrument.bounds or ()))


def _asset(run: Run) -> str | None:
    return run.origin.asset or None


def _model(endpoint: Endpoint) -> Labels:
    return (OPERATION, provider_name(endpoint.provider), endpoint.model, endpoint.address, endpoint.port)
