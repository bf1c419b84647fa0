"""The nouns of the pipeline, frozen, and the two ports through which effects enter.

Stages pass these values to one another; nothing here decides or acts, so every other module may import this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

__all__ = [
    "Answer",
    "AnswerStore",
    "Audit",
    "Batch",
    "Call",
    "ChatModel",
    "Failure",
    "Item",
    "Json",
    "Key",
    "Line",
    "Message",
    "ModelSpec",
    "Numbers",
    "Origin",
    "Outcome",
    "Reply",
    "Sent",
    "Settled",
    "Stage",
    "TokenCounter",
    "Usage",
]

Json: TypeAlias = Any
"""A value that JSON can carry."""

Key: TypeAlias = bytes
"""The content address of an answer: 16 bytes of BLAKE2b over model, parameters, schema and messages."""


Numbers: TypeAlias = tuple[float, ...]
"""Shared state of a rate limit, a budget or a lease, kept by the store."""

Stage: TypeAlias = Literal["ask", "repair", "split", "retry", "calibrate"]
"""Why a call is made: for the first time; with what was wrong; in smaller batches; after it got lost; to compare."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model to ask, where, and how.

    Args:
        model: Provider and name as in `openai/gpt-4o-mini`; a path after `llama_cpp/` names a local file.
        api_key: Key of the provider; without it the provider's usual environment variable is read.
        base_url: Root of an OpenAI-compatible API, up to and including `/v1`.
        timeout_s: Seconds one call may take in all.
        temperature: Sampling temperature; `None` leaves it to the provider.
        max_output_tokens: Most tokens one reply may have; `None` leaves it to the provider.
        params: Further request fields, sent as they are (`top_p`, `seed`, `reasoning_effort`, ...).
        settings: What only this provider knows of, such as an API version; it says itself what is valid.
        provider_name: What the provider is called in reports, where the model's name does not tell.
    """

    model: str
    api_key: str | None = field(default=None, repr=False)
    base_url: str | None = field(default=None, repr=False)  # it may carry a password
    timeout_s: float = 60.0
    temperature: float | None = None
    max_output_tokens: int | None = None
    params: Mapping[str, Json] = field(default_factory=dict)
    settings: Mapping[str, Json] = field(default_factory=dict, repr=False)  # it may carry a token
    provider_name: str | None = None

    @property
    def provider(self) -> str:
        """What the provider is called."""
        return self.provider_name or self.model.partition("/")[0]

    @property
    def listed_as(self) -> str:
        """The name under which price and limits are found: a deployment has a name of its own, its model is known."""
        base = self.settings.get("base_model")
        return f"{self.model.partition('/')[0]}/{base}" if base else self.model


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call or of many.

    `input_tokens` includes `cached_input_tokens` and `cache_write_tokens` (read from, and written to, the provider's
    prompt cache); `output_tokens` includes `reasoning_tokens`.
    """

    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.cached_input_tokens + other.cached_input_tokens,
            self.output_tokens + other.output_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
        )


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a model: what to say, and the JSON schema the reply must follow (JSON text, or `None`)."""

    messages: tuple[Message, ...]
    json_schema: bytes | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said.

    `finish_reason` is the provider's word; `"length"` means the text is cut and is never parsed as if whole.
    `hold_off_s` is how long the next call should wait, by what the provider says is left of its limits. `model` is who
    answered, in the provider's words, which may be more exact than those it was asked by.
    """

    text: str
    usage: Usage = Usage()
    finish_reason: str = "stop"
    request_id: str | None = None
    latency_s: float = 0.0
    hold_off_s: float = 0.0
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A validated value for one prompt, and how it was come by.

    Args:
        values: Output column to JSON value.
        model: The model that answered.
        attempts: How often it was asked, repairs included; calls lost on the way are not counted.
        batch_size: Prompts in the call that brought it.
        cost_usd: This prompt's share of what the call that brought it cost; `None` when the price is unknown.
        request_id: The provider's name for the call.
        answered_at: Seconds since the epoch.
    """

    values: Mapping[str, Json]
    model: str
    attempts: int = 1
    batch_size: int = 1
    cost_usd: Decimal | None = None
    request_id: str | None = None
    answered_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a row has no answer, and what it took to find out; two are the same if they say the same.

    Args:
        reason: What to count by.
        detail: One line without row text.
        model: The model that was asked last; nothing if none was.
        attempts: How often it was asked, repairs included; calls lost on the way are not counted.
        cost_usd: This prompt's share of what those calls cost; `None` when a price is unknown or a call was lost.
    """

    reason: Literal["prompt", "invalid", "truncated", "refused", "unreachable"]
    detail: str
    model: str = field(default="", compare=False)
    attempts: int = field(default=0, compare=False)
    cost_usd: Decimal | None = field(default=Decimal(0), compare=False)

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


