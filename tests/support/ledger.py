"""Helpers that write to a store's ledger and read its tables, for both kinds of database."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import cast

import orjson

from ondine_core.store.budget_state import usd_of
from ondine_core.store.connect import connect
from ondine_core.types.ledger import CallFinished, CallStarted, Origin
from ondine_core.types.protocols import AnswerStore
from ondine_core.types.values import Answer, Key
from tests.support.postgres import server

KINDS = ("sqlite", "postgres")
ORIGIN = Origin("run-1", "labels", "2026-01-01")
_numbers = itertools.count()


def fresh_place(kind: str, folder: Path) -> str:
    """A path or URL at which there is no store yet."""
    return server().new_database() if kind == "postgres" else str(folder / "answers.db")


def key_of(number: int) -> Key:
    """A key that differs for each number."""
    return number.to_bytes(16, "big")


def call_to(*keys: Key, origin: Origin = ORIGIN) -> CallStarted:
    """A call that has not been made yet."""
    return CallStarted(next(_numbers).to_bytes(16, "big"), origin, "openai/m", "ask", keys, sent_at=86400.0)


async def keep(store: AnswerStore, *answers: tuple[Key, Answer]) -> None:
    """Make one call that stores `answers`."""
    sent = call_to(*(key for key, _ in answers))
    await store.send(sent)
    await store.settle(CallFinished(sent, "answered", answers=answers))


def keys_in(place: str | Path) -> set[Key]:
    """The keys with an answer, read over another connection."""
    return {key for (key,) in look(place, "SELECT key FROM ondine.answers")}


def read_budget(place: str | Path, budget: str) -> tuple[Decimal, Decimal]:
    """USD charged to a budget without a period, and the part known to be spent."""
    ((numbers,),) = look(place, f"SELECT numbers FROM ondine.numbers WHERE name = 'budget:ever::{budget}'")  # noqa: S608
    charged, settled, *_ = orjson.loads(bytes(cast("bytes", numbers)))
    return usd_of(charged), usd_of(settled)


def look(place: str | Path, sql: str) -> Sequence[tuple[object, ...]]:
    """The rows of a query, read over another connection."""
    database = connect(place, create=False)
    try:
        return database.select(sql)
    finally:
        database.close()
