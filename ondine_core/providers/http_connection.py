"""Connections over aiohttp on which only bytes that arrive after a request count as its reply.

aiohttp takes the first reply that it finds on a kept-alive connection for the reply to the next request, so one
surplus reply would give every later row its neighbour's answer. Here a connection with unread bytes is closed instead
of being used again, and a reply that precedes its request, or is followed by another one, is an error. The bytes of a
reply are counted as they arrive.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import cached_property, partial
from importlib import import_module
from importlib.util import find_spec
from math import inf
from time import monotonic
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

resource: Any = import_module("resource") if find_spec("resource") else None  # Windows has no such limit

Resolve = Callable[..., list[Any]]
"""A blocking look-up of a host name with the parameters of `socket.getaddrinfo`."""

_KEEP_ALIVE_S = 3.0
_MAX_REST_S = 1.0
"""Together shorter than the 5 s after which uvicorn, Node and others close an idle connection."""
_REST_SHARE = 0.5
_SMOOTHING = 1 / 8
_QUICK_S = 0.02
"""A server with quicker replies is nearby and not a model, so its connections need not rest."""
_IDLE_S = 0.1
"""Acknowledged bytes are read only after this idle time, since servers close connections because they are idle."""
_HEADERS_BYTES = 2**18
MAX_FIELD_BYTES = 2**16
"""Of one header: security policies and cookies of gateways exceed the 8,190 bytes that aiohttp allows."""
_PIECE_BYTES = 2**17
"""A larger body is written in pieces of this size."""
_DNS_CACHE_S = 60
_OTHER_FILES = 128
_CONNECTIONS_A_CALL = 2
"""One in use, and one that rests."""
_NO_REUSE_S = 60.0
MIN_TIMEOUT_S = 0.001
"""aiohttp takes 0 for no time-out."""
_TCP_INFO_BYTES = 128
_ACKED_OFFSET = 120
"""Of `tcpi_bytes_acked` in Linux's `struct tcp_info`."""


class NotSentError(aiohttp.ClientConnectionError):
    """The server cannot have read the request, so it may be sent again.

    `reused` says whether the connection had carried an earlier call.
    """

    def __init__(self, *, reused: bool) -> None:
        super().__init__("The connection was closed, or out of step, before a request could be read.")
        self.reused = reused


class OutOfStepError(aiohttp.ClientConnectionError):
    """A reply that may belong to another request."""


class NotHttpError(aiohttp.ClientPayloadError):
    """Bytes that are not a reply in HTTP, by the kind of error that the parser found."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(type(error).__name__)


class ReplyTooLargeError(aiohttp.ClientPayloadError):
    """A reply with more bytes than allowed."""


class _ReusePause:
    """The time, on the event loop's clock, until which no connection of a client is used again."""

    def __init__(self) -> None:
        self.until = 0.0

    def extend(self, until: float) -> None:
        self.until = max(self.until, until)


