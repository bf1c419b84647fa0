"""What it means when a call fails: classified once, here, for every client that speaks HTTP, as data the engine obeys.

A status decides whether a call was turned away for good, for now or for all; a call whose reply was not seen whole may
have been billed. What a provider says about it is passed on unless it repeats a prompt, and without the keys in it.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from ondine_core.errors import FatalError, Kind, ProviderError, RefusedError, TransientError
from ondine_core.providers.rate_headers import hold_off_s, retry_after_s
from ondine_core.values import Call

__all__ = ["ADVICE", "Address", "Response", "lost", "quotable", "turned_away", "unreadable"]

ADVICE: Mapping[int, str] = {
    401: "the key was not accepted; check api_key",
    402: "the account has no credit",
    403: "the key has no permission for this model",
    404: "there is no such model or address; check model and base_url",
    405: "this is not a chat-completions address; check base_url",
}
"""Statuses after which no request succeeds, and what to do about each."""
_LIMITED = 429
_OVERLOADED = frozenset({408, 503, 504, 529})
_TRANSIENT = frozenset({408, 409, 425, 429})
_OUT_OF_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached"})


@dataclass(frozen=True, slots=True)
class Address:
    """Whom calls go to, as far as their failures tell.

    Args:
        host: Name and port.
        timeout_s: Seconds one call may take.
        advice: Statuses after which no request succeeds, and what to do about each.
    """

    host: str
    timeout_s: float
    advice: Mapping[int, str] = field(default_factory=lambda: ADVICE)


@dataclass(frozen=True, slots=True)
class Response:
    """What came back, and when (seconds since the epoch)."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    at: float


def lost(error: BaseException, to: Address) -> ProviderError:
    """Why no response came back whole."""
    host = to.host
    if isinstance(error, aiohttp.InvalidURL | ssl.SSLCertVerificationError | aiohttp.ClientConnectorCertificateError):
        return FatalError(f"Cannot trust or reach {host!r} ({type(error).__name__}); check base_url and certificates.")
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return TransientError(f"Cannot connect to {host!r} ({type(error).__name__}).")
    if isinstance(error, TimeoutError):
        return TransientError(
            f"{host!r} did not reply within {to.timeout_s:g} s; raise timeout_s if it needs longer.",
            cost_unknown=True,
            kind="overloaded",
        )
    return TransientError(f"The connection to {host!r} broke ({type(error).__name__}).", cost_unknown=True)


def turned_away(response: Response, call: Call, secrets: Iterable[str], to: Address) -> ProviderError:
    """What a response means that is no answer.

    Args:
        response: What came back.
        call: What was asked; nothing of it is quoted.
        secrets: Keys and tokens that were sent; they are masked.
        to: Whom it was asked.
    """
    status, error = response.status, _error_object(response.content)
    codes = (found for found in (error.get("code"), error.get("type")) if isinstance(found, str))
    code = next(codes, None)
    said = quotable(str(error.get("message") or ""), call, secrets)
    what = f"The provider replied {status}" + (f" ({code})" if code else "") + said
    if status in to.advice:
        return FatalError(f"{what}: {to.advice[status]}.")
    if code in _OUT_OF_CREDIT:
        return FatalError(f"{what}: {ADVICE[402]}.")
    if status in _TRANSIENT or status >= 500:  # noqa: PLR2004
        wait_s = retry_after_s(response.headers, response.at)
        if status == _LIMITED and wait_s is None:
            wait_s = hold_off_s(response.headers, sum(len(part.content) for part in call.messages) // 4) or None
        kind: Kind = "limited" if status == _LIMITED else "overloaded" if status in _OVERLOADED else "broken"
        return TransientError(f"{what}.", retry_after_s=wait_s, kind=kind)
    if status < 400:  # noqa: PLR2004
        return FatalError(f"{what}, which is no chat completion; check base_url.")
    return RefusedError(f"{what}.")


def unreadable(response: Response, call: Call, secrets: Iterable[str], to: Address) -> ProviderError:
    """What a 200 means that holds no answer: some gateways report errors so; a code in it decides, else it is lost."""
    code = _error_object(response.content).get("code")
    if isinstance(code, int) and code >= 400:  # noqa: PLR2004
        return turned_away(Response(code, {}, response.content, response.at), call, secrets, to)
    return TransientError("The provider replied 200 with a body that is not a chat completion.", cost_unknown=True)


def _error_object(content: bytes) -> Mapping[str, Any]:
    try:
        error = orjson.loads(content)["error"]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return {}
    return error if isinstance(error, dict) else {"message": error}


_LONGEST_QUOTE = 300
_WINDOW = 8


def quotable(message: str, call: Call, secrets: Iterable[str]) -> str:
    """`message` as a suffix for an error text, unless it repeats part of a prompt; `secrets` are masked."""
    message = " ".join(message.split())
    for secret in filter(None, secrets):
        message = message.replace(secret, "***")
    message = re.sub(r"\b(sk|gsk|key|pk)[-_][\w*-]{6,}", "***", message)[:_LONGEST_QUOTE]
    sent = "\n".join(part.content for part in call.messages)
    if any(quote in sent for quote in re.findall(r"['\"`]([^'\"`]+)['\"`]", message)):
        return ""
    if any(message[at : at + _WINDOW] in sent for at in range(max(1, len(message) - _WINDOW + 1))):
        return ""
    return f": {message.rstrip('.')}"
