"""A `ChatModel` behind one HTTP address that takes and returns JSON.

It is a client of our own because the transport decides the speed of the whole pipeline. It tries a call exactly once;
`http_errors` classifies failures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from math import inf
from secrets import token_hex
from typing import Any

import aiohttp

from ondine_core.errors import ProviderError
from ondine_core.providers.http_client import CONNECT_TIMEOUT_S, HEADERS, Endpoint, HttpClient, proxy_for
from ondine_core.providers.http_connection import OutOfStepError, Target, max_calls
from ondine_core.providers.http_errors import Response, no_answer_error, response_error, transport_error
from ondine_core.providers.rate_limit_headers import hold_off_s
from ondine_core.providers.reply_body import MAX_REPLY_BYTES, SUCCESSES, decode, unpack
from ondine_core.providers.reply_text import follows_schema
from ondine_core.providers.usage import stated_usd_in
from ondine_core.types.values import Call, Reply

_CONNECT_SHARE = 0.9
_REQUEST_ID = "X-Request-Id"


class HttpModel:
    """A `ChatModel` behind one HTTP address that takes and returns JSON.

    `body` writes a call, and `read` makes the reply from the decoded JSON; identity, latency and limits are added from
    the response. `wall` is the wall clock, for waits that a header names as a date.
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
        # A call that never connected cost nothing, so connecting has a time-out of its own, which is shorter and exact.
        connect_s = min(CONNECT_TIMEOUT_S, endpoint.timeout_s * _CONNECT_SHARE)
        limits = aiohttp.ClientTimeout(total=endpoint.timeout_s, connect=connect_s, ceil_threshold=inf)
        headers = {**HEADERS, "content-type": "application/json", **endpoint.headers}
        self._target = Target(endpoint.url, headers, limits, proxy_for(endpoint.url))
        self.follows_schemas = False  # until a reply shows it
        self._id_prefix, self._numbers = f"ondine-{token_hex(8)}", count()
        self.max_concurrency = max_calls()
        self.max_batch_size: int | None = None

    def __repr__(self) -> str:
        return f"HttpModel({self._to.host!r})"

    async def __call__(self, call: Call) -> Reply:
        """Ask once; see `ChatModel`."""
        until = asyncio.get_running_loop().time() + self._endpoint.timeout_s
        secret = await self._endpoint.secret_headers()
        own_id = f"{self._id_prefix}-{next(self._numbers):08x}"
        # Writing the body of a call with images reads them from disk.
        body = await asyncio.to_thread(self._body, call) if call.media else self._body(call)
        started = time.perf_counter()
        failure: ProviderError | None = None
        try:
            response = await self._post(body, {_REQUEST_ID: own_id, **secret}, until)
            if response.status not in SUCCESSES:
                failure = response_error(response, call, self._endpoint.find_secrets(secret), self._to)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            failure = transport_error(error, self._to)
        if failure:
            raise failure  # outside of `except`, without a context that may contain the whole address or the key
        try:
            reply = self._read(decode(response.content, response.headers.get("content-type", "")))
        except ProviderError:
            raise
        except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise no_answer_error(response, call, self._endpoint.find_secrets(secret), self._to) from error
        header_id = response.headers.get("x-request-id") or response.headers.get("request-id", "")
        # A header may hold bytes that are not text, which the store could not keep.
        request_id = header_id.encode("ascii", "ignore").decode() or reply.request_id
        if self._is_of_another_call(own_id, request_id) or self._is_of_another_call(own_id, reply.request_id):
            raise transport_error(OutOfStepError(), self._to)
        used = reply.usage.input_tokens + reply.usage.output_tokens
        return replace(
            reply,
            request_id=request_id,
            latency_s=time.perf_counter() - started,
            hold_off_s=hold_off_s(response.headers, used, reply.usage.output_tokens, response.at),
            stated_usd=stated_usd_in(response.headers) if reply.stated_usd is None else reply.stated_usd,
        )

    def ignores_schemas(self, reply: Reply) -> bool:
        """Whether a reply to a call with a schema shows that the server ignores schemas.

        A server that followed a schema once is never taken to ignore them.
        """
        follows = self.follows_schemas or follows_schema(reply)
        self.follows_schemas = bool(follows)
        return follows is False

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _post(self, body: bytes, headers: Mapping[str, str], until: float) -> Response:
        head, content = await self._client.post(self._target, headers, body, until)
        content = unpack(head.code, content, head.headers.get("Content-Encoding", ""), self._max_reply_bytes)
        return Response(head.code, head.headers, content, self._wall())

    def _is_of_another_call(self, own_id: str, echo: str | None) -> bool:
        """Whether a server that echoes our request ids has echoed the id of another call."""
        return echo is not None and self._id_prefix in echo and own_id not in echo