class _Connection(ResponseHandler):
    """A connection that knows whether a reply is expected on it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, max_bytes: int, reuse_pause: _ReusePause) -> None:
        super().__init__(loop)
        self._reuse_pause = reuse_pause
        self._max_bytes = max_bytes + _HEADERS_BYTES
        self._is_used = self._expects_reply = self._is_written = False
        self._received, self._acked = 0, -1
        self._began_at = self._idle_since = 0.0
        self._is_readable: Callable[[], bool] | None = None
        self.took_s = 0.0
        self._reply: aiohttp.StreamReader | None = None
        self._alarm: asyncio.TimerHandle

    def begin_request(self) -> bool:
        """Expect a reply from now on; returns `False`, and fails the call, if the connection cannot be used."""
        now = self._loop.time()
        is_stale = self._is_used and now < self._reuse_pause.until
        has_surplus = not self._may_have_session_tickets() and self._has_unread_bytes()
        if self.exception() is None and (is_stale or not self.is_connected() or has_surplus):
            self._give_up(NotSentError(reused=self._is_used))
        if self.exception() is not None:
            return False
        self._expects_reply, self._is_written = True, False
        self._reply, self._received = None, 0
        self._began_at = now
        was_idle = self._began_at - self._idle_since >= _IDLE_S
        self._acked = _acked_bytes(self.transport) if was_idle else -1
        return True

    async def exchange(self, head: bytes, body: bytes, until: float) -> tuple[Any, bytes]:
        """Send a whole request; returns the head and the content of the reply.

        Raises:
            TimeoutError: The reply is not complete by `until`, on the event loop's clock.
        """
        self.set_response_params(read_until_eof=True, auto_decompress=False, max_field_size=MAX_FIELD_BYTES)
        writing: asyncio.Task[None] | None = None
        if self.begin_request() and self.transport is not None:
            if len(body) <= _PIECE_BYTES:
                self.transport.write(head + body)
                self.start_timeout()
            else:
                writing = self._loop.create_task(self._write_pieces(self.transport, head, body))
        self._alarm = self._loop.call_at(until, self._time_out)
        try:
            answer, content = await self.read()
            while answer.code < 200 and answer.code != 101:  # noqa: PLR2004  (an interim reply)
                answer, content = await self.read()
            return answer, content.read_nowait() if content.is_eof() else await content.read()
        except HttpProcessingError as error:
            raise NotHttpError(error) from error
        finally:
            self._alarm.cancel()
            if writing is not None and not self._is_written:  # the server refused the request before it had all of it
                writing.cancel()
                self.force_close()

    async def _write_pieces(self, transport: asyncio.Transport, head: bytes, body: bytes) -> None:
        """Write a large request as fast as the server reads it, so that no second copy of it is in memory.

        A server may refuse the request early and close the connection; a further write would lose its reply.
        """
        transport.write(head)
        with suppress(ConnectionError):  # the reader gets this error, too
            for start in range(0, len(body), _PIECE_BYTES):
                while self._reply is None and self._has_unread_bytes():  # noqa: ASYNC110  (the event loop reads them)
                    await asyncio.sleep(0)
                if transport.is_closing() or (self._reply is not None and self._reply.is_eof()):
                    return
                transport.write(body[start : start + _PIECE_BYTES])
                await self._drain_helper()
            self.start_timeout()

    def _has_unread_bytes(self) -> bool:
        if self.transport is None:
            return False
        if self._is_readable is None:
            self._is_readable = _make_is_readable(self.transport.get_extra_info("socket"))
        return self._is_readable()

    def _may_have_session_tickets(self) -> bool:
        """Whether unread bytes may be those that follow a TLS handshake."""
        return not self._is_used and self.transport is not None and bool(self.transport.get_extra_info("sslcontext"))

    def _is_request_out(self) -> bool:
        return self._is_written and self.transport is not None and not self.transport.get_write_buffer_size()

    def _time_out(self, received: int = -1) -> None:
        """Fail the call unless more than `received` bytes, those of the last look, are here and more can be read."""
        # An event loop that stood still (a blocking cell of a notebook, a paused process) reads before it looks at
        # alarms, so the first piece of a reply that arrived meanwhile is here; the other pieces follow.
        if self._reply is not None and self._reply.is_eof():
            return
        if received < self._received and self._has_unread_bytes():
            self._alarm = self._loop.call_later(0, self._time_out, self._received)
        else:
            self._give_up(TimeoutError())

    def _give_up(self, error: Exception) -> None:
        if self._reply is not None:
            self._reply.set_exception(error)
        self.set_exception(error)
        if self.transport is not None:
            self.transport.abort()

    # -- called by aiohttp and the event loop --------------------------------------------------------------------------

    def start_timeout(self) -> None:
        """Note that the request is written; for aiohttp's own request for a tunnel, this is the only notice."""
        if not self._expects_reply:
            self.begin_request()
        self._is_written = True
        super().start_timeout()

    def data_received(self, data: bytes) -> None:
        """Count the bytes, and refuse those without a request; aiohttp passes none to go on with what it has."""
        if data and not self._expects_reply:
            self._receive_unexpected(data)
            return
        self._received += len(data)
        if self._received > (_HEADERS_BYTES if self._reply is None else self._max_bytes):
            self._give_up(ReplyTooLargeError("The reply is too large."))
            return
        super().data_received(data)
        if self._reply is None:
            return
        error = self.exception()
        if error is not None:  # aiohttp's parser failed, perhaps with an error that is no `ClientError`
            if not isinstance(error, aiohttp.ClientError):
                error = NotHttpError(error)
            self._reply.set_exception(error)
        elif self._reply.is_eof():
            self._is_used, self._expects_reply = True, False
            self._idle_since = self._loop.time()
            self.took_s = self._idle_since - self._began_at

    def _receive_unexpected(self, data: bytes) -> None:
        if not data.strip(b"\r\n"):  # some servers send a surplus line end
            return
        if not self._is_used:
            self._give_up(NotSentError(reused=False))
            return
        self._reuse_pause.extend(inf)
        # This also fails the previous call, if its reply has not been read yet.
        self._give_up(OutOfStepError("The server sent bytes without a request."))

    def resume_reading(self, *further: Any, **named: Any) -> None:
        """Resume only if reading is paused: aiohttp calls this for each piece that is read, and parses each time."""
        if self._reading_paused:
            super().resume_reading(*further, **named)

    def feed_data(self, data: Any, size: int = 0) -> None:
        status, payload = data[0].code, data[1]
        if status >= 200 or status == 101:  # noqa: PLR2004
            if self._reply is not None:
                self._reuse_pause.extend(inf)
                self._give_up(OutOfStepError("The server sent two replies to one request."))
                return
            if not self._is_request_out() and status < 400:  # noqa: PLR2004  (an error need not wait for the body)
                self._give_up(OutOfStepError("The server sent a reply before the request."))
                return
            self._reply = payload
        super().feed_data(data, size)

    def eof_received(self) -> None:
        """Fail the call as not sent if the server closed the connection before it received any of the request.

        No further byte was acknowledged then. After a reset instead of an end of stream, this is not known.
        """
        if self._expects_reply and not self._received and 0 <= self._acked == _acked_bytes(self.transport):
            self._give_up(NotSentError(reused=self._is_used))
        super().eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop using connections again for a minute if this one was lost under a request: the next may be, too."""
        if self._is_used and self._expects_reply and not self._received:
            self._reuse_pause.extend(self._loop.time() + _NO_REUSE_S)
        super().connection_lost(exc)


def _make_is_readable(sock: Any) -> Callable[[], bool]:
    """A function that says whether bytes, or the end of the stream, can be read from `sock`."""
    if not hasattr(select, "poll"):
        return lambda: bool(select.select([sock], [], [], 0)[0])
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return lambda: bool(poll.poll(0))


def _acked_bytes(transport: asyncio.BaseTransport | None) -> int:
    """How many bytes the other side has acknowledged so far; -1 if that is not known."""
    if sys.platform != "linux" or transport is None:
        return -1
    try:
        info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        (acked,) = struct.unpack_from("Q", info, _ACKED_OFFSET)
    except (OSError, struct.error):
        return -1
    return int(acked)


class Request(aiohttp.ClientRequest):
    """A request that is written only to a connection without unread bytes."""

    async def write_bytes(self, writer: Any, conn: Any, *further: Any) -> None:
        """Check the connection just before the first byte is sent."""
        if conn.protocol is not None and conn.protocol.begin_request():
            await super().write_bytes(writer, conn, *further)


class Target:
    """The address, headers, time-outs and proxy of requests that are posted as a whole."""

    def __init__(
        self, url: str, headers: Mapping[str, str], limits: aiohttp.ClientTimeout, proxy: str | None = None
    ) -> None:
        self._url = url
        self._headers = headers
        self._proxy = proxy
        self.limits = limits

    @cached_property
    def request(self) -> aiohttp.ClientRequest:
        """A request that is never sent: aiohttp needs one to connect, and adds its standard headers to it."""
        try:
            url, proxy = URL(self._url), URL(self._proxy) if self._proxy else None
        except ValueError as error:
            raise aiohttp.InvalidURL(self._url) from error
        # Not a POST, which would have a length.
        return aiohttp.ClientRequest("GET", url, headers=self._headers, proxy=proxy, loop=asyncio.get_running_loop())

    @cached_property
    def head(self) -> str:
        """The request line and the headers that are the same for each request."""
        request = self.request
        headers = dict(request.headers)
        path = request.url.raw_path_qs
        if request.proxy and not request.is_ssl():  # the proxy reads the request; for TLS, aiohttp opens a tunnel
            path = str(request.url)
            login = aiohttp.BasicAuth.from_url(request.proxy)
            if login:
                headers["Proxy-Authorization"] = login.encode()
        return "\r\n".join([f"POST {path} HTTP/1.1", *map(": ".join, headers.items())])


class Resolver(AbstractResolver):
    """Looks names up in daemon threads, so neither a cancelled call nor the end of the process waits for a look-up."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of `host`."""
        found: Future[list[Any]] = Future()
        found.set_running_or_notify_cancel()  # from now on, a cancelled call does not cancel it

        def look_up() -> None:
            try:
                found.set_result(
                    self._resolve(host, port, type=socket.SOCK_STREAM, family=family, flags=socket.AI_ADDRCONFIG)
                )
            except Exception as error:  # noqa: BLE001  (it is passed on)
                found.set_exception(error)

        threading.Thread(target=look_up, name="ondine-resolver", daemon=True).start()
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=address[1],
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST,
            )
            for kind, _, protocol, _, address in await asyncio.wrap_future(found)
        ]

    async def close(self) -> None:
        """Nothing to close."""


