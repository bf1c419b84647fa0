"""A TCP proxy that injects faults: it delays, stalls, cuts, duplicates, reorders and inserts bytes.

A fault sees each chunk on its way to the client and returns what is sent instead, and when; bytes to the server pass
unchanged. A chunk is what the server wrote at once: a whole reply if the reply is short.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Self

__all__ = ["Cut", "FaultProxy", "Harm", "cut", "delay", "duplicate", "inject", "reorder", "stall"]


class Cut:
    """In place of bytes: reset the connection."""


Pieces = Sequence[float | bytes | Cut]
"""What is sent in place of a chunk, in order; a number is a pause in seconds."""

Harm = Callable[[bytes, random.Random], Pieces]


def delay(data: bytes, rng: random.Random) -> Pieces:
    """Send each chunk in two parts, late."""
    half = len(data) // 2
    return rng.random() / 50, data[:half], rng.random() / 50, data[half:]


def stall(data: bytes, _: random.Random) -> Pieces:
    """Send half of it, and never the rest."""
    return data[: len(data) // 2], 3600.0


def cut(data: bytes, rng: random.Random) -> Pieces:
    """Break the connection somewhere in it."""
    return data[: rng.randrange(len(data))], Cut()


def duplicate(data: bytes, rng: random.Random) -> Pieces:
    """Send it twice."""
    return data, rng.choice([0.0, 0.002]), data


def reorder(data: bytes, _: random.Random) -> Pieces:
    """Send its second half first."""
    half = len(data) // 2
    return data[half:], data[:half]


def inject(data: bytes, rng: random.Random) -> Pieces:
    """Send another reply after it."""
    body = b'{"choices":[{"message":{"content":"{\\"answer\\":\\"stray\\"}"},"finish_reason":"stop"}]}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    return data, rng.choice([0.0, 0.002]), head + body


class FaultProxy:
    """A proxy in front of a server, as a context manager.

    Args:
        port: The server's port on this machine.
        harm: The fault applied to a chunk on its way to the client.
        share: The share of the chunks with a fault; it may be changed.
        seed: Seed of its random choices.
    """

    def __init__(self, port: int, harm: Harm, share: float = 0.2, seed: int = 0) -> None:
        self._server_port, self._harm, self.share, self._rng = port, harm, share, random.Random(seed)
        self.harmed = 0
        self.port = 0

    def __enter__(self) -> Self:
        started: Future[int] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), name="proxy")
        self._thread.start()
        self.port = started.result(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    async def _serve(self, started: Future[int]) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0, backlog=1024)
        started.set_result(server.sockets[0].getsockname()[1])
        await self._over.wait()
        server.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        there = asyncio.ensure_future(self._pass_on(reader, up_writer))
        try:
            await self._harm_all(up_reader, writer)
        finally:
            there.cancel()
            for end in (writer, up_writer):
                end.close()

    @staticmethod
    async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(2**16):
                writer.write(data)
            writer.close()

    async def _harm_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(2**16):
                is_harmed = self._rng.random() < self.share
                self.harmed += is_harmed
                for piece in self._harm(data, self._rng) if is_harmed else (data,):
                    if isinstance(piece, Cut):
                        writer.transport.abort()
                        return
                    if isinstance(piece, bytes):
                        writer.write(piece)
                    else:
                        await asyncio.sleep(piece)
