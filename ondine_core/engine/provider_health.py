"""Decides from the errors of calls whether an outage is waited out, a row fails, or the run ends."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from ondine_core.engine.run_context import RunContext
from ondine_core.errors import FatalError, RefusedError, TransientError
from ondine_core.limits import AdaptiveConcurrency
from ondine_core.limits.retry import RetryPolicy
from ondine_core.types.values import Key, Tier

_MAX_QUOTA_S = 31 * 86400.0
_MAX_REFUSED_PERMISSIONS = 3
"""Number of refusals without a reason, while nothing is answered, after which the key is taken to lack permission."""
_MAX_UNCERTAIN = 3
"""Number of uncertain fatal errors since the last answer that end the run."""
_FIRST_OUTAGE_S = 30.0
"""Maximum outage of a server that never accepted a connection: probably its address is wrong."""

_MAX_LOST_BATCHES = 10
"""Maximum number of different batches in a row that lose their calls; with more, rows are not the cause."""

_MAX_HALVINGS = 7
"""Number of halvings that find one row among a hundred."""

_MAX_UNCLEAR, _MAX_OF_ROWS = 20, 100
"""Number of refusals in a row with the same text that end the run: without a stated reason, and because of the content
of rows (more, since the table may be sorted by it)."""


class ProviderHealth:
    """Decides which errors concern only a call or a row, and stops the run because of the others.

    Args:
        run: The run.
        limits: Knows since when no call has been answered.

    Attributes:
        tier: The present price tier of calls.
        has_answers: Whether a row was answered, in this run or an earlier one, so that the set-up works.
    """

    def __init__(self, run: RunContext, limits: AdaptiveConcurrency) -> None:
        tier = run.task.model.tier
        self.tier: Tier = "standard" if tier == "batch" else tier
        self.has_answers = False
        self._run = run
        self._limits = limits
        self._replied = self._answered = False
        self._no_capacity_since: float | None = None  # `None` after a reply
        self._failing: set[tuple[Key, ...]] = set()  # batches whose calls failed since the last reply
        self._halved: dict[Key, RetryPolicy] = {}  # how calls with prompts of halved batches are retried
        self._permission_error: FatalError | None = None
        self._refused_permissions = 0
        self._uncertain = 0
        self._unreachable_in_a_row = 0
        self._refusals = _RefusalStreak()

    # -- outcomes of calls -----------------------------------------------------------------------------------------

    def note_reply(self) -> None:
        """Record that the provider replies, or refuses a call: there is no outage, and it has capacity."""
        self._replied = True
        self._failing.clear()
        self._no_capacity_since = None
        self._unreachable_in_a_row = 0

    def note_answer(self) -> None:
        """Record a reply that is not a refusal."""
        self._answered = self.has_answers = True
        self._uncertain = 0
        if self._refusals.count:
            self._refusals = _RefusalStreak()

    def note_refusal(self, error: RefusedError, rows: int, *, any_answer: bool) -> None:
        """Stop the run when refusals repeat, except those explained by the size of a batch or by an earlier run."""
        if error.fault == "size" and rows > 1:
            return
        if error.refused_before and any_answer:
            return
        reason = self._refusals.add(error, any_answer=any_answer)
        if reason is not None:
            self._run.stop.stop(reason)

    def note_unreachable(self, error: TransientError, max_in_a_row: int) -> None:
        """Record a batch whose last attempt failed; `max_in_a_row` of them without a reply stop the run."""
        self._unreachable_in_a_row += 1
        if self._unreachable_in_a_row >= max_in_a_row:
            self._run.stop.stop(error)

    def should_halve(self, keys: tuple[Key, ...], error: TransientError) -> bool:
        """Whether a batch of these prompts that failed with `error` should be asked again in halves.

        It should if one of its rows may make the server fail, and not if no call is answered at all.
        """
        if (error.retry_after_s or 0.0) > self._run.policy.retry.max_retry_after_s:
            return False
        is_down = self._is_long_outage() and not self._may_be_about_a_row(error)
        return len(keys) > 1 and self._unreachable_in_a_row <= _MAX_HALVINGS and not is_down

    def note_halved(self, keys: tuple[Key, ...], error: TransientError) -> None:
        """Record that a batch of these prompts is asked again in halves."""
        self._failing.discard(keys)
        policy = self.retry_policy(keys)
        if error.times_lost >= policy.max_lost:
            policy = replace(policy, max_lost=1)
        if self._is_long_outage():
            policy = replace(policy, max_attempts=1)
        self._halved |= dict.fromkeys(keys, policy)

    def retry_policy(self, keys: tuple[Key, ...]) -> RetryPolicy:
        """How a call with these prompts is retried; for the halves of a batch, fewer attempts are left."""
        usual = self._run.policy.retry
        policy = next((self._halved[key] for key in keys if key in self._halved), usual)
        is_shortened = policy.max_attempts < usual.max_attempts
        return replace(policy, max_attempts=usual.max_attempts) if is_shortened and self._answered else policy

    # -- causes of errors ------------------------------------------------------------------------------------------

    def note_fatal(self, error: FatalError) -> Literal["row", "call", "run"]:
        """Record a fatal error; returns what ends: the row, only this call, which is made again, or the run."""
        if self._is_about_the_row(error):
            return "row"
        if error.is_certain or not self._answered:
            return "run"
        # A provider that has answered may be mistaken, but not several times since its last answer.
        self._uncertain += 1
        return "call" if self._uncertain < _MAX_UNCERTAIN else "run"

    def _is_about_the_row(self, error: FatalError) -> bool:
        """Whether `error` concerns only this row: others were answered, or too few were refused to decide."""
        if error.fault == "setup":
            return self._answered
        if error.fault != "permission":
            return False
        if not self.has_answers:
            self._refused_permissions += 1
            self._permission_error = error
        return self.has_answers or self._refused_permissions < _MAX_REFUSED_PERMISSIONS

    def end_without_permission(self) -> None:
        """Stop the run if permission was refused for some rows and no row was answered in the end."""
        if self._permission_error is not None and not self.has_answers:
            self._run.stop.stop(self._permission_error)

    def find_wait_s(self, error: TransientError, keys: tuple[Key, ...], refused: int) -> float | None:
        """Seconds until the same call is made again without counting as another attempt; `None` if it counts.

        `refused` is how often in a row it was refused because of missing capacity.
        """
        if error.cause == "capacity":
            return self._capacity_wait_s(error, refused)
        is_outage = self._is_outage(error, keys)
        if not is_outage or error.cost_unknown:  # a call that may be billed always counts
            return None
        return error.retry_after_s or 0.0

    def _capacity_wait_s(self, error: TransientError, refused: int) -> float | None:
        """Seconds until capacity is requested again; after `tier_wait_timeout_s`, change the tier or stop the run."""
        if self.tier == "standard":
            return 0.0  # the tier was changed after this call left
        policy = self._run.policy
        clock = self._run.clock
        now = clock.elapsed()
        if self._no_capacity_since is None:
            self._no_capacity_since = now
        left_s = self._no_capacity_since + policy.tier_wait_timeout_s - now
        if left_s > 0:
            wait_s = policy.retry.wait_s(refused, error, clock.rng)
            return min(wait_s if wait_s <= policy.retry.max_retry_after_s else 0.0, left_s)
        model = self._run.task.model.model
        what = f"{model!r} had no capacity at the tier {self.tier!r} for {policy.tier_wait_timeout_s:g} s"
        if policy.tier_fallback:
            self.tier = "standard"
            self._run.runtime.on_warning(f"{what}; the rest goes at the tier 'standard', at its price.")
            return 0.0
        self._run.stop.stop(
            TransientError(f"{what}. Run again later, or set tier_fallback=True to go on at the tier 'standard'.")
        )
        return None

    def _is_outage(self, error: TransientError, keys: tuple[Key, ...]) -> bool:
        """Whether no call is answered at present, so that `error` is not a failure of this call.

        An outage that lasts too long stops the run, or is a failure of this call if a row of it may be the cause.
        """
        run = self._run
        retry = self._run.policy.retry
        asked_s = error.retry_after_s or 0.0
        if asked_s > retry.max_retry_after_s:
            # A limit for so long is a quota. A time longer than any quota is an error, and concerns only this call.
            if error.kind == "limited" and asked_s <= _MAX_QUOTA_S:
                run.stop.stop(FatalError(retry.explain(error)))
            return False
        failing_s = self._failing_s()
        if failing_s is None:
            return False
        wait_timeout_s = retry.max_outage_s
        if error.cause == "connection" and not self._replied:
            wait_timeout_s = min(wait_timeout_s, _FIRST_OUTAGE_S)
        self._failing.add(keys)
        if failing_s < wait_timeout_s:
            return True
        if error.cost_unknown:
            is_over = len(self._failing) > _MAX_LOST_BATCHES
        else:
            is_over = len(self._failing) > 1 or not self._may_be_about_a_row(error)
        if is_over:
            run.stop.stop(error)
        return False

    def _failing_s(self) -> float | None:
        """Seconds for which no call has been answered; `None` if calls are answered."""
        since = self._limits.closed_since
        return None if since is None else self._run.clock.elapsed() - since

    def _is_long_outage(self) -> bool:
        """Whether no call has been answered for at least `max_outage_s`."""
        return (self._failing_s() or 0.0) >= self._run.policy.retry.max_outage_s

    def _may_be_about_a_row(self, error: TransientError) -> bool:
        """Whether a row may be the cause: other rows were answered, or the server failed while handling this one."""
        return self._answered or (error.kind == "broken" and error.cause is None and not error.cost_unknown)


@dataclass(slots=True)
class _RefusalStreak:
    """Refusals since the last answer.

    Attributes:
        words: The text of the last refusal, without its figures.
        alike: Number of last refusals with the same text.
        count: Number of all refusals.
    """

    words: str = ""
    alike: int = 0
    count: int = 0

    def add(self, error: RefusedError, *, any_answer: bool) -> FatalError | None:
        """Record a refusal; returns the error with which the run should end, if it should.

        While no row has an answer (`any_answer` is false), the number of refusals counts, whatever their texts are.
        """
        # Amounts, times and ids of requests differ from call to call.
        words = re.sub(r"[\w-]*\d[\w.-]*", "0", str(error))
        self.alike = self.alike + 1 if words == self.words else 1
        self.words = words
        self.count += 1
        if not any_answer and self.count >= _MAX_UNCLEAR:
            return FatalError(f"The first {self.count} calls were all refused. {error}")
        if self.alike >= (_MAX_UNCLEAR if error.fault == "unclear" else _MAX_OF_ROWS):
            return FatalError(f"The last {self.alike} calls were all refused, in the same words. {error}")
        return None
