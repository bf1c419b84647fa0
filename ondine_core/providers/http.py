"""One HTTP call to a provider that takes and gives JSON, over aiohttp.

A client of its own because the transport decides the speed of the whole pipeline. It tries a call exactly once; what a
failure means is decided in `http_errors`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson

from ondine_core.errors import ProviderError
from ondine_core.providers.http_errors import ADVICE, Address, Response, lost, turned_away, unreadable
from ondine_core.providers.rate_headers import hold_off_s
from ondine_core.providers.usage import stated_usd_in
from ondine_core.values import Call, Reply

__all__ = ["HttpModel"]

_CONNECT_TIMEOUT_S = 15.0
_OK = 200


class HttpModel:
    """A `ChatModel` behind one HTTP address that takes and gives JSON.

    Args:
        url: Where calls are posted.
        api_key: Sent as a bearer token; `None` sends none.
        timeout_s: Seconds one call may take in all.
        body: Writes a call as JSON.
        read: Takes the reply out of the decoded JSON; its `latency_s` is filled in here.
        max_concurrency: Most calls worth having in flight.
        headers: Further headers of the next call, such as a token that expires; their values are secrets.
        advice: Statuses after which no request succeeds, and what to do about each.
        wall: Wall clock, for a `Retry-After` that names a date.
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
        advice: Mapping[int, str] = ADVICE,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._url, self._api_key, self._timeout_s = url, api_key, timeout_s
        self._body, self._read, self._headers, self._wall = body, read, headers, wall
        self._to = Address(urlsplit(url).netloc.rpartition("@")[2], timeout_s, advice)
        self._proxy = _proxy_for(url)
        self._session: aiohttp.ClientSession | None = None
        self.max_concurrency = max_concurrency
        self.max_batch_size: int | None = None

    def __repr__(self) -> str:
        return f"HttpModel({self._to.host!r})"

    async def __call__(self, call: Call) -> Reply:
        """Ask once; see `ChatModel`."""
        extra = await self._headers() if self._headers else {}
        session = self._session or self._open()
        secrets = (self._api_key or "", *(value.rpartition(" ")[2] for value in extra.values()))
        started = time.perf_counter()
        try:
            request = session.post(
                self._url, data=_sendable(self._body(call)), headers=extra, proxy=self._proxy, allow_redirects=False
            )
            async with request as came:
                response = Response(came.status, came.headers, await came.read(), self._wall())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            failure: ProviderError | None = lost(error, self._to)
        else:
            failure = None if response.status == _OK else turned_away(response, call, secrets, self._to)
        if failure:
            raise failure  # out here, where it has no context: that may name the whole address, or hold the key
        try:
            reply = self._read(_decode(response.content))
        except ProviderError:
            raise
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise unreadable(response, call, secrets, self._to) from error
        # A header may hold bytes that are no text, which the store could not keep.
        request_id = response.headers.get("x-request-id", "").encode("ascii", "ignore").decode() or reply.request_id
        wait_s = hold_off_s(response.headers, reply.usage.input_tokens + reply.usage.output_tokens)
        latency_s = time.perf_counter() - started
        stated_usd = stated_usd_in(response.headers) if reply.stated_usd is None else reply.stated_usd
        return replace(reply, request_id=request_id, latency_s=latency_s, hold_off_s=wait_s, stated_usd=stated_usd)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        # The engine bounds the calls in flight; a second bound here would make them queue inside their time-out.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60.0),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=min(_CONNECT_TIMEOUT_S, self._timeout_s)),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self._session


def _decode(content: bytes) -> Any:
    """A body as JSON; NaN and Infinity, which some servers write into figures, are no reason to lose an answer."""
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return json.loads(content)


_LARGE = 2**20


def _sendable(body: bytes) -> bytes | BytesIO:
    """A large body as a file, which aiohttp sends piece by piece; it warns of large bytes."""
    return body if len(body) <= _LARGE else BytesIO(body)


def _proxy_for(url: str) -> str | None:
    """The proxy that the usual variables name for `url`; this machine itself is always reached directly.

    aiohttp would read `.netrc` as well, and refuse to send both its entry and a key.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host in ("localhost", "127.0.0.1", "::1") or proxy_bypass(host):
        return None
    proxies = getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")
