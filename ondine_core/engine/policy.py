"""Retries, batching and concurrency of a run; they do not change what an answer means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

from ondine_core.batching.calibration import CalibrationPlan
from ondine_core.batching.strategy import STRATEGIES, BatchStrategy
from ondine_core.errors import ConfigError
from ondine_core.limits.retry import RetryPolicy
from ondine_core.types.field_types import check_types
from ondine_core.types.numbers import is_number, is_whole
from ondine_core.types.values import OnMissing, RetriedReason

RETRY_FAILED_ROWS = "True, False, or a list of reasons, of 'invalid', 'truncated' and 'refused'"
"""The valid values of `retry_failed_rows`, in words."""


def is_retry(value: Any) -> bool:
    """Whether `value` is valid for `retry_failed_rows`."""
    if isinstance(value, bool):
        return True
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return is_list and all(reason in get_args(RetriedReason) for reason in value)


@dataclass(frozen=True, slots=True)
class Policy:
    """Batching, concurrency and retries of a run.

    Args:
        max_concurrency: Maximum number of calls in flight; within it, the number adapts to the provider.
        max_repairs: How often a prompt whose reply was not valid is asked again with the reason.
        retry: How often and when a call is retried after a transient error.
        reuse_since: Answers in the store are reused if they are from this moment or later, in seconds since the epoch;
            0 reuses all, infinity none.
        retry_failed_rows: Whether rows that failed in an earlier run are asked again: `True`, `False`, or a list of the
            reasons for which they are (`"invalid"`, `"truncated"`, `"refused"`). Rows for which the provider could not
            be reached are always asked again.
        batch_size: Maximum number of prompts in one call; `"auto"` learns it from the replies.
        strategy: How several prompts are written into one call; a single prompt is sent as it is.
        calibration: Compares answers of rows asked alone and together before the run; `None` trusts the batch size.
        keep_replies: Whether the store keeps replies to prompts that failed, sanitized like rows, for thirty days;
            `python -m ondine_core.store why` shows them.
        context_window: Tokens of prompt and reply together that fit into the model, if the listed figure is missing or
            wrong.
        on_missing: How a row is treated if a column that the prompt reads is null or blank (in a Jinja2 template, one
            that is read outside of conditions): `"skip"` leaves its outputs null without a call, `"fail"` makes it a
            failed row, `"ask"` asks nevertheless.
        tier_wait_timeout_s: Seconds for which the flex tier may have no capacity for any call.
        tier_fallback: Whether the rest of the run is then asked at the standard tier, at its price; otherwise the run
            ends and keeps its answers.
        batch_wait_s: Seconds for which a run waits for its batch jobs before it ends with `JobsUnderWayError`.
        batch_min_rows: Minimum number of rows of a batch job; fewer are asked at the standard tier, at its price.
        answer_by: When batch jobs are cancelled and their unanswered rows are asked at the standard tier, in seconds
            since the epoch; `None` for never.
        cancel_on_terminate: Whether batch jobs are cancelled when the run is interrupted.
    """

    max_concurrency: int = 32
    max_repairs: int = 3
    retry: RetryPolicy = RetryPolicy()
    reuse_since: float = 0.0
    retry_failed_rows: bool | Sequence[RetriedReason] = True
    batch_size: int | Literal["auto"] = 1
    strategy: BatchStrategy = STRATEGIES["json"]
    calibration: CalibrationPlan | None = None
    context_window: int | None = None
    keep_replies: bool = False
    on_missing: OnMissing = "skip"
    tier_wait_timeout_s: float = 900.0
    tier_fallback: bool = False
    batch_wait_s: float = 600.0
    batch_min_rows: int = 20
    answer_by: float | None = None
    cancel_on_terminate: bool = False

    def __post_init__(self) -> None:
        if self.batch_size != "auto" and not is_whole(self.batch_size, 1):
            raise ConfigError(f"batch_size={self.batch_size!r} must be a whole number of at least 1, or 'auto'.")
        if self.calibration and self.batch_size == "auto":
            raise ConfigError("calibrate compares one batch size with rows asked alone; name it instead of 'auto'.")
        if not is_retry(self.retry_failed_rows):
            raise ConfigError(f"retry_failed_rows={self.retry_failed_rows!r} must be {RETRY_FAILED_ROWS}.")
        if self.on_missing not in get_args(OnMissing):
            raise ConfigError(f"on_missing={self.on_missing!r} must be 'skip', 'fail' or 'ask'.")
        self._check_numbers()
        check_types(self, ConfigError)

    def _check_numbers(self) -> None:
        if self.context_window is not None and not is_whole(self.context_window, 1):
            raise ConfigError(f"context_window={self.context_window!r} must be a whole number of tokens, or None.")
        for name, least in (("max_concurrency", 1), ("batch_min_rows", 1), ("max_repairs", 0)):
            if not is_whole(getattr(self, name), least):
                raise ConfigError(f"{name}={getattr(self, name)!r} must be a whole number of at least {least}.")
        for name in ("tier_wait_timeout_s", "batch_wait_s"):
            if not is_number(getattr(self, name), 0):
                raise ConfigError(f"{name}={getattr(self, name)!r} must be a number of seconds, 0 or more.")
        for name in ("reuse_since", "answer_by"):
            value = getattr(self, name)
            if not isinstance(value, Real) and not (value is None and name == "answer_by"):
                raise ConfigError(f"{name}={value!r} must be a moment in seconds since the epoch.")

    def retries(self, reason: str) -> bool:
        """Whether a row that failed for `reason` in an earlier run is asked again."""
        retried = self.retry_failed_rows
        return retried if isinstance(retried, bool) else reason in retried
