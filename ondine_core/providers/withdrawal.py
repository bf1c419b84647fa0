"""Warns of a model that its provider withdraws soon, by the dates in the price data."""

from __future__ import annotations

import datetime as dt
from typing import Any

from ondine_core.providers.model_data import source
from ondine_core.providers.pricing import find_entry
from ondine_core.types.values import ModelSpec

_WARN_DAYS = 30


def find_withdrawal(spec: ModelSpec, now: float) -> str | None:
    """A warning if the provider of `spec` withdraws the model within 30 days or has done so; `now` in epoch seconds.

    Servers at a `base_url` are not covered, since their dates are not known; Azure resources are.
    """
    date = read_date((find_entry(spec.listed_as) or {}).get("deprecation_date"))
    if date is None or (spec.base_url is not None and spec.dialect != "azure"):
        return None
    days_left = (date - dt.datetime.fromtimestamp(now, dt.UTC).date()).days
    if days_left > _WARN_DAYS:
        return None
    return (
        f"The provider withdraws the model {spec.listed_as!r} on {date} ({source()}); from then on calls "
        "fail. Choose another model in time; it is asked about every row again, as answers belong to a model."
    )


def read_date(text: Any) -> dt.date | None:
    """A date of the price data; `None` if there is none, or in another format than ISO 8601."""
    try:
        return dt.date.fromisoformat(text)
    except (TypeError, ValueError):
        return None
