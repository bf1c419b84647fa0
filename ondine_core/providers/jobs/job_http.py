"""The HTTP requests of a batch API: JSON, files up and results down, piece by piece, over aiohttp.

Connections, proxies and failures are those of live calls. A request is sent once. Nothing but the request that creates
a job can cost anything, so only of that one a lost reply leaves a cost unknown.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from math import inf
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
import orjson

from ondine_core.errors import JobLostError, ProviderError, RefusedError, TransientError
from ondine_core.providers.http import CONNECT_TIMEOUT_S, decode, proxy_for
from ondine_core.providers.http_connection import Connector, NotSentError, ReplyTooLargeError, Request, Resolve
from ondine_core.providers.http_errors import ADVICE, Address, Response, lost, turned_away
from ondine_core.providers.job_api import JobApi, JobProblem
from ondine_core.providers.masking import mask
from ondine_core.providers.reply_body import MAX_REPLY_BYTES, check_parsable
from ondine_core.types.values import Call

__all__ = [
    "CLOCK_SLACK_S",
    "LATE_S",
    "JobHttp",
    "ResultLine",
    "Target",
    "cancel_unless_ended",
    "constant",
    "epoch_s",
    "fingerprint",
    "id_of",
    "problem_of",
    "reading",
    "size_of",
    "split_lines",
]

CLOCK_SLACK_S = 300.0
"""By so much a provider's clock and ours may differ."""
LATE_S = 240.0
"""A request that was given up is read within this time or never."""

_NO_CALL = Call(())
_GONE = (404, 410)
_FORBIDDEN, _MAY_BE_GONE = 403, b"may not exist"
"""How Google refuses what is not there."""
_REDIRECTS = (301, 302, 303, 307, 308)
_UNKNOWN_STATUSES = frozenset({500, 502, 504, 520, 522, 524})
"""Statuses after which a job may have been created all the same."""
_SLOWEST_BYTES_S = 2**17
"""A line that carries less than 1 Mbit/s is given up."""
_PAUSE_S = 60.0
_CHUNK = 2**16
_OK = 200
_MAX_REQUESTS = 5
_ANY_SIZE = 2**62
_HEADERS: Mapping[str, str] = {"Accept": "application/json", "Accept-Encoding": "identity"}
_JSON: Mapping[str, str] = {"Content-Type": "application/json"}
_QUOTATION = re.compile(r"(?<=['\"`])[^'\"`]{40,}(?=['\"`])")
_FULL = re.compile(
    r"token_limit_exceeded|too_many_(?:tasks|batches|jobs)|enqueued|\bqueued?\b.{0,60}\b(?:limit|full)|"
    r"limit.{0,60}\bqueued?\b|(?:pending|concurrent|in.progress|active) (?:batch|job|request)",
    re.IGNORECASE,
)


def constant(headers: Mapping[str, str]) -> Callable[[], Awaitable[Mapping[str, str]]]:
    """`headers` for every request."""

    async def same() -> Mapping[str, str]:
        return headers

    return same


def epoch_s(at: Any) -> float:
    """Seconds since the epoch of a time as a provider writes it; infinity if it cannot be read."""
    if isinstance(at, int | float):
        return float(at)
    try:
        return datetime.fromisoformat(at).timestamp()
    except (TypeError, ValueError):
        return inf


def id_of(made: Any, *, creates: bool = False, field: str = "id") -> str:
    """The provider's name of what it shows; with `creates` it may have been created all the same if there is none."""
    found = made.get(field) if isinstance(made, dict) else None
    if not isinstance(found, str) or not found:
        raise TransientError("The provider's reply names no id of what it created.", cost_unknown=creates)
    return found


async def size_of(file: Path) -> int:
    """Bytes of a file."""
    return (await asyncio.to_thread(file.stat)).st_size


