"""Reads the waits that a provider asks for: in headers, in fields of a body and in sentences.

Most servers of OpenAI's dialect use its headers (`x-ratelimit-remaining-requests`, ...); Anthropic has its own
(`anthropic-ratelimit-input-tokens-remaining`, ...). By both documentations a limit refills evenly, and `reset` is the
time at which it is full: a duration at OpenAI, a date at Anthropic, seconds since 1970 at DigitalOcean.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import Any

_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_MAX_WAIT_S = 31 * 86400.0
"""A wait of more than a month is a mistake: no limit of a provider is longer."""
_PREFIXES = ("", "llm_provider-")
"""LiteLLM's proxy passes the headers of its provider on with a prefix; headers without the prefix are its own."""
_LIMITS = (
    *(
        (f"{prefix}x-ratelimit-{{}}-{limit}", limit.partition("-")[0])
        for prefix in _PREFIXES
        # With the minute at Cerebras, and with `per-minute` at DigitalOcean.
        for limit in ("requests", "requests-minute", "tokens", "tokens-minute", "tokens-per-minute")
    ),
    *((f"anthropic-ratelimit-{kind}-{{}}", kind) for kind in ("requests", "tokens", "input-tokens", "output-tokens")),
)
_HEADERS = tuple((tuple(map(name.format, ("remaining", "reset", "limit"))), kind) for name, kind in _LIMITS)
"""The names of the three headers of each limit, and what it limits."""
_EPOCH_S, _EPOCH_MS = 1e9, 1e11
"""Numbers of at least this size are times, in seconds or milliseconds since 1970, and not durations."""


def hold_off_s(headers: Mapping[str, str], tokens: int, received: int = 0, now: float = 0.0) -> float:
    """Seconds until another call of this size fits into the limits that its reply names; 0 if it fits already.

    The call used `tokens`, of which `received` are the reply; `now`, in epoch seconds, is for resets given as a time.
    """
    if "ratelimit" not in "".join(headers).lower():
        return 0.0
    needs = {"requests": 1, "tokens": tokens, "input-tokens": tokens - received, "output-tokens": received}
    return max(_refill_s(headers, names, needs[kind], now) for names, kind in _HEADERS)


def _refill_s(headers: Mapping[str, str], names: tuple[str, ...], needed: int, now: float) -> float:
    """Seconds until `needed` is available by the headers with these names: what is left, the reset, and the limit."""
    left = _number(headers.get(names[0]))
    if left is None or left >= needed:
        return 0.0
    reset_s, limit = _reset_s(headers.get(names[1], ""), now), _number(headers.get(names[2]))
    if reset_s is None or limit is None or limit <= left:
        return reset_s or 0.0
    return reset_s * min(1.0, (needed - left) / (limit - left))


def _number(text: str | None) -> float | None:
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if isfinite(number) else None


def _reset_s(text: str, now: float) -> float | None:
    """Seconds from `6m0s`, `20ms`, a plain number of them, seconds or milliseconds since 1970, or a date."""
    number = _number(text)
    if number is not None:
        return wait_of_value_s(number, now)
    parts = _PART.findall(text)
    if not parts or "".join(amount + unit for amount, unit in parts) != text:
        return _until_s(text, now)
    return valid_wait_s(sum(float(amount) * _UNIT_S[unit] for amount, unit in parts))


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds from `retry-after-ms`, or from `Retry-After` in seconds or as an HTTP date (RFC 9110, 10.2.3).

    Some servers send seconds since 1970.
    """
    for prefix in _PREFIXES:
        for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
            text = headers.get(prefix + name)
            wait_s = None if text is None else _asked_s(text, unit_s, now)
            if wait_s is not None:
                return wait_s
    return None


def _asked_s(text: str, unit_s: float, now: float) -> float | None:
    number = _number(text)
    if number is not None:
        return wait_of_value_s(max(0.0, number * unit_s), now)
    try:
        return valid_wait_s(_left_s(parsedate_to_datetime(text), now))
    except (ValueError, OverflowError):
        return wait_of_value_s(text, now)


def limits_reset_s(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds until the time in `X-RateLimit-Reset`, as OpenRouter and others send it."""
    reset = _number(headers.get("x-ratelimit-reset"))
    return None if reset is None or reset < _EPOCH_S else wait_of_value_s(reset, now)


