from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import threading
from decimal import Decimal
from pathlib import Path

import pytest

from ondine_core import Answer, StoreError, open_store
from ondine_core.store import SqliteStore, network_file_system

TIMEOUT_S = 30.0


def key_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


def keys_in(path: Path) -> set[bytes]:
    """What another connection sees in the file."""
    database = sqlite3.connect(path)
    try:
        return {key for (key,) in database.execute("SELECT key FROM answers")}
    finally:
        database.close()


# -- answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        Answer({"text": "ünï 🙂\n\0", "list": [1, None, {"a": 2.5}], "none": None}, "openai/m"),
        Answer({"n": 1}, "openai/m", 3, 20, Decimal("0.0000000000000000000000001"), "req-1", 1_700_000_000.123456),
        Answer({}, "", cost_usd=Decimal(0)),
    ],
)
def test_answer_comes_back_as_it_was_put(answer: Answer, tmp_path: Path) -> None:
    """Values, exact cost and provenance of an answer survive the file, and a later answer replaces an earlier one."""

    async def main(store: SqliteStore) -> None:
        await store.put([(key_of(1), Answer({"other": 1}, "other"))])
        await store.put([(key_of(1), answer), (key_of(2), answer)])

    with open_store(tmp_path / "answers.db") as store:
        asyncio.run(main(store))
    with open_store(tmp_path / "answers.db") as store:
        assert asyncio.run(store.get([key_of(n) for n in (2, 1, 3)])) == {key_of(1): answer, key_of(2): answer}


def test_look_up_of_any_size_is_answered(tmp_path: Path) -> None:
    """No key, or many more than a query takes, can be looked up at once."""
    keys = [key_of(number) for number in range(5000)]

    async def main(store: SqliteStore) -> None:
        assert await store.get([]) == {}
        await store.put([])
        await store.put((key, Answer({"n": n}, "m")) for n, key in enumerate(keys[::2]))
        found = await store.get(keys)
        assert [found[key].values["n"] if key in found else None for key in keys[:4]] == [0, None, 1, None]
        assert len(found) == 2500

    with open_store(tmp_path / "answers.db") as store:
        asyncio.run(main(store))


def test_put_returns_when_the_answer_is_durable(tmp_path: Path) -> None:
    """Once put returns, another process would see the answer."""
    path = tmp_path / "answers.db"

    async def main(store: SqliteStore) -> None:
        for number in range(20):
            await store.put([(key_of(number), Answer({"n": number}, "m"))])
            assert key_of(number) in keys_in(path)

    with open_store(path) as store:
        asyncio.run(main(store))


def test_many_callers_share_a_commit(tmp_path: Path) -> None:
    """Ten thousand concurrent puts are kept in a handful of commits, counted in the write-ahead log."""
    path = tmp_path / "answers.db"

    async def main(store: SqliteStore) -> None:
        await asyncio.gather(*(store.put([(key_of(n), Answer({"n": n}, "m"))]) for n in range(10_000)))

    with open_store(path) as store:
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM answers").fetchall()  # an open snapshot keeps the log from starting over
        before = commits(path)
        asyncio.run(main(store))
        assert 1 <= commits(path) - before <= 100
        reader.close()
        assert len(keys_in(path)) == 10_000


def commits(path: Path) -> int:
    """Frames of the log that end a transaction (https://sqlite.org/fileformat2.html#the_write_ahead_log)."""
    log = Path(f"{path}-wal").read_bytes()
    frame = 24 + int.from_bytes(log[8:12], "big")
    return sum(log[at + 4 : at + 8] != bytes(4) for at in range(32, len(log), frame))


