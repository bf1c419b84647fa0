"""Frozen values that the stages of the pipeline exchange.

Nothing here decides or acts, so every other module may import this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, TypeAlias

from ondine_core.types.media import Media, MediaMap, find_media

Json: TypeAlias = Any
"""A value that JSON can carry."""

Key: TypeAlias = bytes
"""The content address of an answer: 16 bytes of BLAKE2b over model, parameters, schema and messages."""


Tier: TypeAlias = Literal["standard", "flex", "priority", "batch"]
"""A provider's price class, which decides the price of a call and how long it may wait; it is not part of a key. At
`"batch"`, calls are submitted together and answered within a day."""

PromptCache: TypeAlias = Literal["auto", "off", "1h"]
"""Whether the fixed part of prompts is kept in the provider's cache, and for how long; it is not part of a key."""

_TIMEOUT_S: Mapping[Tier, float] = {"standard": 60.0, "flex": 900.0, "priority": 60.0, "batch": 60.0}
"""Calls at the flex tier wait for capacity at the provider; OpenAI recommends a quarter of an hour."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model to ask, where, and how.

    Args:
        model: Provider and name as in `openai/gpt-6-luna`; a path after `llama_cpp/` names a local file.
        api_key: Key of the provider; without it the provider's usual environment variable is read.
        base_url: Root of an OpenAI-compatible API, up to and including `/v1`.
        timeout_s: Seconds one call may take in all; by default 60, at the flex tier 900.
        temperature: Sampling temperature; `None` leaves it to the provider.
        max_output_tokens: Maximum number of tokens of a reply; `None` leaves it to the provider.
        params: Further request fields, sent as they are (`top_p`, `seed`, ...).
        settings: Options of this provider only, such as an API version; the provider's module checks them.
        provider_name: The provider's name in reports, if it is not the first part of `model`.
        tier: The provider's price class; not every model has every one.
        prompt_cache: Whether the provider is asked to cache the fixed part of prompts: `"auto"`, `"off"`, or `"1h"`,
            which keeps it for an hour at a higher price for writing, where the provider offers that.
        reasoning_effort: How much a model thinks before it answers, as in `"low"`; `None` leaves it to the provider.
    """

    model: str
    api_key: str | None = field(default=None, repr=False)
    base_url: str | None = field(default=None, repr=False)  # it may carry a password
    timeout_s: float | None = None
    temperature: float | None = None
    max_output_tokens: int | None = None
    params: Mapping[str, Json] = field(default_factory=dict)
    settings: Mapping[str, Json] = field(default_factory=dict, repr=False)  # it may carry a token
    provider_name: str | None = None
    tier: Tier = "standard"
    prompt_cache: PromptCache = "auto"
    reasoning_effort: str | None = None

    @property
    def max_call_s(self) -> float:
        """Seconds one call may take in all."""
        return _TIMEOUT_S[self.tier] if self.timeout_s is None else self.timeout_s

    @property
    def request_params(self) -> Mapping[str, Json]:
        """`params` with `reasoning_effort`, which may be given in either: both lead to the same key."""
        if self.reasoning_effort is None:
            return self.params
        return {**self.params, "reasoning_effort": self.reasoning_effort}

    @property
    def dialect(self) -> str:
        """The provider that the model's name begins with; it decides which client is used."""
        return self.model.partition("/")[0]

    @property
    def provider(self) -> str:
        """The name of the provider in reports."""
        return self.provider_name or self.dialect

    @property
    def listed_as(self) -> str:
        """The name under which price and limits are listed: that of the base model, if the model is a deployment."""
        base = self.settings.get("base_model")
        return f"{self.dialect}/{base}" if base else self.model


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call or of many.

    `input_tokens` includes `cached_input_tokens` and `cache_write_tokens` (read from, and written to, the provider's
    prompt cache). `cache_write_tokens` includes `cache_write_1h_tokens`, which are kept for an hour at a higher price;
    the store does not keep this count, since it keeps the cost of the call. `output_tokens` includes
    `reasoning_tokens` and `unexplained_tokens`, which are in the provider's total but in none of its parts.
    `is_complete` is false if a count was missing or impossible.
    """

    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_tokens: int = 0
    unexplained_tokens: int = 0
    is_complete: bool = True
    cache_write_1h_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.cached_input_tokens + other.cached_input_tokens,
            self.output_tokens + other.output_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
            self.unexplained_tokens + other.unexplained_tokens,
            self.is_complete and other.is_complete,
            self.cache_write_1h_tokens + other.cache_write_1h_tokens,
        )


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a model.

    Args:
        messages: The conversation to continue.
        json_schema: The schema that the reply must follow, as JSON text; `None` for free text.
        fixed: The text of the messages that is the same for every row, the only part that errors may quote.
        tier: The price class.
        fixed_chars: Number of characters at the start of the last message that are the same in every call; the messages
            before it are the same as a whole.
        cache_prefix: Whether other calls begin with the same text, so that the provider should cache it.
        media: The images and documents that its messages refer to.
    """

    messages: tuple[Message, ...]
    json_schema: bytes | None = None
    fixed: str = field(default="", repr=False, compare=False)
    tier: Tier = "standard"
    fixed_chars: int = field(default=0, compare=False)
    cache_prefix: bool = False
    media: MediaMap = field(default_factory=dict, repr=False, compare=False)

    @property
    def shown_media(self) -> list[Media]:
        """The media that its messages refer to, one for each reference."""
        return [media for message in self.messages for media in find_media(message.content, self.media)]


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's reply.

    Args:
        text: Text of the reply.
        usage: Tokens billed.
        finish_reason: The provider's word; unless `finish_reasons` lists it as whole, the text is not an answer.
        request_id: The provider's id of the call.
        latency_s: Seconds from request to reply.
        hold_off_s: Seconds that the next call should wait, by what the provider reports as left of its limits.
        model: The provider's name of the model that answered, which may be more exact than the one that was asked.
        reasoning_only: Whether the reply had reasoning in a field of its own, and no text.
        stated_usd: Cost as stated by the provider, `None` if it states none.
        tier: The price class of the reply, in the provider's words.
    """

    text: str
    usage: Usage = Usage()
    finish_reason: str = "stop"
    request_id: str | None = None
    latency_s: float = 0.0
    hold_off_s: float = 0.0
    model: str | None = None
    reasoning_only: bool = False
    stated_usd: Decimal | None = None
    tier: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A validated value for one prompt, and how it was obtained.

    Args:
        values: Output column to JSON value.
        model: The model that answered.
        attempts: How often the prompt was asked, repairs included; calls without a reply are not counted.
        batch_size: Number of prompts in the call that was answered.
        cost_usd: The prompt's share of the cost of that call; `None` if the price is unknown.
        request_id: The provider's id of that call.
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
    """Why a row has no answer, and what it took to find out; failures are equal if `reason` and `detail` are.

    Args:
        reason: Class of the failure.
        detail: One line without row text.
        model: The model that was asked last; empty if none was.
        attempts: How often the prompt was asked, repairs included; calls without a reply are not counted.
        cost_usd: The prompt's share of the cost of those calls; `None` if a price is unknown or a reply was lost.
    """

    reason: Literal["prompt", "missing", "invalid", "truncated", "refused", "unreachable"]
    detail: str
    model: str = field(default="", compare=False)
    attempts: int = field(default=0, compare=False)
    cost_usd: Decimal | None = field(default=Decimal(0), compare=False)

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


Outcome: TypeAlias = Answer | Failure
"""The result of asking a prompt."""

RetriedReason: TypeAlias = Literal["invalid", "truncated", "refused"]
"""The reasons of failures that the store keeps: a later run asks their rows again only if it is configured to."""

OnMissing: TypeAlias = Literal["skip", "fail", "ask"]
"""How a row is treated that has no value in a column that the prompt needs."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that is not asked about, since the prompt needs `column`, which is null or blank (others may be, too)."""

    column: str


RowKey: TypeAlias = Key | Failure | Skipped
"""The key of a row's prompt, or why the row is not asked."""

RowOutcome: TypeAlias = Outcome | Skipped
"""The outcome of a row of the table."""


@dataclass(frozen=True, slots=True)
class Item:
    """A unique prompt that is to be asked.

    `fields` are the texts of its placeholders, for calls that contain the instructions only once.
    """

    key: Key
    text: str
    fields: Mapping[str, str] = field(default_factory=dict)
    media: MediaMap = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts that are sent in one call.

    Args:
        items: The prompts, in the order in which they are sent.
        repairs_left: How often prompts without an answer may be asked again, with the reason, before a split.
        attempt: Number of the attempt, from 1.
        complaint: What was wrong with the previous reply; sent to the model when it is asked again.
        ids: The ids of the items in this call; empty for `1..n`.
    """

    items: tuple[Item, ...]
    repairs_left: int = 0
    attempt: int = 1
    complaint: str | None = None
    ids: tuple[int, ...] = ()
