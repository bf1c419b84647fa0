"""A chat-completions provider on the loopback, with scripted faults and a ledger of its requests and replies.

It runs on an event loop in a thread of its own, so a test may be a coroutine or ordinary code. A fault is a function
from a request to its effect; faults compose: `first(2, status(429))`, `matching("row 7", cut)`.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import Any, Self

import orjson
from aiohttp import web

from tests.support.meter import Meter, prompt_text
from tests.support.request_content import ReceivedMedia, media_of, text_of

_START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class ReceivedRequest:
    """A request: its parsed body, its headers, the client's port (one for each connection) and its time of arrival."""

    body: Mapping[str, Any]
    headers: Mapping[str, str]
    client_port: int
    arrived_at: float

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation."""
        return self.body["messages"]

    @cached_property
    def prompt(self) -> str:
        """The last user message."""
        content = next(message["content"] for message in reversed(self.messages) if message["role"] == "user")
        return text_of(content)

    @property
    def media(self) -> list[ReceivedMedia]:
        """The images and documents of all messages, in order."""
        return [seen for message in self.messages for seen in media_of(message["content"])]


@dataclass(frozen=True)
class Canned:
    """Send this response instead of an answer."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cut:
    """Bill the request, then drop the connection before the headers or in the middle of the body."""

    in_body: bool = False


@dataclass(frozen=True)
class Slow:
    """Answer after `headers_s`, and send the second half of the body `body_s` later."""

    headers_s: float = 0.0
    body_s: float = 0.0


@dataclass(frozen=True)
class Altered:
    """Answer with changed fields of the choice or its message, and with further headers."""

    choice: Mapping[str, Any] = field(default_factory=dict)
    message: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


Effect = Canned | Cut | Slow | Altered | None
Fault = Callable[[ReceivedRequest], Effect]

# -- faults --------------------------------------------------------------------------------------------------------


def status(code: int, body: Any = None, headers: Mapping[str, str] | None = None) -> Fault:
    """Respond with this status; `body` is bytes or JSON, by default an error object."""
    body = {"error": {"message": f"status {code}", "type": "made_to_order"}} if body is None else body
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    return lambda _: Canned(code, content, headers or {})


def error(code: int, message: str = "no", error_code: str | None = None) -> Fault:
    """Respond with this status and an error object in OpenAI's format."""
    return status(code, {"error": {"message": message, "type": "made_to_order", "code": error_code}})


def slow(seconds: float) -> Fault:
    """Delay the headers."""
    return lambda _: Slow(headers_s=seconds)


def slow_body(seconds: float) -> Fault:
    """Send headers and half of the body, and delay the rest."""
    return lambda _: Slow(body_s=seconds)


def cut(_: ReceivedRequest) -> Effect:
    """Drop the connection before the headers."""
    return Cut()


def cut_body(_: ReceivedRequest) -> Effect:
    """Drop the connection in the middle of the body."""
    return Cut(in_body=True)


def garbage(_: ReceivedRequest) -> Effect:
    """Respond 200 with a body that is not JSON."""
    return Canned(200, b"<html>upstream is busy</html>")


def empty(_: ReceivedRequest) -> Effect:
    """Answer with an empty text."""
    return Altered(message={"content": ""})


def truncated(_: ReceivedRequest) -> Effect:
    """Answer as if the bound on output tokens had truncated the text."""
    return Altered(choice={"finish_reason": "length"})


def filtered(_: ReceivedRequest) -> Effect:
    """Answer as if a content filter had removed the text."""
    return Altered(choice={"finish_reason": "content_filter"}, message={"content": None})


def refusal(_: ReceivedRequest) -> Effect:
    """Answer with a refusal by the model."""
    return Altered(message={"content": None, "refusal": "I cannot help with that."})


def with_headers(headers: Mapping[str, str]) -> Fault:
    """Answer with these headers."""
    return lambda _: Altered(headers=headers)


def first(count: int, fault: Fault) -> Fault:
    """`fault` for the first `count` requests."""
    numbers = itertools.count()
    return lambda asked: fault(asked) if next(numbers) < count else None


def after(count: int, fault: Fault) -> Fault:
    """`fault` for all but the first `count` requests."""
    numbers = itertools.count()
    return lambda asked: fault(asked) if next(numbers) >= count else None


def matching(part: str, fault: Fault) -> Fault:
    """`fault` for prompts that contain `part`."""
    return lambda asked: fault(asked) if part in asked.prompt else None


def while_set(switch: threading.Event, fault: Fault) -> Fault:
    """`fault` for as long as the switch is set."""
    return lambda asked: fault(asked) if switch.is_set() else None


