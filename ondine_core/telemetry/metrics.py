"""Computes counters and histograms of runs from events; exporters only translate them.

Names, units and buckets follow OpenTelemetry's conventions for generative AI, as far as they have any. This takes a few
microseconds a call, and the instruments of a metrics library would take ten times as long.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import inf
from typing import TypeAlias, TypeVar

from ondine_core.telemetry import events
from ondine_core.telemetry.attributes import OPERATION, provider_name
from ondine_core.telemetry.call_sampler import gather
from ondine_core.telemetry.events import CallsEnded, Endpoint, Event, Run, RunEnded

Labels: TypeAlias = tuple[str | int | None, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Instrument:
    """A counter, or with upper bounds of buckets a histogram; `keys` are the labels of its series.

    Names are in OpenTelemetry's notation, units in UCUM's.
    """

    name: str
    unit: str
    description: str
    keys: tuple[str, ...]
    bounds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Distribution:
    """The values of a histogram: their `counts` by bucket, of which the last is above all `bounds`, and their sum."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float = 0.0
    lowest: float = inf
    highest: float = -inf

    def plus(self, values: Sequence[float]) -> Distribution:
        """This distribution with more values; a value equal to a bound counts below it."""
        counts = [*self.counts]
        for value in values:
            counts[bisect_left(self.bounds, value)] += 1
        lowest, highest = min(self.lowest, *values), max(self.highest, *values)
        return Distribution(self.bounds, tuple(counts), self.sum + sum(values), lowest, highest)


Value = TypeVar("Value")
Series: TypeAlias = list[tuple[Mapping[str, str | int], Value]]
"""The labels and the value of each series of an instrument."""

_MODEL = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "server.address", "server.port")
_SECONDS = tuple(0.01 * 2**power for power in range(14))
"""0.01 to 81.92 s, as in the convention."""

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
    "ondine.cost.usd", "{USD}", "Cost of calls with a known price.", (*_MODEL, "ondine.stage", "ondine.asset")
)
ROWS = Instrument(
    "ondine.rows", "{row}", "Rows with an outcome: answered, failed or skipped.", ("ondine.outcome", "ondine.asset")
)
REUSED = Instrument("ondine.rows.reused", "{row}", "Rows whose outcome was known before the run.", ("ondine.asset",))
FAILURES = Instrument("ondine.row.failures", "{row}", "Rows without an answer.", ("ondine.reason", "ondine.asset"))
RETRIES = Instrument("ondine.retries", "{call}", "Calls that were made again.", (*_MODEL, "ondine.asset"))
WAITS = Instrument(
    "ondine.wait.duration", "s", "Seconds that calls waited.", ("ondine.wait.reason", "ondine.asset"), _SECONDS
)


class Metrics:
    """An observer that computes the figures; other threads may read them meanwhile."""

    calls_per_second = 0.0

    def __init__(self) -> None:
        self._totals: dict[tuple[Instrument, Labels], int | Decimal] = defaultdict(int)
        self._distributions: dict[tuple[Instrument, Labels], Distribution] = {}
        self._rows: dict[Run, Counter[str]] = {}
        # Runs of one process may share it from their threads, and a scrape reads it in another thread.
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Add an event to the figures."""
        with self._lock:
            match event:
                case CallsEnded():
                    self._add_calls(event)
                case events.CallEnded():
                    self._add_calls(gather([event]), event.error_type)
                case events.Progressed() | RunEnded():
                    self._add_rows(event)
                case events.RowsFailed():
                    self._totals[FAILURES, (event.reason, _asset(event.run))] += event.rows
                case events.Retried():
                    self._totals[RETRIES, (*_model(event.batch.endpoint), _asset(event.batch.run))] += 1
                case events.Held():
                    self._measure(WAITS, ("budget", _asset(event.batch.run)), (event.waited_s,))
                case events.Booked():
                    self._measure(WAITS, ("rate", _asset(event.batch.run)), (event.waited_s,))

    def counters(self) -> Mapping[Instrument, Series[int | Decimal]]:
        """The series of each counter."""
        with self._lock:
            return _by_instrument(self._totals)

    def histograms(self) -> Mapping[Instrument, Series[Distribution]]:
        """The series of each histogram."""
        with self._lock:
            return _by_instrument(self._distributions)

    def _add_calls(self, calls: CallsEnded, error_type: str | None = None) -> None:
        model, asset = _model(calls.endpoint), _asset(calls.run)
        self._measure(DURATION, (*model, error_type, asset), calls.durations_s)
        self._measure(TOKENS, (*model, "input", asset), [usage.input_tokens for usage in calls.usages])
        self._measure(TOKENS, (*model, "output", asset), [usage.output_tokens for usage in calls.usages])
        self._measure(WAITS, ("budget", asset), calls.held_s)
        self._measure(WAITS, ("rate", asset), calls.booked_s)
        costs = [usd for usd in calls.usds if usd is not None]
        if costs:
            self._totals[COST, (*model, calls.stage, asset)] += sum(costs)

    def _add_rows(self, event: events.Progressed | RunEnded) -> None:
        counted, asset = self._rows.setdefault(event.run, Counter()), _asset(event.run)
        progress = event.progress
        if progress is not None:
            outcomes = {"answered": progress.rows_done - progress.rows_failed - progress.rows_skipped}
            if progress.rows_skipped:
                outcomes["skipped"] = progress.rows_skipped
            if isinstance(event, RunEnded):  # before that, a fallback may still answer failed rows
                outcomes["failed"] = progress.rows_failed
                self._totals[REUSED, (asset,)] += progress.rows_reused
            for outcome, rows in outcomes.items():
                self._totals[ROWS, (outcome, asset)] += rows - counted[outcome]
                counted[outcome] = rows
        if isinstance(event, RunEnded):
            del self._rows[event.run]

    def _measure(self, instrument: Instrument, labels: Labels, values: Sequence[float]) -> None:
        if values:
            empty = Distribution(instrument.bounds, (0,) * (len(instrument.bounds) + 1))
            known = self._distributions.get((instrument, labels), empty)
            self._distributions[instrument, labels] = known.plus(values)


def _by_instrument(values: Mapping[tuple[Instrument, Labels], Value]) -> Mapping[Instrument, Series[Value]]:
    series: dict[Instrument, Series[Value]] = defaultdict(list)
    for (instrument, labels), value in values.items():
        label_by_key = {key: label for key, label in zip(instrument.keys, labels, strict=True) if label is not None}
        series[instrument].append((label_by_key, value))
    return series


def _asset(run: Run) -> str | None:
    return run.origin.asset or None


def _model(endpoint: Endpoint) -> Labels:
    return (OPERATION, provider_name(endpoint.provider), endpoint.model, endpoint.address, endpoint.port)
