"""Failures of a store's file, and migrations of older formats."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from ondine_core import Options, Policy, ScriptedModel, enrich_sync
from ondine_core.errors import ConfigError, StoreError
from ondine_core.store import NETWORK_FILE_SYSTEMS, PASSING_FILE_SYSTEMS, Store, find_file_system, open_store
from ondine_core.store.connect import connect
from ondine_core.store.schema import MIGRATIONS
from ondine_core.types.values import Answer
from tests.support.ledger import call_to, keep, key_of, keys_in

TIMEOUT_S = 60.0
ANSWER = Answer({"text": "x" * 1000}, "m")


@pytest.mark.parametrize("durability", ["process", "power"])
def test_memory_store_makes_no_file(durability: str) -> None:
    """It keeps answers until it is closed."""
    store = Store(":memory:", durability=durability)
    asyncio.run(keep(store, (key_of(1), ANSWER)))
    assert len(asyncio.run(store.get([key_of(1)]))) == 1
    store.close()
    assert not Path(":memory:").exists()


def test_files_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    """File, log and index; the folder is created."""
    path = tmp_path / "new" / "folder" / "answers.db"
    with open_store(path) as store:
        asyncio.run(keep(store, (key_of(1), ANSWER)))
        files = sorted(path.parent.iterdir())
        assert [file.name for file in files] == ["answers.db", "answers.db-shm", "answers.db-wal"]
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("exists", [True, False])
def test_log_of_a_linked_store_is_watched(exists: bool, tmp_path: Path) -> None:
    """SQLite makes log and index beside the target of the link; both are private, and missed if removed."""
    path, link = tmp_path / "disk" / "answers.db", tmp_path / "link.db"
    path.parent.mkdir()
    link.symlink_to(path)
    if exists:
        with open_store(path):
            pass
    with open_store(link) as store:
        asyncio.run(keep(store, (key_of(1), ANSWER)))
        assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
        Path(f"{path}-wal").unlink()
        with pytest.raises(StoreError, match="removed or replaced while in use"):
            asyncio.run(keep(store, (key_of(2), ANSWER)))


def test_many_callers_share_a_commit(tmp_path: Path) -> None:
    """Thousands of concurrent calls take a few commits, counted in the write-ahead log."""
    path = tmp_path / "answers.db"

    async def main(store: Store) -> None:
        await asyncio.gather(*(keep(store, (key_of(n), Answer({"n": n}, "m"))) for n in range(5_000)))

    with open_store(path) as store:
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM answers").fetchall()  # an open snapshot prevents the log from restarting
        before = commits(path)
        asyncio.run(main(store))
        assert 1 <= commits(path) - before <= 100
        reader.close()
        assert len(keys_in(path)) == 5_000


@pytest.mark.parametrize(("writers", "own_thread"), [(1, True), (50, False)])
def test_small_writes_are_made_by_the_event_loop(writers: int, own_thread: bool, tmp_path: Path) -> None:
    """Handing them to a thread takes longer than writing; large ones would block the loop."""

    async def main(store: Store) -> None:
        here = float(threading.get_ident())
        seen = await asyncio.gather(
            *(store.update(f"n{n}", lambda _: (float(threading.get_ident()),)) for n in range(writers))
        )
        assert {thread == here for (thread,) in seen} == {own_thread}

    with open_store(tmp_path / "answers.db") as store:
        asyncio.run(main(store))


def test_file_lock_does_not_block_the_event_loop(tmp_path: Path) -> None:
    """While another process holds the lock the loop continues; the write follows the release."""
    path = tmp_path / "answers.db"

    async def main(store: Store) -> None:
        other = sqlite3.connect(path)
        other.execute("BEGIN IMMEDIATE")
        cache_write_price = asyncio.create_task(keep(store, (key_of(1), ANSWER)))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not cache_write_price.done()
        other.rollback()
        other.close()
        await cache_write_price

    with open_store(path, wait_timeout_s=20) as store:
        began = time.monotonic()
        asyncio.run(main(store))
        assert time.monotonic() - began < 10
    assert keys_in(path) == {key_of(1)}


def test_small_writes_still_lead_to_checkpoints(tmp_path: Path) -> None:
    """The event loop's own writes make none, but one is made from time to time."""
    path = tmp_path / "answers.db"

    async def main(store: Store) -> None:
        for number in range(2_500):
            await keep(store, (key_of(number), ANSWER))

    with open_store(path) as store:
        asyncio.run(main(store))
        assert Path(f"{path}-wal").stat().st_size < 40 * 2**20
    assert len(keys_in(path)) == 2_500


