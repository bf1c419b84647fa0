"""A TCP proxy on the loopback that delays every byte by half a round trip each way, without limiting the throughput."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["LatencyProxy", "latency_proxy"]


class LatencyProxy:
    """A running proxy.

    Attributes:
        port: The port on 127.0.0.1.
        round_trips: The number of times that bytes arrived from the server after the client had sent bytes.
    """

    def __init__(self, target_port: int, round_trip_s: float) -> None:
        self._target_port, self._one_way_s = target_port, round_trip_s / 2
        self.port, self.round_trips = 0, 0
        self._client_sent_last = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, started: threading.Event, stopped: asyncio.Event) -> None:
        """Forward connections until `stopped`."""
        server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await stopped.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        self._writers += (writer, server_writer)
        for source, sink, outward in ((reader, server_writer, True), (server_reader, writer, False)):
            pending: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
            for work in (self._read(source, pending, outward=outward), self._deliver(pending, sink)):
                task = asyncio.create_task(work)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _read(self, source: asyncio.StreamReader, pending: asyncio.Queue[Any], *, outward: bool) -> None:
        data = b"more"
        while data:
            try:
                data = await source.read(1 << 18)
            except OSError:
                data = b""
            self.round_trips += bool(data) and self._client_sent_last and not outward
            self._client_sent_last = outward
            pending.put_nowait((asyncio.get_running_loop().time() + self._one_way_s, data))

    async def _deliver(self, pending: asyncio.Queue[Any], sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while True:
                due, data = await pending.get()
                await asyncio.sleep(due - asyncio.get_running_loop().time())
                if not data:
                    break
                sink.write(data)
                await sink.drain()
        sink.close()


@contextmanager
def latency_proxy(target_port: int, round_trip_s: float) -> Iterator[LatencyProxy]:
    """Run a proxy in front of `target_port` until the block ends."""
    proxy, started, stopped = LatencyProxy(target_port, round_trip_s), threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(proxy.serve(started, stopped),), daemon=True)
    thread.start()
    started.wait()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()
        loop.close()
