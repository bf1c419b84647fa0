"""The HTTP requests of a batch API: JSON, and files that are sent and received piece by piece.

Connections, proxies and failures are the same as for live calls. A request is sent once. Only the request that creates
a job can cost anything, so only if its reply is lost, a cost is unknown.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
import orjson

from ondine_core.errors import JobLostError, ProviderError, TransientError
from ondine_core.providers.http_client import CONNECT_TIMEOUT_S, Endpoint, HttpClient, proxy_for
from ondine_core.providers.http_connection import ReplyTooLargeError
from ondine_core.providers.http_errors import Response, response_error, transport_error
from ondine_core.providers.reply_body import MAX_REPLY_BYTES, SUCCESSES, check_parsable, decode
from ondine_core.types.values import Call

NO_CALL = Call(())
"""The call to mask errors with, if a request contains no text of rows."""
TOO_MUCH_QUEUED = re.compile(
    r"token_limit_exceeded|too_many_(?:tasks|batches|jobs)|enqueued|\bqueued?\b.{0,60}\b(?:limit|full)|"
    r"limit.{0,60}\bqueued?\b|(?:pending|concurrent|in.progress|active) (?:batch|job|request)",
    re.IGNORECASE,
)
"""What providers reply when an account has too many requests under way."""

_GONE = (404, 410)
_FORBIDDEN, _MAY_BE_GONE = 403, b"may not exist"
"""How Google refuses a file or job that does not exist."""
_REDIRECTS = (301, 302, 303, 307, 308)
_UNKNOWN_STATUSES = frozenset({500, 502, 504, 520, 522, 524})
"""Statuses after which a job may still have been created."""
_SLOWEST_BYTES_S = 2**17
"""A connection slower than 1 Mbit/s is closed."""
_PAUSE_S = 60.0
_CHUNK = 2**16
_OK = 200
_MAX_REQUESTS = 5
_ANY_SIZE = 2**62
_JSON: Mapping[str, str] = {"Content-Type": "application/json"}
_BROKEN = (aiohttp.ClientError, TimeoutError, OSError)


@dataclass(frozen=True, slots=True)
class JobRequest:
    """One request to a batch API.

    It has no secrets if `path` is a whole address. `body` makes the content; the files that it opens on the stack are
    closed with the request. `missing` names what is lost if the provider has nothing at that path (any more).
    """

    method: str
    path: str
    body: Callable[[ExitStack], Any] = lambda _: None
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float | None = None
    creates: bool = False
    missing: str | None = None

    @property
    def is_elsewhere(self) -> bool:
        """Whether it goes to an address that the provider named, and not to a path of the API."""
        return "://" in self.path


@dataclass(frozen=True, slots=True)
class ResultLine:
    """A line of a file of results; only the beginning if the line is too long."""

    content: bytes
    is_whole: bool = True
    content_type: str = ""


class JobHttp:
    """Sends requests to one batch API.

    `query` are parameters of every request. `is_quotable` says that errors may be quoted, as no request contains text
    of rows.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        max_line_bytes: int,
        *,
        query: Mapping[str, str] | None = None,
        is_quotable: bool = True,
    ) -> None:
        self._endpoint, self._max_line_bytes = endpoint, max_line_bytes
        self._query, self._is_quotable = query or {}, is_quotable
        self.to = endpoint.address
        self._client = HttpClient(_ANY_SIZE, endpoint.resolve)  # sizes are bounded here

    async def get(self, path: str, params: Mapping[str, str] | None = None, *, missing: str | None = None) -> Any:
        """The JSON at `path`; `missing` is as in `JobRequest`."""
        return await self.ask(JobRequest("GET", path, params=params or {}, missing=missing))

    async def post(self, path: str, body: Any = None, *, creates: bool = False, missing: str | None = None) -> Any:
        """Post JSON and return the response; with `creates` the request creates a job."""
        content = b"" if body is None else orjson.dumps(body)
        return await self.ask(JobRequest("POST", path, lambda _: content, _JSON, creates=creates, missing=missing))

    async def ask(self, request: JobRequest) -> Any:
        """Send a request; returns the JSON of the response, `{}` if it is empty."""
        response = await self.send(request)
        try:
            check_parsable(response.content)
            return decode(response.content, response.headers.get("Content-Type", "")) if response.content else {}
        except (ValueError, RecursionError, TransientError):
            pass
        raise TransientError("The provider's reply about a batch job is not JSON.", cost_unknown=request.creates)

    def transfer_timeout_s(self, size: int) -> float:
        """The time-out in seconds of a request with `size` bytes."""
        return self._endpoint.timeout_s + size / _SLOWEST_BYTES_S

    async def send(self, request: JobRequest) -> Response:
        """Send a request; returns the whole response if its status is a success, else raises the error."""
        secret = await self._secret_headers(request)
        timeout = aiohttp.ClientTimeout(request.timeout_s or self._endpoint.timeout_s, connect=CONNECT_TIMEOUT_S)
        failure: ProviderError | None = None
        try:
            with ExitStack() as opened:
                async with await self._begin(request, secret, timeout, opened) as stream:
                    response = await _read(stream)
            if response.status not in SUCCESSES:
                failure = self._classify(response, request, secret)
        except _BROKEN as error:
            failure = transport_error(error, self.to)
        if failure:
            # Outside of `except`, without a context that may contain secrets.
            raise failure if request.creates else _without_cost(failure)
        return response

    async def lines(self, path: str, missing: str) -> AsyncIterator[ResultLine]:
        """The lines of the file at `path`, as they arrive, without blank ones."""
        failure: ProviderError = TransientError(f"{self.to.host!r} cannot be asked for a file.")
        timeout = aiohttp.ClientTimeout(connect=CONNECT_TIMEOUT_S, sock_read=_PAUSE_S)
        for _ in range(_MAX_REQUESTS):
            request = JobRequest("GET", path, missing=missing)
            secret = await self._secret_headers(request)
            try:
                async with await self._begin(request, secret, timeout, ExitStack()) as stream:
                    is_encoded = stream.headers.get("Content-Encoding", "identity") not in ("", "identity")
                    if stream.status == _OK and not is_encoded:
                        content_type = stream.headers.get("Content-Type", "")
                        async for line in split_lines(stream.content, self._max_line_bytes, content_type):
                            yield line
                        return
                    location = stream.headers.get("Location") if stream.status in _REDIRECTS else None
                    if location is None:
                        failure = self._classify(await _read(stream), request, secret)
                        break
                    path = urljoin(str(stream.url), location)  # a whole address, so it gets no key
                    if urlsplit(path).scheme not in ("https", stream.url.scheme):
                        break
            except _BROKEN as error:
                failure = transport_error(error, self.to)
                break
        raise _without_cost(failure)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _secret_headers(self, request: JobRequest) -> Mapping[str, str]:
        return {} if request.is_elsewhere else await self._endpoint.secret_headers()

    async def _begin(
        self, request: JobRequest, secret: Mapping[str, str], limits: aiohttp.ClientTimeout, opened: ExitStack
    ) -> aiohttp.ClientResponse:
        url, plain, query = request.path, request.headers, request.params
        if not request.is_elsewhere:
            url = f"{self._endpoint.url}{request.path}"
            plain, query = {**self._endpoint.headers, **plain}, {**self._query, **query}
        return await self._client.send(
            request.method,
            url,
            lambda: request.body(opened),
            limits,
            params=query or None,
            headers={**plain, **secret},
            proxy=proxy_for(url),
        )

    def _classify(self, response: Response, request: JobRequest, secret: Mapping[str, str]) -> ProviderError:
        is_gone = response.status in _GONE or (response.status == _FORBIDDEN and _MAY_BE_GONE in response.content)
        if request.missing and is_gone:
            return JobLostError(
                f"{self.to.host!r} replied {response.status}: this key finds no {request.missing} (any more)."
            )
        secrets, call = self._endpoint.find_secrets(secret), NO_CALL if self._is_quotable else None
        failure = response_error(response, call, secrets, self.to)
        if not request.creates:
            return failure
        if TOO_MUCH_QUEUED.search(str(failure)):
            wait_s = failure.retry_after_s if isinstance(failure, TransientError) else None
            return TransientError(str(failure), retry_after_s=wait_s, kind="limited")
        if response.status in _UNKNOWN_STATUSES:
            return TransientError(str(failure), kind="overloaded", cost_unknown=True)
        return failure