@contextmanager
def reading() -> Iterator[None]:
    """What is read in here has the form that the provider documents, or the request may be made again."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        kind = type(error).__name__
        raise TransientError(
            f"The provider's reply about a batch job has another form than expected ({kind})."
        ) from None


def fingerprint(secret: str, address: str) -> str:
    """Tells accounts apart: 12 hexadecimal digits from which neither key nor address can be had."""
    return blake2b(f"{secret}\0{address}".encode(), digest_size=6, person=b"ondine account").hexdigest()


def problem_of(message: str, code: str = "", line: Any = None) -> JobProblem:
    """What a provider says of a job that it does not run, without long quotations, which may be text of rows."""
    said = _QUOTATION.sub("\u2026", mask(message, _NO_CALL, ()))
    is_full = _FULL.search(f"{code} {message}") is not None
    return JobProblem(f"{said} ({code})" if code else said, line if isinstance(line, int) else None, is_full)


async def cancel_unless_ended(api: JobApi, job_id: str, ask: Callable[[], Awaitable[Any]]) -> None:
    """Ask for the end of a job; that it ended meanwhile is no error, however the provider refuses it."""
    if (await api.get_status(job_id)).has_ended:
        return
    try:
        await ask()
    except (RefusedError, TransientError):
        if not (await api.get_status(job_id)).has_ended:
            raise


@dataclass(frozen=True, slots=True)
class Target:
    """Where a batch API is, and how requests prove who sends them.

    Args:
        root: Address below which all paths are.
        secret_headers: Those of the next request whose values are secrets.
        account: Tells accounts apart; see `fingerprint`.
        plain_headers: Those of every request that are none.
        query: Parameters of every address.
        advice: Statuses after which no request succeeds, and what to do about each.
        is_quotable: Whether errors may be quoted, since no request holds the text of rows.
    """

    root: str
    secret_headers: Callable[[], Awaitable[Mapping[str, str]]]
    account: str
    plain_headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    advice: Mapping[int, str] = field(default_factory=lambda: ADVICE)
    is_quotable: bool = True


@dataclass(frozen=True, slots=True)
class ResultLine:
    """A line of a file of results; of one that is too long only its beginning."""

    content: bytes
    is_whole: bool = True


class JobHttp:
    """Requests to one batch API.

    Args:
        target: Where they go.
        timeout_s: Seconds that a request may take that carries no file.
        max_line_bytes: Most bytes of a line of results.
        resolve: Looks host names up; it may block.
    """

    def __init__(
        self, target: Target, timeout_s: float, max_line_bytes: int, *, resolve: Resolve = socket.getaddrinfo
    ) -> None:
        self._target, self._timeout_s, self._max_line_bytes = target, timeout_s, max_line_bytes
        self._resolve = resolve
        self.to = Address(urlsplit(target.root).netloc.rpartition("@")[2], timeout_s, target.advice)
        self._session: aiohttp.ClientSession | None = None

    async def get(self, path: str, params: Mapping[str, str] | None = None, *, missing: str | None = None) -> Any:
        """The JSON at `path`; `missing` says what is lost if there is nothing (any more)."""
        return _parse(await self.send("GET", path, params=params, missing=missing))

    async def post(self, path: str, body: Any = None, *, creates: bool = False, **options: Any) -> Any:
        """Post JSON and return what comes back; with `creates` it creates a job. `options` are those of `send`."""
        content = b"" if body is None else orjson.dumps(body)
        options = {"data": lambda: content, "headers": _JSON, **options}
        return _parse(await self.send("POST", path, **options, creates=creates), creates)

    async def upload(self, path: str, file: Path, name: str, fields: Mapping[str, str]) -> Any:
        """Post a file as a form with `fields`, read from disk piece by piece, and return the JSON that comes back."""
        size = await size_of(file)
        with ExitStack() as opened:

            def form() -> aiohttp.FormData:
                made = aiohttp.FormData(dict(fields))
                content = opened.enter_context(file.open("rb"))
                made.add_field("file", content, filename=name, content_type="application/jsonl")
                return made

            return _parse(await self.send("POST", path, data=form, total_s=self.transfer_timeout_s(size)))

    def transfer_timeout_s(self, size: int) -> float:
        """Seconds that a request may take that carries so many bytes."""
        return self._timeout_s + size / _SLOWEST_BYTES_S

    async def send(  # noqa: PLR0913  (by keyword)
        self,
        method: str,
        path: str,
        *,
        data: Callable[[], Any] = lambda: None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        total_s: float | None = None,
        creates: bool = False,
        missing: str | None = None,
    ) -> Response:
        """The whole response to one request, if it is a success.

        Args:
            method: The verb.
            path: What follows the root; a whole address is sent no secret.
            data: Makes the body.
            headers: Further headers.
            params: Further parameters of the address.
            total_s: Seconds that it may take in all.
            creates: Whether it creates a job.
            missing: What is lost if there is nothing at that address.
        """
        secret = await self._secret_headers(path)
        timeout = aiohttp.ClientTimeout(total=total_s or self._timeout_s, connect=CONNECT_TIMEOUT_S)
        failure: ProviderError | None = None
        while True:
            request = self._request(method, path, params, {**(headers or {}), **secret}, data=data(), timeout=timeout)
            try:
                async with request as came:
                    content = await _read_bounded(came)
                    response = Response(came.status, came.headers, content, time.time())
            except NotSentError as error:
                if error.reused:
                    continue
                failure = lost(error, self.to)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failure = lost(error, self.to)
            break
        if failure is None and response.status // 100 != 2:  # noqa: PLR2004
            failure = self._classify(response, secret, creates=creates, missing=missing)
        if failure:
            raise failure if creates else _free_of_charge(failure)  # out here, where its context holds no secret
        return response

    async def lines(self, path: str, missing: str) -> AsyncIterator[ResultLine]:
        """The lines of the file at `path`, as they arrive; empty ones are left out."""
        failure: ProviderError = TransientError(f"{self.to.host!r} cannot be asked for a file.")
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S, sock_read=_PAUSE_S)
        for _ in range(_MAX_REQUESTS):
            secret = await self._secret_headers(path)
            request = self._request("GET", path, None, secret, timeout=timeout)
            try:
                async with request as came:
                    elsewhere = came.headers.get("Location") if came.status in _REDIRECTS else None
                    if elsewhere is not None:
                        path = urljoin(str(came.url), elsewhere)  # a file store, which gets no key
                        if urlsplit(path).scheme not in ("https", came.url.scheme):
                            break
                        continue
                    if came.status == _OK and not _is_packed(came):
                        async for line in split_lines(came.content, self._max_line_bytes):
                            yield line
                        return
                    response = Response(came.status, came.headers, await _read_bounded(came), time.time())
                    failure = self._classify(response, secret, missing=missing)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failure = lost(error, self.to)
                if isinstance(error, NotSentError) and error.reused:
                    continue
            break
        raise _free_of_charge(failure)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session:
            await self._session.close()
            self._session = None

    async def _secret_headers(self, path: str) -> Mapping[str, str]:
        return {} if "://" in path else await self._target.secret_headers()

    def _request(
        self, method: str, path: str, params: Mapping[str, str] | None, headers: Mapping[str, str], **options: Any
    ) -> Any:
        is_elsewhere = "://" in path
        url = path if is_elsewhere else f"{self._target.root}{path}"
        ours = {} if is_elsewhere else self._target.plain_headers
        query = {} if is_elsewhere else {**self._target.query, **(params or {})}
        return (self._session or self._open()).request(
            method,
            url,
            params=query or None,
            headers={**ours, **headers},
            proxy=proxy_for(url),
            allow_redirects=False,
            **options,
        )

    def _classify(
        self, response: Response, secret: Mapping[str, str], *, creates: bool = False, missing: str | None = None
    ) -> ProviderError:
        is_gone = response.status in _GONE or (response.status == _FORBIDDEN and _MAY_BE_GONE in response.content)
        if missing and is_gone:
            return JobLostError(f"{self.to.host!r} replied {response.status}: this key finds no {missing} (any more).")
        secrets = [value.rpartition(" ")[2] for value in secret.values()]
        failure = turned_away(response, _NO_CALL if self._target.is_quotable else None, secrets, self.to)
        if not creates:
            return failure
        if _FULL.search(str(failure)):
            wait_s = failure.retry_after_s if isinstance(failure, TransientError) else None
            return TransientError(str(failure), retry_after_s=wait_s, kind="limited")
        if response.status in _UNKNOWN_STATUSES:
            return TransientError(str(failure), kind="overloaded", cost_unknown=True)
        return failure

    def _open(self) -> aiohttp.ClientSession:
        self._session = aiohttp.ClientSession(
            headers=_HEADERS,  # no secret, which aiohttp would send to a proxy as well
            connector=Connector(_ANY_SIZE, self._resolve),  # sizes are bounded here
            cookie_jar=aiohttp.DummyCookieJar(),
            request_class=Request,
            auto_decompress=False,
        )
        return self._session


def _free_of_charge(failure: ProviderError) -> ProviderError:
    """`failure` of a request that costs nothing."""
    if isinstance(failure, TransientError) and failure.cost_unknown:
        return TransientError(str(failure), retry_after_s=failure.retry_after_s, kind=failure.kind)
    return failure


def _parse(response: Response, creates: bool = False) -> Any:
    try:
        check_parsable(response.content)
        return decode(response.content) if response.content else {}
    except (ValueError, RecursionError, TransientError):
        unreadable = TransientError("The provider's reply about a batch job is no JSON.", cost_unknown=creates)
    raise unreadable


def _is_packed(came: aiohttp.ClientResponse) -> bool:
    return came.headers.get("Content-Encoding", "identity") not in ("", "identity")


async def _read_bounded(came: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for chunk in came.content.iter_chunked(_CHUNK):
        content += chunk
        if len(content) > MAX_REPLY_BYTES:
            raise ReplyTooLargeError("The reply is too large.")
    return bytes(content)


async def split_lines(stream: aiohttp.StreamReader, max_bytes: int) -> AsyncIterator[ResultLine]:
    """The lines of `stream` that are not blank; no more than `max_bytes` of one are held."""
    rest = bytearray()
    is_too_long = False
    async for chunk in stream.iter_chunked(_CHUNK):
        *ended, begun = chunk.split(b"\n")
        for part in ended:
            rest += part
            line = ResultLine(bytes(rest[:max_bytes]), not is_too_long and len(rest) <= max_bytes)
            rest.clear()
            is_too_long = False
            if line.content.strip():
                yield line
        rest += begun
        if len(rest) > max_bytes:
            is_too_long = True
            del rest[max_bytes:]
    if rest.strip():
        yield ResultLine(bytes(rest), not is_too_long)
