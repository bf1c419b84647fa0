"""A `ChatModel` behind one HTTP address that takes and gives JSON.

A client of its own because the transport decides the speed of the whole pipeline. It tries a call exactly once; what a
failure means is decided in `http_errors`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from io import BytesIO
from itertools import count
from math import inf
from secrets import token_hex
from typing import Any

import aiohttp

from ondine_core.errors import ProviderError
from ondine_core.providers.http_client import CONNECT_TIMEOUT_S, HEADERS, Endpoint, HttpClient, proxy_for, shorten
from ondine_core.providers.http_connection import OutOfStepError, Target, max_calls
from ondine_core.providers.http_errors import Response, lost, turned_away, unreadable
from ondine_core.providers.rate_limit_headers import hold_off_s
from ondine_core.providers.reply_body import MAX_REPLY_BYTES, check_parsable, decode, decompress
from ondine_core.providers.reply_text import heeds_schema
from ondine_core.providers.usage import stated_usd_in
from ondine_core.types.values import Call, Reply

_CONNECT_SHARE = 0.9
_OK = 200
_LARGE = 2**17
_REQUEST_ID = "X-Request-Id"


class HttpModel:
    """A `ChatModel` behind one HTTP address that takes and gives JSON.

    `body` writes a call, and `read` takes the reply out of the decoded JSON, without its `latency_s`. `wall` is the
    clock for a `Retry-After` or a limit's reset that names a date.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        body: Callable[[Call], bytes],
        read: Callable[[Mapping[str, Any]], Reply],
        *,
        max_reply_bytes: int = MAX_REPLY_BYTES,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._endpoint, self._to = endpoint, endpoint.address
        self._body, self._read = body, read
        self._max_reply_bytes, self._wall = max_reply_bytes, wall
        self._client = HttpClient(max_reply_bytes, endpoint.resolve)
        self._headers = {"content-type": "application/json", **endpoint.plain_headers}
        self._proxy = proxy_for(endpoint.url)
        # A call that is not connected yet has cost nothing, so connecting has its own, shorter and exact time-out.
        connect_s = min(CONNECT_TIMEOUT_S, endpoint.timeout_s * _CONNECT_SHARE)
        self._timeout = aiohttp.ClientTimeout(total=endpoint.timeout_s, connect=connect_s, ceil_threshold=inf)
        self._target = Target(endpoint.url, {**HEADERS, **self._headers}, self._timeout)
        self.heeds_schemas = False  # as far as is known
        self._own_ids, self._numbers = f"ondine-{token_hex(8)}", count()
        self.max_concurrency = max_calls()
        self.max_batch_size: int | None = None

    def __repr__(self) -> str:
        return f"HttpModel({self._to.host!r})"

    async def __call__(self, call: Call) -> Reply:
        """Ask once; see `ChatModel`."""
        until = asyncio.get_running_loop().time() + self._endpoint.timeout_s
        secret = await self._endpoint.secret_headers()
        own_id = f"{self._own_ids}-{next(self._numbers):08x}"
        # Images are read from disk while they are written.
        body = await asyncio.to_thread(self._body, call) if call.media else self._body(call)
        started = time.perf_counter()
        failure: ProviderError | None = None
        try:
            response = await self._post(body, {_REQUEST_ID: own_id, **secret}, until)
            if response.status != _OK:
                failure = turned_away(response, call, _values(secret), self._to)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            failure = lost(error, self._to)
        if failure:
            raise failure  # out here, where it has no context: that may name the whole address, or hold the key
        try:
            reply = self._read(decode(response.content, response.headers.get("content-type", "")))
        except ProviderError:
            raise
        except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise unreadable(response, call, _values(secret), self._to) from error
        named = response.headers.get("x-request-id") or response.headers.get("request-id", "")
        # A header may hold bytes that are not text, which the store could not keep.
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

    def ignores_schemas(self, reply: Reply) -> bool:
        """Whether a reply to a schema shows that the server does not know them; one that heeded an earlier one does."""
        heeds = self.heeds_schemas or heeds_schema(reply)
        self.heeds_schemas = bool(heeds)
        return heeds is False

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _post(self, body: bytes, headers: Mapping[str, str], until: float) -> Response:
        if self._proxy is None and len(body) <= _LARGE:
            head, content = await self._client.post(self._target, headers, body, until)
            status, answered = head.code, head.headers
        else:
            status, answered, content = await self._post_piecewise(body, headers, until)
        encoding = answered.get("Content-Encoding")
        if encoding:
            content = decompress(content, encoding, self._max_reply_bytes)
        check_parsable(content)
        return Response(status, answered, content, self._wall())

    async def _post_piecewise(
        self, body: bytes, headers: Mapping[str, str], until: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and content of the reply to a request that is large, or goes by way of a proxy."""
        response = await self._client.send(
            "POST",
            self._endpoint.url,
            # aiohttp sends a file piece by piece; it warns of large bytes.
            lambda: body if len(body) <= _LARGE else BytesIO(body),
            shorten(self._timeout, until - asyncio.get_running_loop().time()),
            headers={**self._headers, **headers},
            proxy=self._proxy,
        )
        async with response:
            return response.status, response.headers, await response.read()

    def _is_of_another_call(self, own_id: str, echo: str | None) -> bool:
        """Whether a server that repeats our names for calls repeats that of another one."""
        return echo is not None and self._own_ids in echo and own_id not in echo


def _values(secret: Mapping[str, str]) -> list[str]:
    return [value.rpartition(" ")[2] for value in secret.values()]