def _without_cost(failure: ProviderError) -> ProviderError:
    """`failure` of a request that cannot cost anything."""
    if isinstance(failure, TransientError) and failure.cost_unknown:
        return TransientError(str(failure), retry_after_s=failure.retry_after_s, kind=failure.kind)
    return failure


async def _read(stream: aiohttp.ClientResponse) -> Response:
    """A whole response of bounded size."""
    content = bytearray()
    async for chunk in stream.content.iter_chunked(_CHUNK):
        content += chunk
        if len(content) > MAX_REPLY_BYTES:
            raise ReplyTooLargeError("The reply is too large.")
    return Response(stream.status, stream.headers, bytes(content), time.time())


async def split_lines(
    stream: aiohttp.StreamReader, max_bytes: int, content_type: str = ""
) -> AsyncIterator[ResultLine]:
    """The lines of `stream` that are not blank; at most `max_bytes` of a line are kept."""
    line = bytearray()
    is_cut = False
    async for chunk in stream.iter_chunked(_CHUNK):
        *line_ends, beginning = chunk.split(b"\n")
        for line_end in line_ends:
            line += line_end
            result = ResultLine(bytes(line[:max_bytes]), not is_cut and len(line) <= max_bytes, content_type)
            line.clear()
            is_cut = False
            if result.content.strip():
                yield result
        line += beginning
        if len(line) > max_bytes:
            is_cut = True
            del line[max_bytes:]
    if line.strip():
        yield ResultLine(bytes(line), not is_cut, content_type)
