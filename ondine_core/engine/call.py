"""Makes one call: admission, reservation, ledger entry, request, settlement.

The order keeps the laws. A concurrency slot comes first. The worst-case cost is reserved and the rate booked before the
call is recorded in the ledger, and it is recorded before it leaves: a call that is not in the ledger was never made.
The slot is freed when the answers are queued for commit, not when they are durable: the store is FIFO, so the next call
is recorded, and leaves, after that commit, and a kill costs at most the calls in flight.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache
from itertools import count
from typing import Literal, cast

from ondine_core.engine.cached_prefix import CachedPrefixes
from ondine_core.engine.call_request import BatchResult, CallRequest
from ondine_core.engine.cost_tracker import CostTracker
from ondine_core.engine.other_runs import OtherRuns
from ondine_core.engine.policy import Policy
from ondine_core.engine.runtime import Runtime
from ondine_core.errors import (
    FatalError,
    InvalidReplyError,
    OndineError,
    ProviderError,
    RefusedError,
    StoreError,
    TransientError,
)
from ondine_core.limits import AdmissionQueue, CallOutcome, InFlightCall
from ondine_core.limits.rate_limiter import RateLimiter
from ondine_core.providers.charges import Charge, check_usage
from ondine_core.providers.context_window import TOKENS_A_MESSAGE
from ondine_core.providers.media_tokens import media_tokens_in
from ondine_core.providers.prompt_cache import prefix_of
from ondine_core.providers.tiers import billed_tier
from ondine_core.store.budget_state import usd_of
from ondine_core.types.clock import Clock
from ondine_core.types.ledger import CallFinished, CallStarted, Origin
from ondine_core.types.values import Call, Key, Reply, Tier, Usage

__all__ = ["Caller"]


class Caller:
    """Makes the calls of one run, until it is stopped.

    Args:
        model: Name of the model in the ledger.
        origin: Run, asset and partition of the calls.
        runtime: Model, store, limiter and budgets.
        policy: How hard to try.
        tracker: Adds up what calls cost.
        admission: Queue of calls that wait for a concurrency slot.
        clock: Time and chance.
        others: Other runs with the same task.
        tier: The price tier at which calls are made.
        cache_life_s: Seconds for which the provider caches a prefix; `None` if it does not.

    Attributes:
        stopped_by: The first error that ended the run.
        unseen: Prompts that were asked by calls whose outcome was never seen.
        has_answers: Whether a row was answered, by this run or an earlier one: so the set-up works.
        doubted: A refusal that is the set-up's if no row is answered in the end.
    """

    def __init__(  # noqa: PLR0913  (by keyword)
        self,
        *,
        model: str,
        origin: Origin,
        runtime: Runtime,
        policy: Policy,
        tracker: CostTracker,
        admission: AdmissionQueue,
        clock: Clock,
        others: OtherRuns,
        tier: Tier = "standard",
        cache_life_s: float | None = None,
    ) -> None:
        self._prefixes = None if cache_life_s is None else CachedPrefixes(cache_life_s, clock.elapsed)
        self._tier = tier
        self._no_capacity_since: float | None = None  # and no answer since
        self._model = model
        self._origin = origin
        self._runtime = runtime
        self._policy = policy
        self._tracker = tracker
        self._admission = admission
        self._clock = clock
        self._others, self._numbers = others, count()
        # Texts that every call repeats are counted once.
        self._count = lru_cache(maxsize=64)(runtime.count)
        self._waiting: set[asyncio.Task[object]] = set()
        self._interrupted: set[asyncio.Task[object]] = set()
        self._replied = self._answered = self.has_answers = False
        self.doubted: FatalError | None = None
        self._doubts = 0
        self._failing: set[tuple[Key, ...]] = set()  # since the last reply
        self.stopped_by: OndineError | None = None
        self.unseen: set[Key] = set()

    async def make(self, request: CallRequest) -> BatchResult:
        """Make a call, as often as an outage of the provider takes, and keep what comes of it.

        Raises:
            TransientError: It failed and may be made again.
            BudgetExhaustedError: It does not fit into the budget.
            FatalError: No call succeeds, or the run was stopped.
            StoreError: What came of it cannot be kept.
        """
        refused = 0  # for want of capacity
        while True:
            try:
                return await self._make_once(request)
            except TransientError as error:
                if error.no_capacity:
                    refused += 1
                    wait_s = self._capacity_wait_s(error, refused)
                elif error.cost_unknown or not self._is_waited_out(error, request.keys):
                    raise
                else:
                    wait_s = error.retry_after_s or 0.0
            with self.interruptible():
                await self._clock.sleep(wait_s)
            request.observer.retried()

    def _capacity_wait_s(self, error: TransientError, refused: int) -> float:
        """How long to wait until capacity is asked for again; when patience is at its end, the tier or the run ends."""
        if self._tier == "standard":
            return 0.0  # since this call left
        retry = self._policy.retry
        wait_timeout_s = self._policy.tier_patience_s
        now = self._clock.elapsed()
        if self._no_capacity_since is None:
            self._no_capacity_since = now
        left_s = self._no_capacity_since + wait_timeout_s - now
        if left_s > 0:
            return min(self._capped(retry.wait_s(refused, error, self._clock.rng)), left_s)
        what = f"{self._model!r} had no capacity at the tier {self._tier!r} for {wait_timeout_s:g} s"
        if self._policy.tier_fallback:
            self._tier = "standard"
            self._runtime.on_warning(f"{what}; the rest goes at the tier 'standard', at its price.")
            return 0.0
        self.stop(
            TransientError(f"{what}. Run again later, or set tier_fallback=True to go on at the tier 'standard'.")
        )
        raise error

    def _is_waited_out(self, error: TransientError, keys: tuple[Key, ...]) -> bool:
        """Whether no call is answered at present: that is no failure of this call, unless it goes on for too long."""
        since, retry = self._admission.limits.closed_since, self._policy.retry
        if (error.retry_after_s or 0.0) > retry.max_retry_after_s:
            # Such a limit is a quota; what is longer than any quota is a mistake, and this call's alone.
            if error.kind == "limited" and (error.retry_after_s or 0.0) <= _MAX_QUOTA_S:
                self.stop(FatalError(retry.explain(error)))
            return False
        if since is None:
            return False
        wait_timeout_s = retry.max_outage_s
        if error.no_connection and not self._replied:
            wait_timeout_s = min(wait_timeout_s, _FIRST_OUTAGE_S)
        self._failing.add(keys)
        if self._clock.elapsed() - since < wait_timeout_s:
            return True
        # Where all others were answered it may be this call that the server cannot bear.
        if len(self._failing) > 1 or not self._answered:
            self.stop(error)
        return False

    async def _make_once(self, request: CallRequest) -> BatchResult:
        leads = await self._await_prefix(request.call)
        try:
            return await self._make_in_turn(request)
        finally:
            if leads and self._prefixes:
                self._prefixes.leave(prefix_of(request.call))

    async def _await_prefix(self, call: Call) -> bool:
        """Wait until the prefix of `call` is in the provider's cache; whether `call` is what brings it there."""
        if self._prefixes is None or not call.cache_prefix:
            return False
        with self.interruptible():
            return await self._prefixes.enter(prefix_of(call))

    async def _make_in_turn(self, request: CallRequest) -> BatchResult:
        with self.interruptible():
            slot = await self._admission.enter()
        if request.call.tier != self._tier:
            request = replace(request, call=replace(request.call, tier=self._tier))
        state = _CallState(slot)
        try:
            began, hold = self._clock.elapsed(), None
            state.bound_usd = self._tracker.bound(request.call)
            budgets = self._runtime.budgets
            if budgets and state.bound_usd is not None:
                with self.interruptible():
                    hold = await budgets.hold(state.bound_usd)
            try:
                if hold:
                    request.observer.held(usd_of(hold[0].units), self._clock.elapsed() - began)
                return await self._exchange(request, state)
            finally:
                if budgets and hold:
                    await budgets.settle(hold, state.spent_usd)
        finally:
            self._leave(state)

    def _leave(self, state: _CallState) -> None:
        """Give the place back, once."""
        slot, state.slot = state.slot, None
        if slot is not None:
            self._admission.leave(slot, state.ending, state.retry_after_s)

    async def _exchange(self, request: CallRequest, state: _CallState) -> BatchResult:
        store = self._runtime.store
        limiter = self._runtime.limiter
        call = request.call
        tokens = self._expected_tokens(call) if limiter else 0
        if limiter:
            await self._book(limiter, request, tokens)
        sent = self._new_call(request, state.bound_usd)
        taken = await store.send(sent)
        self._others.is_shared |= taken is not None
        if taken:
            return BatchResult(taken=taken)
        if limiter:
            await limiter.depart()
        await self._ensure_lease(sent)
        self._tracker.sent()
        request.observer.sent(sent, call)
        state.spent_usd = None  # not known until the call comes back
        try:
            came, usage = await self._ask(call, sent, state)
        except BaseException as error:
            request.observer.on_reply(error, state.spent_usd, state.took_s)
            raise
        state.ending = "answered"
        self._note_reply(call)
        charge = self._charge(request, came, usage, state.bound_usd)
        usd, bound_usd = charge.usd, state.bound_usd
        state.spent_usd = usd
        if usd is not None and bound_usd is not None and usd > bound_usd:
            self._tracker.exceeded(call, usd)
        if isinstance(came, RefusedError):
            failures = (await store.get_failures(request.keys)).values()
            came.refused_before = any(failure.reason == "refused" for failure in failures)
        else:
            self._answered = self.has_answers = True
        conclusion = request.conclude(came, usd)
        is_ordinary = not (conclusion.failures or conclusion.retry)
        request.observer.on_reply(came, usd, state.took_s, ordinary=is_ordinary)
        kept = conclusion if request.keep else BatchResult()
        since = self._policy.reuse_since
        again = sum(key in self.unseen for key, _ in kept.answers) if self.unseen else 0
        outcome: Literal["answered", "refused"] = "refused" if usage is None else "answered"
        hold_off_s = self._capped(came.hold_off_s) if isinstance(came, Reply) else 0.0
        if hold_off_s:
            self._admission.hold_off(hold_off_s)
        self._leave(state)
        settled = CallFinished(
            sent,
            outcome,
            usage or Usage(),
            usd,
            kept.answers,
            kept.failures,
            again,
            since,
            at_most=charge.at_most,
            replies=kept.replies,
        )
        await store.settle(settled)
        if limiter and usage is not None:
            limiter.correct(tokens, usage.input_tokens + usage.output_tokens)
        await self._tell_others(hold_off_s)
        return conclusion

    def _note_reply(self, call: Call) -> None:
        """The provider replies, at present: there is no outage, it has capacity, and it knows the prefix of `call`."""
        self._replied = True
        self._failing.clear()
        self._no_capacity_since = None
        if self._prefixes and call.cache_prefix:
            self._prefixes.answered(prefix_of(call))

    def _charge(
        self, request: CallRequest, came: Reply | RefusedError, usage: Usage | None, bound_usd: Decimal | None
    ) -> Charge:
        if usage is None:
            return Charge(Decimal(0))
        tier = billed_tier(came.tier, request.call.tier)
        return self._tracker.answered(request.stage, usage, stated_usd=came.stated_usd, bound_usd=bound_usd, tier=tier)

    async def _book(self, limiter: RateLimiter, request: CallRequest, tokens: int) -> None:
        began = self._clock.elapsed()
        with self.interruptible():
            await limiter.acquire(tokens)
        request.observer.booked(tokens, self._clock.elapsed() - began)

    def _new_call(self, request: CallRequest, bound_usd: Decimal | None) -> CallStarted:
        others = self._others
        return CallStarted(
            others.run + next(self._numbers).to_bytes(8),  # numbered, since randomness for each would take longer
            self._origin,
            self._model,
            request.stage,
            request.keys,
            self._clock.now(),
            bound_usd,
            others.task if request.keep else b"",
            others.is_shared,
            others.is_known_unanswered(request.keys),
        )

    async def _ensure_lease(self, sent: CallStarted) -> None:
        """Make sure, before a call leaves, that the lease is still held: the process may have been suspended."""
        lease = self._runtime.lease
        if lease is None or not lease.is_overdue():
            return
        try:
            await lease.renew()
        except StoreError:
            await self._runtime.store.settle(CallFinished(sent, "refused"))  # it never left
            raise

    async def _ask(self, call: Call, sent: CallStarted, state: _CallState) -> tuple[Reply | RefusedError, Usage | None]:
        """What came back, and the tokens that were billed for it (`None`: none)."""
        try:
            reply = await self._call_model(call, state)
        except RefusedError as error:
            return error, None if error.usage is None else check_usage(error.usage, "")
        except InvalidReplyError as error:
            # Whether it is billed is not known, nor what it took beyond what is shown of it.
            received = self._count(error.reply.text)
            return error.reply, Usage(self._expected_tokens(call), output_tokens=received, is_complete=False)
        except ProviderError as error:
            if isinstance(error, FatalError):
                if self._is_about_the_row(error):
                    return RefusedError(error.refusal, fault="unclear"), None
                self.stop(error)  # before another call takes the place of this one
            unknown = isinstance(error, TransientError) and error.cost_unknown
            state.ending = error.kind if isinstance(error, TransientError) else "broken"
            if isinstance(error, TransientError):
                state.retry_after_s = self._capped(error.retry_after_s)
            if unknown:
                self._lose(sent)
            else:
                state.spent_usd = Decimal(0)
                self._leave(state)
                if self._admission.limits.closed_since is not None:
                    await self._tell_others(state.retry_after_s)
                await self._runtime.store.settle(CallFinished(sent, "refused"))
            raise
        except asyncio.CancelledError:
            self._lose(sent)
            raise
        usage = check_usage(reply.usage, reply.text)
        return (reply if usage is reply.usage else replace(reply, usage=usage)), usage

    async def _call_model(self, call: Call, state: _CallState) -> Reply:
        began = self._clock.elapsed()
        try:
            return await self._runtime.model(call)
        except TransientError as error:
            # At the standard tier there is no other capacity to wait for.
            error.no_capacity = error.no_capacity and call.tier != "standard"
            raise
        finally:
            state.took_s = self._clock.elapsed() - began

    def _is_about_the_row(self, error: FatalError) -> bool:
        """Whether `error` refuses this row and not all: others were answered, or it is too early to tell."""
        if error.fault == "setup":
            return self._answered
        if error.fault == "permission" and not self.has_answers:
            self._doubts += 1
            self.doubted = error
            return self._doubts < _MAX_DOUBTS
        return error.fault == "permission"

    def _lose(self, sent: CallStarted) -> None:
        self._tracker.lost(sent.at_most_usd)
        self.unseen.update(sent.keys)

    def _capped(self, seconds: float | None) -> float:
        """A wait that a provider asks for; 0 for none, and for one that is too long to wait for."""
        wait_s = seconds or 0.0
        return wait_s if 0 < wait_s <= self._policy.retry.max_retry_after_s else 0.0

    async def _tell_others(self, hold_off_s: float) -> None:
        """Pass on the wait that a provider asks for to the other users of its rate."""
        if hold_off_s and self._runtime.limiter:
            await self._runtime.limiter.hold_off(hold_off_s)

    def _expected_tokens(self, call: Call) -> int:
        """What the rate of tokens is booked for: the prompt's, and the replies' mean length so far."""
        spend, count = self._tracker.spend, self._count
        sent = count(call.json_schema.decode()) if call.json_schema else 0
        sent += sum(count(message.content) + TOKENS_A_MESSAGE for message in call.messages)
        if call.media:
            tokens_of = self._runtime.media_tokens
            sent += sum(media_tokens_in(message.content, call.media, tokens_of) for message in call.messages)
        return sent + (spend.usage.output_tokens // spend.answered if spend.answered else 0)

    # -- stopping --------------------------------------------------------------------------------------------------

    def stop(self, error: OndineError) -> None:
        """Let no further call leave. Calls in flight are paid for and go on; waiting ones are cancelled."""
        if self.stopped_by is None:
            self.stopped_by = error
            self._interrupted |= self._waiting
            for task in self._waiting:
                task.cancel()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A wait that ends with `FatalError` when the run is stopped."""
        if self.stopped_by is not None:
            raise FatalError(str(self.stopped_by))
        task = cast("asyncio.Task[object]", asyncio.current_task())
        self._waiting.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if task in self._interrupted and task.uncancel() == 0:
                raise FatalError(str(self.stopped_by)) from None
            raise
        finally:
            self._waiting.discard(task)


@dataclass(slots=True)
class _CallState:
    """How a call ended, what it cost (at most `bound_usd`) and how long it took, as far as is known.

    It has a `slot` for as long as it counts as a call in flight.
    """

    slot: InFlightCall | None
    ending: CallOutcome | None = None
    retry_after_s: float = 0.0
    bound_usd: Decimal | None = None
    spent_usd: Decimal | None = Decimal(0)
    took_s: float = 0.0


_MAX_QUOTA_S = 31 * 86400.0
_MAX_DOUBTS = 3
"""After this many refusals without a reason and without an answer, the key is taken to lack permission."""
_FIRST_OUTAGE_S = 30.0
"""A server that never accepted a connection probably has another address, so it is waited for less long."""