def shares(*parts: tuple[float, Fault], seed: int = 0) -> Fault:
    """Each fault for its share of the requests, at random, and none for the rest."""
    rng = random.Random(seed)
    weights, faults = zip(*parts, (1 - sum(share for share, _ in parts), lambda _: None), strict=True)

    def effect_of(asked: ReceivedRequest) -> Effect:
        (fault,) = rng.choices(faults, weights)
        return fault(asked)

    return effect_of


def outage(count: int, seconds: float, fault: Fault) -> Fault:
    """`fault` for `seconds`, after `count` requests were served."""
    numbers, began = itertools.count(), list[float]()

    def effect_of(asked: ReceivedRequest) -> Effect:
        if next(numbers) == count:
            began.append(asked.arrived_at)
        return fault(asked) if began and asked.arrived_at < began[0] + seconds else None

    return effect_of


def rate_limited(calls: int, seconds: float = 1.0, retry_after_s: float | None = None) -> Fault:
    """429 for requests beyond `calls` in any window of `seconds`.

    `Retry-After` is sent if it is given.
    """
    served = deque[float]()
    refuse = status(429, headers=None if retry_after_s is None else {"Retry-After": f"{retry_after_s:g}"})

    def effect_of(asked: ReceivedRequest) -> Effect:
        while served and served[0] <= asked.arrived_at - seconds:
            served.popleft()
        if len(served) >= calls:
            return refuse(asked)
        served.append(asked.arrived_at)
        return None

    return effect_of


def echo(prompt: str) -> Any:
    """`{"answer": tail}`, where the tail of a prompt is what follows its last newline or colon and space."""
    return {"answer": re.split(r"\n|: ", prompt)[-1].strip()}


# -- ledger and server ---------------------------------------------------------------------------------------------


class Ledger:
    """Counts of requests and replies; `billed_by_prompt` includes requests whose client had disconnected."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.requests: list[ReceivedRequest] = []
        self.answered = self.in_flight = self.peak_in_flight = self.client_gone = 0
        self.calls_by_prompt: Counter[str] = Counter()
        self.billed_by_prompt: Counter[str] = Counter()
        self.input_tokens = self.output_tokens = 0

    def wait_for(self, predicate: Callable[[Ledger], object], timeout_s: float = 60.0) -> None:
        """Block until the ledger satisfies `predicate`; fail after `timeout_s`."""
        with self._changed:
            done = self._changed.wait_for(lambda: predicate(self), timeout_s)
        assert done, f"The provider's ledger did not satisfy the condition within {timeout_s} s."

    def max_requests_in(self, seconds: float) -> int:
        """The maximum number of requests that arrived in any window of `seconds`."""
        at = [asked.arrived_at for asked in self.requests]
        return max((bisect_left(at, start + seconds) - number for number, start in enumerate(at)), default=0)

    def arrived(self, asked: ReceivedRequest) -> None:
        """Record that a request has arrived."""
        with self._changed:
            self.requests.append(asked)
            self.calls_by_prompt[asked.prompt] += 1
            self.in_flight += 1
            self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
            self._changed.notify_all()

    def billed(self, asked: ReceivedRequest, input_tokens: int = 0, output_tokens: int = 0) -> None:
        """Record that a request was processed and billed."""
        with self._changed:
            self.billed_by_prompt[asked.prompt] += 1
            self.input_tokens += input_tokens
            self.output_tokens += output_tokens
            self._changed.notify_all()

    def left(self, *, answered: bool = False, client_gone: bool = False) -> None:
        """Record the end of a request before its last byte is sent, so that it never overlaps the client's next one."""
        with self._changed:
            self.in_flight -= 1
            self.answered += answered
            self.client_gone += client_gone
            self._changed.notify_all()