Outcome: TypeAlias = Answer | Failure


@dataclass(frozen=True, slots=True)
class Item:
    """A unique prompt on its way.

    Args:
        key: Its content address.
        text: The rendered prompt.
        fields: The values of its placeholders, as texts, for when the instructions travel apart from them.
    """

    key: Key
    text: str
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts that travel in one call.

    Args:
        items: The prompts; their local ids are `1..n`, in this order.
        repairs_left: How often what is owed may be asked again, with the reason, before the batch must shrink.
        attempt: 1 for the first ask.
        complaint: What was wrong with the previous reply, told to the model when it is asked again.
    """

    items: tuple[Item, ...]
    repairs_left: int = 0
    attempt: int = 1
    complaint: str | None = None


# -- books ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Origin:
    """For whom calls are made: a run, and the asset and partition it fills."""

    run: str
    asset: str = ""
    partition: str = ""


@dataclass(frozen=True, slots=True)
class Sent:
    """A call that is about to leave, as it is noted before it does.

    Args:
        call: Its identity, 16 bytes that no other call has.
        origin: For whom it is made.
        model: Who is asked.
        stage: Why it is made.
        keys: The prompts it carries.
        sent_at: Seconds since the epoch.
        at_most_usd: The most it can cost, `None` when that is not known.
    """

    call: bytes
    origin: Origin
    model: str
    stage: Stage
    keys: tuple[Key, ...]
    sent_at: float
    at_most_usd: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of a call whose outcome was seen; of one that was not, nothing is known beyond that it left.

    Args:
        sent: The call.
        outcome: `"answered"` if the model replied, `"refused"` if the provider turned the call away.
        usage: Tokens billed.
        usd: What they cost, `None` when the price is unknown.
        answers: Prompts it settled with an answer.
        failures: Prompts it settled for good without one.
        paid_twice: How many of the answers had been asked for before by a call whose outcome was never seen.
    """

    sent: Sent
    outcome: Literal["answered", "refused"]
    usage: Usage = Usage()
    usd: Decimal | None = Decimal(0)
    answers: tuple[tuple[Key, Answer], ...] = ()
    failures: tuple[tuple[Key, Failure], ...] = ()
    paid_twice: int = 0


@dataclass(frozen=True, slots=True)
class Line:
    """Calls of one kind in the books: how many, their tokens, and USD (`None` when a price is unknown)."""

    calls: int = 0
    usage: Usage = Usage()
    usd: Decimal | None = Decimal(0)

    def __add__(self, other: Line) -> Line:
        usd = None if self.usd is None or other.usd is None else self.usd + other.usd
        return Line(self.calls + other.calls, self.usage + other.usage, usd)


@dataclass(frozen=True, slots=True)
class Audit:
    """The books of one run, as the store has them: true to the call also after the process was killed.

    Args:
        answered: Calls with a reply.
        refused: Calls the provider turned away.
        unknown: Calls sent whose outcome was never seen; their `usd` is the most they can have cost.
        paid_twice: Prompts answered that such a call had asked for before.
    """

    answered: Line = Line()
    refused: Line = Line()
    unknown: Line = Line()
    paid_twice: int = 0

    @property
    def sent(self) -> int:
        """All calls that left."""
        return self.answered.calls + self.refused.calls + self.unknown.calls


# -- ports ---------------------------------------------------------------------------------------------------------


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
        """Let go of connections and memory."""


@runtime_checkable
class TokenCounter(Protocol):
    """What a `ChatModel` may be besides: one that knows its own tokenizer."""

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""


class AnswerStore(Protocol):
    """Answers by content address, the checkpoint of every run; the books; and a few numbers all processes share."""

    async def get(self, keys: Sequence[Key]) -> Mapping[Key, Answer]:
        """The answers known for `keys`; unknown keys are absent."""

    async def get_failures(self, keys: Sequence[Key]) -> Mapping[Key, Failure]:
        """How prompts failed that were asked before and have no answer."""

    async def get_unseen(self) -> frozenset[Key]:
        """The prompts of all calls that left and whose outcome was never seen, or not yet."""

    async def send(self, sent: Sent) -> None:
        """Note that a call leaves; returns once the note would survive a kill of the process."""

    async def settle(self, settled: Settled) -> None:
        """Keep what became of a call, answers and books together or neither; durable like `send`."""

    async def audit(self, run: str) -> Audit:
        """The books of one run."""

    async def update(self, name: str, step: Callable[[Numbers | None], Numbers]) -> Numbers:
        """Replace the numbers called `name` by `step` of them, atomically among all processes; returns the new ones.

        `step` is pure: it may be called again when a connection broke before the result was kept.
        """
