"""A loopback provider that speaks Anthropic's messages API, with the faults and the ledger of `Provider`.

Requests are checked against Anthropic's API reference and its SDK: invalid ones are refused with the API's status and
message, so that a test with a wrong request fails.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import orjson

from tests.support.provider import Altered, Effect, Fault, Provider, ReceivedRequest, status
from tests.support.request_content import find_type

_STOP_REASONS = {"length": "max_tokens", "content_filter": "refusal"}
_FIELDS = frozenset(
    "model max_tokens messages system cache_control container diagnostics inference_geo metadata output_config "
    "service_tier speed stop_sequences stream thinking tool_choice tools temperature top_k top_p context_management "
    "mcp_servers".split()
)
_FORMATS = frozenset("date-time time date duration email hostname uri ipv4 ipv6 uuid".split())
_SCHEMA_WORDS = frozenset(
    "type properties required additionalProperties items minItems anyOf allOf enum const format description title $ref "
    "$defs default".split()
)
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_WITHOUT_FORMAT = "claude-3"
_MAX_BREAKPOINTS = 4
_SOURCES: Mapping[str, tuple[str, ...]] = {
    "image": ("image/jpeg", "image/png", "image/gif", "image/webp"),
    "document": ("application/pdf",),
}


class AnthropicProvider(Provider):
    """Answers `POST /v1/messages`; if the caller offers a tool, the answer is that tool's input."""

    path: ClassVar[str] = "/v1/messages"

    def __init__(self, *args: Any, fault: Fault | None = None, **options: Any) -> None:
        def effect_of(asked: ReceivedRequest) -> Effect:
            wrong = next(_faults(asked), None)
            return failing(400, "invalid_request_error", wrong)(asked) if wrong else fault(asked) if fault else None

        super().__init__(*args, fault=effect_of, **options)

    @property
    def address(self) -> str:
        """The base address for Anthropic's clients."""
        return self.base_url.removesuffix("/v1")

    def _completion(self, asked: ReceivedRequest, effect: Effect) -> tuple[bytes, Mapping[str, str]]:
        altered = effect if isinstance(effect, Altered) else Altered()
        answer, number = self._answer(asked.prompt), len(self.ledger.requests)
        text = answer if isinstance(answer, str) else orjson.dumps(answer).decode()
        text = altered.message.get("content", text)
        stop_reason = _STOP_REASONS.get(altered.choice.get("finish_reason"))
        if altered.message.get("refusal"):
            stop_reason = "refusal"
        content = _content(asked, text)
        uses_tool = any(block["type"] == "tool_use" for block in content)
        usage = self._usage(asked, text or "")
        self.ledger.billed(asked, usage["input_tokens"] + usage["cache_read_input_tokens"], usage["output_tokens"])
        message = {
            "id": f"msg-{number}",
            "type": "message",
            "role": "assistant",
            "model": asked.body["model"],
            "content": content,
            "stop_reason": stop_reason or ("tool_use" if uses_tool else "end_turn"),
            "stop_sequence": None,
            "usage": usage,
        }
        return orjson.dumps(message), {"Content-Type": "application/json", "request-id": f"req-{number}"}

    def _usage(self, asked: ReceivedRequest, text: str) -> dict[str, Any]:
        """The usage of a reply. Unlike OpenAI, Anthropic does not count cached tokens among the input tokens."""
        sent = len(asked.prompt) // 4
        read = self._cached_tokens
        written = 0
        output = len(text) // 4
        tier = "standard"
        if self._meter:
            prompt, marked = self._read(asked.body)
            used, tier = self._meter.bill(prompt, text, asked.body.get("service_tier", "standard_only"), marked)
            details = used["prompt_tokens_details"]
            sent = used["prompt_tokens"]
            output = used["completion_tokens"]
            read = details["cached_tokens"]
            written = details.get("cache_write_tokens", 0)
        lives = {block["cache_control"].get("ttl", "5m") for block in blocks_of(asked.body) if "cache_control" in block}
        by_life = {f"ephemeral_{life}_input_tokens": written if life in lives else 0 for life in ("5m", "1h")}
        return {
            "input_tokens": sent - read - written,
            "cache_read_input_tokens": read,
            "cache_creation_input_tokens": written,
            "cache_creation": by_life,
            "output_tokens": output,
            "service_tier": tier,
        }

    def _read(self, body: Mapping[str, Any]) -> tuple[str, int | None]:
        """Tools, system text and messages in this order; the last marked block ends the cached prefix."""
        text = orjson.dumps([body.get("tools"), body.get("output_config")]).decode()
        marked = None
        for block in blocks_of(body):
            text += block.get("text", "")
            marked = len(text) if "cache_control" in block else marked
        return text, marked


def _content(asked: ReceivedRequest, text: str | None) -> list[dict[str, Any]]:
    if not text:
        return []
    if tools := asked.body.get("tools"):
        return [{"type": "tool_use", "id": "tool-1", "name": tools[0]["name"], "input": orjson.loads(text)}]
    return [{"type": "text", "text": text}]


