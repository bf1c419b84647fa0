"""Ordinary calls that are recorded together: their tokens and their cost, added up."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from ondine_core.telemetry.events import CallEnded
from ondine_core.values import Usage

__all__ = ["Rest"]


@dataclass(slots=True)
class Rest:
    """Calls to one model, from `began_at` to `ended_at`, in seconds since the epoch; `usd` is `None` if unknown."""

    began_at: float
    ended_at: float
    calls: int = 0
    prompts: int = 0
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_tokens: int = 0
    usd: Decimal | None = Decimal(0)

    def add(self, event: CallEnded) -> None:
        """Take a call; field by field, since a new `Usage` for every sum would cost more than all else here."""
        self.ended_at = max(self.ended_at, event.at)
        self.calls += 1
        self.prompts += event.batch.prompts
        if (usage := event.usage) is not None:
            self.input_tokens += usage.input_tokens
            self.cached_input_tokens += usage.cached_input_tokens
            self.output_tokens += usage.output_tokens
            self.reasoning_tokens += usage.reasoning_tokens
            self.cache_write_tokens += usage.cache_write_tokens
        self.usd = None if self.usd is None or event.usd is None else self.usd + event.usd

    @property
    def usage(self) -> Usage:
        """The tokens of all of them."""
        return Usage(
            self.input_tokens,
            self.cached_input_tokens,
            self.output_tokens,
            self.reasoning_tokens,
            self.cache_write_tokens,
        )
