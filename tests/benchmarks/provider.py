"""A provider of chat completions and of Anthropic's messages for load tests, with minimal work for each request.

Its own HTTP parser is sufficient only for the benchmark's clients. A limit counts requests in a sliding window;
requests beyond it are refused at once without `Retry-After`. `--refuse-each` refuses every n-th request with
`Retry-After: 1`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import orjson

from tests.benchmarks.workload import answer_to

__all__ = ["PATH"]

PATH = "/v1"
_END_OF_HEAD, _LENGTH = b"\r\n\r\n", b"\r\ncontent-length:"


class ServerStats:
    """Counts of requests and replies, and the limits."""

    def __init__(self, latency_s: float, limit: int, window_s: float, refuse_each: int) -> None:
        self.latency_s = latency_s
        self.limit = limit
        self.window_s = window_s
        self.refuse_each = refuse_each
        self.recent: deque[float] = deque()
        self.reset()

    def reset(self) -> None:
        """Set all counts to zero."""
        self.requests = self.refused = self.in_flight = self.peak_in_flight = 0
        self.input_tokens = self.output_tokens = 0
        self.answered_at: list[float] = []
        self.cpu_s = time.process_time()

    def admits(self) -> bool:
        """Whether a request that arrives now is within the limits."""
        if self.refuse_each and self.requests % self.refuse_each == 0:
            return False
        if not self.limit:
            return True
        now = time.monotonic()
        while self.recent and self.recent[0] <= now - self.window_s:
            self.recent.popleft()
        if len(self.recent) >= self.limit:
            return False
        self.recent.append(now)
        return True

    def report(self) -> dict[str, Any]:
        """All figures so far."""
        return {
            "requests": self.requests,
            "refused": self.refused,
            "peak_in_flight": self.peak_in_flight,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "first_s": self.answered_at[0] if self.answered_at else None,
            "last_s": self.answered_at[-1] if self.answered_at else None,
            "cpu_s": time.process_time() - self.cpu_s,
            "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, stats: ServerStats) -> None:
        self._stats, self._buffer = stats, b""
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Serve every complete request."""
        self._buffer += data
        while (end := self._buffer.find(_END_OF_HEAD)) >= 0:
            head = self._buffer[:end].lower()
            at = head.find(_LENGTH)
            length = int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            start = end + len(_END_OF_HEAD)
            if len(self._buffer) < start + length:
                if b"\r\nexpect:" in head:
                    self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return
            body, self._buffer = self._buffer[start : start + length], self._buffer[start + length :]
            self._serve(head, body)

    def _serve(self, head: bytes, body: bytes) -> None:
        stats = self._stats
        is_message = head.startswith(b"post /v1/messages")
        if not is_message and not head.startswith(b"post /v1/chat/"):  # telemetry may be sent here, too
            self._write(_response(b"200 OK", orjson.dumps(stats.report())))
            if b" /reset" in head:
                stats.reset()
            return
        stats.requests += 1
        if not stats.admits():
            stats.refused += 1
            self._write(
                _response(b"429 Too Many Requests", _REFUSAL, b"Retry-After: 1\r\n" if stats.refuse_each else b"")
            )
            return
        stats.in_flight += 1
        stats.peak_in_flight = max(stats.peak_in_flight, stats.in_flight)
        self._loop.call_later(stats.latency_s, self._answer, body, _message if is_message else _completion)

    def _answer(self, body: bytes, write: Callable[[str, str, int, int], dict[str, Any]]) -> None:
        stats, asked = self._stats, orjson.loads(body)
        stats.in_flight -= 1
        texts = [_text(message["content"]) for message in asked["messages"]]
        if not texts:  # curator reads the limits from the response headers of such a request; it is not billed
            stats.requests -= 1
            self._write(_response(b"400 Bad Request", _NO_MESSAGES))
            return
        content = orjson.dumps(_answers(texts[-1])).decode()
        sent, written = sum(map(len, texts)) // 4, len(content) // 4
        stats.input_tokens += sent
        stats.output_tokens += written
        stats.answered_at.append(time.monotonic())
        self._write(_response(b"200 OK", orjson.dumps(write(asked["model"], content, sent, written))))

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)  # type: ignore[attr-defined]  # it is a stream's


def _completion(model: str, content: str, sent: int, written: int) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": sent, "completion_tokens": written, "total_tokens": sent + written},
    }


def _message(model: str, content: str, sent: int, written: int) -> dict[str, Any]:
    return {
        "id": "msg-1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": content}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": sent, "output_tokens": written},
    }


_REFUSAL = b'{"error":{"message":"Rate limit reached.","type":"requests","code":"rate_limit_exceeded"}}'
_NO_MESSAGES = b'{"error":{"message":"Empty input messages.","type":"invalid_request_error","code":null}}'


def _text(content: str | list[dict[str, str]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _answers(text: str) -> dict[str, Any]:
    """The answer to one row, or those to the rows of a batch by their ids."""
    if not text.startswith("["):
        return answer_to(text)
    return {"answers": [{"id": item.pop("id"), **answer_to(next(iter(item.values())))} for item in orjson.loads(text)]}


def _response(status: bytes, body: bytes, headers: bytes = b"") -> bytes:
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n"
    return head % (status, headers, len(body)) + body


async def _serve(options: argparse.Namespace) -> None:
    latency_s = options.latency_ms / 1000
    stats = ServerStats(latency_s, options.limit, options.window_s, options.refuse_each)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(stats), "127.0.0.1", 0, backlog=4096)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    # The parent process holds the other end of the pipe; when it exits, so does this process.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def main() -> None:
    """Serve on a free port, which is printed, until standard input is closed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--limit", type=int, default=0, help="requests that a window admits; 0: no limit")
    parser.add_argument("--window-s", type=float, default=1.0)
    parser.add_argument("--refuse-each", type=int, default=0, help="refuse every n-th request; 0: none")
    parser.add_argument("--core", type=int, default=-1)
    options = parser.parse_args()
    if options.core >= 0:
        os.sched_setaffinity(0, {options.core})
    asyncio.run(_serve(options))


if __name__ == "__main__":
    main()
