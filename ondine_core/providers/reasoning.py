"""Estimates a model's reasoning tokens for one call, before the first call.

No provider says in advance how long a model reasons. These ranges are rough assumptions for short questions about rows
of a table, not measurements. Replies count reasoning tokens, and a limit on output tokens includes them.
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
"""Reasoning tokens of a call: at least, likely, at most."""
_DEFAULT = "medium"
_THINKING_GEMINI = re.compile(r"gemini-(?:2\.5|[3-9]|\d\d)(?!.*lite)")
"""By Google's guide to thinking, all models from 2.5 on think by default, except for Lite ones."""


def expected_reasoning_tokens(spec: ModelSpec) -> tuple[int, int, int]:
    """Reasoning tokens of the model of `spec` for one call: at least, likely and at most."""
    thinking = spec.params.get("thinking")
    budget: Any = thinking.get("budget_tokens") if isinstance(thinking, Mapping) else None  # of Anthropic's API
    if isinstance(budget, int):
        tokens = (0, budget // 4, budget)
    else:
        tokens = _BY_EFFORT.get(_effort(spec), _BY_EFFORT[_DEFAULT])
    limit = spec.max_output_tokens
    if limit is None:
        return tokens
    least, likely, most = tokens
    return min(least, limit), min(likely, limit), min(most, limit)


def _effort(spec: ModelSpec) -> str:
    """The `reasoning_effort` of a request; some models reason even without one."""
    effort = spec.request_params.get("reasoning_effort")
    if effort is not None:
        return str(effort)
    model = spec.listed_as
    return _DEFAULT if reasons_by_default(model) or _thinks_by_default(model, find_entry(model) or {}) else "none"


def _thinks_by_default(model: str, entry: Mapping[str, Any]) -> bool:
    """Whether `model` reasons unless a request turns it off, by its entry in the price data."""
    if entry.get("thinking_always_on") or entry.get("thinking_on_by_default"):
        return True
    if entry.get("supports_reasoning") and _THINKING_GEMINI.search(model):
        return True
    levels = entry.get("reasoning_effort_levels")
    return bool(levels and "none" not in levels)
