"""Hooks into litellm's HTTP that allow one request a call and keep the unchanged response.

litellm sends a call again when a connection breaks, although the call may have been billed; the hooks stop the second
request. They find the record of the current call (`Watch`) in a context variable.

litellm and OpenAI's package are imported by name: otherwise type checkers, also a user's, would read their 3,800
modules for three names, which takes half a minute.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson

from ondine_core.providers.http_errors import Response
from ondine_core.providers.reply_body import MAX_REPLY_BYTES, too_large, unpack

if TYPE_CHECKING:
    import httpx

_SECRET = ("authorization", "api-key", "x-api-key", "x-goog-api-key")
_REQUEST_IDS = ("x-request-id", "request-id", "x-amzn-requestid")


@dataclass(slots=True)
class Watch:
    """What the hooks observed of one call: the host, the keys and methods with addresses sent, and the response."""

    host: str = ""
    secrets: list[str] = field(default_factory=list, repr=False)
    sent: set[str] = field(default_factory=set)
    raw: httpx.Response | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the response, with names in lower case."""
        return {} if self.raw is None else dict(self.raw.headers)

    def response(self) -> Response | None:
        """The response, if it was received completely."""
        if self.raw is None or not self.raw.is_stream_consumed:
            return None
        try:
            return Response(self.raw.status_code, self.headers, self.raw.content, time.time())
        except RuntimeError:  # it was not read to its end
            return None

    def data(self) -> Mapping[str, Any]:
        """The JSON object in the response; empty if it has none."""
        response = self.response()
        try:
            data = orjson.loads(response.content) if response else None
        except orjson.JSONDecodeError:
            return {}
        return data if isinstance(data, dict) else {}


_watch: ContextVar[Watch | None] = ContextVar("ondine_watch", default=None)


@contextmanager
def watch() -> Iterator[Watch]:
    """Observe the call that is made in this context; litellm neither logs nor reports it.

    Its public option `no-log` takes three times the CPU (22 ms a call instead of 8), since it prepares the log first.
    """
    is_internal_call = import_module("litellm._internal_context").is_internal_call
    seen = Watch()
    watch_token = _watch.set(seen)
    internal_token = is_internal_call.set(True)
    try:
        yield seen
    finally:
        is_internal_call.reset(internal_token)
        _watch.reset(watch_token)


async def _on_request(request: httpx.Request) -> None:
    seen = _watch.get()
    if seen is None:
        return
    import httpx

    target = f"{request.method} {request.url}"
    if request.method == "POST" and target in seen.sent:
        raise httpx.ReadError("A call is sent once; its caller decides whether it is made again.")
    seen.sent.add(target)
    request.headers["accept-encoding"] = "identity"
    seen.host = request.url.netloc.decode("ascii", "replace").rpartition("@")[2]
    seen.secrets += [value.rpartition(" ")[2] for name in _SECRET if (value := request.headers.get(name, ""))]


async def _on_response(response: httpx.Response) -> None:
    # Decompressed here, where its size is bounded, and not by httpx.
    encoding = response.headers.pop("content-encoding", "")
    response.stream = _bounded(response.stream, response.status_code, encoding)
    seen = _watch.get()
    if seen is not None:
        seen.raw = response


def _bounded(stream: Any, status: int, encoding: str) -> Any:
    """The decompressed bytes of a response as a stream that fails if they are too many."""
    import httpx

    class Bounded(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            content = bytearray()
            async for part in stream:
                content += part
                if len(content) > MAX_REPLY_BYTES:
                    raise too_large()
            yield unpack(status, bytes(content), encoding, MAX_REPLY_BYTES)

        async def aclose(self) -> None:
            await stream.aclose()

    return Bounded()


def make_client(api_key: str | None, base_url: str | None) -> Any:
    """A client for both ways in which litellm sends requests: its own HTTP handler and OpenAI's package."""
    http_handler: Any = import_module("litellm.llms.custom_httpx.http_handler")
    openai: Any = import_module("openai")

    class Client(http_handler.AsyncHTTPHandler):  # type: ignore[misc]  # of type Any
        """litellm's handler; attributes that it does not have are those of an OpenAI client on the same connections."""

        openai: Any

        async def post(self, *args: Any, **options: Any) -> Any:
            """Send with the client that is meant: both have a `post`, but only OpenAI's takes `cast_to`."""
            sender: Any = self.openai if "cast_to" in options else super()
            return await sender.post(*args, **options)

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__") or "openai" not in self.__dict__:
                raise AttributeError(name)
            return getattr(self.openai, name)

    client = Client(event_hooks={"request": [_on_request], "response": [_on_response]})
    client.client.follow_redirects = False  # a redirect must not receive key and prompt
    client.openai = openai.AsyncOpenAI(
        api_key=api_key or "none", base_url=base_url, max_retries=0, http_client=client.client
    )
    return client


def cause_of(error: BaseException) -> BaseException:
    """The HTTP client's error in the causes of `error`; their first one if there is none of the HTTP client."""
    chain = _chain(error)
    return next((link for link in chain if isinstance(link, aiohttp.ClientError | TimeoutError)), chain[-1])


def response_behind(error: BaseException) -> Response | None:
    """The response that caused `error`, for the few providers for which litellm does not use our client."""
    import httpx

    for link in reversed(_chain(error)):
        if isinstance(link, httpx.HTTPStatusError):
            return Watch(raw=link.response).response()
    return None


def _chain(error: BaseException) -> list[BaseException]:
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def request_id(seen: Watch) -> str | None:
    """The provider's id of the call: in a header, else in the body."""
    for name in _REQUEST_IDS:
        header_id = seen.headers.get(name, "").encode("ascii", "ignore").decode()
        if header_id:
            return header_id
    body_id = seen.data().get("id")
    return body_id if isinstance(body_id, str) else None