def commits(path: Path) -> int:
    """Frames of the log that end a transaction (https://sqlite.org/fileformat2.html#the_write_ahead_log)."""
    log = Path(f"{path}-wal").read_bytes()
    frame = 24 + int.from_bytes(log[8:12], "big")
    return sum(log[at + 4 : at + 8] != bytes(4) for at in range(32, len(log), frame))


# -- formats -------------------------------------------------------------------------------------------------------


def test_store_of_format_1_is_migrated(tmp_path: Path) -> None:
    """Its answers and numbers are there, and it can hold the ledger."""
    path = tmp_path / "answers.db"
    database = sqlite3.connect(path)
    database.executescript("""
        CREATE TABLE answers (
            key BLOB PRIMARY KEY, "values" BLOB NOT NULL, model TEXT NOT NULL, attempts INTEGER NOT NULL,
            batch_size INTEGER NOT NULL, cost_usd TEXT, request_id TEXT, answered_at REAL NOT NULL
        );
        CREATE TABLE numbers (name TEXT PRIMARY KEY, numbers BLOB NOT NULL);
        PRAGMA user_version = 1;
    """)
    database.execute("INSERT INTO answers VALUES (?, ?, 'm', 2, 3, '0.5', 'req', 9.5)", (key_of(1), b'{"a":1}'))
    database.execute("INSERT INTO numbers VALUES ('n', ?)", (b"[1.5,2]",))
    database.commit()
    database.close()

    async def main(store: Store) -> None:
        old = Answer({"a": 1}, "m", 2, 3, Decimal("0.5"), "req", 9.5)
        assert await store.get([key_of(1)]) == {key_of(1): old}
        assert await store.update("n", lambda numbers: numbers or ()) == (1.5, 2)
        await keep(store, (key_of(2), ANSWER))
        assert (await store.audit("run-1")).sent == 1

    for _ in range(2):
        with open_store(path) as store:
            asyncio.run(main(store))
        Path(path).touch()
        database = sqlite3.connect(path)
        database.execute("DELETE FROM ledger")
        database.commit()
        database.close()


