"""The cost of a finished call and its entry in the ledger, for live calls and for the results of batch jobs."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

from ondine_core.engine.interpreting import BatchResult
from ondine_core.engine.run_context import RunContext
from ondine_core.errors import RefusedError
from ondine_core.providers.charges import Charge
from ondine_core.providers.tiers import billed_tier
from ondine_core.telemetry.emitter import BatchObserver
from ondine_core.types.ledger import CallFinished, CallStarted
from ondine_core.types.values import Reply, Tier, Usage

NO_CHARGE = Charge(Decimal(0))


def charge_call(
    charge: Callable[..., Charge],
    sent: CallStarted,
    reply: Reply | RefusedError | None,
    usage: Usage | None,
    tier: Tier,
) -> Charge:
    """The charge for a call by `CostTracker.charge`, or by `CostTracker.answered`, which also counts the call."""
    if usage is None:
        return NO_CHARGE
    return charge(
        usage,
        stated_usd=None if reply is None else reply.stated_usd,
        bound_usd=sent.at_most_usd,
        tier=billed_tier(None if reply is None else reply.tier, tier),
    )


def finish_call(
    run: RunContext, sent: CallStarted, usage: Usage | None, charge: Charge, result: BatchResult
) -> CallFinished:
    """Make the ledger entry of a finished call, with its outcomes."""
    unseen = run.unseen
    return CallFinished(
        sent=sent,
        outcome="refused" if usage is None else "answered",
        usage=usage or Usage(),
        usd=charge.usd,
        answers=result.answers,
        failures=result.failures,
        paid_twice=sum(key in unseen for key, _ in result.answers) if unseen else 0,
        reuse_since=run.policy.reuse_since,
        at_most=charge.at_most,
        replies=result.replies,
    )


def end_batch(
    run: RunContext, observer: BatchObserver, result: BatchResult, *, keep: bool = True, error: Exception | None = None
) -> None:
    """Report the end of a batch to observers, with its failed rows if its outcomes are stored (`keep`)."""
    if keep and result.failures:
        rows_of = run.run_state.rows_of
        observer.rows_failed((failure, rows_of(key)) for key, failure in result.failures)
    retried = sum(len(batch.items) for batch in result.retry)
    observer.ended(len(result.answers), len(result.failures), retried, error)
