"""Sends requests to a provider over aiohttp, each once."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, TypeAlias
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from ondine_core.errors import ConfigError
from ondine_core.providers.http_connection import (
    MAX_FIELD_BYTES,
    MIN_TIMEOUT_S,
    Connector,
    NotSentError,
    Request,
    Resolve,
    Target,
)
from ondine_core.providers.http_errors import ADVICE, Address
from ondine_core.providers.loading import pop_closed
from ondine_core.providers.settings import check_header

CONNECT_TIMEOUT_S = 15.0
HEADERS: Mapping[str, str] = {"accept": "application/json", "accept-encoding": "identity"}
_SECRET_NAME = re.compile("auth|cookie|credential|key|passw|secret|token")
_MIN_SECRET = 8
"""The fewest characters of a secret: `5` in `x-max-tokens` is none."""

SecretHeaders: TypeAlias = Callable[[], Awaitable[Mapping[str, str]]]
"""Returns the headers of the next request whose values are secrets, such as a token that expires."""


def constant(headers: Mapping[str, str]) -> SecretHeaders:
    """`headers` for every request."""

    async def same() -> Mapping[str, str]:
        return headers

    return same


def bearer(api_key: str | None) -> SecretHeaders:
    """The `Authorization` header with `api_key` as a bearer token; none without a key."""
    check_header("api_key", api_key or "")
    return constant({"Authorization": f"Bearer {api_key}"} if api_key else {})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address and what all requests to it have in common.

    Args:
        url: The address, or the root of the addresses.
        timeout_s: Seconds that one request may take in all.
        secret_headers: Headers whose values are secrets.
        headers: Further headers of every request; their names are in lower case.
        advice: Statuses after which no request succeeds, and what to do about each.
        resolve: Looks host names up; it may block.
    """

    url: str
    timeout_s: float
    secret_headers: SecretHeaders = constant({})
    headers: Mapping[str, str] = field(default_factory=dict)
    advice: Mapping[int, str] = field(default_factory=lambda: ADVICE)
    resolve: Resolve = socket.getaddrinfo

    @property
    def address(self) -> Address:
        """What errors say about the server."""
        return Address(urlsplit(self.url).netloc.rpartition("@")[2], self.timeout_s, self.advice)

    def find_secrets(self, secret_headers: Mapping[str, str]) -> list[str]:
        """What errors must not show, without `Bearer` and the like.

        This is the values of `secret_headers`, and of further headers with names such as `helicone-auth`.
        """
        named = [value for name, value in self.headers.items() if _SECRET_NAME.search(name)]
        secrets = [value.rpartition(" ")[2] for value in named if len(value) >= _MIN_SECRET]
        return [*secrets, *(value.rpartition(" ")[2] for value in secret_headers.values())]


class HttpClient:
    """Sends requests over connections that open at the first one; a reply may have at most `max_bytes`.

    Each event loop has connections of its own.
    """

    def __init__(self, max_bytes: int, resolve: Resolve) -> None:
        self._max_bytes, self._resolve = max_bytes, resolve
        self._sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}

    async def send(
        self, method: str, url: str, body: Callable[[], Any], limits: aiohttp.ClientTimeout, **options: Any
    ) -> aiohttp.ClientResponse:
        """Send a request; returns the response as soon as its head has arrived.

        A request that the server cannot have read is sent again on another connection. `body` is called for each
        attempt, `limits` apply to all attempts together, and `options` are those of `aiohttp.ClientSession.request`.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + (limits.total or inf)
        while True:
            session = self._sessions.get(loop) or await self._open()
            timeout = shorten(limits, until - loop.time())
            try:
                return await session.request(
                    method, url, data=body(), timeout=timeout, allow_redirects=False, **options
                )
            except NotSentError as error:
                if not error.reused:
                    raise

    async def post(self, target: Target, headers: Mapping[str, str], body: bytes, until: float) -> tuple[Any, bytes]:
        """Post a request; returns the head and the content of the reply.

        It is sent again as by `send`, and ends by `until` on the event loop's clock. It bypasses aiohttp's session,
        which would take a sixth of the CPU time of a row.
        """
        lines = [target.head, *map(": ".join, headers.items()), f"Content-Length: {len(body)}\r\n\r\n"]
        head = "\r\n".join(lines).encode()
        while True:
            session = self._sessions.get(asyncio.get_running_loop()) or await self._open()
            connector: Any = session.connector
            try:
                return await connector.exchange(target, head, body, until)  # type: ignore[no-any-return]
            except NotSentError as error:
                if not error.reused:
                    raise

    async def aclose(self) -> None:
        """Close the connections of this event loop, and those of loops that are closed."""
        await self._close_old(asyncio.get_running_loop())

    async def _close_old(self, also: asyncio.AbstractEventLoop | None = None) -> None:
        for session in pop_closed(self._sessions, also):
            await session.close()

    async def _open(self) -> aiohttp.ClientSession:
        session = self._sessions[asyncio.get_running_loop()] = aiohttp.ClientSession(
            # No secret here: aiohttp also sends the headers of a session to a proxy, in clear text.
            headers=HEADERS,
            connector=Connector(self._max_bytes, self._resolve),
            cookie_jar=aiohttp.DummyCookieJar(),
            request_class=Request,
            auto_decompress=False,
            max_field_size=MAX_FIELD_BYTES,
        )
        await self._close_old()
        return session


def shorten(limits: aiohttp.ClientTimeout, left_s: float) -> aiohttp.ClientTimeout:
    """`limits` with a total of `left_s` seconds."""
    return aiohttp.ClientTimeout(
        total=None if left_s == inf else max(left_s, MIN_TIMEOUT_S),
        connect=limits.connect,
        sock_read=limits.sock_read,
        ceil_threshold=limits.ceil_threshold,
    )


def proxy_for(url: str) -> str | None:
    """The proxy for `url` by the environment; this machine itself is always reached directly.

    aiohttp's own `trust_env` also reads `.netrc`, and refuses a request with both an entry of that file and a key.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    # NO_PROXY may name a port, or an IPv6 address without brackets.
    if host in ("localhost", "127.0.0.1", "::1") or proxy_bypass(parts.netloc) or proxy_bypass(host):
        return None
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy is None:
        return None
    if "://" not in proxy:  # as curl does
        proxy = f"http://{proxy}"
    kind = urlsplit(proxy).scheme
    if kind not in ("http", "https"):
        raise ConfigError(
            f"The variables name a proxy for {parts.netloc!r} that speaks {kind!r}, which is not supported; set "
            f"{parts.scheme.upper()}_PROXY to an HTTP proxy, or name the host in NO_PROXY."
        )
    return proxy
