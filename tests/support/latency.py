"""A TCP proxy on the loopback that delays every byte by half a round trip each way, without limiting the throughput."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["LatencyProxy", "latency_proxy"]


class LatencyProxy:
    """A proxy that is running.

    Attributes:
        port: On 127.0.0.1.
        round_trips: How often the client waited for the server: bytes came back after bytes had been sent.
    """

    def __init__(self, target_port: int, round_trip_s: float) -> None:
        self._target_port, self._one_way_s = target_port, round_trip_s / 2
        self.port, self.round_trips = 0, 0
        self._client_spoke_last = False

    async def serve(self, started: threading.Event, stopped: asyncio.Event) -> None:
        """Forward connections until `stopped`."""
        server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await stopped.wait()
        server.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            directions = [self._carry(reader, far_writer, outward=True), self._carry(far_reader, writer, outward=False)]
            await asyncio.gather(*directions)

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, outward: bool) -> None:
        loop = asyncio.get_running_loop()
        pending: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, data = await pending.get()
                await asyncio.sleep(due - loop.time())
                if not data:
                    break
                sink.write(data)
                await sink.drain()

        delivering = asyncio.create_task(deliver())
        with suppress(OSError):
            while data := await source.read(1 << 18):
                self.round_trips += self._client_spoke_last and not outward
                self._client_spoke_last = outward
                pending.put_nowait((loop.time() + self._one_way_s, data))
            pending.put_nowait((loop.time() + self._one_way_s, b""))
            await delivering
        delivering.cancel()
        sink.close()


@contextmanager
def latency_proxy(target_port: int, round_trip_s: float) -> Iterator[LatencyProxy]:
    """A proxy in front of `target_port`, until the block ends."""
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
