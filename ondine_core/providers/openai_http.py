"""OpenAI's chat-completions dialect, which Groq, Together, Ollama, vLLM, llama.cpp and others also speak."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args
from urllib.parse import urlsplit

import orjson

from ondine_core.errors import FatalError, InvalidReplyError, ProviderError, RefusedError, TransientError
from ondine_core.providers.finish_reasons import finish_kind
from ondine_core.providers.http import HttpModel
from ondine_core.providers.http_client import Endpoint, bearer
from ondine_core.providers.http_errors import ADVICE, ADVICE_WITHOUT_KEY
from ondine_core.providers.media_parts import openai_content
from ondine_core.providers.openai_servers import find_access
from ondine_core.providers.prompt_cache import cache_key_field, prefix_id, prefix_of
from ondine_core.providers.reply_body import max_reply_bytes
from ondine_core.providers.request_form import PLAIN_FORM, RequestForm
from ondine_core.providers.settings import request_fields
from ondine_core.providers.tiers import tier_fields
from ondine_core.providers.usage import stated_usd_of, text_field, tier_of, usage_of
from ondine_core.types.protocols import ChatModel
from ondine_core.types.values import Call, ModelSpec, Reply, Tier


def connect_openai(spec: ModelSpec, name: str) -> ChatModel:
    """Connect the model `name` of a server in the table of `openai_servers`."""
    access = find_access(spec, name)
    url, key = f"{access.base_url}/chat/completions", bearer(access.api_key)
    endpoint = Endpoint(url, spec.max_call_s, key, access.headers, chat_advice(access.base_url, access.api_key))
    return OpenAIModel(endpoint, spec, {"model": name}, access.form)


def chat_advice(base_url: str, api_key: str | None) -> Mapping[int, str]:
    """The advice about each status; for 404 and 405 also a `/v1`, if `base_url` lacks the one of most servers."""
    advice = ADVICE if api_key else ADVICE_WITHOUT_KEY
    if re.search(r"/v\d", urlsplit(base_url).path):
        return advice
    hint = f"; base_url has no /v1, so try base_url={base_url + '/v1'!r}"
    return {**advice, 404: ADVICE[404] + hint, 405: ADVICE[405] + hint}


class OpenAIModel(HttpModel):
    """A model behind one chat-completions address.

    All requests have the fields `fixed`. They are written in `form` until the server refuses a part of it.
    """

    def __init__(self, endpoint: Endpoint, spec: ModelSpec, fixed: Mapping[str, Any], form: RequestForm) -> None:
        self._writer = ChatWriter(spec, fixed, endpoint.url)
        self._form, self._max_output_tokens = form, spec.max_output_tokens
        limit = max_reply_bytes(spec.max_output_tokens)
        super().__init__(endpoint, self._write, chat_reply, max_reply_bytes=limit)

    async def __call__(self, call: Call) -> Reply:
        """Ask once; see `ChatModel`. A refusal of the request's form costs nothing; it is then sent in another form."""
        for _ in range(_MAX_FORMS):
            form = self._form
            try:
                reply = await super().__call__(call)
            except ProviderError as error:
                if isinstance(error, InvalidReplyError) or (isinstance(error, TransientError) and error.cost_unknown):
                    raise
                refusal = error.refusal if isinstance(error, FatalError) else str(error)
                adapted = self._form.adapt(refusal, call, has_limit=self._max_output_tokens is not None)
                if adapted is not None:
                    self._form = adapted
                elif self._form == form:  # otherwise another call has adapted the form meanwhile
                    raise
            else:
                if not self.follows_schemas and form.write(call)[1] is not None and self.ignores_schemas(reply):
                    self._form = replace(self._form, structure="words")
                return reply
        return await super().__call__(call)

    def _write(self, call: Call) -> bytes:
        return self._writer.write(call, self._form)


_MAX_FORMS = 4
"""A system message, a schema and the name of the output limit can each be refused once."""


class ChatWriter:
    """Writes the calls of one model as chat-completions requests to `url`; some fields are sent to some hosts only."""

    def __init__(self, spec: ModelSpec, fixed: Mapping[str, Any], url: str) -> None:
        temperature = {} if spec.temperature is None else {"temperature": spec.temperature}
        self._fixed = {**fixed, **temperature, **request_fields(spec)}
        self._cache_key_field = cache_key_field(urlsplit(url).hostname)
        self._tier_fields = {tier: tier_fields(spec, tier) for tier in get_args(Tier)}
        self._max_output_tokens = spec.max_output_tokens

    def write(self, call: Call, form: RequestForm) -> bytes:
        """`call` as a request in this form."""
        fixed = {**self._fixed, **self._tier_fields[call.tier]}
        if self._cache_key_field and call.cache_prefix:
            fixed = {self._cache_key_field: prefix_id(prefix_of(call)), **fixed}
        if self._max_output_tokens is not None:
            fixed = {**fixed, form.limit_field: self._max_output_tokens}
        return chat_body(fixed, call, form)


def chat_body(fixed: Mapping[str, Any], call: Call, form: RequestForm = PLAIN_FORM) -> bytes:
    """`call` as a chat-completions request that also has the fields `fixed`."""
    call, schema, json_mode = form.write(call)
    body: dict[str, Any] = {"response_format": {"type": "json_object"}} if json_mode else {}
    body |= fixed
    body["messages"] = [
        {"role": message.role, "content": openai_content(message.content, call.media)} for message in call.messages
    ]
    if schema is not None:
        strict = {"name": "answer", "strict": True, "schema": orjson.Fragment(schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": strict}
    return orjson.dumps(body)


def chat_reply(data: Mapping[str, Any]) -> Reply:
    """The reply in a chat completion.

    Raises:
        RefusedError: The model or a content filter declined.
        TransientError: The server failed while it wrote.
    """
    choice = data["choices"][0]
    finish_reason = _finish_reason(choice)
    kind = finish_kind(finish_reason)
    message = choice.get("message") or {}  # Gemini leaves it out if a filter or a limit left nothing of it
    if not message and (kind == "whole" or choice.get("error")):
        raise LookupError("The choice has no message.")
    if message.get("refusal") or kind == "refused":
        raise RefusedError(
            "The model declined to answer (content filter).",
            usage=usage_of(data),
            stated_usd=stated_usd_of(data),
            tier=tier_of(data),
        )
    if kind == "broken":
        raise TransientError(
            f"The provider broke off its reply (finish_reason {finish_reason!r}).", cost_unknown=True, kind="overloaded"
        )
    text = _content_text(message.get("content"))
    thoughts = message.get("reasoning_content") or message.get("reasoning")
    return Reply(
        text,
        usage_of(data),
        finish_reason,
        text_field(data, "id"),
        model=text_field(data, "model"),
        stated_usd=stated_usd_of(data),
        reasoning_only=bool(thoughts) and not text.strip(),
        tier=tier_of(data),
    )


def _finish_reason(choice: Mapping[str, Any]) -> str:
    """The finish reason: `"stop"` if the field is missing, `"null"` if it is null, which means an unfinished reply."""
    native = choice.get("native_finish_reason")  # of OpenRouter, which replaces some reasons by "stop"
    if isinstance(native, str) and finish_kind(native, unknown="whole") in ("cut", "broken", "refused"):
        return native
    return str(choice.get("finish_reason", "stop") or "null")


def _content_text(content: Any) -> str:
    """The text of a message, without thoughts; its content is a text or a list of parts."""
    if isinstance(content, str) or not content:
        return content or ""
    return "".join(part.get("text") or "" for part in content if part.get("type", "text") in ("text", "output_text"))
