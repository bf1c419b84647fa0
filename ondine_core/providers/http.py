"""One HTTP call to a provider that takes and gives JSON, over aiohttp.

A client of its own because the transport decides the speed of the whole pipeline. It tries a call exactly once; what a
failure means is decided in `http_errors`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from io import BytesIO
from itertools import count
from secrets import token_hex
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson
from multidict import istr

from ondine_core.errors import ProviderError
from ondine_core.providers.http_connection import Connector, NotSentError, OutOfStepError, Request, Resolve, max_calls
from ondine_core.providers.http_errors import ADVICE, Address, Response, lost, turned_away, unreadable
from ondine_core.providers.rate_limit_headers import hold_off_s
from ondine_core.providers.reply_body import MAX_REPLY_BYTES, check_parsable, decompress
from ondine_core.providers.settings import check_header
from ondine_core.providers.usage import stated_usd_in
from ondine_core.types.values import Call, Reply

__all__ = ["CONNECT_TIMEOUT_S", "HttpModel", "decode", "proxy_for"]

CONNECT_TIMEOUT_S = 15.0
_CONNECT_SHARE = 0.9
_OK = 200
_AUTHORIZATION, _REQUEST_ID = istr("Authorization"), istr("X-Request-Id")
_HEADERS: Mapping[str, str] = {
    istr("Content-Type"): "application/json",
    istr("Accept"): "application/json",
    istr("Accept-Encoding"): "identity",
}


class HttpModel:
    """A `ChatModel` behind one HTTP address that takes and gives JSON.

    Args:
        url: Where calls are posted.
        api_key: Sent as a bearer token; `None` sends none.
        timeout_s: Seconds one call may take in all.
        body: Writes a call as JSON.
        read: Takes the reply out of the decoded JSON; its `latency_s` is filled in here.
        max_concurrency: Most calls worth having in flight; fewer where the process may open fewer files.
        headers: Further headers of the next call, such as a token that expires; their values are secrets.
        plain_headers: Further headers of every call whose values are no secrets.
        advice: Statuses after which no request succeeds, and what to do about each.
        wall: Wall clock, for a `Retry-After` or a limit's reset that names a date.
        max_reply_bytes: Most bytes of a reply, compressed or not.
        resolve: Looks host names up; it may block.
    """

    def __init__(  # noqa: PLR0913  (three callers, all in this package)
        self,
        url: str,
        api_key: str | None,
        timeout_s: float,
        body: Callable[[Call], bytes],
        read: Callable[[Mapping[str, Any]], Reply],
        *,
        max_concurrency: int | None = None,
        headers: Callable[[], Awaitable[Mapping[str, str]]] | None = None,
        plain_headers: Mapping[str, str] | None = None,
        advice: Mapping[int, str] = ADVICE,
        wall: Callable[[], float] = time.time,
        max_reply_bytes: int = MAX_REPLY_BYTES,
        resolve: Resolve = socket.getaddrinfo,
    ) -> None:
        check_header("api_key", api_key or "")
        self._url = url
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._body = body
        self._read = read
        self._headers = headers
        self._wall = wall
        self._max_reply_bytes, self._resolve = max_reply_bytes, resolve
        self._plain_headers = plain_headers or {}
        self._to = Address(urlsplit(url).netloc.rpartition("@")[2], timeout_s, advice)
        self._proxy = proxy_for(url)
        self._session: aiohttp.ClientSession | None = None
        self._own_ids, self._numbers = f"ondine-{token_hex(8)}", count()
        self.max_concurrency = min(filter(None, (max_concurrency, max_calls())), default=None)
        self.max_batch_size: int | None = None

    def __repr__(self) -> str:
        return f"HttpModel({self._to.host!r})"

    async def __call__(self, call: Call) -> Reply:
        """Ask once; see `ChatModel`."""
        secret = await self._headers() if self._headers else {}
        if self._api_key:
            secret = {_AUTHORIZATION: f"Bearer {self._api_key}", **secret}
        secrets = [value.rpartition(" ")[2] for value in secret.values()]
        own_id = f"{self._own_ids}-{next(self._numbers):08x}"
        headers = {**self._plain_headers, **secret, _REQUEST_ID: own_id}
        # Images are read from disk while they are written.
        body = await asyncio.to_thread(self._body, call) if call.media else self._body(call)
        started = time.perf_counter()
        try:
            response = await self._post(body, headers)
            if response.status != _OK:
                failure: ProviderError | None = turned_away(response, call, secrets, self._to)
            else:
                failure = None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            failure = lost(error, self._to)
        if failure:
            raise failure  # out here, where it has no context: that may name the whole address, or hold the key
        try:
            reply = self._read(decode(response.content))
        except ProviderError:
            raise
        except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise unreadable(response, call, secrets, self._to) from error
        named = response.headers.get("x-request-id") or response.headers.get("request-id", "")
        # A header may hold bytes that are no text, which the store could not keep.
        request_id = named.encode("ascii", "ignore").decode() or reply.request_id
        if self._is_of_another_call(own_id, request_id) or self._is_of_another_call(own_id, reply.request_id):
            raise lost(OutOfStepError(), self._to)
        used = reply.usage.input_tokens + reply.usage.output_tokens
        wait_s = hold_off_s(response.headers, used, reply.usage.output_tokens, response.at)
        latency_s = time.perf_counter() - started
        return Reply(
            reply.text,
            reply.usage,
            reply.finish_reason,
            request_id,
            latency_s,
            wait_s,
            reply.model,
            reply.reasoning_only,
            stated_usd_in(response.headers) if reply.stated_usd is None else reply.stated_usd,
            reply.tier,
        )

    async def _post(self, body: bytes, headers: Mapping[str, str]) -> Response:
        """The whole response; a request that cannot have been read is sent again, on another connection."""
        while True:
            session = self._session or self._open()
            request = session.post(
                self._url, data=_sendable(body), headers=headers, proxy=self._proxy, allow_redirects=False
            )
            try:
                async with request as came:
                    content = await came.read()
            except NotSentError as error:
                if not error.reused:
                    raise
                continue
            encoding = came.headers.get("Content-Encoding")
            if encoding:
                content = decompress(content, encoding, self._max_reply_bytes)
            check_parsable(content)
            return Response(came.status, came.headers, content, self._wall())

    def _is_of_another_call(self, own_id: str, echo: str | None) -> bool:
        """Whether a server that repeats our names for calls repeats that of another one."""
        return echo is not None and self._own_ids in echo and own_id not in echo

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        self._session = aiohttp.ClientSession(
            # No secret here: aiohttp sends the headers of a session to a proxy as well, in clear text.
            headers=_HEADERS,
            connector=Connector(self._max_reply_bytes, self._resolve),
            # What ends before a connection is there has cost nothing; the total would not tell.
            timeout=aiohttp.ClientTimeout(
                total=self._timeout_s, connect=min(CONNECT_TIMEOUT_S, self._timeout_s * _CONNECT_SHARE)
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            request_class=Request,
            auto_decompress=False,
        )
        return self._session


def decode(content: bytes) -> Any:
    """A body as JSON; NaN and Infinity, which some servers write into figures, are no reason to lose an answer."""
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return json.loads(content)


_LARGE = 2**20


def _sendable(body: bytes) -> bytes | BytesIO:
    """A large body as a file, which aiohttp sends piece by piece; it warns of large bytes."""
    return body if len(body) <= _LARGE else BytesIO(body)


def proxy_for(url: str) -> str | None:
    """The proxy that the usual variables name for `url`; this machine itself is always reached directly.

    aiohttp would read `.netrc` as well, and refuse to send both its entry and a key.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host in ("localhost", "127.0.0.1", "::1") or proxy_bypass(host):
        return None
    proxies = getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")
