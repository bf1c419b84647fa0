"""A TCP proxy that injects faults: it delays, stalls, cuts, duplicates, reorders and inserts bytes.

A fault is applied to chunks on their way to the client and returns the bytes and pauses to send instead; bytes to the
server are forwarded unchanged. A chunk is what the server wrote at once: a whole reply if the reply is short.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Self

__all__ = ["Cut", "Fault", "FaultProxy", "cut", "delay", "duplicate", "inject", "reorder", "stall"]


class Cut:
    """A piece that resets the connection."""


Pieces = Sequence[float | bytes | Cut]
"""Sent in order in place of a chunk; a number is a pause in seconds."""

Fault = Callable[[bytes, random.Random], Pieces]


def delay(data: bytes, rng: random.Random) -> Pieces:
    """Send the chunk in two parts, each after a pause."""
    half = len(data) // 2
    return rng.random() / 50, data[:half], rng.random() / 50, data[half:]


def stall(data: bytes, _: random.Random) -> Pieces:
    """Send half of the chunk, and never the rest."""
    return data[: len(data) // 2], 3600.0


def cut(data: bytes, rng: random.Random) -> Pieces:
    """Reset the connection at a random byte of the chunk."""
    return data[: rng.randrange(len(data))], Cut()


def duplicate(data: bytes, rng: random.Random) -> Pieces:
    """Send the chunk twice."""
    return data, rng.choice([0.0, 0.002]), data


def reorder(data: bytes, _: random.Random) -> Pieces:
    """Send the second half of the chunk first."""
    half = len(data) // 2
    return data[half:], data[:half]


def inject(data: bytes, rng: random.Random) -> Pieces:
    """Send another reply after the chunk."""
    body = b'{"choices":[{"message":{"content":"{\\"answer\\":\\"stray\\"}"},"finish_reason":"stop"}]}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    return data, rng.choice([0.0, 0.002]), head + body


class FaultProxy:
    """A proxy in front of a server, as a context manager.

    Args:
        port: The server's port on this machine.
        fault: The fault applied to a chunk on its way to the client.
        share: The share of the chunks with a fault; it may be changed.
        seed: Seed of the random choices.
    """

    def __init__(self, port: int, fault: Fault, share: float = 0.2, seed: int = 0) -> None:
        self._server_port, self._fault, self.share, self._rng = port, fault, share, random.Random(seed)
        self.faults_injected = 0
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
        to_server = asyncio.ensure_future(self._forward(reader, up_writer))
        try:
            await self._forward_with_faults(up_reader, writer)
        finally:
            to_server.cancel()
            for end in (writer, up_writer):
                end.close()

    @staticmethod
    async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(2**16):
                writer.write(data)
            writer.close()

    async def _forward_with_faults(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(2**16):
                is_faulty = self._rng.random() < self.share
                self.faults_injected += is_faulty
                for piece in self._fault(data, self._rng) if is_faulty else (data,):
                    if isinstance(piece, Cut):
                        writer.transport.abort()
                        return
                    if isinstance(piece, bytes):
                        writer.write(piece)
                    else:
                        await asyncio.sleep(piece)