class Provider:
    """The provider, as a context manager; `base_url` is the address for a model.

    Args:
        answer: Last user message to answer, a text or a JSON value.
        latency_s: Seconds that each answer takes.
        fault: The effect on a request before it is answered.
        cached_tokens: Prompt tokens of each call that the usage reports as cached.
        count: Text to tokens; with it calls are billed as by OpenAI, without it by a quarter of their characters.
        meter: Counts and bills calls by price tier and prompt cache instead.
    """

    path = "/v1/chat/completions"

    def __init__(  # noqa: PLR0913  (by keyword)
        self,
        answer: Callable[[str], Any] = echo,
        *,
        latency_s: float = 0.0,
        fault: Fault | None = None,
        cached_tokens: int = 0,
        count: Callable[[str], int] | None = None,
        meter: Meter | None = None,
    ) -> None:
        self._count, self._meter = count, meter
        self._answer, self._latency_s, self._cached_tokens = answer, latency_s, cached_tokens
        self._fault: Fault = fault or (lambda _: None)
        self.ledger = Ledger()
        self.base_url = ""

    def __enter__(self) -> Self:
        started: Future[int] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), name="provider")
        self._thread.start()
        self.base_url = f"http://127.0.0.1:{started.result(_START_TIMEOUT_S)}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect(inf)
        self._thread.join()

    def disconnect(self, seconds: float) -> None:
        """Drop all connections and refuse new ones for `seconds`; returns at once."""
        self._loop.call_soon_threadsafe(self._away.put_nowait, seconds)

    async def _serve(self, started: Future[int]) -> None:
        self._loop, self._away = asyncio.get_running_loop(), asyncio.Queue[float]()
        try:
            runner = await self._listen(0)
            port = runner.addresses[0][1]
            started.set_result(port)
        except BaseException as failed:
            started.set_exception(failed)
            raise
        while (away_s := await self._away.get()) < inf:
            await runner.cleanup()
            await asyncio.sleep(away_s)
            runner = await self._listen(port)
        await runner.cleanup()

    async def _listen(self, port: int) -> web.AppRunner:
        app = web.Application(client_max_size=2**26)
        app.router.add_post(self.path, self._handle)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
        return runner

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        port = request.transport.get_extra_info("peername")[1] if request.transport else 0
        asked = ReceivedRequest(body, dict(request.headers), port, time.monotonic())
        self.ledger.arrived(asked)
        effect = self._fault(asked)
        if isinstance(effect, Canned):
            return self._canned(asked, effect)
        content, headers = self._completion(asked, effect)
        if isinstance(effect, Altered):
            headers = {**headers, **effect.headers}
        half = len(content) // 2
        slow = effect if isinstance(effect, Slow) else Slow()
        in_halves = bool(slow.body_s) or effect == Cut(in_body=True)
        response = web.StreamResponse(headers={**headers, "Content-Length": str(len(content))})
        try:
            if wait_s := self._latency_s + slow.headers_s:
                await asyncio.sleep(wait_s)
            if in_halves:
                await response.prepare(request)
                await response.write(content[:half])
                await asyncio.sleep(slow.body_s)
        except (asyncio.CancelledError, ConnectionError):
            self.ledger.left(client_gone=True)
            raise
        if self._meter:
            self._meter.keep(*self._read(body))
        self.ledger.left(answered=not isinstance(effect, Cut))
        if isinstance(effect, Cut):
            request.transport.abort()
            return web.Response()
        if in_halves:
            await response.write(content[half:])
            return response
        return web.Response(body=content, headers=headers)

    def _canned(self, asked: ReceivedRequest, effect: Canned) -> web.Response:
        if billed := effect.status == web.HTTPOk.status_code:
            self.ledger.billed(asked)
        self.ledger.left(answered=billed)
        return web.Response(status=effect.status, body=effect.body, headers=effect.headers)

    def _completion(self, asked: ReceivedRequest, effect: Effect) -> tuple[bytes, Mapping[str, str]]:
        answer, number = self._answer(asked.prompt), len(self.ledger.requests)
        text = answer if isinstance(answer, str) else orjson.dumps(answer).decode()
        altered = effect if isinstance(effect, Altered) else Altered()
        message = {"role": "assistant", "content": text, **altered.message}
        prompt_tokens, completion_tokens = self._bill(asked, text)
        self.ledger.billed(asked, prompt_tokens, completion_tokens)
        completion = {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion",
            "model": asked.body.get("model"),
            "choices": [{"index": 0, "message": message, "finish_reason": "stop", **altered.choice}],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "prompt_tokens_details": {"cached_tokens": self._cached_tokens},
            },
        }
        if self._meter:
            prompt, marked = self._read(asked.body)
            used, tier = self._meter.bill(prompt, text, asked.body.get("service_tier", "default"), marked)
            completion |= {"usage": used, "service_tier": tier}
        headers = {"Content-Type": "application/json", "x-request-id": f"req-{number}"}
        return orjson.dumps(completion), headers

    def _read(self, body: Mapping[str, Any]) -> tuple[str, int | None]:
        """The part of a request that is the prompt, and how many of its characters are marked for the cache."""
        return prompt_text(body), None

    def _bill(self, asked: ReceivedRequest, text: str) -> tuple[int, int]:
        if self._count is None:
            return sum(len(text_of(message["content"])) for message in asked.messages) // 4, len(text) // 4
        # Three tokens for each message, one for its role, three for the start of the reply, and those of the schema.
        schema = orjson.dumps(asked.body.get("response_format", "")).decode()
        sent = sum(self._count(text_of(message["content"])) + 4 for message in asked.messages) + 3 + self._count(schema)
        return sent, self._count(text)
