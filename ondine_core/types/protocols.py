"""The two ports through which effects enter: the model that is asked, and the store of its answers.

Everything between them is arithmetic, so tests need no network and no patching.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from ondine_core.types.ledger import Audit, CallFinished, CallStarted, Claim, RunStarted
from ondine_core.types.values import Answer, Call, Failure, Key, Reply

Numbers: TypeAlias = tuple[float, ...]
"""Shared state of a rate limit, a budget or a lease, kept by the store."""


class ChatModel(Protocol):
    """A model that can be asked. Implementations are safe to call many times at once from one event loop."""

    @property
    def max_concurrency(self) -> int | None:
        """Maximum number of calls in flight that is useful, `None` for no bound."""

    @property
    def max_batch_size(self) -> int | None:
        """Maximum number of prompts in one call, `None` for no bound."""

    async def __call__(self, call: Call) -> Reply:
        """Ask once, without retrying.

        Raises:
            TransientError: Asking again may succeed.
            RefusedError: This request never succeeds.
            FatalError: No request succeeds.
        """

    async def aclose(self) -> None:
        """Close connections and free memory."""


@runtime_checkable
class TokenCounter(Protocol):
    """Optional interface of a `ChatModel` that has its own tokenizer."""

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text."""


class AnswerStore(Protocol):
    """Answers by key (the checkpoint of every run), the ledger, and numbers that all processes share."""

    async def get(self, keys: Sequence[Key]) -> Mapping[Key, Answer]:
        """The answers known for `keys`; unknown keys are absent."""

    async def get_failures(self, keys: Sequence[Key]) -> Mapping[Key, Failure]:
        """The stored failures of those of `keys` that have no answer."""

    async def get_unseen(self) -> frozenset[Key]:
        """The prompts of all calls that were sent and have no outcome, or none yet."""

    async def join(self, started: RunStarted) -> Mapping[bytes, Numbers]:
        """Announce a run, so that no prompt of its task is in flight in two runs; returns the others' processes."""

    async def leave(self, *runs: bytes) -> None:
        """Withdraw the announcements of `runs`; other runs may then ask the prompts that these have in flight."""

    async def send(self, sent: CallStarted) -> frozenset[Key] | None:
        """Record that a call leaves; returns when this record and all earlier writes would survive a kill.

        Returns:
            `None` if no other run of the task has been announced since the call's own. Otherwise the prompts that
            another run has in flight, or that have an answer by now; if there are any, the call is not recorded and
            must not leave.
        """

    async def get_claims(self, keys: Sequence[Key]) -> Mapping[Key, Claim]:
        """The claims on those of `keys` that are in flight in announced runs."""

    async def release(self, calls: Sequence[bytes]) -> None:
        """Let other runs ask the prompts of `calls`, although the outcome of these calls is unknown."""

    async def settle(self, settled: CallFinished) -> None:
        """Store the outcome of a call, answers and ledger in one transaction; as durable as `send`."""

    async def audit(self, run: str, asset: str | None = None) -> Audit:
        """The ledger of one run, or of one asset of it."""

    async def update(self, name: str, step: Callable[[Numbers | None], Numbers]) -> Numbers:
        """Replace the numbers called `name` by `step` of them, atomically among all processes; returns the new ones.

        `step` must be pure: it is called again if a connection breaks before the result is stored.
        """
