"""The two ports through which effects enter: a model that can be asked, and a store that remembers.

Everything between them is arithmetic, which is why tests need no network and no patching.
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
        """Most calls worth having in flight, `None` when the model sets no bound."""

    @property
    def max_batch_size(self) -> int | None:
        """Most prompts that one call may carry, `None` when the model sets no bound."""

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
    """What a `ChatModel` may be besides: one that knows its own tokenizer."""

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""


class AnswerStore(Protocol):
    """Answers by content hash (the checkpoint of every run), the ledger, and numbers that all processes share."""

    async def get(self, keys: Sequence[Key]) -> Mapping[Key, Answer]:
        """The answers known for `keys`; unknown keys are absent."""

    async def get_failures(self, keys: Sequence[Key]) -> Mapping[Key, Failure]:
        """How prompts failed that were asked before and have no answer."""

    async def get_unseen(self) -> frozenset[Key]:
        """The prompts of all calls that left and whose outcome was never seen, or not yet."""

    async def join(self, started: RunStarted) -> Mapping[bytes, Numbers]:
        """Announce a run, so that no prompt of its task is in flight in two; returns the others and where they are."""

    async def leave(self, *runs: bytes) -> None:
        """Withdraw the announcement of some runs; other runs may then ask the prompts that they have in flight."""

    async def send(self, sent: CallStarted) -> frozenset[Key] | None:
        """Note that a call leaves; returns once the note would survive a kill, and all that was asked before it.

        Returns:
            `None` if no other run of the question was announced since its own. Otherwise the prompts that another run
            has in flight, or that have an answer by now; if there are any, the call is not noted and must not leave.
        """

    async def get_claims(self, keys: Sequence[Key]) -> Mapping[Key, Claim]:
        """Which of `keys` are in flight in runs that were announced."""

    async def release(self, calls: Sequence[bytes]) -> None:
        """Release the prompts of some calls to other runs, although the outcome of these calls is not known."""

    async def settle(self, settled: CallFinished) -> None:
        """Store the outcome of a call, answers and ledger in one transaction; durable like `send`."""

    async def audit(self, run: str) -> Audit:
        """The ledger of one run."""

    async def update(self, name: str, step: Callable[[Numbers | None], Numbers]) -> Numbers:
        """Replace the numbers called `name` by `step` of them, atomically among all processes; returns the new ones.

        `step` is pure: it may be called again when a connection broke before the result was kept.
        """
