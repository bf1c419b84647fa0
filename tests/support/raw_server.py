"""A server that runs a test's script for each connection, so that the test decides which bytes are sent, and when."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

__all__ = ["Connection", "RawServer", "completion", "http_reply"]


def completion(text: str, **fields: Any) -> bytes:
    """A chat completion with `text`."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
    return json.dumps({"model": "m", "choices": [choice], "usage": usage, **fields}).encode()


def http_reply(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """An HTTP reply with `body` and a Content-Length header."""
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", *headers]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Connection:
    """One connection, as the server sees it."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock, self.number, self._left = sock, number, b""

    def read_head(self) -> bytes | None:
        """The next request up to its body, unchanged; `None` when the client has disconnected."""
        while b"\r\n\r\n" not in self._left:
            data = self.sock.recv(2**16)
            if not data:
                return None
            self._left += data
        head, _, self._left = self._left.partition(b"\r\n\r\n")
        return head

    def read_request(self) -> Any:
        """The JSON of the next request; `None` when the client has disconnected."""
        head = self.read_head()
        return None if head is None else json.loads(self.read_body(head))

    def read_body(self, head: bytes) -> bytes:
        """The body of the request that begins with `head`."""
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        while len(self._left) < length:
            self._left += self.sock.recv(2**16)
        body, self._left = self._left[:length], self._left[length:]
        return body

    def send(self, data: bytes) -> None:
        """Send all of `data`."""
        self.sock.sendall(data)


class RawServer:
    """Runs `script` for every connection in a thread of its own; open connections are closed at the end of the test.

    Args:
        script: Handles a connection, which is closed when the script returns.
    """

    def __init__(self, script: Callable[[Connection], None]) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._sockets: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]
        self.base_url = f"http://127.0.0.1:{self.port}/v1"

    @property
    def connections(self) -> int:
        """The number of connections so far."""
        return len(self._sockets)

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._listener, *self._sockets):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets.append(sock)
                threading.Thread(target=self._run, args=(Connection(sock, len(self._sockets)),), daemon=True).start()

    def _run(self, connection: Connection) -> None:
        with suppress(OSError), connection.sock:
            self._script(connection)