def test_new_and_upgraded_store_have_the_same_tables(tmp_path: Path) -> None:
    """Whatever format a file was migrated from."""

    def tables(path: Path) -> set[tuple[str, str]]:
        database = sqlite3.connect(path)
        try:
            return set(database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'"))
        finally:
            database.close()

    with open_store(tmp_path / "new.db"):
        pass
    database = sqlite3.connect(tmp_path / "old.db")
    for sql in MIGRATIONS[0]:
        database.execute(sql.replace("ondine.", ""))
    database.execute("PRAGMA user_version = 1")
    database.commit()
    database.close()
    with open_store(tmp_path / "old.db"):
        pass
    assert tables(tmp_path / "old.db") == tables(tmp_path / "new.db")


# -- files that cannot be opened--------------------------------------------------------------------------------------


def no_database(path: Path) -> None:
    path.write_bytes(b"this is not a database, " * 500)


def newer(path: Path) -> None:
    with open_store(path):
        pass
    set_format(path, 99)


def set_format(path: Path, version: int) -> None:
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA user_version = {version}")
    database.close()


def of_someone_else(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE runs (id INTEGER)")
    database.execute("PRAGMA user_version = 1")
    database.commit()
    database.close()


@pytest.mark.parametrize(
    ("spoil", "hint"),
    [
        (no_database, "not a database.*name another store"),
        (newer, "format 99.*upgrade"),
        (Path.mkdir, "directory.*It is a folder: name a file in it"),
        (of_someone_else, "something else.*name another store"),
    ],
)
def test_store_that_cannot_be_opened_is_an_error_with_the_reason(
    spoil: Callable[[Path], None], hint: str, tmp_path: Path
) -> None:
    """A damaged, newer or foreign file, or a folder: the error has path, cause and fix."""
    path = tmp_path / "answers.db"
    spoil(path)
    with pytest.raises(StoreError, match=hint) as caught:
        Store(path)
    assert str(path) in str(caught.value)


def test_store_that_a_newer_version_migrates_in_use_ends_the_run(tmp_path: Path) -> None:
    """It says to upgrade, no further call is made, and nothing is written into tables that are not known here."""
    path = tmp_path / "answers.db"

    def answer(text: str) -> str:
        if text == "Say 20":
            set_format(path, 99)
        return "ok"

    model = ScriptedModel(answer)
    settings = Options(store=path, policy=Policy(max_concurrency=4))
    with pytest.raises(StoreError, match=r"has format 99.*upgrade ondine-dagster") as caught:
        enrich_sync({"n": list(range(500))}, prompt="Say {n}", output="said", model=model, options=settings)
    assert str(path) in str(caught.value)
    assert len(model.calls) < 40
    set_format(path, len(MIGRATIONS))
    assert len(keys_in(path)) >= 15


@pytest.mark.parametrize("spoil", [no_database, of_someone_else])
@pytest.mark.parametrize("create", [True, False])
def test_file_of_another_program_stays_as_it_is(spoil: Callable[[Path], None], create: bool, tmp_path: Path) -> None:
    """Neither its contents (of a database, the journal mode) nor its permissions change, and no file is added."""
    path = tmp_path / "runs.db"
    spoil(path)
    path.chmod(0o644)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="name another store"):
        connect(path, create=create)
    assert path.read_bytes() == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_home_folder_of_an_unknown_user_is_an_error() -> None:
    """No folder named `~...` is made."""
    with pytest.raises(StoreError, match=r"home folder in '~no-such-user/answers\.db' is not known"):
        Store("~no-such-user/answers.db")


@pytest.mark.parametrize("url", ["mysql://me:secret@host/db", "redis://:secret@host/0"])
def test_url_of_another_kind_is_refused(url: str) -> None:
    """It is not taken for a file's path, and its password is not repeated."""
    with pytest.raises(ConfigError, match="Give the path of a file, or postgresql://") as caught:
        Store(url)
    assert "secret" not in str(caught.value)


def test_unwritable_location_is_refused() -> None:
    """Where not even root may create a file, the message says which permission is missing."""
    if not Path("/sys/kernel").is_dir():
        pytest.skip("no sysfs here")
    with pytest.raises(StoreError, match=r"'/sys/kernel/answers\.db' failed.*Allow this user to write"):
        Store("/sys/kernel/answers.db")


@pytest.mark.skipif(sys.platform == "win32", reason="names have other limits")
@pytest.mark.parametrize("length", [248, 255, 256])
def test_name_that_is_too_long_is_refused_as_such(length: int, tmp_path: Path) -> None:
    """Also if the name itself fits, and those of the files beside it do not; the permissions are not blamed."""
    Store(tmp_path / ("x" * 247)).close()
    with pytest.raises(StoreError, match="The name is too long for its folder"):
        Store(tmp_path / ("x" * length))


WITHOUT_DESCRIPTORS = """
import os, resource, sys
from ondine_core.store import Store
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
for _ in range(3):
    try:
        Store(sys.argv[1])
    except Exception as error:
        print(type(error).__name__, error)
    os.close(held.pop())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit to set")
def test_error_names_a_lack_of_descriptors(tmp_path: Path) -> None:
    """SQLite says only that it cannot open a file; the permissions are not blamed."""
    command = [sys.executable, "-c", WITHOUT_DESCRIPTORS, str(tmp_path / "answers.db")]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
    assert result.stdout.count("This process may open no more files: raise `ulimit -n`") == 3


# In a process of its own, as a user without write permission, since root may write everywhere.
UNPRIVILEGED = """
import asyncio, os, sys
from ondine_core.store import Store
if os.geteuid() == 0:
    os.setuid(65534)
try:
    Store(sys.argv[1])
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
        Path(name).chmod(0o700)


@pytest.mark.parametrize("exists", [True, False])
def test_read_only_file_or_folder_is_refused(exists: bool, open_folder: Path) -> None:
    """The error says to allow writing; the contents stay unchanged."""
    path = open_folder / "answers.db"
    if exists:
        with open_store(path) as store:
            asyncio.run(keep(store, (key_of(1), ANSWER)))
        path.chmod(0o444)
    open_folder.chmod(0o555)
    command = [sys.executable, "-c", UNPRIVILEGED, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
    assert result.stdout.startswith(f"StoreError The answer store {str(path)!r} failed: ")
    assert "ermission denied" in result.stdout
    assert "Allow this user to write" in result.stdout
    open_folder.chmod(0o700)
    if exists:
        path.chmod(0o600)
        assert keys_in(path) == {key_of(1)}
    else:
        assert not path.exists()


# -- failures of an open store -------------------------------------------------------------------------------------


def test_damaged_file_is_an_error(tmp_path: Path) -> None:
    """Overwritten pages are noticed when read, with a way to save the rest; nothing hangs."""
    path = tmp_path / "answers.db"
    with open_store(path) as store:
        asyncio.run(keep(store, *((key_of(n), ANSWER) for n in range(200))))
    whole = path.read_bytes()
    path.write_bytes(whole[:20_000] + b"\xaa" * (len(whole) - 20_000))
    with pytest.raises(StoreError, match=r"malformed.*\.recover"), open_store(path) as store:
        asyncio.run(store.get([key_of(n) for n in range(200)]))


def test_damaged_answer_is_warned_of_and_counts_as_missing(tmp_path: Path) -> None:
    """An answer with truncated JSON; others can be read."""
    path = tmp_path / "answers.db"
    warnings: list[str] = []
    with open_store(path, warn=warnings.append) as store:
        asyncio.run(keep(store, *((key_of(n), ANSWER) for n in range(2))))
        database = sqlite3.connect(path)
        database.execute("""UPDATE answers SET "values" = '{"a' WHERE key = ?""", [key_of(1)])
        database.execute("""UPDATE answers SET "values" = CAST("values" AS BLOB)""")
        database.commit()
        database.close()
        assert asyncio.run(store.get([key_of(0), key_of(1)])) == {key_of(0): ANSWER}
    assert len(warnings) == 1
    assert key_of(1).hex() in warnings[0]


def test_lock_of_another_process_times_out(tmp_path: Path) -> None:
    """After `wait_timeout_s` it is a StoreError; the store works once the lock is released."""
    path = tmp_path / "answers.db"

    async def main(store: Store) -> None:
        with pytest.raises(StoreError, match=r"locked.*longer than 0\.05 s: stop that one or wait"):
            await keep(store, (key_of(1), ANSWER))
        assert await store.get([key_of(1)]) == {}
        other.rollback()
        await keep(store, (key_of(2), ANSWER))

    with open_store(path, wait_timeout_s=0.05) as store:
        other = sqlite3.connect(path)
        other.execute("BEGIN IMMEDIATE")
        asyncio.run(main(store))
        other.close()
    assert keys_in(path) == {key_of(2)}


def test_failed_write_reaches_every_caller(tmp_path: Path) -> None:
    """When a commit fails each waiting caller raises, and the store can be written afterwards."""
    path = tmp_path / "answers.db"

    async def main(store: Store) -> None:
        database = sqlite3.connect(path, isolation_level=None)
        database.execute("CREATE TRIGGER full BEFORE INSERT ON answers BEGIN SELECT RAISE(FAIL, 'disk is full'); END")
        results = await asyncio.gather(
            *(keep(store, (key_of(n), ANSWER)) for n in range(5)),
            store.update("n", lambda _: (1.0,)),
            return_exceptions=True,
        )
        assert all(isinstance(result, StoreError) and "disk is full" in str(result) for result in results[:5])
        database.execute("DROP TRIGGER full")
        database.close()
        await keep(store, (key_of(9), ANSWER))

    with open_store(path) as store:
        asyncio.run(main(store))
        assert asyncio.run(store.audit("run-1")).unknown.calls == 5
    assert keys_in(path) == {key_of(9)}


# The kernel refuses to let any file grow beyond the limit, as a full disk would.
FULL_DISK = """
import asyncio, resource, sys
from ondine_core.errors import StoreError
from ondine_core.store import open_store
from ondine_core.store.connect import connect
from ondine_core.store.schema import MIGRATIONS
from ondine_core.types.values import Answer
from tests.support.ledger import keep, key_of

async def main():
    with open_store(sys.argv[1]) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
        for n in range(0, 100_000, 10):
            try:
                await keep(store, *((key_of(m), Answer({"text": "x" * 1000}, "m")) for m in range(n, n + 10)))
            except StoreError as error:
                print(n, error)
                break
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await keep(store, (key_of(10**9), Answer({}, "m")))

asyncio.run(main())
"""


def test_full_disk_is_an_error_and_nothing_is_half_written(tmp_path: Path) -> None:
    """Earlier entries are there, the failed call left nothing, and with free space writes succeed."""
    path = tmp_path / "answers.db"
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True, timeout=TIMEOUT_S
    )
    count, _, output = result.stdout.partition(" ")
    assert "failed: disk I/O error. Free some space" in output
    assert keys_in(path) == {*(key_of(n) for n in range(int(count))), key_of(10**9)}
    with open_store(path) as store:
        audit = asyncio.run(store.audit("run-1"))
        assert audit.answered.calls == int(count) // 10 + 1
        assert audit.unknown.calls <= 1
        asyncio.run(store.send(call_to(key_of(5))))


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
def test_network_file_system_is_found_from_the_mounts(path: str, kind: str | None, tmp_path: Path) -> None:
    """The innermost mount that contains the path decides."""
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda1 / ext4 rw 0 0\nserver:/x /data/shared nfs4 rw 0 0\n"
        "tmpfs /data/shared/scratch tmpfs rw 0 0\nme@far: /srv/far fuse.sshfs rw 0 0\n"
        "server:/y /my\\040share nfs rw 0 0\nbroken\n"
    )
    found = find_file_system(path, mounts)
    assert (found if found.startswith(NETWORK_FILE_SYSTEMS) else None) == kind


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/opt/dagster/answers.db", "overlay"),
        ("/opt/dagster/storage/answers.db", None),
        ("/memory/answers.db", "tmpfs"),
        ("/far/answers.db", None),
    ],
)
def test_ephemeral_container_file_system_is_found(path: str, kind: str | None, tmp_path: Path) -> None:
    """A container's own layer and memory are lost with it; a volume is not."""
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "overlay / overlay rw 0 0\n/dev/sdb /opt/dagster/storage ext4 rw 0 0\ntmpfs /memory tmpfs rw 0 0\n"
        "server:/x /far nfs4 rw 0 0\n"
    )
    found = find_file_system(path, mounts)
    assert (found if found in PASSING_FILE_SYSTEMS else None) == kind


def test_file_system_is_unknown_without_mounts(tmp_path: Path) -> None:
    """If the mounts cannot be read, there is no result."""
    found = find_file_system("/data/answers.db", tmp_path / "absent")
    assert found not in PASSING_FILE_SYSTEMS
    assert not found.startswith(NETWORK_FILE_SYSTEMS)
