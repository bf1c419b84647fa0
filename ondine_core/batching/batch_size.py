"""Adaptive batch size: grows while calls succeed and shrinks when they do not.

The best size depends on model, rows and answers, so it is measured. One call at a time, a probe, tries a larger size
while all others keep the proven one, so a size that is too large costs one call, however many are in flight. Probes
double the size until one fails, then grow by a quarter; after each failed probe the wait for the next one doubles, so
the share of rows asked without success goes to zero. A bad reply among many good ones is chance and changes nothing;
several within few calls halve the size.

It uses no clock and no random numbers: the same replies give the same sizes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

from ondine_core.errors import ConfigError

_FIRST_ROWS = 10
_MAX_ROWS = 100
"""Larger sizes save little more: at this one, a row's share of the instructions is 1 %."""
_SHARE_OF_TIMEOUT = 0.5
"""A call that usually takes half of its time-out sometimes exceeds it, and then all of its rows are lost."""
_PROBE_AFTER = 4
_MAX_PROBE_AFTER = 160
_GOOD_FOR_ONE_BAD = 12
"""Good calls that make up for a bad one: a size at which more than one call in thirteen is bad shrinks."""
_MAX_CREDIT = 3 * _GOOD_FOR_ONE_BAD
_LOST_AFTER = 100
"""A probe without an outcome for this many calls had fewer rows than planned, since more did not fit the window."""


@dataclass(frozen=True, slots=True)
class AdaptiveSize:
    """The state of the adaptive batch size.

    Args:
        rows: The proven size, in rows a call.
        max_rows: The largest size.
        ceiling: The size up to which probes double: the proven size when the last probe failed.
        max_s: The longest acceptable latency of a call, in seconds.
        slowest_s: The longest latency seen at `rows`, in seconds.
        probe: The size of the probe in flight, 0 if there is none.
        streak: Good calls of `rows` rows since `rows` changed.
        due: The streak at which the next probe is made.
        probe_after: Good calls to wait for after the last failed probe.
        credit: Good calls, minus those that bad calls have used up.
    """

    rows: int
    max_rows: int
    ceiling: int
    max_s: float = inf
    slowest_s: float = 0.0
    probe: int = 0
    streak: int = 0
    due: int = 1
    probe_after: int = _PROBE_AFTER
    credit: int = 0


def start_size(max_rows: int = _MAX_ROWS, timeout_s: float = inf) -> AdaptiveSize:
    """The initial state; a size whose calls take more than half of `timeout_s` seconds is too large."""
    if max_rows < 1:
        raise ConfigError(f"The largest batch size is {max_rows!r}; it must be at least 1.")
    return AdaptiveSize(min(_FIRST_ROWS, max_rows), max_rows, max_rows, timeout_s * _SHARE_OF_TIMEOUT)


def take_rows(size: AdaptiveSize) -> tuple[int, AdaptiveSize]:
    """The rows for the next call, and the state after it was made."""
    larger = _larger(size) if size.streak >= size.due else 0
    if larger <= size.rows:
        return size.rows, size
    return larger, replace(size, probe=larger, due=size.streak + _LOST_AFTER)


def adapt(size: AdaptiveSize, *, rows: int, unanswered: int, latency_s: float = 0.0) -> AdaptiveSize:
    """The state after a call with `rows` rows that were asked for the first time.

    `unanswered` of them have no answer: all of them if the reply was cut, unreadable or lost. Repeated rows do not
    count, since they are asked again because of their content.
    """
    # More than a third is bad and up to an eighth is good, each plus one row, as small numbers vary.
    lost, slow = unanswered > rows / 3 + 1, latency_s > size.max_s
    good = not slow and unanswered < rows and unanswered <= rows / 8 + 1
    if rows > size.rows:
        return _learn_from_probe(size, rows, latency_s, good=good)
    if lost or slow:
        if size.credit >= _GOOD_FOR_ONE_BAD:
            return replace(size, credit=size.credit - _GOOD_FOR_ONE_BAD)
        fewer = rows // 2 if lost else max(rows // 2, int(rows * size.max_s / latency_s))
        return AdaptiveSize(max(1, fewer), size.max_rows, size.ceiling, size.max_s, due=_PROBE_AFTER)
    if not good:
        return size
    size = replace(size, credit=min(size.credit + 1, _MAX_CREDIT))
    if rows < size.rows:
        return size
    return replace(size, streak=size.streak + 1, slowest_s=max(size.slowest_s, latency_s))


def _learn_from_probe(size: AdaptiveSize, rows: int, latency_s: float, *, good: bool) -> AdaptiveSize:
    if rows > size.probe:  # not a probe: it was sent before the size shrank
        return size
    if good:
        ceiling = max(size.ceiling, rows)
        known = AdaptiveSize(rows, size.max_rows, ceiling, size.max_s, latency_s, credit=size.credit)
        return replace(known, due=0 if rows < ceiling else _PROBE_AFTER)
    probe_after = min(2 * size.probe_after, _MAX_PROBE_AFTER)
    return replace(size, ceiling=size.rows, probe=0, due=size.streak + probe_after, probe_after=probe_after)


def _larger(size: AdaptiveSize) -> int:
    if size.rows < size.ceiling:
        grown = min(2 * size.rows, size.ceiling)
    else:
        grown = min(max(size.rows + 1, size.rows * 5 // 4), size.max_rows)
    if size.slowest_s:
        # Assume that latency grows with the rows: it grows less, so this is safe, and closer with each step.
        grown = int(min(grown, size.rows * size.max_s / size.slowest_s))
    return grown
