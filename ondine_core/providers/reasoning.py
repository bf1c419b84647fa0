"""Estimates the tokens that a model thinks for one call, before the first call.

No provider says beforehand how much a model thinks. These ranges are rough assumptions for short questions about rows
of a table, not measurements. Replies count what was thought, and a bound on output tokens includes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ondine_core.providers.pricing import find_entry
from ondine_core.providers.request_form import reasons_by_default
from ondine_core.types.values import ModelSpec

_BY_EFFORT: Mapping[str, tuple[int, int, int]] = {
    "none": (0, 0, 0),
    "minimal": (0, 50, 500),
    "low": (0, 200, 1_500),
    "medium": (50, 600, 5_000),
    "high": (200, 2_000, 15_000),
    "xhigh": (400, 4_000, 30_000),
    "max": (400, 6_000, 60_000),
}
"""At least, likely and at most, a call."""
_DEFAULT = "medium"
_THINKING_GEMINI = re.compile(r"gemini-(?:2\.5|[3-9]|\d\d)(?!.*lite)")
"""By Google's guide to thinking, all models from 2.5 on think by default, except for the smallest."""


def expected_reasoning_tokens(spec: ModelSpec) -> tuple[int, int, int]:
    """Tokens that the model of `spec` thinks for one call: at least, likely and at most."""
    thinking = spec.params.get("thinking")
    budget: Any = thinking.get("budget_tokens") if isinstance(thinking, Mapping) else None  # of Anthropic's API
    if isinstance(budget, int):
        least, likely, most = 0, budget // 4, budget
    else:
        least, likely, most = _BY_EFFORT.get(_effort(spec), _BY_EFFORT[_DEFAULT])
    bound = spec.max_output_tokens
    return (least, likely, most) if bound is None else (min(least, bound), min(likely, bound), min(most, bound))


def _effort(spec: ModelSpec) -> str:
    """The `reasoning_effort` of a request; some models reason even without one."""
    effort = spec.request_params.get("reasoning_effort")
    if effort is not None:
        return str(effort)
    entry = find_entry(spec.listed_as) or {}
    return _DEFAULT if reasons_by_default(spec.listed_as) or _thinks_by_default(spec.listed_as, entry) else "none"


def _thinks_by_default(model: str, entry: Mapping[str, Any]) -> bool:
    """Whether `model` thinks unless a request says otherwise, by its entry in the price data."""
    if entry.get("thinking_always_on") or entry.get("thinking_on_by_default"):
        return True
    levels = entry.get("reasoning_effort_levels")
    is_gemini = bool(entry.get("supports_reasoning")) and _THINKING_GEMINI.search(model) is not None
    return is_gemini or bool(levels and "none" not in levels)
