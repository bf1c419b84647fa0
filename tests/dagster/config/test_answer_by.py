"""`answer_by`: from its text to a moment."""

from __future__ import annotations

import datetime as dt
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core.errors import ConfigError
from ondine_dagster import LLMAssetConfig, build_llm_asset
from ondine_dagster.config.answer_by import find_deadline, is_answer_by

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "Pacific/Apia")


def at(text: str, zone: str = "UTC") -> float:
    return dt.datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("answer_by", "started_at", "deadline"),
    [
        ("06:00", at("2026-01-05 05:59:59"), at("2026-01-05 06:00")),
        ("06:00", at("2026-01-05 06:00"), at("2026-01-06 06:00")),
        ("06:00", at("2026-01-05 22:00"), at("2026-01-06 06:00")),
        ("06:00 Europe/Berlin", at("2026-01-05 05:30"), at("2026-01-06 05:00")),
        ("06:00 Europe/Berlin", at("2026-07-05 03:59"), at("2026-07-05 04:00")),
        # The day of 23 hours, and a time that it does not have.
        ("06:00 Europe/Berlin", at("2026-03-28 22:00"), at("2026-03-29 04:00")),
        ("02:30 Europe/Berlin", at("2026-03-28 22:00"), at("2026-03-29 01:30")),
        # The day of 25 hours, and a time that it has twice.
        ("06:00 Europe/Berlin", at("2026-10-24 22:00"), at("2026-10-25 05:00")),
        ("02:30 Europe/Berlin", at("2026-10-24 22:00"), at("2026-10-25 00:30")),
        # A date that was skipped as a whole.
        ("06:00 Pacific/Apia", at("2011-12-29 20:00", "Pacific/Apia"), at("2011-12-31 06:00", "Pacific/Apia")),
        (7200, 1000.0, 8200.0),
        (0.5, 1000.0, 1000.5),
        ("7200", 1000.0, 8200.0),
        ("0", 1000.0, 1000.0),
    ],
)
def test_a_time_of_day_is_the_next_one_and_seconds_count_from_the_start(
    answer_by: Any, started_at: float, deadline: float
) -> None:
    """Also on days with a daylight-saving change."""
    assert find_deadline(answer_by, started_at) == deadline


@given(
    st.integers(0, 23),
    st.integers(0, 59),
    st.sampled_from(ZONES),
    st.floats(at("2000-01-01"), at("2040-01-01"), allow_nan=False),
)
def test_the_next_time_of_day_comes_within_two_days(hour: int, minute: int, zone: str, started_at: float) -> None:
    """It is after the start and reads as written, unless a daylight-saving change skips it."""
    deadline = find_deadline(f"{hour:02}:{minute:02} {zone}", started_at)
    assert 0 < deadline - started_at <= 49 * 3600
    local = dt.datetime.fromtimestamp(deadline, ZoneInfo(zone))
    before = (local - dt.timedelta(days=1)).utcoffset()
    assert (local.hour, local.minute) == (hour, minute) or before != local.utcoffset()


@pytest.mark.parametrize(
    "answer_by", ["6:00", "24:00", "06:60", "06:00 Mars", "06:00 ../x", "tomorrow", "", -1, "-5", True, []]
)
def test_invalid_answer_by_is_an_error_with_the_valid_forms(answer_by: Any) -> None:
    """In a definition and in the Launchpad."""
    assert not is_answer_by(answer_by)
    with pytest.raises(ConfigError, match="must be a time of day, as in '06:00'"):
        find_deadline(answer_by, 0.0)
    with pytest.raises(ConfigError, match=r"answer_by=.* must be a time of day"):
        build_llm_asset(name="a", upstream="b", prompt="{c}", output="d", answer_by=answer_by)
    if isinstance(answer_by, str):
        with pytest.raises(ValueError, match=r"answer_by=.* must be a time of day"):
            LLMAssetConfig(answer_by=answer_by)
