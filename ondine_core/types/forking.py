"""Protects locks, event loops and connections to SQLite when the process is forked while they are in use.

Functions of the user's, and libraries that they call, may fork while the threads of a run are at work.
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
    """What can be closed."""

    def close(self) -> Any:
        """Close it."""


_locks: WeakValueDictionary[int, Any] = WeakValueDictionary()
_numbers = count()
_not_inherited: WeakSet[Any] = WeakSet()
_held: list[Any] = []
_forking = threading.RLock()


def make_lock() -> Any:
    """A lock for which a fork waits: in the new process its owner would not exist, and never release it.

    Its owner may wait for older ones only, since a fork takes the newest first.
    """
    lock = _locks[next(_numbers)] = threading.RLock()
    return lock


def close_in_forks(opened: Closable) -> None:
    """Have `opened` closed in a process that is forked from this one, at once; its descriptor here stays open."""
    _not_inherited.add(opened)


def make_event_loop() -> asyncio.AbstractEventLoop:
    """An event loop that ends in a forked process, which would take connections out of the selector that both share."""
    if not hasattr(os, "fork"):
        return asyncio.new_event_loop()
    selector = selectors.DefaultSelector()
    close_in_forks(selector)
    return asyncio.SelectorEventLoop(selector)


def _before() -> None:
    """Take all locks, the newest first, so that no other thread holds one while the process is copied."""
    _forking.acquire()
    for reference in sorted(_locks.valuerefs(), key=attrgetter("key"), reverse=True):  # a copy: threads add theirs
        lock = reference()
        if lock is not None:
            lock.acquire()
            _held.append(lock)


def _after() -> None:
    while _held:
        _held.pop().release()
    _forking.release()


def _after_in_child() -> None:
    for opened in list(_not_inherited):
        opened.close()
    _after()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after_in_child)
