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
"""The valid values of `answer_by` besides `None`, for error messages."""

_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)(?:\s+(\S+))?")
_SECONDS = re.compile(r"\d{1,9}(\.\d{1,9})?")


def check_answer_by(value: Any) -> Any:
    """Return `value` if it is valid for `answer_by`, else raise `ConfigError`."""
    if value is not None and not is_answer_by(value):
        raise ConfigError(f"answer_by={value!r} must be {ANSWER_BY}, or nothing for no such time.")
    return value


def is_answer_by(value: Any) -> bool:
    """Whether `value` is a valid deadline."""
    if isinstance(value, str):
        text = value.strip()
        time = _TIME.fullmatch(text)
        return bool(_SECONDS.fullmatch(text)) if time is None else _zone(time[3]) is not None
    return is_number(value, 0)


def find_deadline(answer_by: str | float, started_at: float) -> float:
    """The deadline by `answer_by` of a run that started at `started_at`, both in seconds since the epoch.

    A time of day means the next such time after the start. If clocks are put back, the first of two such times counts;
    if the time is skipped as clocks are put forward, it is later by the length of the skip.
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
    """The time zone of this name, UTC without a name; `None` if there is no such time zone."""
    try:
        return ZoneInfo(name) if name else dt.UTC
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None
