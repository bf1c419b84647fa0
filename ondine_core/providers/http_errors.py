"""Classifies failed calls, for every HTTP client.

A call whose reply was not received completely may have been billed; a refused call was not. `error_body` reads a
refusal, the table in `error_rules` says what is at fault, and if no rule matches, the status decides. The provider's
words are quoted without text of rows and without keys.
"""

from __future__ import annotations

import errno
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import aiohttp

from ondine_core.errors import FatalError, InvalidReplyError, Kind, ProviderError, RefusedError, TransientError
from ondine_core.providers.error_body import ErrorBody, read_error
from ondine_core.providers.error_rules import Fault, find_rule
from ondine_core.providers.http_connection import NotHttpError, NotSentError, OutOfStepError, ReplyTooLargeError
from ondine_core.providers.masking import mask
from ondine_core.providers.rate_limit_headers import hold_off_s, limits_reset_s, retry_after_s
from ondine_core.providers.reply_body import too_large
from ondine_core.types.values import Call, Reply

ADVICE: Mapping[int, str] = {
    401: "the key was not accepted; check api_key",
    402: "the account has no credit; add some, or raise its limit",
    403: "the key has no permission for this model",
    404: "there is no such model or address; check model and base_url",
    405: "this is not a chat-completions address; check base_url",
    407: "the proxy wants credentials; put them into the address of the proxy",
    410: "the model or address is gone; check model and base_url",
}
"""Statuses after which no request succeeds, and what to do about each."""
ADVICE_WITHOUT_KEY: Mapping[int, str] = {
    **ADVICE,
    401: "no api_key was sent, since one in the environment goes to the provider's own address only; set api_key, or "
    "check settings extra_headers",
}
_FAULTS: Mapping[int, Fault] = {
    403: "permission",
    413: "size",
    429: "limited",
    498: "capacity",
    **dict.fromkeys((409, 424, 425, 499), "broken"),
    **dict.fromkeys((408, 503, 504, 524, 529), "overloaded"),
    **dict.fromkeys((446, 451), "row"),
}
"""The fault that a status alone indicates, unless it is in `ADVICE` or its class (4xx, 5xx) decides."""
_DOUBTFUL = (401, 404)
"""Statuses that gateways now and then send for one call among many, although key, model and address are right."""
_BAD_REQUEST = 400
_LIMITED = 429
_MAX_QUOTE = 300
_NO_CALL = Call(())
_NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})


@dataclass(frozen=True, slots=True)
class Address:
    """What errors of calls say about the server."""

    host: str
    timeout_s: float
    advice: Mapping[int, str] = field(default_factory=lambda: ADVICE)


