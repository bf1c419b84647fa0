"""Protects locks, event loops and connections to SQLite when the process is forked while they are in use.

User functions and the libraries that they call may fork while threads of a run are working.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import threading
from itertools import count
from operator import attrgetter
from typing import Any, Protocol
from weakref import WeakSet, WeakValueDictionary


class Closable(Protocol):
    """An object that can be closed."""

    def close(self) -> Any:
        """Close it."""


_locks: WeakValueDictionary[int, Any] = WeakValueDictionary()
_numbers = count()
_not_inherited: WeakSet[Any] = WeakSet()
_held: list[Any] = []
_forking = threading.RLock()


def make_lock() -> Any:
    """Make a lock that is never held by another thread during a fork: in the child, nothing would release it.

    The thread that holds it may acquire only older locks, since a fork acquires the newest first.
    """
    lock = _locks[next(_numbers)] = threading.RLock()
    return lock


def close_in_forks(opened: Closable) -> None:
    """Close `opened` in each process that is forked from this one; here it stays open."""
    _not_inherited.add(opened)


def make_event_loop() -> asyncio.AbstractEventLoop:
    """Make an event loop whose selector is closed in forked processes.

    Otherwise a child that closes its connections would remove them from the selector, which it shares with its parent.
    """
    if not hasattr(os, "fork"):
        return asyncio.new_event_loop()
    selector = selectors.DefaultSelector()
    close_in_forks(selector)
    return asyncio.SelectorEventLoop(selector)


def _acquire_all() -> None:
    """Acquire all locks, the newest first, so that no other thread holds one while the process is copied."""
    _forking.acquire()
    for reference in sorted(_locks.valuerefs(), key=attrgetter("key"), reverse=True):  # a copy: other threads add locks
        lock = reference()
        if lock is not None:
            lock.acquire()
            _held.append(lock)


def _release_all() -> None:
    while _held:
        _held.pop().release()
    _forking.release()


def _close_and_release_all() -> None:
    for opened in list(_not_inherited):
        opened.close()
    _release_all()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_acquire_all, after_in_parent=_release_all, after_in_child=_close_and_release_all)
