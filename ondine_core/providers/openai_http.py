"""The OpenAI chat-completions dialect; Groq, Together, Ollama, vLLM, llama.cpp and others speak it, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any
from urllib.parse import urlsplit

import orjson

from ondine_core.errors import RefusedError, TransientError
from ondine_core.finish_reasons import ending_of
from ondine_core.providers.http import HttpModel
from ondine_core.providers.reply_body import max_reply_bytes
from ondine_core.providers.settings import request_fields
from ondine_core.providers.usage import stated_usd_of, usage_of
from ondine_core.values import Call, ModelSpec, Reply

__all__ = ["chat_body", "chat_reply", "connect_openai"]


def connect_openai(
    spec: ModelSpec,
    model: str,
    base_url: str,
    api_key: str | None,
    write: Callable[[Mapping[str, Any], Call], bytes] | None = None,
) -> HttpModel:
    """A client for `model` at `base_url` (the root up to `/v1`), with the settings of `spec`.

    Args:
        spec: Time-out, temperature, bound on output tokens, further parameters.
        model: What the server calls it.
        base_url: Where it is.
        api_key: Sent as a bearer token; `None` sends none.
        write: Writes fixed fields and a call as JSON, by default `chat_body`.
    """
    # OpenAI's own API has renamed the bound on output tokens; everybody else still knows the old name.
    bound = "max_completion_tokens" if urlsplit(base_url).hostname == "api.openai.com" else "max_tokens"
    settings: dict[str, Any] = {"model": model, "temperature": spec.temperature, bound: spec.max_output_tokens}
    fixed = {name: value for name, value in settings.items() if value is not None} | request_fields(spec)
    url = f"{base_url.rstrip('/')}/chat/completions"
    bytes_at_most = max_reply_bytes(spec.max_output_tokens)
    body = partial(write or chat_body, fixed)
    return HttpModel(url, api_key, spec.timeout_s, body, chat_reply, max_reply_bytes=bytes_at_most)


def chat_body(fixed: Mapping[str, Any], call: Call) -> bytes:
    """A call as a chat-completions request with the fields of `fixed`."""
    messages = [{"role": message.role, "content": message.content} for message in call.messages]
    body = {**fixed, "messages": messages}
    if call.json_schema is not None:
        body["response_format"] = orjson.Fragment(_response_format(call.json_schema))
    return orjson.dumps(body)


# Strict structured output takes a subset of JSON Schema; what is left out here is checked when the reply is parsed.
_NOT_STRICT = frozenset({"minLength", "maxLength", "examples"})


@lru_cache(maxsize=64)
def _response_format(json_schema: bytes) -> bytes:
    def strict(node: Any, *, names: bool = False) -> Any:
        if isinstance(node, list):
            return [strict(item) for item in node]
        if not isinstance(node, dict):
            return node
        kept = node if names else {key: value for key, value in node.items() if key not in _NOT_STRICT}
        return {key: strict(value, names=key == "properties" and not names) for key, value in kept.items()}

    schema = {"name": "answer", "strict": True, "schema": strict(orjson.loads(json_schema))}
    return orjson.dumps({"type": "json_schema", "json_schema": schema})


def chat_reply(data: Mapping[str, Any]) -> Reply:
    """The reply in a chat completion.

    Raises:
        RefusedError: The model or a content filter declined.
        TransientError: The server failed while it wrote.
    """
    choice = data["choices"][0]
    message, finish_reason = choice["message"], _finish_reason(choice)
    ending = ending_of(finish_reason)
    if message.get("refusal") or ending == "refused":
        raise RefusedError(
            "The model declined to answer (content filter).", usage=usage_of(data), stated_usd=stated_usd_of(data)
        )
    if ending == "broken":
        raise TransientError(
            f"The provider broke off its reply (finish_reason {finish_reason!r}).", cost_unknown=True, kind="overloaded"
        )
    text = _content_text(message.get("content"))
    thoughts = message.get("reasoning_content") or message.get("reasoning")
    return Reply(
        text,
        usage_of(data),
        finish_reason,
        _text(data, "id"),
        model=_text(data, "model"),
        stated_usd=stated_usd_of(data),
        reasoning_only=bool(thoughts) and not text.strip(),
    )


def _finish_reason(choice: Mapping[str, Any]) -> str:
    """Why the reply ended.

    A server that leaves the field out reports no reasons; null means by OpenAI's schema that the reply is not finished.
    """
    native = choice.get("native_finish_reason")  # of OpenRouter, which translates some reasons to "stop"
    if isinstance(native, str) and ending_of(native, unknown="whole") in ("cut", "broken", "refused"):
        return native
    return str(choice.get("finish_reason", "stop") or "null")


def _content_text(content: Any) -> str:
    """The text of a message whose content may be a list of parts, some of which are thoughts."""
    if isinstance(content, str) or not content:
        return content or ""
    return "".join(part.get("text") or "" for part in content if part.get("type", "text") in ("text", "output_text"))


def _text(data: Mapping[str, Any], name: str) -> str | None:
    return found if isinstance(found := data.get(name), str) else None