class Response(NamedTuple):
    """A response, and its time of arrival (seconds since the epoch)."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    at: float


def transport_error(error: BaseException, to: Address) -> ProviderError:
    """The error of a call without a complete response, because of `error`."""
    host = to.host
    unsent = _address_error(error, host) or _unsent_error(error, host)
    if unsent is not None:
        return unsent
    if isinstance(error, OutOfStepError):
        return TransientError(f"{host!r} sent a reply to another request; it was not used.", cost_unknown=True)
    if isinstance(error, ReplyTooLargeError):
        return too_large()
    if isinstance(error, TimeoutError):
        return TransientError(
            f"{host!r} did not reply within {to.timeout_s:g} s; raise timeout_s if it needs longer.",
            cost_unknown=True,
            kind="overloaded",
        )
    if isinstance(error, NotHttpError):
        return TransientError(
            f"{host!r} sent bytes that are not HTTP ({error}); check base_url, also whether it is http or https.",
            cost_unknown=True,
        )
    return TransientError(f"The connection to {host!r} broke ({type(error).__name__}).", cost_unknown=True)


def _address_error(error: BaseException, host: str) -> ProviderError | None:
    """The error of an address to which no request can be sent; `None` if the address may be right."""
    if isinstance(error, aiohttp.InvalidURL):
        return FatalError(f"The address of {host!r} is not valid; check base_url.")
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        error = error.certificate_error
    if isinstance(error, ssl.SSLCertVerificationError):
        return FatalError(
            f"The certificate of {host!r} is not trusted ({error.verify_message}); check base_url, or set "
            "SSL_CERT_FILE to a file with the authorities to trust (`python -m certifi` prints one of the public ones)."
        )
    return None


def _unsent_error(error: BaseException, host: str) -> ProviderError | None:
    """The error of a call that the server cannot have read; `None` if it may have read it."""
    if isinstance(error, NotSentError):
        return TransientError(f"{host!r} closed the connection before a call was sent.")
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return _proxy_error(error.status, host)
    if isinstance(error, OSError) and error.errno in _NO_DESCRIPTORS:
        return TransientError(
            "This process may open no more files; raise `ulimit -n` or lower max_concurrency.", kind="overloaded"
        )
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return TransientError(
            f"Cannot connect to the proxy on the way to {host!r}; check HTTPS_PROXY, HTTP_PROXY and NO_PROXY.",
            cause="connection",
        )
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return TransientError(
            f"Cannot connect to {host!r} ({type(error).__name__}); check base_url, and that the server runs.",
            cause="connection",
        )
    return None


def _proxy_error(status: int, host: str) -> ProviderError:
    what = f"The proxy replied {status} when it was to connect to {host!r}"
    if status >= 500 or status == _LIMITED:  # noqa: PLR2004
        return TransientError(f"{what}.")
    return FatalError(f"{what}; check HTTPS_PROXY, the credentials in it, and NO_PROXY.")


def response_error(response: Response, call: Call | None, secrets: Iterable[str], to: Address) -> ProviderError:
    """The error of a call whose response is not a success.

    It quotes the provider's explanation without text of a row in `call` and without `secrets`; without a `call`, it
    quotes codes only.
    """
    return _classify(response, _read_body(response), call, secrets, to)


def no_answer_error(response: Response, call: Call | None, secrets: Iterable[str], to: Address) -> ProviderError:
    """The error of a call whose response is a success (2xx) without an answer.

    Gateways report errors so; the body may name the status, or have an explanation that a rule knows.
    """
    body = _read_body(response)
    status = body.status
    if status is None and not body.is_page:
        explanation = mask(" ".join((*body.codes, body.message)), call or _NO_CALL, secrets)
        if find_rule(_BAD_REQUEST, explanation, names_a_wait=body.wait_s is not None) is not None:
            status = _BAD_REQUEST
    if status is not None:
        return _classify(Response(status, {}, response.content, response.at), body, call, secrets, to)
    # Other bodies may hold a model's answer, which no error quotes.
    is_explained = body.is_page or b'"error' in response.content
    quoted = quotable(body.message, call, secrets) if call is not None and is_explained else ""
    text = f"{to.host!r} replied {response.status} with a body that is not a chat completion{quoted}; check base_url."
    return TransientError(text, cost_unknown=True)


def _read_body(response: Response) -> ErrorBody:
    return read_error(response.content, response.at, response.headers.get("content-type", ""))


def _classify(
    response: Response, body: ErrorBody, call: Call | None, secrets: Iterable[str], to: Address
) -> ProviderError:
    status, wait_s = response.status, _wait_s(response, body)
    secrets = tuple(secrets)
    sent = call or _NO_CALL
    message = mask(body.message, sent, secrets)
    quoted = "" if call is None else message
    codes = [code for code in body.codes if mask(code, sent, secrets) == code]
    what = f"The provider replied {status}" + (f" ({codes[0]})" if codes else "") + _as_suffix(quoted)
    if body.request_field and body.request_field not in quoted:
        what += f" (about {body.request_field!r})"
    if status < _BAD_REQUEST:
        return FatalError(f"{what}, which is not a chat completion; check base_url.", is_certain=False)
    rule = find_rule(status, f"{' '.join(codes)} {message}".strip(), names_a_wait=wait_s is not None)
    fault = _fault_of_status(status, to) if rule is None else rule.fault
    advice = to.advice.get(status) if rule is None or rule.advice is None else rule.advice
    if isinstance(advice, int):
        advice = to.advice.get(advice)
    match fault:
        case "limited" | "capacity" | "overloaded" | "broken":
            if status == _LIMITED and wait_s is None:
                tokens = sum(len(part.content) for part in sent.messages) // 4
                wait_s = hold_off_s(response.headers, tokens, now=response.at) or None
            kind: Kind = "overloaded" if fault == "capacity" else fault
            return TransientError(
                f"{what}.", retry_after_s=wait_s, kind=kind, cause="capacity" if fault == "capacity" else None
            )
        case "lost":
            return TransientError(f"{what}.", retry_after_s=wait_s, kind="overloaded", cost_unknown=True)
        case "row" | "size" | "unclear":
            return RefusedError(f"{what}.", fault=fault)
        case "reply":
            cut = "length" if "max completion tokens reached" in message.lower() else "stop"
            return InvalidReplyError(f"{what}.", Reply(body.failed_reply or "", finish_reason=cut))
        case "setup" | "permission" | "account":
            text = f"{what}: {advice}." if advice else f"{what}."
            return FatalError(text, fault=fault, refusal=f"{what}.", is_certain=status not in _DOUBTFUL)


def _fault_of_status(status: int, to: Address) -> Fault:
    if status in _FAULTS:
        return _FAULTS[status]
    if status in to.advice:
        return "account"
    return "broken" if status >= 500 else "unclear"  # noqa: PLR2004


def _wait_s(response: Response, body: ErrorBody) -> float | None:
    """The wait in seconds that the provider asks for: in its headers, else in the body."""
    asked_s = retry_after_s(response.headers, response.at)
    if asked_s is None:
        asked_s = body.wait_s
    if asked_s is None and response.status == _LIMITED:
        asked_s = limits_reset_s(response.headers, response.at)
    return asked_s


def quotable(message: str, call: Call, secrets: Iterable[str]) -> str:
    """`message` as a suffix for an error text, without text of rows and without `secrets`."""
    return _as_suffix(mask(message, call, secrets))


def _as_suffix(masked: str) -> str:
    masked = masked[:_MAX_QUOTE].rstrip(" .")
    return f": {masked}" if masked.strip("… .,:;'\"") else ""
