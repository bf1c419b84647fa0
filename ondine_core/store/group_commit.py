"""A store for coroutines that writes the requests of one turn of an event loop in one transaction.

The event loop itself writes a few entries if no other process is writing: that takes a fraction of a millisecond, and
passing them to another thread and back takes several. Everything else is for one thread, which writes what has gathered
since its last commit. Group commit needs no timer: while a commit runs, requests gather for the next. Order is kept:
what was requested first is durable first, and a reader sees whatever its process has settled.
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
from typing import Any, NamedTuple, TypeAlias, TypeVar

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
"""More entries than these are written by the thread, which the event loop does not wait for."""

_Query: TypeAlias = Callable[[Database], Any]
_Updated: TypeAlias = Mapping[int, Any]
_Write: TypeAlias = Callable[[Callable[[], _Updated], Iterable[str]], _Updated | None]


class _Request(NamedTuple):
    work: Entry | _Query
    future: asyncio.Future[Any]


class Store:
    """An `AnswerStore` in a file or on a Postgres server, for any number of event loops and processes.

    A request whose caller is cancelled while it waits is carried out all the same. `open_store` explains the arguments.
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
        self._lock = threading.Lock()  # nothing may come after the None that closes the queue
        # Groups that the thread has not carried out yet; while there are any, it has the database.
        self._passed_on = 0
        self._thread = threading.Thread(target=self._serve, name="ondine-store", daemon=True)
        self._thread.start()

    async def get(self, keys: Sequence[Key]) -> Mapping[Key, Answer]:
        """The answers known for `keys`; unknown keys are absent."""
        return await self.read(partial(ledger_rows.read_answers, keys=keys, warn=self._warn))

    async def get_failures(self, keys: Sequence[Key]) -> Mapping[Key, Failure]:
        """How prompts failed that were asked before and have no answer."""
        return await self.read(partial(ledger_rows.read_failures, keys=keys, warn=self._warn))

    async def get_unseen(self) -> frozenset[Key]:
        """The prompts of all calls that left and whose outcome was never seen, or not yet."""
        return await self.read(ledger_rows.read_unseen)

    async def join(self, started: RunStarted) -> Mapping[bytes, Numbers]:
        """Announce a run; returns the others of the same task and where they are."""
        return await self.change(partial(claims.join, started=started))

    async def leave(self, *runs: bytes) -> None:
        """Take back that some runs were announced."""
        await self.change(partial(claims.leave, runs=runs))

    async def send(self, sent: CallStarted) -> frozenset[Key] | None:
        """Note that a call leaves; returns once the note would survive a kill. See `AnswerStore.send`."""
        taken: frozenset[Key] | None = await self._request(to_sent_row(sent))
        return taken

    async def get_claims(self, keys: Sequence[Key]) -> Mapping[Key, Claim]:
        """Which of `keys` are in flight in runs that were announced."""
        return await self.read(partial(claims.read_claims, keys=keys))

    async def release(self, calls: Sequence[bytes]) -> None:
        """Let the prompts of some calls be asked by others."""
        await self.change(partial(claims.release, calls=calls))

    async def settle(self, settled: CallFinished) -> None:
        """Store the outcome of a call, answers and ledger in one transaction; durable like `send`."""
        await self._request(to_settled_rows(settled))

    async def audit(self, run: str) -> Audit:
        """The ledger of one run."""
        return await self.read(partial(ledger_rows.read_audit, run=run))

    async def update(self, name: str, step: Callable[[Numbers | None], Numbers]) -> Numbers:
        """Replace the numbers called `name` by `step` of them, atomically among all processes; returns the new ones."""
        new: Numbers = await self._request(Update(clean(name), step))
        return new

    async def read(self, query: Callable[[Database], T]) -> T:
        """The result of `query`, which selects; see what has been asked for before."""
        found: T = await self._request(query)
        return found

    async def change(self, work: Callable[[Database], T], names: Sequence[str] = ()) -> T:
        """The result of `work`, a `Change`, within a transaction; durable like `send`."""
        changed: T = await self._request(Change(work, tuple(names)))
        return changed

    def close(self) -> None:
        """Carry out what was asked so far and close the database; in a forked process, nothing."""
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
        if os.getpid() != self._process:  # where the thread and the locks of the files are not
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
        """On an event loop: write what has gathered on it, or have it written."""
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
        """Have a group carried out by the thread; the caller has the lock."""
        self._passed_on += 1
        self._groups.put(group)

    def _serve(self) -> None:
        """On the store's thread: carry out whatever has gathered since the last time, until the store is closed."""
        open_ = True
        while open_:
            gathered = [self._groups.get()]
            gathered += [self._groups.get_nowait() for _ in range(self._groups.qsize())]
            open_ = gathered[-1] is not None
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
        """The results of writing, or `None` if writing would have to wait."""
        if self._passed_on or len(entries) > _MAX_AT_ONCE or any(isinstance(entry, Change) for entry in entries):
            return None
        return self._write(entries, self._database.write_at_once)

    def _write(self, entries: Sequence[Entry], write: _Write) -> list[Any] | None:
        if not entries:
            return None
        names = {entry.name for entry in entries if isinstance(entry, Update)}
        names |= {name for entry in entries if isinstance(entry, Change) for name in entry.names}
        try:
            updated = write(lambda: ledger_rows.write_entries(self._database, entries), names)
        except Exception as error:  # noqa: BLE001  (the waiters of the group raise it)
            return [error] * len(entries)
        return None if updated is None else [updated.get(at) for at in range(len(entries))]

    def _read(self, query: _Query) -> Any:
        try:
            return self._database.read(lambda: query(self._database))
        except Exception as error:  # noqa: BLE001  (the waiter raises it)
            return error


def _resolve(futures: Sequence[asyncio.Future[Any]], outcomes: Iterable[Any]) -> None:
    """Wake the waiters, each event loop once."""
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
