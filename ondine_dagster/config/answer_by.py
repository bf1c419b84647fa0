"""`answer_by`, the deadline of batch jobs: a time of day, or seconds after the start of a run."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ondine_core.errors import ConfigError
from ondine_core.types.numbers import is_number

ANSWER_BY = (
    "a time of day, as in '06:00' (UTC) or '06:00 Europe/Berlin', or how many seconds after its start, as in '7200'"
)
"""What `answer_by` may be, besides `None`."""

_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)(?:\s+(\S+))?")
_SECONDS = re.compile(r"\d{1,9}(\.\d{1,9})?")


def check_answer_by(value: Any) -> Any:
    """`value` if it is valid for `answer_by`."""
    if value is not None and not is_answer_by(value):
        raise ConfigError(f"answer_by={value!r} must be {ANSWER_BY}, or nothing for no such time.")
    return value


def is_answer_by(value: Any) -> bool:
    """Whether `value` is a valid deadline."""
    if isinstance(value, str):
        written = value.strip()
        time = _TIME.fullmatch(written)
        return bool(_SECONDS.fullmatch(written)) if time is None else _zone(time[3]) is not None
    return is_number(value, 0)


def find_deadline(answer_by: str | float, started_at: float) -> float:
    """The moment that `answer_by` means for a run that started at `started_at`, both in seconds since the epoch.

    A time of day is its next one after the start. Where clocks are put back it is the first of the two; one that is
    skipped as they are put forward comes as much later as they are moved.
    """
    check_answer_by(answer_by)
    time = _TIME.fullmatch(answer_by.strip()) if isinstance(answer_by, str) else None
    if time is None:
        return started_at + float(answer_by)
    zone = _zone(time[3])
    today = dt.datetime.fromtimestamp(started_at, zone).date()
    for days in range(3):
        day = today + dt.timedelta(days=days)
        moment = dt.datetime(day.year, day.month, day.day, int(time[1]), int(time[2]), tzinfo=zone).timestamp()
        if moment > started_at:
            return moment
    raise ConfigError(f"answer_by={answer_by!r}: the time zone {time[3]!r} has no such time within two days.")


def _zone(name: str | None) -> dt.tzinfo | None:
    """The time zone of this name, UTC for none; `None` if there is no such time zone."""
    try:
        return ZoneInfo(name) if name else dt.UTC
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None
