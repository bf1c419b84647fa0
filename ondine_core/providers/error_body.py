"""Reads an HTTP error response of any shape: every code, every sentence and every wait in it.

Each provider and gateway has its own shape: an `error` object or text, a `message` or `detail` at the top, lists of
errors, problem+json, JSON inside a message, HTML pages, plain text. So the whole body is walked. Fields that echo the
request or the model's reply are skipped, since they contain text of rows.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import unescape
from typing import Any

import orjson

from ondine_core.providers.rate_limit_headers import limits_reset_s, valid_wait_s, wait_in_text_s, wait_of_value_s
from ondine_core.providers.reply_body import decode_text

_MAX_BYTES = 2**18
_MAX_TEXT = 2_000
_MAX_DEPTH = 10
_MAX_NODES = 500

_CODE_FIELDS = frozenset({"code", "type", "status", "reason", "error_code", "error_type", "quotaid", "limit_source"})
_TEXT_FIELDS = frozenset({"detail", "title", "description", "error_description", "error", "faultstring", "raw"})
"""Beside those that end with `message` or `msg`."""
_FIELD_NAMES = frozenset({"param", "parameter", "field", "loc"})
_ECHO_FIELDS = frozenset({"input", "ctx", "flagged_input", "prompt", "messages", "request", "body", "content", "url"})
_WAIT_FIELDS: Mapping[str, float] = {
    **dict.fromkeys(("retrydelay", "retry_delay", "retry_after", "retryafter", "retry-after", "estimated_time"), 1.0),
    **dict.fromkeys(("retry_after_seconds", "retryafterseconds", "reset_seconds"), 1.0),
    **dict.fromkeys(("retry_after_ms", "retryafterms", "retry-after-ms"), 0.001),
}
"""Fields that name a wait, and the unit of a plain number in them in seconds."""
_SAYS_NOTHING = frozenset({"", "error", "none", "null", "about:blank", "fail", "failed", "failure", "false", "true"})
_STATUSES = range(400, 600)


@dataclass(slots=True)
class ErrorBody:
    """What an error response says.

    Attributes:
        sentences: Explanations, the first found first.
        codes: Codes, types and reasons as written, the first found first.
        request_field: The field of the request that is at fault.
        status: The status that the body itself names.
        wait_s: The longest wait that the body names, in seconds.
        failed_reply: The model's text, if the provider reports it as invalid.
        is_page: Whether the body is an HTML page, such as a firewall's.
    """

    sentences: list[str] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    request_field: str | None = None
    status: int | None = None
    wait_s: float | None = None
    failed_reply: str | None = None
    is_page: bool = False

    @property
    def message(self) -> str:
        """The explanations, each once."""
        kept: list[str] = []
        for sentence in self.sentences:
            if not any(sentence in other for other in kept):
                kept.append(sentence)
        return "; ".join(kept)


def read_error(content: bytes, now: float, content_type: str = "") -> ErrorBody:
    """Read the body of an error response; `now`, in epoch seconds, is for waits that are given as a date."""
    body = ErrorBody()
    text = decode_text(content, content_type)[:_MAX_BYTES].lstrip("\ufeff").strip()
    parsed = _parse_json(text)
    if parsed is not None:
        for number, (name, value, owner) in enumerate(_walk(parsed, 0)):
            if number >= _MAX_NODES:
                break
            _add_field(body, name, value, owner, now)
    elif re.match(r"<(?:!doctype|html|head|body|\?xml|error)\b", text, re.IGNORECASE):
        _read_page(body, text)
    elif text:
        _add_field(body, "message", text, {}, now)
    for sentence in body.sentences:
        _add_wait(body, wait_in_text_s(sentence, now))
    return body


def _parse_json(text: str) -> Any:
    if text[:1] not in ("{", "[", '"'):
        return None
    try:
        parsed = orjson.loads(text.encode())
    except orjson.JSONDecodeError:
        return None
    return parsed if isinstance(parsed, dict | list) else {"message": parsed}


def _walk(node: Any, depth: int) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Each field of a JSON value as name, value and object; an object's own fields precede those of its children."""
    if depth > _MAX_DEPTH:
        return
    if isinstance(node, list):
        for item in node:
            yield from _walk(item if isinstance(item, dict | list) else {"message": item}, depth + 1)
        return
    children: list[Any] = []
    # The code first, since it is more exact than a type.
    for key, value in sorted(node.items(), key=lambda item: item[0] != "code"):
        name = str(key).lower()
        if name in _ECHO_FIELDS:
            continue
        inner = _json_within(value) if isinstance(value, str) and _is_text_field(name) else None
        is_headers = name == "headers" and isinstance(value, dict)
        if inner is not None:
            lead, parsed = inner
            yield name, lead, node
            children.append(parsed)
        elif not isinstance(value, dict | list) or name in _FIELD_NAMES or name in _WAIT_FIELDS or is_headers:
            yield name, value, node
        else:
            children.append(value)
    for child in children:
        yield from _walk(child, depth + 1)


