import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core.errors import ConfigError, FatalError, RefusedError, TransientError
from ondine_core.limits.retry import RetryPolicy, retry

SEEDS = st.integers(0, 2**32)
SECONDS = st.floats(0, 1000)


class Highest(random.Random):
    """A random generator whose every draw is the highest possible."""

    def random(self) -> float:
        """One, where real generators stay just below."""
        return 1.0


@given(SEEDS, st.floats(0, 1e5), st.integers(1, 50))
def test_retry_after_is_kept_in_full(seed: int, asked: float, attempt: int) -> None:
    """A pause named by the provider is kept in full at any attempt, beyond any bound, plus a jitter of at most 10 %."""
    policy = RetryPolicy(max_wait_s=1)
    wait = policy.wait_s(attempt, TransientError("busy", retry_after_s=asked), random.Random(seed))
    assert asked <= wait <= asked * 1.1


@given(SEEDS, SECONDS, SECONDS, st.integers(1, 10_000))
def test_jitter_is_bounded(seed: int, first: float, longest: float, attempt: int) -> None:
    """A chosen pause lies between 0 and the doubled first pause, and never beyond the longest."""
    wait = RetryPolicy(first_wait_s=first, max_wait_s=longest).wait_s(
        attempt, TransientError("busy"), random.Random(seed)
    )
    assert 0 <= wait <= longest
    assert wait <= first * 2.0 ** min(attempt - 1, 60)


@given(SECONDS, SECONDS, st.integers(1, 100))
def test_longest_pause_doubles_up_to_its_cap(first: float, longest: float, attempt: int) -> None:
    """From attempt to attempt the longest possible pause never shrinks, at most doubles, and stops at the cap."""
    policy = RetryPolicy(first_wait_s=first, max_wait_s=longest)
    now, then = (policy.wait_s(n, TransientError("busy"), Highest()) for n in (attempt, attempt + 1))
    assert now <= then <= min(longest, 2 * now if now < longest else longest)


def test_callers_are_spread() -> None:
    """Callers that fail together retry at different times, whether or not the provider named a pause."""
    policy = RetryPolicy()
    for error in (TransientError("busy"), TransientError("busy", retry_after_s=10)):
        waits = {policy.wait_s(5, error, random.Random(seed)) for seed in range(100)}
        assert len(waits) == 100
        assert max(waits) - min(waits) > 0.9


def tried(policy: RetryPolicy, faults: Sequence[Exception]) -> tuple[object, int, list[float]]:
    """Run a call that meets `faults` in turn; return its result or error, the number of attempts and the pauses."""
    made, pauses = 0, list[float]()

    async def call(attempt: int) -> str:
        nonlocal made
        made += 1
        assert attempt == made
        if made <= len(faults):
            raise faults[made - 1]
        return "reply"

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    try:
        result: object = asyncio.run(retry(call, policy, sleep, Highest()))
    except Exception as error:  # noqa: BLE001
        result = error
    return result, made, pauses


def test_transient_errors_are_retried_with_backoff() -> None:
    """A call that fails transiently is retried until it succeeds, with the pauses of the policy."""
    policy = RetryPolicy(first_wait_s=1, max_wait_s=3)
    faults = [TransientError("busy")] * 3 + [TransientError("busy", retry_after_s=20)]
    assert tried(policy, faults) == ("reply", 5, [1.0, 2.0, 3.0, 22.0])


def test_the_last_error_is_raised() -> None:
    """After the last attempt its error is raised, without another pause."""
    faults = [TransientError(str(number)) for number in range(9)]
    error, made, pauses = tried(RetryPolicy(max_attempts=3), faults)
    assert error is faults[2]
    assert (made, len(pauses)) == (3, 2)


@pytest.mark.parametrize("error", [FatalError("key"), RefusedError("filter"), ValueError("bug")], ids=repr)
def test_only_transient_errors_are_retried(error: Exception) -> None:
    """A refusal, a fatal error and a bug are raised at once."""
    assert tried(RetryPolicy(), [error]) == (error, 1, [])


def test_retry_after_beyond_the_limit_is_an_error() -> None:
    """If the provider asks for a longer pause than the policy allows, the call fails at once, and the error says so."""
    policy = RetryPolicy(max_retry_after_s=60)
    error = TransientError("Busy.", retry_after_s=61)
    assert tried(policy, [error]) == (error, 1, [])
    assert "61 s, longer than 60 s" in policy.explain(error)
    assert tried(policy, [TransientError("Busy.", retry_after_s=60)]) == ("reply", 2, [66.0])
    assert "tried 12 times" in policy.explain(TransientError("Busy."))


def lost(times: int) -> TransientError:
    """An error after which `times` attempts may have been billed unseen."""
    error = TransientError("No reply.", cost_unknown=True)
    error.times_lost = times
    return error


def test_attempts_without_a_reply_have_a_bound_of_their_own() -> None:
    """Attempts that may have been billed unseen are bounded separately, and the error says so."""
    policy = RetryPolicy(max_lost=2)
    error, made, _ = tried(policy, [lost(1), TransientError("busy"), TransientError("busy"), lost(2)])
    assert made == 4
    assert isinstance(error, TransientError)
    assert policy.explain(error) == "No reply. (tried 2 times)"
    assert tried(policy, [lost(1)] + [TransientError("busy")] * 5)[:2] == ("reply", 7)


@pytest.mark.parametrize("attempts", [0, -1, float("nan"), "3"])
def test_policy_needs_at_least_one_attempt(attempts: Any) -> None:
    """A policy of no attempts is a configuration error that names the value."""
    with pytest.raises(ConfigError, match=f"max_attempts={attempts!r} must be at least 1"):
        RetryPolicy(max_attempts=attempts)


@pytest.mark.parametrize("seconds", [-1, float("nan"), "3", None])
def test_pauses_are_seconds(seconds: Any) -> None:
    """Anything else is a configuration error that names the value."""
    with pytest.raises(ConfigError, match=f"max_wait_s={seconds!r} must be a number of seconds"):
        RetryPolicy(max_wait_s=seconds)


def test_one_attempt_means_no_retry() -> None:
    """Retries can be switched off."""
    error = TransientError("busy")
    assert tried(RetryPolicy(max_attempts=1), [error]) == (error, 1, [])
