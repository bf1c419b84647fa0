"""Claims: no prompt of one task is in flight in two runs at once.

A run announces itself before it looks for answers. As long as it has been the only run of its task, its calls claim
nothing: the transaction that records a call checks that no other run was announced after this one, and that is all it
costs. A run that joins claims for the others what they have in flight; from then on each of them claims the prompts of
its own calls, and leaves out those that have an answer by now. A claim holds while its call is in `calls` and its run
is announced. Claims are removed when a run ends and not call by call: two transactions on Postgres that both wrote and
removed claims could wait for each other.

Usually no statement waits for the result of another one: claims are inserted, assumed to be all there, and read
one by one only if some are missing.
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
# A run that lost a call asks again under another one; no other run waits for a call that is over or a run that is gone.
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
    """Announce a run, within a transaction; returns the other runs of its question and where they are.

    A run that had the same lease has lost it, so it makes no further call and nothing is left of its claims.
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
    found = database.select_in(_FIND_RUNS, [started.task])
    others = {bytes(run): tuple(orjson.loads(process)) for run, process in found if run != started.run}
    if others:
        # What is being noted at this moment is either seen here, or comes after this and finds another run announced.
        database.keep_out_writers("calls")
        in_flight = [(key, call) for call, keys in database.select(_FIND_IN_FLIGHT) for key in split_keys(keys)]
        held = {key: call for key, call in in_flight if bytes(call[:ORIGIN_BYTES]) in others}
        database.hold(_lock_of(started.task))
        database.run_many(_CLAIM_FOR_OTHERS, sorted(held.items()))
    return others


def leave(database: Database, runs: Sequence[bytes]) -> None:
    """Take back that some runs were announced, within a transaction."""
    database.run_in(_LEAVE, runs)
    database.run_in(_REMOVE_CLAIMS_OF_RUNS, runs)


def release(database: Database, calls: Sequence[bytes]) -> None:
    """Take back the claims of some calls, within a transaction."""
    database.run_in(_RELEASE, calls)


def claim(database: Database, sent: Mapping[int, CallStarted]) -> dict[int, frozenset[Key]]:
    """Claim the prompts of calls that were noted in this transaction, and remove those calls that may not leave.

    Returns:
        For calls of runs that are not, or have not been, the only one of their task, by the numbers in `sent`: the
        prompts that another call has in flight, or that have an answer.
    """
    runs = {one.call[:ORIGIN_BYTES] for one in sent.values() if one.task and not one.is_shared}
    alone = {run for run in runs if database.has(_FIND_LAST, [run], 1)}
    claiming = {at: one for at, one in sent.items() if one.task and one.call[:ORIGIN_BYTES] not in alone}
    if not claiming:
        return {}
    wanted: dict[Key, bytes] = {}
    for one in claiming.values():
        for key in one.keys:
            wanted.setdefault(key, one.call)
    # A claim that another transaction makes at the same time must be seen, and so must its call.
    for task in sorted({one.task for one in claiming.values()}):
        database.hold(_lock_of(task))
    database.run_many(_CLAIM, sorted(wanted.items()))
    calls = sorted(one.call for one in claiming.values())
    unsure = sorted({key for one in claiming.values() if not one.is_unanswered for key in one.keys})
    all_claimed = database.has(_FIND_CLAIMED, calls, sum(len(one.keys) for one in claiming.values()))
    if all_claimed and (not unsure or database.has(_FIND_ANSWERED, unsure, 0)):
        return dict.fromkeys(claiming, frozenset())
    holders = {bytes(key): bytes(call) for key, call in database.select_in(_FIND_HOLDERS, sorted(wanted))}
    answered = {bytes(key) for (key,) in database.select_in(_FIND_ANSWERED, unsure)}
    taken = {
        at: frozenset(key for key in one.keys if holders.get(key) != one.call or key in answered)
        for at, one in claiming.items()
    }
    withdrawn = sorted(claiming[at].call for at, lost in taken.items() if lost)
    database.run_in(REMOVE_CALLS, withdrawn)
    release(database, withdrawn)
    return taken


def _lock_of(task: bytes) -> str:
    return f"claims:{task.hex()}"


def read_claims(database: Database, keys: Sequence[Key]) -> dict[Key, Claim]:
    """The claims on `keys` that hold."""
    return {
        bytes(key): Claim(bytes(call), bytes(call[:ORIGIN_BYTES]), tuple(orjson.loads(process)))
        for key, call, process in database.select_in(_FIND_CLAIMS, keys)
    }
