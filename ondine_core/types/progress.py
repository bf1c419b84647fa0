"""Progress and cost of a run: row counts, calls, tokens and USD."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal

from ondine_core.types.ledger import CallReason, UsageTotals
from ondine_core.types.values import Usage


@dataclass(frozen=True, slots=True)
class Spend:
    """Calls, tokens and money.

    Args:
        calls: Calls sent, retries included.
        answered: Calls with a reply.
        unknown: Calls that may have been billed although no reply was seen.
        usage: Tokens of the replies.
        usd: Cost of the replies; `None` if the cost of one is unknown.
        stages: The calls that were billed, by the reason why they were made.
        at_most_calls: Number of calls in `usd` at their maximum cost, since the provider did not report the usage.
        unknown_usd: Maximum cost of the unknown calls, not in `usd`; `None` if unknown.
        cache_saved_usd: What the provider's prompt cache saved; negative if writing to it cost more than reading saved.
    """

    calls: int = 0
    answered: int = 0
    unknown: int = 0
    usage: Usage = Usage()
    usd: Decimal | None = None
    stages: Mapping[CallReason, UsageTotals] = field(default_factory=dict)
    at_most_calls: int = 0
    unknown_usd: Decimal | None = Decimal(0)
    cache_saved_usd: Decimal = Decimal(0)

    def __add__(self, other: Spend) -> Spend:
        """The sum; its cost is unknown if one of the two is."""
        stages = {
            stage: self.stages.get(stage, UsageTotals()) + other.stages.get(stage, UsageTotals())
            for stage in dict.fromkeys((*self.stages, *other.stages))
        }
        return Spend(
            calls=self.calls + other.calls,
            answered=self.answered + other.answered,
            unknown=self.unknown + other.unknown,
            usage=self.usage + other.usage,
            usd=add_usd(self.usd, other.usd),
            stages=stages,
            at_most_calls=self.at_most_calls + other.at_most_calls,
            unknown_usd=add_usd(self.unknown_usd, other.unknown_usd),
            cache_saved_usd=self.cache_saved_usd + other.cache_saved_usd,
        )

    def __str__(self) -> str:
        """The cost in words."""
        if self.usd is None:
            cost = "of unknown cost"
        else:
            cost = f"at most ${self.usd:.4f}" if self.at_most_calls else f"${self.usd:.4f}"
        if not self.unknown:
            return cost
        lost = "an unknown amount" if self.unknown_usd is None else f"at most ${self.unknown_usd:.4f}"
        return f"{cost}, and {lost} for {self.unknown:,} lost calls"

    @property
    def refused(self) -> int:
        """Calls that the provider refused, or that are in flight."""
        return self.calls - self.answered - self.unknown


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a run.

    Args:
        rows_total: All rows.
        rows_done: Rows with an outcome: answered, failed or skipped.
        rows_reused: Rows done whose outcome was in the store before the run began.
        rows_failed: Rows done that failed.
        spend: Calls, tokens and money so far.
        elapsed_s: Seconds so far.
        rows_unaskable: Rows that failed because no prompt could be made.
        rows_skipped: Rows done that were not asked about, since a column is null or blank.
        reused_usd: What the reused outcomes cost when they were asked, each prompt once; `None` if unknown.
    """

    rows_total: int
    rows_done: int
    rows_reused: int
    rows_failed: int
    spend: Spend
    elapsed_s: float
    rows_unaskable: int = 0
    rows_skipped: int = 0
    reused_usd: Decimal | None = Decimal(0)

    @property
    def rows_asked(self) -> int:
        """Rows done by asking the model in this run."""
        return self.rows_done - self.rows_reused - self.rows_unaskable - self.rows_skipped

    @property
    def rows_per_s(self) -> float:
        """Rows done by asking the model, per second."""
        return self.rows_asked / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def pace(self) -> str:
        """Rows per second as a text, or that nothing had to be asked."""
        if self.rows_asked or self.rows_done < self.rows_total:
            return f"{self.rows_per_s:,.1f} rows/s"
        return "all known" if self.rows_reused else "nothing to ask"

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the end at the present rate, `None` before the first row is done by asking."""
        return (self.rows_total - self.rows_done) / self.rows_per_s if self.rows_per_s else None

    @property
    def cost_usd_total(self) -> Decimal | None:
        """What was spent plus what the reused outcomes cost when they were asked; `None` if either is unknown."""
        spent = self.spend.usd if self.spend.calls else Decimal(0)
        return add_usd(spent, self.reused_usd)

    @property
    def forecast_usd(self) -> Decimal | None:
        """Projected cost of the whole run, if the other rows cost as much as those asked so far; `None` if unknown."""
        if self.spend.usd is None or not self.rows_asked:
            return None
        return self.spend.usd * (self.rows_asked + self.rows_total - self.rows_done) / self.rows_asked

    def merge_rest(self, rest: Progress) -> Progress:
        """Merge with the progress of a run over the rows that this one left unanswered (and counts as failed)."""
        spent = self.spend
        if spent.usd is None and not (spent.answered or spent.unknown):
            spent = replace(spent, usd=Decimal(0))  # refused calls cost nothing, whatever the price is
        return Progress(
            rows_total=self.rows_total,
            rows_done=self.rows_done - rest.rows_total + rest.rows_done,
            rows_reused=self.rows_reused + rest.rows_reused,
            rows_failed=self.rows_failed - rest.rows_total + rest.rows_failed,
            spend=spent + rest.spend,
            elapsed_s=self.elapsed_s + rest.elapsed_s,
            rows_unaskable=self.rows_unaskable + rest.rows_unaskable,
            rows_skipped=self.rows_skipped + rest.rows_skipped,
            reused_usd=add_usd(self.reused_usd, rest.reused_usd),
        )


def add_usd(one: Decimal | None, other: Decimal | None) -> Decimal | None:
    """The sum of two amounts, `None` if one is unknown."""
    return None if one is None or other is None else one + other