def max_calls() -> int | None:
    """The most concurrent calls for which this process may open connections; `None` if there is no limit."""
    if resource is None:
        return None
    limit: int = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    return max(1, (limit - _OTHER_FILES) // _CONNECTIONS_A_CALL)


class Connector(aiohttp.TCPConnector):
    """Connections that rest between two calls, so that a surplus reply arrives before the next request.

    There is no limit: the engine bounds the calls in flight, and a second bound would make them queue within their
    time-out. A server that once sent bytes without a request gets a new connection for each call; a server that closes
    a connection under a request does so for a minute.
    """

    def __init__(self, max_bytes: int, resolve: Resolve) -> None:
        super().__init__(
            limit=0, keepalive_timeout=_KEEP_ALIVE_S, ttl_dns_cache=_DNS_CACHE_S, resolver=Resolver(resolve)
        )
        self._typical_s = self._rest_s = 0.0
        self._reuse_pause = _ReusePause()
        factory: Any = partial(_Connection, loop=self._loop, max_bytes=max_bytes, reuse_pause=self._reuse_pause)
        self._factory = factory

    async def exchange(self, target: Target, head: bytes, body: bytes, until: float) -> tuple[Any, bytes]:
        """Send a whole request on a free or new connection; returns the head and the content of the reply."""
        limits, left_s = target.limits, until - self._loop.time()
        if left_s < (limits.connect or 0.0):
            limits = aiohttp.ClientTimeout(connect=max(left_s, MIN_TIMEOUT_S), ceil_threshold=inf)
        try:
            connection = await self.connect(target.request, [], limits)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError from error
        if self._loop.time() >= until:
            connection.release()
            raise aiohttp.ConnectionTimeoutError
        try:
            protocol: Any = connection.protocol
            reply: tuple[Any, bytes] = await protocol.exchange(head, body, until)
        except BaseException:
            connection.close()
            raise
        connection.release()
        return reply

    async def _get(self, key: Any, traces: Any) -> Any:
        idle = self._conns.get(key)
        # The first one has been idle longest: while it rests, so do the others.
        if idle and monotonic() - idle[0][1] < self._rest_s:
            return None
        return await super()._get(key, traces)

    def _release(self, key: Any, protocol: Any, *, should_close: bool = False) -> None:
        if should_close or protocol.should_close or self._loop.time() < self._reuse_pause.until:
            super()._release(key, protocol, should_close=True)
            return
        self._typical_s += (protocol.took_s - self._typical_s) * (_SMOOTHING if self._typical_s else 1)
        self._rest_s = 0.0 if self._typical_s < _QUICK_S else min(_MAX_REST_S, self._typical_s * _REST_SHARE)
        super()._release(key, protocol)
