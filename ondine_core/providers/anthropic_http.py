"""Anthropic's messages API over our own HTTP client; `anthropic_request` writes the requests."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import orjson

from ondine_core.errors import FatalError, ProviderError, RefusedError
from ondine_core.providers.anthropic_request import (
    TOOL,
    Structure,
    cache_mark,
    find_anthropic_address,
    find_anthropic_key,
    fixed_fields,
    further_headers,
    may_force_tool,
    message_body,
    structure_of,
)
from ondine_core.providers.finish_reasons import finish_kind
from ondine_core.providers.http import HttpModel
from ondine_core.providers.http_client import Endpoint, constant
from ondine_core.providers.http_errors import ADVICE, ADVICE_WITHOUT_KEY
from ondine_core.providers.reply_body import max_reply_bytes
from ondine_core.providers.tiers import tier_fields
from ondine_core.providers.usage import text_field, tier_of, usage_of
from ondine_core.types.protocols import ChatModel
from ondine_core.types.values import Call, Json, ModelSpec, Reply, Tier

_ADVICE = {405: "this is not an address of Anthropic's messages API; check base_url"}


def connect_anthropic(spec: ModelSpec, name: str) -> ChatModel:
    """Connect the model that Anthropic calls `name`.

    Its `settings`:

    - `structured_output`: `"json_schema"`, `"tool"` or `"words"`; by default the first that the model supports.
    - `extra_headers`: further headers, such as `anthropic-beta`; `api_version`: the value of `anthropic-version`.
    - `drop_params`: `True` to leave out parameters that the API or the model does not take; by default an error.
    """
    fields = fixed_fields(spec, name)
    return _AnthropicModel(spec, fields, structure_of(spec, fields))


def anthropic_endpoint(spec: ModelSpec) -> Endpoint:
    """The address to which messages are posted, and the headers that identify the caller."""
    url, key = find_anthropic_address(spec), find_anthropic_key(spec)
    advice = {**(ADVICE if key else ADVICE_WITHOUT_KEY), **_ADVICE}
    return Endpoint(url, spec.max_call_s, constant(key), further_headers(spec), advice)


class _AnthropicModel(HttpModel):
    """A model of Anthropic's."""

    def __init__(self, spec: ModelSpec, fields: Mapping[str, Json], structure: Structure) -> None:
        self._fields, self._structure = fields, structure
        self._tier_fields = {tier: tier_fields(spec, tier) for tier in get_args(Tier)}
        self._cache_mark = cache_mark(spec)
        limit = max_reply_bytes(fields["max_tokens"])
        super().__init__(anthropic_endpoint(spec), self._write, message_reply, max_reply_bytes=limit)

    def __repr__(self) -> str:
        return f"Anthropic({self._fields['model']!r})"

    async def __call__(self, call: Call) -> Reply:
        """Ask once; see `ChatModel`. If the API refuses the schema, at no cost, ask again in the next way."""
        while True:
            structure = self._structure
            try:
                reply = await super().__call__(call)
            except ProviderError as error:
                if call.json_schema is None or not _refuses_schema(error, structure):
                    raise
                if self._structure == structure:  # otherwise another call has changed it meanwhile
                    may_use_tool = structure == "json_schema" and may_force_tool(self._fields)
                    self._structure = "tool" if may_use_tool else "words"
            else:
                if structure != "words" and call.json_schema is not None and self.ignores_schemas(reply):
                    self._structure = "words"
                return reply

    def _write(self, call: Call) -> bytes:
        fields = {**self._fields, **self._tier_fields[call.tier]}
        return message_body(fields, call, self._structure, self._cache_mark)


_FORMAT_REFUSED = re.compile(r"output[_ ]config|output[_ ]format|structured[ _-]outputs?|schema|grammar", re.IGNORECASE)
_TOOL_REFUSED = re.compile(r"\btools?\b|tool_choice|schema", re.IGNORECASE)


def _refuses_schema(error: ProviderError, structure: Structure) -> bool:
    """Whether a call was refused, at no cost, because of the way in which the schema was sent."""
    if structure == "words" or not isinstance(error, FatalError | RefusedError) or error.fault in ("row", "size"):
        return False
    refusal = error.refusal if isinstance(error, FatalError) else str(error)
    pattern = _FORMAT_REFUSED if structure == "json_schema" else _TOOL_REFUSED
    return pattern.search(refusal) is not None


# -- replies -------------------------------------------------------------------------------------------------------


def message_reply(data: Mapping[str, Any]) -> Reply:
    """The reply in a message.

    Raises:
        RefusedError: The model or a classifier declined.
    """
    blocks: Sequence[Mapping[str, Any]] = data["content"]
    usage, reason = usage_of(data), str(data["stop_reason"] or "null")
    tier = tier_of(data)
    if finish_kind(reason) == "refused":
        category = (data.get("stop_details") or {}).get("category")
        about = f", category {category!r}" if isinstance(category, str) else ""
        raise RefusedError(f"The model declined to answer (stop_reason {reason!r}{about}).", usage=usage, tier=tier)
    text = "".join(block["text"] for block in blocks if block["type"] == "text")
    for block in blocks:
        if block["type"] == "tool_use" and block["name"] == TOOL:
            text = orjson.dumps(block["input"]).decode()
            reason = "end_turn" if reason == "tool_use" else reason
            break
    thought = any(block["type"] in ("thinking", "redacted_thinking") for block in blocks)
    return Reply(
        text,
        usage,
        reason,
        text_field(data, "id"),
        model=text_field(data, "model"),
        reasoning_only=thought and not text.strip(),
        tier=tier,
    )