def failing(code: int, kind: str, message: str, **details: Any) -> Fault:
    """Reply with this status and an error as Anthropic writes it."""
    error = {"type": kind, "message": message, **({"details": details} if details else {})}
    return status(code, {"type": "error", "error": error, "request_id": "req-1"}, {"request-id": "req-1"})


# -- request validation --------------------------------------------------------------------------------------------


def _faults(asked: ReceivedRequest) -> Iterator[str]:
    """The messages with which the API would refuse a request."""
    body, headers = asked.body, {name.lower(): value for name, value in asked.headers.items()}
    if "anthropic-version" not in headers:
        yield "anthropic-version: header is required"
    fields = _FIELDS | ({"output_format"} if "structured-outputs" in headers.get("anthropic-beta", "") else set())
    yield from (f"{name}: Extra inputs are not permitted" for name in body if name not in fields)
    if not isinstance(body.get("max_tokens"), int) or body["max_tokens"] < 1:
        yield "max_tokens: Field required"
    roles = [message["role"] for message in body.get("messages", ())]
    if not roles or roles[-1] != "user" or not set(roles) <= {"user", "assistant"}:
        yield "messages: the conversation must end with a user message"
    blocks = list(blocks_of(body))
    yield from (fault for block in blocks for fault in _block_faults(block))
    if any(not block["text"].strip() for block in blocks if block["type"] == "text"):
        yield "messages: text content blocks must contain non-whitespace text"
    marked = [block["cache_control"] for block in blocks if "cache_control" in block]
    if len(marked) > _MAX_BREAKPOINTS:
        yield f"A maximum of 4 blocks with cache_control may be provided. Found {len(marked)}."
    if any(
        mark not in ({"type": "ephemeral"}, *({"type": "ephemeral", "ttl": x} for x in ("5m", "1h"))) for mark in marked
    ):
        yield "cache_control: Input should be a valid dictionary"
    yield from _thinking_faults(body)
    yield from _format_faults(body)


def _block_faults(block: Mapping[str, Any]) -> Iterator[str]:
    if block["type"] not in _SOURCES:
        if block["type"] != "text":
            yield f"messages: {block['type']!r} is not a valid type of a content block"
        return
    source = block["source"]
    if source["type"] == "url":
        return
    if source["type"] != "base64" or source["media_type"] not in _SOURCES[block["type"]]:
        yield f"messages: source.media_type {source.get('media_type')!r} is not supported"
    if find_type(b64decode(source["data"], validate=True)) != source["media_type"]:
        yield "messages: Could not process image"


def blocks_of(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    contents = [body.get("system", ()), *(message["content"] for message in body.get("messages", ()))]
    for content in contents:
        yield from [{"type": "text", "text": content}] if isinstance(content, str) else content


def _thinking_faults(body: Mapping[str, Any]) -> Iterator[str]:
    thinking, choice = body.get("thinking") or {}, body.get("tool_choice") or {}
    if not 0 <= (body.get("temperature") or 0) <= 1:
        yield "temperature: range: 0..1"
    if thinking.get("type") in ("enabled", "adaptive"):
        if choice.get("type") in ("tool", "any"):
            yield "Thinking may not be enabled when tool_choice forces tool use."
        if body.get("temperature", 1) != 1:
            yield "`temperature` may only be set to 1 when thinking is enabled."
    if thinking.get("type") == "enabled" and not 1024 <= thinking.get("budget_tokens", 0) < body["max_tokens"]:
        yield "`max_tokens` must be greater than `thinking.budget_tokens`."
    effort = (body.get("output_config") or {}).get("effort")
    if effort is not None and effort not in _EFFORTS:
        yield f"output_config.effort: Input should be one of {_EFFORTS}"


def _format_faults(body: Mapping[str, Any]) -> Iterator[str]:
    form = (body.get("output_config") or {}).get("format") or body.get("output_format")
    if form is None:
        return
    if body["model"].startswith(_WITHOUT_FORMAT):
        yield f"'{body['model']}' does not support output format."
    if form.get("type") != "json_schema":
        yield "output_config.format.type: Input should be 'json_schema'"
    yield from _schema_faults(form["schema"])


def _schema_faults(node: Mapping[str, Any]) -> Iterator[str]:
    where = "output_config.format.schema"
    yield from (f"{where}: property '{name}' is not supported" for name in node if name not in _SCHEMA_WORDS)
    if node.get("type") == "object" and node.get("additionalProperties") is not False:
        yield f"{where}: For 'object' type, 'additionalProperties' must be explicitly set to false"
    if node.get("format", "date") not in _FORMATS or node.get("minItems", 0) > 1:
        yield f"{where}: a format or bound is not supported"
    for child in (*node.get("properties", {}).values(), *node.get("anyOf", ()), *filter(None, [node.get("items")])):
        yield from _schema_faults(child)