def test_cancelled_put_is_kept(tmp_path: Path) -> None:
    """An answer whose caller is cancelled while it waits is kept, it was paid for; other callers notice nothing."""

    async def main() -> None:
        with open_store(tmp_path / "answers.db") as store:
            puts = [asyncio.create_task(store.put([(key_of(n), Answer({}, "m"))])) for n in range(50)]
            await asyncio.sleep(0)
            for put in puts[::2]:
                put.cancel()
            results = await asyncio.gather(*puts, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
            assert results[1::2] == [None] * 25
            assert len(await store.get([key_of(n) for n in range(50)])) == 50

    asyncio.run(main())


def test_close_writes_what_is_gathered(tmp_path: Path) -> None:
    """Answers that were handed over and not yet written are written when the store is closed."""

    async def main() -> None:
        store = SqliteStore(tmp_path / "answers.db")
        put = asyncio.create_task(store.put([(key_of(1), Answer({}, "m"))]))
        await asyncio.sleep(0)
        store.close()
        put.cancel()
        await asyncio.gather(put, return_exceptions=True)

    asyncio.run(main())
    assert keys_in(tmp_path / "answers.db") == {key_of(1)}


@pytest.mark.parametrize("durability", ["process", "power"])
def test_memory_keeps_nothing(durability: str) -> None:
    """A store in memory answers within its life and makes no file."""
    store = SqliteStore(":memory:", durability=durability)
    asyncio.run(store.put([(key_of(1), Answer({}, "m"))]))
    assert len(asyncio.run(store.get([key_of(1)]))) == 1
    store.close()
    assert not Path(":memory:").exists()


# -- one event loop ends, the store stays --------------------------------------------------------------------------


def stop_while_busy(store: SqliteStore) -> None:
    """An event loop that is shut down while a put waits behind other work of the store's thread."""
    busy, go_on = threading.Event(), threading.Event()

    def step(_: object) -> tuple[float, ...]:
        busy.set()
        go_on.wait(TIMEOUT_S)
        return (1.0,)

    async def main() -> None:
        update = asyncio.create_task(store.update("rate", step))
        await asyncio.to_thread(busy.wait, TIMEOUT_S)
        put = asyncio.create_task(store.put([(key_of(1), Answer({}, "m"))]))
        for _ in range(5):
            await asyncio.sleep(0)
        update.cancel()
        put.cancel()

    asyncio.run(main())
    go_on.set()


def test_answer_survives_the_end_of_its_event_loop(tmp_path: Path) -> None:
    """An answer that waits to be written when its event loop is shut down is written in the end."""
    with open_store(tmp_path / "answers.db") as store:
        stop_while_busy(store)
    assert keys_in(tmp_path / "answers.db") == {key_of(1)}


def test_store_works_on_after_an_event_loop_was_stopped(tmp_path: Path) -> None:
    """A store that is shared by two runs serves the second although the first was stopped in the middle of a put."""
    with open_store(tmp_path / "answers.db") as store:
        stop_while_busy(store)
        asyncio.run(asyncio.wait_for(store.put([(key_of(2), Answer({}, "m"))]), 2))
    assert key_of(2) in keys_in(tmp_path / "answers.db")


# -- files ---------------------------------------------------------------------------------------------------------


def test_nobody_else_may_read_the_file(tmp_path: Path) -> None:
    """The folder is made; file, log and index are readable by their owner only."""
    path = tmp_path / "new" / "folder" / "answers.db"
    with open_store(path) as store:
        asyncio.run(store.put([(key_of(1), Answer({}, "m"))]))
        files = sorted(path.parent.iterdir())
        assert [file.name for file in files] == ["answers.db", "answers.db-shm", "answers.db-wal"]
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def corrupt(path: Path) -> None:
    path.write_bytes(b"this is not a database, " * 500)


def newer(path: Path) -> None:
    with open_store(path):
        pass
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()


def of_someone_else(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE runs (id INTEGER)")
    database.commit()
    database.close()


def read_only_folder(path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    path.parent.chmod(0o500)


@pytest.mark.parametrize(
    ("spoil", "hint"),
    [
        (corrupt, "not a database"),
        (newer, "format 99"),
        (Path.mkdir, "directory"),
        (read_only_folder, "denied"),
        (of_someone_else, "store"),
    ],
)
def test_store_that_cannot_be_opened_says_which_and_why(spoil: object, hint: str, tmp_path: Path) -> None:
    """A file that is damaged, too new, a folder or not writable is a StoreError with its path and the cause."""
    path = tmp_path / "answers.db"
    spoil(path)
    with pytest.raises(StoreError, match=hint) as caught:
        SqliteStore(path)
    assert str(path) in str(caught.value)


def test_failed_write_reaches_every_caller(tmp_path: Path) -> None:
    """When a commit fails, each put that waits for it raises, and the store can be written again afterwards."""
    path = tmp_path / "answers.db"
    put_n = lambda store, n: store.put([(key_of(n), Answer({}, "m"))])  # noqa: E731

    async def main(store: SqliteStore) -> None:
        database = sqlite3.connect(path, isolation_level=None)
        database.execute("CREATE TRIGGER full BEFORE INSERT ON answers BEGIN SELECT RAISE(FAIL, 'disk is full'); END")
        results = await asyncio.gather(*(put_n(store, n) for n in range(5)), return_exceptions=True)
        assert all(isinstance(result, StoreError) and "disk is full" in str(result) for result in results)
        database.execute("DROP TRIGGER full")
        database.close()
        await put_n(store, 9)

    with open_store(path) as store:
        asyncio.run(main(store))
    assert keys_in(path) == {key_of(9)}


# -- network file systems ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/data/answers.db", None),
        ("/data/shared/answers.db", "nfs4"),
        ("/data/shared", "nfs4"),
        ("/data/shared2/answers.db", None),
        ("/data/shared/scratch/answers.db", None),
        ("/srv/far/answers.db", "fuse.sshfs"),
        ("/my share/a.db", "nfs"),
    ],
)
def test_network_file_system_is_told_from_the_mounts(path: str, kind: str | None, tmp_path: Path) -> None:
    """The mount that holds the path, the innermost one, decides whether it lies on a network file system."""
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda1 / ext4 rw 0 0\nserver:/x /data/shared nfs4 rw 0 0\n"
        "tmpfs /data/shared/scratch tmpfs rw 0 0\nme@far: /srv/far fuse.sshfs rw 0 0\n"
        "server:/y /my\\040share nfs rw 0 0\nbroken\n"
    )
    assert network_file_system(path, mounts) == kind


def test_network_file_system_is_unknown_without_mounts(tmp_path: Path) -> None:
    """Where the list of mounts cannot be read, nothing is claimed."""
    assert network_file_system("/data/answers.db", tmp_path / "absent") is None
