"""Every error Ondine raises, in one tree: catch the branch that says what to do.

OndineError
├── ConfigError          the definition or a setting is wrong: change it (also a ValueError)
├── ProviderError        the provider gave no answer
│   ├── TransientError   asking the same again may succeed
│   ├── RefusedError     this request never succeeds, others may: one row fails
│   ├── InvalidReplyError the provider rejected what its model wrote: asking again may succeed
│   ├── JobLostError     the account has no such batch job, or no results of it (any more)
│   └── FatalError       no request succeeds until someone acts (key, permission, model name)
├── BudgetExhaustedError the cap on cost is reached: raise it and run again, nothing is lost
├── JobsUnderWayError    batch jobs are not done yet: run again later, nothing is asked twice
├── FailedRowsError      more rows failed than the user allows
└── StoreError           the answer store cannot be opened, read or written

Messages carry identifiers and settings, never a secret and never the text of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Literal, TypeAlias

from ondine_core.types.job_record import JobRecord
from ondine_core.types.values import Reply, Usage

__all__ = [
    "BudgetExhaustedError",
    "ConfigError",
    "FailedRowsError",
    "FatalError",
    "InvalidReplyError",
    "JobLostError",
    "JobsUnderWayError",
    "OndineError",
    "ProviderError",
    "RefusedError",
    "StoreError",
    "TransientError",
]


Kind: TypeAlias = Literal["limited", "overloaded", "broken"]
"""Class of a `TransientError`."""


class OndineError(Exception):
    """Base of every error raised by `ondine_core` and `ondine_dagster`."""


class ConfigError(OndineError, ValueError):
    """The definition or a setting is wrong; the message names the value and the fix."""


class ProviderError(OndineError):
    """The provider gave no answer to a call."""


class TransientError(ProviderError):
    """Asking the same again may succeed: overload, rate limit, time-out, broken connection.

    Args:
        retry_after_s: Seconds that the provider asked to wait, `None` if it named none.
        cost_unknown: Whether the call may have been billed although no reply was seen (time-out, connection lost).
        kind: `"limited"` if a rate limit refused the call, `"overloaded"` if capacity was missing (time-outs
            included), `"broken"` for everything else.
        cause: `"connection"` if no server accepted the connection, which is more often a wrong address than an outage;
            `"capacity"` if the provider has none left at the requested price tier; `None` for everything else.

    Attributes:
        times_lost: Number of attempts at this call that may have been billed without a reply; set by the retry loop.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        cost_unknown: bool = False,
        kind: Kind = "broken",
        cause: Literal["connection", "capacity"] | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.cause = cause
        self.retry_after_s = retry_after_s
        self.cost_unknown = cost_unknown
        self.times_lost = int(cost_unknown)


class RefusedError(ProviderError):
    """The provider refuses this request because of its content; the same request is refused again.

    Args:
        usage: Tokens that were billed without a usable reply, `None` if none were.
        stated_usd: Cost as stated by the provider, `None` if it states none.
        tier: The price class at which they were billed, in the provider's words.
        fault: `"row"` if the content is refused, `"size"` if the length is, `"unclear"` if the provider does not say:
            then it may refuse every request, and the run stops when the same refusal repeats.

    Attributes:
        refused_before: Whether a row of this request was refused in an earlier run; set by the engine.
    """

    def __init__(
        self,
        message: str,
        *,
        usage: Usage | None = None,
        stated_usd: Decimal | None = None,
        tier: str | None = None,
        fault: Literal["row", "size", "unclear"] = "row",
    ) -> None:
        super().__init__(message)
        self.usage = usage
        self.stated_usd = stated_usd
        self.tier = tier
        self.fault = fault
        self.refused_before = False


class InvalidReplyError(ProviderError):
    """The provider rejected what its model wrote, since it is not in the requested form.

    `reply` is what the provider shows of it; whether its tokens are billed is unknown.
    """

    def __init__(self, message: str, reply: Reply) -> None:
        super().__init__(message)
        self.reply = reply


class JobLostError(ProviderError):
    """The account has no batch job of this id, or no results of it: it was deleted, or belongs to another account."""


class FatalError(ProviderError):
    """No request can succeed until someone acts: wrong key, missing permission, unknown model, no credit.

    Args:
        fault: `"account"` if no request at all can succeed; `"setup"` if requests of this definition seem to be
            refused, which fails only the row once others were answered; `"permission"` if the provider gives no reason:
            this ends the run only if it repeats and nothing was answered.
        refusal: The message without the advice, for the row that is refused.
        is_certain: Whether it ends the run at once; otherwise only if it repeats, or if no call was answered before.
    """

    def __init__(
        self,
        message: str,
        *,
        fault: Literal["account", "setup", "permission"] = "account",
        refusal: str | None = None,
        is_certain: bool = True,
    ) -> None:
        super().__init__(message)
        self.fault = fault
        self.is_certain = is_certain
        self.refusal = refusal or message


class BudgetExhaustedError(OndineError):
    """The cap on cost does not allow another call; the answers that arrived are stored."""


class JobsUnderWayError(OndineError):
    """Batch jobs of the provider have not ended; a later run reads their results and asks none of their rows again.

    `rows_left` rows have no outcome yet.
    """

    def __init__(self, message: str, jobs: Sequence[JobRecord] = (), rows_left: int = 0) -> None:
        super().__init__(message)
        self.jobs = jobs
        self.rows_left = rows_left


class FailedRowsError(OndineError):
    """More rows failed than `max_error_rate` allows; the answers that arrived are stored.

    `retry_helps` says that the provider could not be reached for some of the rows, which may be answered next time.
    """

    def __init__(self, message: str, *, retry_helps: bool = False) -> None:
        super().__init__(message)
        self.retry_helps = retry_helps


class StoreError(OndineError):
    """The answer store cannot be opened, read or written."""
