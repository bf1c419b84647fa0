"""Claims: no prompt of one task is in flight in two runs at once.

A run announces itself before it looks for answers. While it is the only run of its task, its calls claim nothing: the
transaction that records a call only checks that no other run was announced after this one. A run that joins claims for
the other runs what they have in flight. From then on each run claims the prompts of its own calls, and leaves out those
that have an answer by now. A claim is valid while its call is in `calls` and its run is announced. Claims are removed
when a run ends, not call by call: two transactions on Postgres that both wrote and removed claims could wait for each
other.

Usually no statement waits for the result of another one: claims are inserted, assumed to be complete, and read one by
one only if some are missing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import orjson

from ondine_core.store.database import Database
from ondine_core.store.dialects import insert, upsert
from ondine_core.store.origins import note
from ondine_core.store.records import ORIGIN_BYTES, clean, split_keys
from ondine_core.store.schema import IS_ANSWERED
from ondine_core.types.ledger import CallStarted, Claim, RunStarted
from ondine_core.types.protocols import Numbers
from ondine_core.types.values import Key

_JOIN = insert("runs", ("run", "question", "lease", "process", "joined_at"), "ON CONFLICT (run) DO NOTHING")
_REMOVE_OVERTAKEN = "DELETE FROM ondine.runs WHERE lease = ?"
_FIND_RUNS = "SELECT run, process FROM ondine.runs WHERE question IN ?"
_NOTE_LAST = upsert("questions", ["question"], ["question", "last_run"])
_FIND_LAST = "SELECT question FROM ondine.questions WHERE last_run IN ?"
_LEAVE = "DELETE FROM ondine.runs WHERE run IN ?"
_REMOVE_CLAIMS_OF_RUNS = f"DELETE FROM ondine.claims WHERE substr(call, 1, {ORIGIN_BYTES}) IN ?"  # noqa: S608
_FIND_IN_FLIGHT = "SELECT call, keys FROM ondine.calls"
_CLAIM_FOR_OTHERS = insert("claims", ("key", "call"), "ON CONFLICT DO NOTHING")
# A claim is taken over by another call of the same run, which asks again after a lost call, and by any call if the
# claim's call has ended or its run has left.
_CLAIM = f"""
    INSERT INTO ondine.claims AS old (key, call) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET call = excluded.call
    WHERE substr(old.call, 1, {ORIGIN_BYTES}) = substr(excluded.call, 1, {ORIGIN_BYTES})
    OR NOT EXISTS (SELECT 1 FROM ondine.calls AS c WHERE c.call = old.call)
    OR NOT EXISTS (SELECT 1 FROM ondine.runs AS r WHERE r.run = substr(old.call, 1, {ORIGIN_BYTES}))"""  # noqa: S608
_FIND_CLAIMED = "SELECT key FROM ondine.claims WHERE call IN ?"
_FIND_HOLDERS = "SELECT key, call FROM ondine.claims WHERE key IN ?"
REMOVE_CALLS = "DELETE FROM ondine.calls WHERE call IN ?"
_RELEASE = "DELETE FROM ondine.claims WHERE call IN ?"
_FIND_ANSWERED = f"SELECT key FROM ondine.answers AS a WHERE key IN ? AND {IS_ANSWERED}"  # noqa: S608
_FIND_CLAIMS = f"""
    SELECT c.key, c.call, r.process FROM ondine.claims AS c JOIN ondine.calls AS s ON s.call = c.call
    JOIN ondine.runs AS r ON r.run = substr(c.call, 1, {ORIGIN_BYTES}) WHERE c.key IN ?"""  # noqa: S608


def join(database: Database, started: RunStarted) -> dict[bytes, Numbers]:
    """Announce a run, within a transaction; returns the other runs of its task, and their processes.

    A run that had the same lease has lost it and makes no further call, so its announcement is removed.
    """
    note(database, started)
    lease = clean(started.lease)
    if lease:
        database.run(_REMOVE_OVERTAKEN, [lease])
    process = orjson.dumps(tuple(started.process))
    database.run(_JOIN, (started.run, started.task, lease, process, time.time()))
    database.run(_NOTE_LAST, (started.task, started.run))
    if database.has(_FIND_RUNS, [started.task], 1):
        return {}
    rows = database.select_in(_FIND_RUNS, [started.task])
    others = {bytes(run): tuple(orjson.loads(process)) for run, process in rows if run != started.run}
    if others:
        # A call that is recorded at the same time is either seen here, or recorded later and then finds this run.
        database.keep_out_writers("calls")
        in_flight = [(key, call) for call, keys in database.select(_FIND_IN_FLIGHT) for key in split_keys(keys)]
        held = {key: call for key, call in in_flight if bytes(call[:ORIGIN_BYTES]) in others}
        database.hold(_lock_name(started.task))
        database.run_many(_CLAIM_FOR_OTHERS, sorted(held.items()))
    return others


def leave(database: Database, runs: Sequence[bytes]) -> None:
    """Withdraw the announcements of runs, within a transaction."""
    database.run_in(_LEAVE, runs)
    database.run_in(_REMOVE_CLAIMS_OF_RUNS, runs)


def release(database: Database, calls: Sequence[bytes]) -> None:
    """Remove the claims of calls, within a transaction."""
    database.run_in(_RELEASE, calls)


def claim(database: Database, sent: Mapping[int, CallStarted]) -> dict[int, frozenset[Key]]:
    """Claim the prompts of calls that were recorded in this transaction, and remove the calls that must not leave.

    Returns:
        By the indexes in `sent`, for each call whose run is not, or was not always, the only one of its task: the
        prompts that another call has in flight, or that have an answer.
    """
    runs = {call.call[:ORIGIN_BYTES] for call in sent.values() if call.task and not call.is_shared}
    alone = {run for run in runs if database.has(_FIND_LAST, [run], 1)}
    claiming = {at: call for at, call in sent.items() if call.task and call.call[:ORIGIN_BYTES] not in alone}
    if not claiming:
        return {}
    wanted: dict[Key, bytes] = {}
    for call in claiming.values():
        for key in call.keys:
            wanted.setdefault(key, call.call)
    # Under this lock, the claims that other transactions make, and their calls, are visible.
    for task in sorted({call.task for call in claiming.values()}):
        database.hold(_lock_name(task))
    database.run_many(_CLAIM, sorted(wanted.items()))
    calls = sorted(call.call for call in claiming.values())
    maybe_answered = sorted({key for call in claiming.values() for key in call.keys if not call.ignores_answers})
    all_claimed = database.has(_FIND_CLAIMED, calls, sum(len(call.keys) for call in claiming.values()))
    if all_claimed and (not maybe_answered or database.has(_FIND_ANSWERED, maybe_answered, 0)):
        return dict.fromkeys(claiming, frozenset())
    holders = {bytes(key): bytes(holder) for key, holder in database.select_in(_FIND_HOLDERS, sorted(wanted))}
    answered = {bytes(key) for (key,) in database.select_in(_FIND_ANSWERED, maybe_answered)}
    taken = {
        at: frozenset(key for key in call.keys if holders.get(key) != call.call or key in answered)
        for at, call in claiming.items()
    }
    withdrawn = sorted(claiming[at].call for at, keys in taken.items() if keys)
    database.run_in(REMOVE_CALLS, withdrawn)
    release(database, withdrawn)
    return taken


def _lock_name(task: bytes) -> str:
    return f"claims:{task.hex()}"


def read_claims(database: Database, keys: Sequence[Key]) -> dict[Key, Claim]:
    """The valid claims on `keys`."""
    return {
        bytes(key): Claim(bytes(call), bytes(call[:ORIGIN_BYTES]), tuple(orjson.loads(process)))
        for key, call, process in database.select_in(_FIND_CLAIMS, keys)
    }
