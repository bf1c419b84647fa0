"""Makes one call: admission, reservation, ledger entry, request, settlement.

The laws depend on this order. A call first gets a concurrency slot. Then its worst-case cost is reserved and the rate
is booked, then it is recorded in the ledger, then it leaves: a call that is not in the ledger was never made. The slot
is freed when the answers are queued for commit, not when they are durable: the store is FIFO, so the next call is
recorded, and leaves, after that commit, and a kill costs at most the calls in flight.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache, partial
from itertools import count
from typing import Any

from ondine_core.engine.cached_prefix import CachedPrefixes
from ondine_core.engine.interpreting import BatchResult
from ondine_core.engine.provider_health import ProviderHealth
from ondine_core.engine.run_context import RunContext
from ondine_core.engine.settlement import NO_CHARGE, charge_call, finish_call
from ondine_core.errors import (
    ConfigError,
    FatalError,
    InvalidReplyError,
    ProviderError,
    RefusedError,
    StoreError,
    TransientError,
)
from ondine_core.limits import AdmissionQueue, CallOutcome, InFlightCall
from ondine_core.limits.budget_limit import Reservation
from ondine_core.providers.charges import Charge, check_usage
from ondine_core.providers.context_window import TOKENS_A_MESSAGE
from ondine_core.providers.prompt_cache import find_cache_rule, prefix_of
from ondine_core.store.budget_state import usd_of
from ondine_core.telemetry.emitter import BatchObserver
from ondine_core.types.field_types import check_types
from ondine_core.types.ledger import CallFinished, CallReason, CallStarted
from ondine_core.types.values import Call, Key, Reply, Usage

_UNKNOWN_CHARGE = Charge(None)


@dataclass(slots=True)
class PendingCall:
    """A call, the resources that it holds until it ends, and its outcome.

    `Caller.start` sets the tier of the `call`. Unless `keep`, its answers are not stored; its ledger entry always is.

    Attributes:
        taken: Prompts because of which it must not leave.
        leads: Whether other calls wait until it has brought their prefix into the provider's cache.
        slot: Its concurrency slot, `None` before and after it has one.
        reserved: Its reservations in budgets.
        tokens: The tokens that are booked for it.
        charge: Its cost, nothing before it leaves.
        usage: The tokens that were billed, `None` for none.
        took_s: Seconds from request to reply or error.
        ending: How it ended, for the limits.
        retry_after_s: The wait that its refusal asked for.
    """

    call: Call
    keys: tuple[Key, ...]
    reason: CallReason
    keep: bool
    observer: BatchObserver
    taken: frozenset[Key] = frozenset()
    leads: bool = False
    slot: InFlightCall | None = None
    reserved: tuple[Reservation, ...] = ()
    tokens: int = 0
    charge: Charge = NO_CHARGE
    usage: Usage | None = None
    took_s: float = 0.0
    ending: CallOutcome | None = None
    retry_after_s: float = 0.0


def _checked(reply: Any) -> Reply:
    """Return the reply of a model, which may be the user's own and return anything."""
    if not isinstance(reply, Reply):
        raise ConfigError(f"The model returned a {type(reply).__name__} instead of a Reply.")
    usage: Any = reply.usage
    parts = (reply.text, str), (reply.finish_reason, str), (usage, Usage | None)
    if not all(isinstance(part, kind) for part, kind in parts):
        check_types(replace(reply, usage=Usage()) if usage is None else reply, ConfigError)
    return reply


