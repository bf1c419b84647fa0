"""A provider on the loopback that speaks Anthropic's dialect, with the faults and the books of `Provider`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import orjson

from tests.support.provider import Altered, Asked, Effect, Provider

_STOP_REASONS = {"length": "max_tokens", "content_filter": "refusal"}


class AnthropicProvider(Provider):
    """Answers `POST /v1/messages`; where the caller offers a tool, the answer comes as the input of that tool."""

    path: ClassVar[str] = "/v1/messages"

    @property
    def address(self) -> str:
        """What Anthropic's clients call the base address."""
        return self.base_url.removesuffix("/v1")

    def _completion(self, asked: Asked, effect: Effect) -> tuple[bytes, Mapping[str, str]]:
        altered = effect if isinstance(effect, Altered) else Altered()
        answer, number = self._answer(asked.prompt), len(self.books.requests)
        text = answer if isinstance(answer, str) else orjson.dumps(answer).decode()
        text = altered.message.get("content", text)
        stop_reason = _STOP_REASONS.get(altered.choice.get("finish_reason"), "end_turn")
        if altered.message.get("refusal"):
            stop_reason = "refusal"
        input_tokens, output_tokens = len(asked.prompt) // 4, len(text or "") // 4
        self.books.billed(asked, input_tokens, output_tokens)
        message = {
            "id": f"msg-{number}",
            "type": "message",
            "role": "assistant",
            "model": asked.body["model"],
            "content": _content(asked, text),
            "stop_reason": stop_reason,
            "stop_sequence": None,
            "usage": {
                # Unlike OpenAI, Anthropic does not count what was cached among the input tokens.
                "input_tokens": input_tokens - self._cached_tokens,
                "cache_read_input_tokens": self._cached_tokens,
                "cache_creation_input_tokens": 0,
                "output_tokens": output_tokens,
            },
        }
        return orjson.dumps(message), {"Content-Type": "application/json", "request-id": f"req-{number}"}


def _content(asked: Asked, text: str | None) -> list[dict[str, Any]]:
    if not text:
        return []
    if tools := asked.body.get("tools"):
        return [{"type": "tool_use", "id": "tool-1", "name": tools[0]["name"], "input": orjson.loads(text)}]
    return [{"type": "text", "text": text}]