def valid_wait_s(seconds: float) -> float | None:
    """`seconds`, or `None` for an implausible wait: negative, infinite or longer than a month."""
    return seconds if isfinite(seconds) and 0 <= seconds <= _MAX_WAIT_S else None


# -- bodies --------------------------------------------------------------------------------------------------------

_UNIT_S = {
    **dict.fromkeys(["ms", "millisecond", "milliseconds"], 0.001),
    **dict.fromkeys(["s", "sec", "secs", "second", "seconds"], 1.0),
    **dict.fromkeys(["m", "min", "mins", "minute", "minutes"], 60.0),
    **dict.fromkeys(["h", "hr", "hrs", "hour", "hours"], 3600.0),
    **dict.fromkeys(["d", "day", "days"], 86400.0),
}
_AMOUNT = rf"(\d+(?:\.\d+)?) ?({'|'.join(sorted(_UNIT_S, key=len, reverse=True))})(?![a-z])"
_IN_WORDS = re.compile(rf"{_AMOUNT}(?:(?:,| and)? ?{_AMOUNT}){{0,4}}")
_ONE_AMOUNT = re.compile(_AMOUNT)
_ISO_DURATION = re.compile(r"p(?:(\d+)d)?(?:t(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?)?")
_ISO_DATE = re.compile(r"\d{4}-\d\d-\d\d[t ]\d\d:\d\d(?::\d\d(?:\.\d+)?)? ?(?:z|utc|[+-]\d\d:?\d\d)?")
_ASKS_TO_WAIT = re.compile(
    r"\b(?:try again|retry(?:ing)?|retry[-_ ]after|wait(?: for)?|resets?|available(?: again)?)\b[^.;\d]{0,40}?"
    r"(?:\b(?:in|after|for|at|until)\b|[:=])?(?: at least| approximately| about| another)?[ :=]*(?<!-)(?=p?t?\d)"
)


def wait_in_text_s(text: str, now: float) -> float | None:
    """Seconds from a sentence such as "Please try again in 1m26.4s" or "retry after 10 seconds"; `None` without one."""
    text = text.lower()
    for asked in _ASKS_TO_WAIT.finditer(text):
        seconds = _leading_wait_s(text[asked.end() :], now)
        if seconds is not None:
            return seconds
    return None


def wait_of_value_s(value: Any, now: float) -> float | None:
    """Seconds from a field that contains only a wait: a number, a duration, a date, or `{"seconds": 3}`."""
    match value:
        case bool() | None:
            return None
        case int() | float():
            seconds = float(value)
            if seconds >= _EPOCH_S:
                seconds = max(0.0, seconds / (1000 if seconds >= _EPOCH_MS else 1) - now)
            return valid_wait_s(seconds)
        case {"seconds": seconds, **rest}:
            whole_s, nanos = wait_of_value_s(seconds, now), rest.get("nanos")
            return valid_wait_s(whole_s + nanos / 1e9) if whole_s is not None and isinstance(nanos, int) else whole_s
        case str():
            text = value.strip().lower()
            number = _number(text)
            return _leading_wait_s(text, now) if number is None else wait_of_value_s(number, now)
    return None


def _leading_wait_s(text: str, now: float) -> float | None:
    """Seconds of the wait at the beginning of `text`, which is in lower case."""
    date = _ISO_DATE.match(text)
    if date:
        return _until_s(date.group(), now)
    found = _IN_WORDS.match(text)
    if found:
        return valid_wait_s(sum(float(amount) * _UNIT_S[unit] for amount, unit in _ONE_AMOUNT.findall(found.group())))
    iso = _ISO_DURATION.match(text)
    if iso and any(iso.groups()):
        days, hours, minutes, seconds = (float(part or 0) for part in iso.groups())
        return valid_wait_s(days * 86400 + hours * 3600 + minutes * 60 + seconds)
    plain = re.match(r"(\d+(?:\.\d+)?)(?=[.,;)]*(?:\s|$))(?! ?[a-z%/])", text)
    return valid_wait_s(float(plain.group(1))) if plain else None


def _until_s(date: str, now: float) -> float | None:
    try:
        moment = dt.datetime.fromisoformat(date.replace("utc", "z").replace(" z", "z").strip().upper())
    except ValueError:
        return None
    return valid_wait_s(_left_s(moment, now))


def _left_s(moment: dt.datetime, now: float) -> float:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    return max(0.0, aware.timestamp() - now)