def _json_within(text: str) -> tuple[str, Any] | None:
    """The text before a JSON object or list (or a Python literal of one) inside a message, and that object."""
    start, end = text.find("{"), text.rfind("}") + 1
    if start < 0 or end <= start or end - start > _MAX_TEXT * 8:
        return None
    if start and text[start - 1] == "[" and text[end : end + 1] == "]":
        start, end = start - 1, end + 1
    inner = text[start:end]
    try:
        parsed = orjson.loads(inner)
    except orjson.JSONDecodeError:
        try:
            parsed = ast.literal_eval(inner)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    has_fields = isinstance(parsed, dict | list) and bool(parsed)
    return (text[:start].rstrip(" -:b'\""), parsed) if has_fields else None


def _add_field(body: ErrorBody, name: str, value: Any, owner: Mapping[str, Any], now: float) -> None:
    """Add one field to `body`."""
    if name in _WAIT_FIELDS:
        wait_s = wait_of_value_s(value, now)
        _add_wait(body, None if wait_s is None else valid_wait_s(wait_s * _WAIT_FIELDS[name]))
    elif name == "headers":
        headers = {str(key).lower(): str(text) for key, text in value.items()}
        _add_wait(body, limits_reset_s(headers, now))
    elif name == "failed_generation" and isinstance(value, str):
        body.failed_reply = body.failed_reply or value
    elif name in _FIELD_NAMES:
        body.request_field = body.request_field or _field_name(value)
    elif name in _CODE_FIELDS and isinstance(value, str | int) and not isinstance(value, bool):
        _add_code(body, str(value).strip())
    elif _is_text_field(name) and isinstance(value, str):
        about = _field_name(owner.get("loc"))
        _add_sentence(body, f"{about}: {value}" if about else value)


def _is_text_field(name: str) -> bool:
    return name in _TEXT_FIELDS or name.endswith(("message", "msg"))


def _add_code(body: ErrorBody, code: str) -> None:
    if code.isdigit() and int(code) in _STATUSES:
        body.status = body.status or int(code)
    elif " " in code:
        _add_sentence(body, code)
    elif code.lower() not in _SAYS_NOTHING and code not in body.codes and len(code) <= 100:  # noqa: PLR2004
        body.codes.append(code)


def _add_sentence(body: ErrorBody, text: str) -> None:
    text = " ".join(text[:_MAX_TEXT].split())
    if text.lower() not in _SAYS_NOTHING:
        body.sentences.append(text)


def _field_name(value: Any) -> str | None:
    parts = [str(part) for part in value if part != "body"] if isinstance(value, list | tuple) else [value]
    name = ".".join(part for part in parts if isinstance(part, str))
    return name if re.fullmatch(r"[\w.\[\]/$-]{1,80}", name) and name.lower() != "none" else None


def _add_wait(body: ErrorBody, wait_s: float | None) -> None:
    if wait_s is not None:
        body.wait_s = max(wait_s, body.wait_s or 0.0)


def _read_page(body: ErrorBody, text: str) -> None:
    body.is_page = True
    for tag, inner in re.findall(r"<(title|h1|message|code)\b[^>]*>(.{0,300}?)</\1>", text, re.IGNORECASE | re.DOTALL):
        words = unescape(re.sub(r"<[^>]*>", " ", inner)).strip()
        if tag.lower() == "code":
            _add_code(body, words)
        else:
            _add_sentence(body, words)