class Caller:
    """Makes the calls of one run, until it is stopped."""

    def __init__(self, run: RunContext, admission: AdmissionQueue, health: ProviderHealth) -> None:
        rule = find_cache_rule(run.task.model)
        self._run = run
        self._admission = admission
        self._health = health
        self._prefixes = None if rule is None else CachedPrefixes(rule.life_s, run.clock.elapsed)
        self._numbers = count()
        # The tokens of texts that every call repeats are counted once.
        self._count = lru_cache(maxsize=64)(run.runtime.count)

    async def start(self, pending: PendingCall) -> CallStarted:
        """Prepare a call to leave, and return its entry in the ledger; it must not leave if prompts are `taken`.

        `end` must be called in any case, and gives back what the call holds.

        Raises:
            BudgetExhaustedError: It does not fit into the budget.
            FatalError: The run was stopped.
            StoreError: It cannot be recorded.
        """
        await self._admit(pending)
        bound_usd = await self._reserve(pending)
        await self._book(pending)
        return await self._record(pending, bound_usd)

    async def end(self, pending: PendingCall) -> None:
        """Give back what a call holds."""
        self._leave(pending)
        if pending.leads and self._prefixes:
            self._prefixes.leave(prefix_of(pending.call))
        if pending.reserved and self._run.runtime.budgets:
            await self._run.runtime.budgets.settle(pending.reserved, pending.charge.usd)

    async def send(self, pending: PendingCall, sent: CallStarted) -> Reply | RefusedError:
        """Send a call, and return the model's reply, or the error with which the provider refuses its content.

        Raises:
            TransientError: It failed and may be made again.
            FatalError: No call succeeds.
            StoreError: The lease cannot be renewed, or the failure cannot be stored.
        """
        run = self._run
        try:
            if run.runtime.limiter:
                await run.runtime.limiter.depart()
            await self._ensure_lease(sent)
        except asyncio.CancelledError:
            await self._withdraw(sent)
            raise
        tracker = run.run_state.tracker
        tracker.sent()
        pending.observer.sent(sent, pending.call)
        pending.charge = _UNKNOWN_CHARGE  # until it has ended
        try:
            reply, pending.usage = await self._ask(pending, sent)
        except BaseException as error:
            pending.observer.on_reply(error, pending.charge.usd, pending.took_s)
            raise
        pending.ending = "answered"
        self._health.note_reply()
        if self._prefixes and pending.call.cache_prefix:
            self._prefixes.answered(prefix_of(pending.call))
        pending.charge = charge_call(
            partial(tracker.answered, sent.stage), sent, reply, pending.usage, pending.call.tier
        )
        usd, bound_usd = pending.charge.usd, sent.at_most_usd
        if usd is not None and bound_usd is not None and usd > bound_usd:
            tracker.exceeded(pending.call, usd)
        if isinstance(reply, Reply):
            self._health.note_answer()
        else:
            failures = (await run.runtime.store.get_failures(pending.keys)).values()
            reply.refused_before = any(failure.reason == "refused" for failure in failures)
        return reply

    async def settle(
        self, pending: PendingCall, sent: CallStarted, reply: Reply | RefusedError, result: BatchResult
    ) -> None:
        """Store the result of a call; returns when it is durable."""
        run = self._run
        usage = pending.usage
        is_ordinary = not (result.failures or result.retry)
        pending.observer.on_reply(reply, pending.charge.usd, pending.took_s, ordinary=is_ordinary)
        hold_off_s = self._accept_wait(reply.hold_off_s) if isinstance(reply, Reply) else 0.0
        if hold_off_s:
            self._admission.hold_off(hold_off_s)
        kept = result if pending.keep else BatchResult()
        settled = finish_call(run, sent, usage, pending.charge, kept)
        self._leave(pending)
        await run.runtime.store.settle(settled)
        limiter = run.runtime.limiter
        if limiter and usage is not None:
            limiter.correct(pending.tokens, usage.input_tokens + usage.output_tokens)
        await self._share_hold_off(hold_off_s)

    # -- before it leaves ------------------------------------------------------------------------------------------

    async def _admit(self, pending: PendingCall) -> None:
        """Wait until the prefix of the call is in the provider's cache, and then for a concurrency slot."""
        stop, call = self._run.stop, pending.call
        if self._prefixes and call.cache_prefix:
            with stop.interruptible():
                pending.leads = await self._prefixes.enter(prefix_of(call))
        with stop.interruptible():
            pending.slot = await self._admission.enter()
        if call.tier != self._health.tier:
            pending.call = replace(call, tier=self._health.tier)

    async def _reserve(self, pending: PendingCall) -> Decimal | None:
        """Reserve the maximum cost of the call, and return it in USD; `None` if unknown."""
        run = self._run
        bound_usd = run.run_state.tracker.bound(pending.call)
        if run.runtime.budgets is not None and bound_usd is not None:
            began = run.clock.elapsed()
            with run.stop.interruptible():
                pending.reserved = await run.runtime.budgets.hold(bound_usd)
            pending.observer.held(usd_of(pending.reserved[0].units), run.clock.elapsed() - began)
        return bound_usd

    async def _book(self, pending: PendingCall) -> None:
        """Wait for the call's turn in the shared rate."""
        run, limiter = self._run, self._run.runtime.limiter
        if limiter is None:
            return
        tokens = self._expected_tokens(pending.call)
        pending.tokens = tokens
        began = run.clock.elapsed()
        with run.stop.interruptible():
            await limiter.acquire(tokens)
        pending.observer.booked(tokens, run.clock.elapsed() - began)

    async def _record(self, pending: PendingCall, bound_usd: Decimal | None) -> CallStarted:
        """Record the call in the ledger, unless other runs have prompts of it in flight."""
        run, others = self._run, self._run.others
        sent = CallStarted(
            call=others.own.run + next(self._numbers).to_bytes(8),  # a number takes less time than a random id
            origin=run.origin,
            model=run.task.model.model,
            stage=pending.reason,
            keys=pending.keys,
            sent_at=run.clock.now(),
            at_most_usd=bound_usd,
            task=others.own.task if pending.keep else b"",
            is_shared=others.is_shared,
            ignores_answers=others.has_unreadable(pending.keys),
        )
        try:
            taken = await run.runtime.store.send(sent)
        except asyncio.CancelledError:
            await self._withdraw(sent)
            raise
        if taken is not None:
            others.is_shared = True
            pending.taken = taken
        return sent

    async def _ensure_lease(self, sent: CallStarted) -> None:
        """Check, before a call leaves, that the lease is still held, since the process may have been suspended."""
        lease = self._run.runtime.lease
        if lease is None or not lease.is_overdue():
            return
        try:
            await lease.renew()
        except StoreError:
            await self._withdraw(sent)
            raise

    async def _withdraw(self, sent: CallStarted) -> None:
        """Try to record that a call never left; otherwise its cost would count as unknown."""
        with suppress(StoreError):
            await self._run.runtime.store.settle(CallFinished(sent, "refused"))

    # -- after it has ended ----------------------------------------------------------------------------------------

    async def _ask(self, pending: PendingCall, sent: CallStarted) -> tuple[Reply | RefusedError, Usage | None]:
        """Return the reply or refusal of a call, and the billed tokens, `None` for none."""
        try:
            reply = await self._call_model(pending)
        except RefusedError as error:
            return error, None if error.usage is None else check_usage(error.usage, "")
        except InvalidReplyError as error:
            # Whether it is billed is unknown, and so are its tokens beyond the text that the provider shows.
            received = self._count(error.reply.text)
            return error.reply, Usage(self._expected_tokens(pending.call), output_tokens=received, is_complete=False)
        except FatalError as error:
            ends = self._health.note_fatal(error)
            if ends == "row":
                return RefusedError(error.refusal, fault="unclear"), None
            if ends == "call":
                mistake = TransientError(error.refusal)
                await self._settle_failed(pending, sent, mistake)
                raise mistake from error
            self._run.stop.stop(error)  # before the slot is freed for another call
            await self._settle_failed(pending, sent, error)
            raise
        except ProviderError as error:
            await self._settle_failed(pending, sent, error)
            raise
        except asyncio.CancelledError:
            self._lose(sent)
            raise
        usage = check_usage(reply.usage, reply.text)
        return (reply if usage is reply.usage else replace(reply, usage=usage)), usage

    async def _call_model(self, pending: PendingCall) -> Reply:
        elapsed = self._run.clock.elapsed
        began = elapsed()
        try:
            return _checked(await self._run.runtime.model(pending.call))
        except TransientError as error:
            if error.cause == "capacity" and pending.call.tier == "standard":
                error.cause = None  # there is no other capacity to wait for
            raise
        finally:
            pending.took_s = elapsed() - began

    async def _settle_failed(self, pending: PendingCall, sent: CallStarted, error: ProviderError) -> None:
        """Record that a call failed; it costs nothing, unless its cost is unknown."""
        pending.ending = "broken"
        if isinstance(error, TransientError):
            pending.ending = error.kind
            pending.retry_after_s = self._accept_wait(error.retry_after_s)
            if error.cost_unknown:
                self._lose(sent)
                return
        pending.charge = NO_CHARGE
        self._leave(pending)
        if self._admission.limits.closed_since is not None:
            await self._share_hold_off(pending.retry_after_s)
        await self._run.runtime.store.settle(CallFinished(sent, "refused"))

    def _lose(self, sent: CallStarted) -> None:
        """Record a call of unknown outcome."""
        self._run.run_state.tracker.lost(sent.at_most_usd)
        self._run.unseen.update(sent.keys)

    def _leave(self, pending: PendingCall) -> None:
        """Give the concurrency slot back, once."""
        slot, pending.slot = pending.slot, None
        if slot is not None:
            self._admission.leave(slot, pending.ending, pending.retry_after_s)

    def _accept_wait(self, seconds: float | None) -> float:
        """The wait that a provider asks for, 0 if there is none or it is too long."""
        wait_s = seconds or 0.0
        return wait_s if 0 < wait_s <= self._run.policy.retry.max_retry_after_s else 0.0

    async def _share_hold_off(self, hold_off_s: float) -> None:
        """Share the wait that a provider asks for with the other users of its rate."""
        if hold_off_s and self._run.runtime.limiter:
            await self._run.runtime.limiter.hold_off(hold_off_s)

    def _expected_tokens(self, call: Call) -> int:
        """The tokens to book for a call: those of its prompt, and the mean length of replies so far."""
        spend = self._run.run_state.tracker.spend
        count = self._count
        sent = count(call.json_schema.decode()) if call.json_schema else 0
        sent += sum(count(message.content) + TOKENS_A_MESSAGE for message in call.messages)
        if call.media:
            sent += sum(map(self._run.runtime.media_tokens, call.shown_media))
        return sent + (spend.usage.output_tokens // spend.answered if spend.answered else 0)
