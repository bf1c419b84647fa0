"""Every error Ondine raises, in one tree: catch the branch that says what to do.

OndineError
├── ConfigError          the definition or a setting is wrong: change it (also a ValueError)
├── ProviderError        the provider gave no answer
│   ├── TransientError   asking the same again may succeed
│   ├── RefusedError     this request never succeeds, others may: one row fails
│   └── FatalError       no request succeeds until someone acts (key, permission, model name)
├── BudgetExhaustedError the cap on cost is reached: raise it and run again, nothing is lost
├── FailedRowsError      more rows failed than the user allows
└── StoreError           the answer store cannot be opened, read or written

Messages carry identifiers and settings, never a secret and never the text of a row.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from ondine_core.values import Usage

__all__ = [
    "BudgetExhaustedError",
    "ConfigError",
    "FailedRowsError",
    "FatalError",
    "OndineError",
    "ProviderError",
    "RefusedError",
    "StoreError",
    "TransientError",
]


Kind: TypeAlias = Literal["limited", "overloaded", "broken"]
"""What ails a provider that gave no answer but may give one later."""


class OndineError(Exception):
    """Base of every error raised by `ondine_core` and `ondine_dagster`."""


class ConfigError(OndineError, ValueError):
    """The definition or a setting is wrong; the message names the value and the fix."""


class ProviderError(OndineError):
    """The provider gave no answer to a call."""


class TransientError(ProviderError):
    """Asking the same again may succeed: overload, rate limit, time-out, broken connection.

    Args:
        message: What happened.
        retry_after_s: Seconds the provider asked to wait, `None` when it named none.
        cost_unknown: The call may have been billed although no reply was seen (time-out, connection lost).
        kind: `"limited"` if the call was turned away for the rate, `"overloaded"` if for want of capacity (time-outs
            among them), `"broken"` for everything else.

    Attributes:
        times_lost: How many attempts at the same call may have been billed unseen, as counted by whoever retries it.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        cost_unknown: bool = False,
        kind: Kind = "broken",
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after_s = retry_after_s
        self.cost_unknown = cost_unknown
        self.times_lost = int(cost_unknown)


class RefusedError(ProviderError):
    """The provider refuses this request for what it contains; asking the same again is useless.

    Args:
        message: What happened.
        usage: Tokens that were billed although nothing useful came of them, `None` when none were.
    """

    def __init__(self, message: str, *, usage: Usage | None = None) -> None:
        super().__init__(message)
        self.usage = usage


class FatalError(ProviderError):
    """No request can succeed until someone acts: wrong key, missing permission, unknown model, no credit."""


class BudgetExhaustedError(OndineError):
    """The cap on cost does not allow another call; the answers that arrived are stored."""


class FailedRowsError(OndineError):
    """More rows failed than `max_error_rate` allows; the answers that arrived are stored.

    Args:
        message: What happened.
        retry_helps: Some rows were out of reach and may be answered next time; others fail the same way again.
    """

    def __init__(self, message: str, *, retry_helps: bool = False) -> None:
        super().__init__(message)
        self.retry_helps = retry_helps


class StoreError(OndineError):
    """The answer store cannot be opened, read or written."""
