"""A store for coroutines that writes the requests of one iteration of an event loop in one transaction.

The event loop itself writes a few entries if no other process is writing: that takes a fraction of a millisecond, while
passing them to another thread and back takes several. A thread writes all others that have gathered since its last
commit. This group commit needs no timer: while a commit runs, requests gather for the next. The order is kept: earlier
requests are durable first, and a query sees everything that its process has settled before.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, Self, TypeAlias, TypeVar

from ondine_core.errors import StoreError
from ondine_core.store import claims, ledger_rows
from ondine_core.store.connect import connect
from ondine_core.store.database import Database, Durability
from ondine_core.store.records import Change, Entry, Update, clean, to_sent_row, to_settled_rows
from ondine_core.types.ledger import Audit, CallFinished, CallStarted, Claim, RunStarted
from ondine_core.types.protocols import Numbers
from ondine_core.types.values import Answer, Failure, Key

T = TypeVar("T")
warn_in_log = logging.getLogger(__name__).warning

_MAX_AT_ONCE = 8
"""Maximum number of entries that the event loop writes itself."""

_Query: TypeAlias = Callable[[Database], Any]
_Results: TypeAlias = Mapping[int, Any]
_Write: TypeAlias = Callable[[Callable[[], _Results], Iterable[str]], _Results | None]


class _Request(NamedTuple):
    work: Entry | _Query
    future: asyncio.Future[Any]


class Store:
    """An `AnswerStore` in a file or on a Postgres server, for any number of event loops and processes.

    A request is carried out even if its caller is cancelled meanwhile. See `open_store` for the arguments.
    """

    def __init__(
        self,
        path_or_url: str | Path,
        *,
        durability: Durability = "process",
        wait_timeout_s: float = 30.0,
        warn: Callable[[str], None] = warn_in_log,
    ) -> None:
        self._warn = warn
        self._database = connect(path_or_url, durability=durability, wait_timeout_s=wait_timeout_s)
        self.location = self._database.location
        self._groups: SimpleQueue[Sequence[_Request] | None] = SimpleQueue()
        self._gathered: dict[asyncio.AbstractEventLoop, list[_Request]] = {}
        self._closed = False
        self._process = os.getpid()
        self._lock = threading.Lock()  # so that nothing follows the `None` that closes the queue
        self._passed_on = 0  # groups that the thread has not carried out yet; while there are any, it uses the database
        self._thread = threading.Thread(target=self._serve, name="ondine-store", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def get(self, keys: Sequence[Key]) -> Mapping[Key, Answer]:
        """The answers known for `keys`; unknown keys are absent."""
        return await self.read(partial(ledger_rows.read_answers, keys=keys, warn=self._warn))

    async def get_failures(self, keys: Sequence[Key]) -> Mapping[Key, Failure]:
        """The stored failures of those of `keys` that have no answer."""
        return await self.read(partial(ledger_rows.read_failures, keys=keys, warn=self._warn))

    async def get_unseen(self) -> frozenset[Key]:
        """The prompts of all calls that were sent and have no outcome, or none yet."""
        return await self.read(ledger_rows.read_unseen)

    async def join(self, started: RunStarted) -> Mapping[bytes, Numbers]:
        """Announce a run; returns the other runs of its task and their processes."""
        return await self.change(partial(claims.join, started=started))

    async def leave(self, *runs: bytes) -> None:
        """Withdraw the announcements of runs."""
        await self.change(partial(claims.leave, runs=runs))

    async def send(self, sent: CallStarted) -> frozenset[Key] | None:
        """Record that a call leaves; returns when this record would survive a kill. See `AnswerStore.send`."""
        taken: frozenset[Key] | None = await self._request(to_sent_row(sent))
        return taken

    async def get_claims(self, keys: Sequence[Key]) -> Mapping[Key, Claim]:
        """The claims on those of `keys` that are in flight in announced runs."""
        return await self.read(partial(claims.read_claims, keys=keys))

    async def release(self, calls: Sequence[bytes]) -> None:
        """Let other runs ask the prompts of calls."""
        await self.change(partial(claims.release, calls=calls))

    async def settle(self, settled: CallFinished) -> None:
        """Store the outcome of a call, answers and ledger in one transaction; as durable as `send`."""
        await self._request(to_settled_rows(settled))

    async def audit(self, run: str, asset: str | None = None) -> Audit:
        """The ledger of one run, or of one asset of it."""
        return await self.read(partial(ledger_rows.read_audit, run=run, asset=asset))

    async def update(self, name: str, step: Callable[[Numbers | None], Numbers]) -> Numbers:
        """Replace the numbers called `name` by `step` of them, atomically among all processes; returns the new ones."""
        new: Numbers = await self._request(Update(clean(name), step))
        return new

    async def read(self, query: Callable[[Database], T]) -> T:
        """Return the result of `query`, which only selects; it sees everything that was requested before."""
        result: T = await self._request(query)
        return result

    async def change(self, work: Callable[[Database], T], names: Sequence[str] = ()) -> T:
        """Return the result of `work`, called in a transaction; as durable as `send`. `Change` has the arguments."""
        result: T = await self._request(Change(work, tuple(names)))
        return result

    def close(self) -> None:
        """Carry out the requests so far and close the database; in a forked process, do nothing."""
        if os.getpid() != self._process:
            return
        with self._lock:
            if not self._closed:
                self._closed = True
                for group in self._gathered.values():
                    self._pass_on(group)
                self._gathered.clear()
                self._groups.put(None)
        self._thread.join()

    def _request(self, work: Entry | _Query) -> asyncio.Future[Any]:
        if os.getpid() != self._process:  # this process has neither the thread nor the locks of the files
            raise StoreError(
                f"The answer store {self.location!r} was opened before this process was forked; open it in each "
                "process."
            )
        loop = asyncio.get_running_loop()
        request = _Request(work, loop.create_future())
        with self._lock:
            if self._closed:
                raise StoreError(f"The answer store {self.location!r} is closed.")
            if callable(work):
                self._pass_on([request])
            elif group := self._gathered.get(loop):
                group.append(request)
            else:
                self._gathered[loop] = [request]
                loop.call_soon(self._flush, loop)
        return request.future

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        """On an event loop: write the requests that have gathered on it, or pass them to the thread."""
        with self._lock:
            group = self._gathered.pop(loop, [])
            if not group:  # it was passed on when the store was closed
                return
            outcomes = self._write_at_once([work for work, _ in group if not callable(work)])
            if outcomes is None:
                self._pass_on(group)
        if outcomes is not None:
            _wake([(future, outcome) for (_, future), outcome in zip(group, outcomes, strict=True)])

    def _pass_on(self, group: Sequence[_Request]) -> None:
        """Pass a group of requests to the thread; the caller holds the lock."""
        self._passed_on += 1
        self._groups.put(group)

    def _serve(self) -> None:
        """On the store's thread: carry out the requests that have gathered since the last time, until it is closed."""
        is_open = True
        while is_open:
            gathered = [self._groups.get()]
            gathered += [self._groups.get_nowait() for _ in range(self._groups.qsize())]
            is_open = gathered[-1] is not None
            groups = [group for group in gathered if group is not None]
            self._carry_out(list(chain.from_iterable(groups)))
            with self._lock:
                self._passed_on -= len(groups)
        self._database.close()

    def _carry_out(self, requests: Sequence[_Request]) -> None:
        writes = [(work, future) for work, future in requests if not callable(work)]
        outcomes = self._write([entry for entry, _ in writes], self._database.write)
        if outcomes:
            _resolve([future for _, future in writes], outcomes)
        for work, future in requests:
            if callable(work):
                _resolve([future], [self._read(work)])

    def _write_at_once(self, entries: Sequence[Entry]) -> list[Any] | None:
        """Write `entries` and return their results, or `None` if that would have to wait."""
        if self._passed_on or len(entries) > _MAX_AT_ONCE or any(isinstance(entry, Change) for entry in entries):
            return None
        return self._write(entries, self._database.write_at_once)

    def _write(self, entries: Sequence[Entry], write: _Write) -> list[Any] | None:
        if not entries:
            return None
        names = set[str]()
        for entry in entries:
            if isinstance(entry, Update):
                names.add(entry.name)
            elif isinstance(entry, Change):
                names.update(entry.names)
        try:
            results = write(lambda: ledger_rows.write_entries(self._database, entries), names)
        except Exception as error:  # noqa: BLE001  (the waiters of the group raise it)
            return [error] * len(entries)
        return None if results is None else [results.get(at) for at in range(len(entries))]

    def _read(self, query: _Query) -> Any:
        try:
            return self._database.read(lambda: query(self._database))
        except Exception as error:  # noqa: BLE001  (the waiter raises it)
            return error


def _resolve(futures: Sequence[asyncio.Future[Any]], outcomes: Iterable[Any]) -> None:
    """Set the outcomes of futures, waking each event loop once."""
    loops: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for future, outcome in zip(futures, outcomes, strict=True):
        loops.setdefault(future.get_loop(), []).append((future, outcome))
    for loop, waiting in loops.items():
        with suppress(RuntimeError):  # the loop was closed, so nothing waits
            loop.call_soon_threadsafe(_wake, waiting)


def _wake(waiting: Sequence[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, outcome in waiting:
        if future.done():
            continue
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
