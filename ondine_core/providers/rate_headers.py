"""What a provider says in its replies about what is left of its limits, and about when to come back.

OpenAI's names (`x-ratelimit-remaining-requests`, ...) are used by most that speak its dialect. A limit is taken for a
bucket that fills evenly, as OpenAI documents it: of what is missing, `reset` says when all of it will be back.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from math import isfinite

__all__ = ["hold_off_s", "retry_after_s"]

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def hold_off_s(headers: Mapping[str, str], tokens: int) -> float:
    """Seconds until another call like this one fits into the limits that its reply names; 0 if it does already.

    Args:
        headers: Of the reply.
        tokens: What the call used.
    """
    return max(_refill_s(headers, "requests", 1), _refill_s(headers, "tokens", tokens))


def _refill_s(headers: Mapping[str, str], kind: str, needed: int) -> float:
    left = _number(headers.get(f"x-ratelimit-remaining-{kind}"))
    if left is None or left >= needed:
        return 0.0
    reset_s = _duration_s(headers.get(f"x-ratelimit-reset-{kind}"))
    if reset_s is None:
        return 0.0
    limit = _number(headers.get(f"x-ratelimit-limit-{kind}"))
    if limit is None or limit <= left:
        return reset_s
    return reset_s * min(1.0, (needed - left) / (limit - left))


def _number(text: str | None) -> float | None:
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if isfinite(number) else None


def _duration_s(text: str | None) -> float | None:
    """Seconds from `6m0s`, `20ms` or a plain number of them."""
    if (number := _number(text)) is not None:
        return number if number >= 0 else None
    parts = _PART.findall(text or "")
    if not text or "".join(amount + unit for amount, unit in parts) != text:
        return None
    return sum(float(amount) * _UNITS_S[unit] for amount, unit in parts)


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds from `retry-after-ms`, or from `Retry-After` in seconds or as an HTTP date (RFC 9110, 10.2.3)."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit_s
        except (KeyError, ValueError):
            continue
        return max(0.0, seconds) if isfinite(seconds) else None
    try:
        date = parsedate_to_datetime(headers["retry-after"])
        aware = date if date.tzinfo else date.replace(tzinfo=dt.UTC)
        return max(0.0, aware.timestamp() - now)
    except (KeyError, ValueError, OverflowError):
        return None
