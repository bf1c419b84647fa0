"""The file of a store is removed, replaced, damaged, read by others, or copied while in use."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from ondine_core import ModelSpec, Options, Policy, Report, enrich_sync
from ondine_core.errors import StoreError
from ondine_core.store import Store, open_store
from ondine_core.store.__main__ import main
from ondine_core.store.connect import connect
from ondine_core.store.queries import prune
from ondine_core.store.sqlite_files import store_files
from ondine_core.types.clock import Clock
from ondine_core.types.ledger import CallFinished
from ondine_core.types.values import Answer
from tests.support.asking import PROMPT, texts
from tests.support.ledger import call_to, fresh_place, keep, key_of, keys_in
from tests.support.postgres import PASSWORD
from tests.support.provider import Provider

ANSWER = Answer({"text": "x" * 500}, "m")


def ask(
    provider: Provider, path: Path, rows: int, warnings: list[str] | None = None, clock: Clock | None = None
) -> Report:
    model = ModelSpec("openai_compatible/m", base_url=provider.base_url, timeout_s=10)
    messages = [] if warnings is None else warnings
    policy = Policy(max_concurrency=4)
    options = Options(store=path, policy=policy, on_observer_error=messages.append, clock=clock or Clock())
    return enrich_sync(texts(rows), prompt=PROMPT, output={"answer": "string"}, model=model, options=options)


def alter(path: Path, *statements: str) -> None:
    database = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        database.execute(statement)
    database.close()


# -- removed or replaced -------------------------------------------------------------------------------------------


def remove_all(path: Path) -> None:
    for file in store_files(path):
        file.unlink()


def remove_the_database(path: Path) -> None:
    path.unlink()


def remove_the_log(path: Path) -> None:
    Path(f"{path}-wal").unlink()


def remove_the_index(path: Path) -> None:
    Path(f"{path}-shm").unlink()


def rename_it(path: Path) -> None:
    path.rename(path.with_name("old.db"))


def put_another_in_its_place(path: Path) -> None:
    other = path.with_name("other.db")
    with open_store(other):
        pass
    other.replace(path)


def copy_an_old_one_over_it(path: Path) -> None:
    """Like `mv backup.db answers.db`; `cp` would write into the same file."""
    shutil.copy(path, path.with_name("backup.db"))
    path.with_name("backup.db").replace(path)


def remove_the_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def empty_it(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "spoil",
    [
        empty_it,
        remove_all,
        remove_the_database,
        remove_the_log,
        remove_the_index,
        rename_it,
        put_another_in_its_place,
        copy_an_old_one_over_it,
        remove_the_folder,
    ],
)
@pytest.mark.parametrize("answers", [1, 50])
def test_removed_store_is_noticed_at_the_next_commit_and_saved(
    spoil: Callable[[Path], None], answers: int, tmp_path: Path
) -> None:
    """No lost answer is reported as stored, and all answers are in the file that the error names.

    Whether the event loop writes (few answers) or the thread (many); by the next commit and all later ones.
    """
    path = tmp_path / "ondine" / "answers.db"

    async def main(store: Store) -> str:
        await keep(store, *((key_of(n), ANSWER) for n in range(answers)))
        spoil(path)
        with pytest.raises(StoreError, match="removed or replaced while in use") as caught:
            await keep(store, *((key_of(n), ANSWER) for n in range(100, 100 + answers)))
        # `send` failed; answers of other calls are committed nevertheless.
        results = await asyncio.gather(*(store.settle(one) for one in settled(200, answers)), return_exceptions=True)
        assert all(isinstance(result, StoreError) for result in results)
        return str(caught.value)

    with open_store(path) as store:
        message = asyncio.run(main(store))
    (saved,) = path.parent.glob("answers.db.*.saved.db")
    assert repr(str(saved)) in message
    assert saved.stat().st_mode & 0o777 == 0o600
    assert keys_in(saved) == {key_of(n) for n in (*range(answers), *range(200, 200 + answers))}
    # As the message says.
    for file in store_files(path):
        file.unlink(missing_ok=True)
    saved.rename(path)
    with open_store(path) as store:
        asyncio.run(keep(store, (key_of(999), ANSWER)))
    assert len(keys_in(path)) == 2 * answers + 1


def settled(first: int, count: int) -> list[CallFinished]:
    return [
        CallFinished(call_to(key_of(n)), "answered", answers=((key_of(n), ANSWER),))
        for n in range(first, first + count)
    ]


def test_emptied_store_is_reported_as_such(tmp_path: Path) -> None:
    """If a commit misses pages, the error is about the replaced file, not about damage."""
    path = tmp_path / "answers.db"
    with open_store(path) as store:
        asyncio.run(keep(store, *((key_of(n), ANSWER) for n in range(5_000))))

    async def main(store: Store) -> None:
        path.write_bytes(b"")
        with pytest.raises(StoreError, match="removed or replaced while in use"):
            await keep(store, *((bytes([n]) * 16, ANSWER) for n in range(1, 200)))

    with open_store(path) as store:
        asyncio.run(main(store))


def test_run_with_a_removed_store_pays_only_calls_in_flight(tmp_path: Path) -> None:
    """The run ends with an error; the saved file has all that was billed except the calls in flight."""
    path, concurrency = tmp_path / "answers.db", 4
    removed: list[int] = []

    def answer(prompt: str) -> dict[str, str]:
        if len(provider.ledger.requests) == 40 and not removed:
            removed.append(len(provider.ledger.requests))
            remove_all(path)
        return {"answer": prompt.removeprefix("Repeat: ")}

    with Provider(answer, latency_s=0.01) as provider:
        with pytest.raises(StoreError, match="removed or replaced while in use"):
            ask(provider, path, 200)
        billed = sum(provider.ledger.billed_by_prompt.values())
        (saved,) = path.parent.glob("answers.db.*.saved.db")
        kept = len(keys_in(saved))
        assert billed - concurrency <= kept <= billed <= 40 + 2 * concurrency
        saved.rename(path)
        assert ask(provider, path, 200).column("answer") == texts(200)["text"]
        assert len(provider.ledger.requests) == billed + 200 - kept


def test_database_missing_beside_its_log_is_an_error(tmp_path: Path) -> None:
    """The log may have the newest answers, which a new database would discard."""
    path = tmp_path / "answers.db"
    with open_store(path) as store:
        asyncio.run(keep(store, (key_of(1), ANSWER)))
        path.rename(tmp_path / "moved.db")
        with pytest.raises(StoreError, match=r"is missing, but its log is there.*-wal.*Put it back"):
            Store(path)
        (tmp_path / "moved.db").rename(path)
    with open_store(path):
        assert keys_in(path) == {key_of(1)}


# -- damaged answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        '"values" = CAST(substr("values", 1, 8) AS BLOB)',
        "\"values\" = x''",
        "\"values\" = x'fffe00'",
        "\"values\" = 'a text'",
        "\"values\" = CAST('[1, 2]' AS BLOB)",
        "\"values\" = CAST('null' AS BLOB)",
        '"values" = CAST(\'{"answr": "x"}\' AS BLOB)',
        "\"values\" = CAST('{}' AS BLOB)",
        "attempts = 'many'",
        "answered_at = 'now'",
        "answered_at = x'00'",
        "model = x'ff'",
        "cost_usd = 'dear'",
        "cost_usd = 'NaN'",
        "request_id = x'00'",
    ],
)
def test_damaged_answer_affects_its_row_only(damage: str, tmp_path: Path) -> None:
    """The run asks that row again, and the next run asks nothing."""
    path, warnings = tmp_path / "answers.db", list[str]()
    with Provider() as provider:
        ask(provider, path, 20)
        with closing(sqlite3.connect(path)) as database:
            (key,) = database.execute("SELECT key FROM answers ORDER BY key LIMIT 1").fetchone()
        alter(path, f"UPDATE answers SET {damage} WHERE key = x'{key.hex()}'")  # noqa: S608
        assert ask(provider, path, 20, warnings).column("answer") == texts(20)["text"]
        assert len(provider.ledger.requests) == 21
        assert ask(provider, path, 20).column("answer") == texts(20)["text"]
        assert len(provider.ledger.requests) == 21
    assert "answr" in damage or "{}" in damage or any(key.hex() in warning for warning in warnings)


@pytest.mark.parametrize(
    "damage", ["\"values\" = x'7b22'", "\"values\" = 'text'", "\"values\" = x'ff'", "answered_at = 'now'", "key = 'k'"]
)
@pytest.mark.parametrize("format_", ["jsonl", "csv"])
def test_damaged_answer_does_not_stop_the_command_line(
    damage: str, format_: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`export` skips and names it; the other commands work."""
    path = tmp_path / "answers.db"
    with open_store(path) as store:
        asyncio.run(keep(store, *((key_of(n), ANSWER) for n in range(3))))
    alter(path, f"UPDATE answers SET {damage} WHERE key = x'{key_of(1).hex()}'")  # noqa: S608
    assert main([str(path), "export", "--format", format_, "-o", str(tmp_path / "out")]) == 0
    assert "warning: a damaged answer is left out" in capsys.readouterr().err
    written = (tmp_path / "out").read_text()
    assert [key_of(n).hex() in written for n in range(3)] == [True, False, True]
    if format_ == "jsonl":
        assert len([json.loads(line) for line in written.splitlines()]) == 2
    for command in (["size"], ["spend"], ["prune", "--older-than", "1d", "--dry-run"]):
        assert main([str(path), *command]) == 0


def test_damaged_failure_affects_its_row_only(tmp_path: Path) -> None:
    """It counts as unknown; others are found."""
    path, warnings = tmp_path / "answers.db", list[str]()
    insert = "INSERT INTO failures (key, reason, detail, failed_at, model, attempts, cost_usd) VALUES"
    with open_store(path, warn=warnings.append) as store:
        alter(
            path,
            f"{insert} (x'01', 'refused', 'no', 1.0, 'm', 1, 'dear')",
            f"{insert} (x'02', x'00', 'no', 1.0, 'm', 1, NULL)",
            f"{insert} (x'03', 'refused', 'no', 1.0, 'm', 1, NULL)",
        )
        assert set(asyncio.run(store.get_failures([b"\x01", b"\x02", b"\x03"]))) == {b"\x03"}
    assert "2 rows of the table 'failures'" in warnings[0]


@pytest.mark.parametrize("held", ["x'ff'", "'{'", "CAST('[1, null]' AS BLOB)", "CAST('[\"a\"]' AS BLOB)", "7"])
def test_damaged_numbers_fail_their_own_caller_only(held: str, tmp_path: Path) -> None:
    """An unreadable budget is an error with its name and a fix, never a budget that starts at zero."""
    path = tmp_path / "answers.db"

    async def main(store: Store) -> None:
        alter(path, f"INSERT INTO numbers VALUES ('budget:team', {held})")  # noqa: S608
        failed, kept, other = await asyncio.gather(
            store.update("budget:team", lambda numbers: numbers or (0.0,)),
            keep(store, (key_of(1), ANSWER)),
            store.update("budget:other", lambda numbers: numbers or (0.0,)),
            return_exceptions=True,
        )
        assert isinstance(failed, StoreError)
        assert "'budget:team'" in str(failed)
        assert "Restore a backup, or remove that row" in str(failed)
        assert (kept, other) == (None, (0.0,))

    with open_store(path) as store:
        asyncio.run(main(store))


# -- permissions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_file_that_others_could_read_is_made_private(umask: int, tmp_path: Path) -> None:
    """An existing store, its log and index lose all rights of group and others, whatever the umask."""
    path = tmp_path / "answers.db"
    before = os.umask(umask)
    try:
        with open_store(path) as store:
            asyncio.run(keep(store, (key_of(1), ANSWER)))
            for file in store_files(path):
                file.chmod(0o666)
            with open_store(path) as second:
                asyncio.run(keep(second, (key_of(2), ANSWER)))
            assert {file.stat().st_mode & 0o777 for file in store_files(path)} == {0o600}
        path.chmod(0o640)
        with open_store(path) as store:
            asyncio.run(keep(store, (key_of(3), ANSWER)))
            assert {file.stat().st_mode & 0o777 for file in store_files(path)} == {0o600}
    finally:
        os.umask(before)


@pytest.mark.parametrize("umask", [0o000, 0o077])
@pytest.mark.parametrize("format_", ["jsonl", "csv"])
def test_export_is_private_and_follows_no_link(umask: int, format_: str, tmp_path: Path) -> None:
    """An existing readable file is replaced by one of mode 0600; a planted link is not followed."""
    path, target, victim = tmp_path / "answers.db", tmp_path / "all.txt", tmp_path / "victim"
    with open_store(path) as store:
        asyncio.run(keep(store, (key_of(1), ANSWER)))
    victim.write_text("untouched")
    target.write_text("old")
    target.chmod(0o666)
    for name in ("all.txt.part", "all.part", ".all.txt.part"):
        (tmp_path / name).symlink_to(victim)
    before = os.umask(umask)
    try:
        assert main([str(path), "export", "--format", format_, "-o", str(target)]) == 0
    finally:
        os.umask(before)
    assert key_of(1).hex() in target.read_text()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert victim.read_text() == "untouched"
    target.unlink()
    target.symlink_to(victim)
    assert main([str(path), "export", "-o", str(target)]) == 0
    assert victim.read_text() == "untouched"
    assert not target.is_symlink()
    assert len([file for file in tmp_path.iterdir() if file.name.endswith(".part")]) == 3


# -- copies --------------------------------------------------------------------------------------------------------


def test_backup_to_a_full_disk_names_the_copy(tmp_path: Path) -> None:
    """The error is about the copy's disk, not the store's, and nothing is left of the copy."""
    path, folder = tmp_path / "answers.db", tmp_path / "backups"
    folder.mkdir()
    with open_store(path) as store:
        asyncio.run(keep(store, *((key_of(n), ANSWER) for n in range(500))))
    program = """
import resource, sys
from ondine_core.store.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
sys.exit(main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", program, str(path), "backup", str(folder / "copy.db")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: The copy of the answer store {str(path)!r} to '{folder}/copy.db.")
    assert "Free some space" in ended.stderr
    assert list(folder.iterdir()) == []


def test_backup_of_a_store_in_use_can_be_restored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A copy made during a run has all that was committed, even if most is in the log; a run on it pays the rest."""
    path, copy = tmp_path / "answers.db", tmp_path / "copy.db"
    committed: list[set[bytes]] = []

    def answer(prompt: str) -> dict[str, str]:
        if len(provider.ledger.requests) == 60 and not committed:
            committed.append(keys_in(path))
            assert main([str(path), "backup", str(copy)]) == 0
        return {"answer": prompt.removeprefix("Repeat: ")}

    with Provider(answer) as provider:
        ask(provider, path, 100)
        assert "copied to" in capsys.readouterr().out
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
        kept = keys_in(copy)
        assert committed[0] <= kept
        assert len(kept) >= 50
        # Restored: the old files are removed, and the copy takes their place. The rows that were in flight when it was
        # made are asked when no answer can arrive any more.
        for file in store_files(path):
            file.unlink(missing_ok=True)
        copy.rename(path)
        quick = Clock(elapsed=lambda: 50 * time.monotonic())
        assert ask(provider, path, 100, clock=quick).column("answer") == texts(100)["text"]
        assert len(provider.ledger.requests) == 200 - len(kept)


def test_backup_does_not_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An existing file or dangling link is refused; nothing is left behind."""
    path, target = tmp_path / "answers.db", tmp_path / "copy.db"
    with open_store(path) as store:
        asyncio.run(keep(store, (key_of(1), ANSWER)))
        for make in (lambda: target.write_text("mine"), lambda: target.symlink_to(tmp_path / "nowhere")):
            make()
            assert main([str(path), "backup", str(target)]) == 2
            assert "exists already; name a new file" in capsys.readouterr().err
            target.unlink()
        assert main([str(path), "backup", str(path)]) == 2
        assert main([str(path), "backup", str(tmp_path / "no folder" / "copy.db")]) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["answers.db"]


def test_backup_of_a_postgres_store_names_pg_dump(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error names the tool."""
    place = fresh_place("postgres", tmp_path)
    with open_store(place):
        pass
    assert main([place, "backup", str(tmp_path / "copy.db")]) == 2
    assert "pg_dump --schema=ondine" in capsys.readouterr().err


# -- pruning a store in use ----------------------------------------------------------------------------------------


def transactions(log: bytes) -> list[int]:
    """The number of pages of each transaction in a write-ahead log, in order (https://sqlite.org/fileformat2.html)."""
    frame, pages, sizes = 24 + int.from_bytes(log[8:12], "big"), 0, list[int]()
    for at in range(32, len(log), frame):
        pages += 1
        if log[at + 4 : at + 8] != bytes(4):
            sizes.append(pages)
            pages = 0
    return sizes


def test_prune_never_holds_the_lock_for_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 20,000 old answers a transaction removes some hundreds at most, and writes some megabytes at most.

    Counted in the log, which an open snapshot prevents from restarting. Vacuuming is not an exception.
    """
    path = tmp_path / "answers.db"
    with open_store(path) as store:
        for first in range(0, 20_000, 2_000):
            answers = [(bytes.fromhex(f"{n * 7919 % 20_000:032x}"), ANSWER) for n in range(first, first + 2_000)]
            asyncio.run(keep(store, *answers))
    large = path.stat().st_size
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM answers LIMIT 1").fetchall()
    assert main([str(path), "prune", "--older-than", "1d"]) == 0
    written = transactions(Path(f"{path}-wal").read_bytes())
    reader.close()
    assert "20,000" in capsys.readouterr().out
    assert len(written) >= 40
    assert max(written) * 4096 <= 4 * 2**20
    assert keys_in(path) == set()
    assert large > 5e6
    with open_store(path) as store:
        asyncio.run(keep(store, (key_of(1), ANSWER)))
    assert path.stat().st_size < large / 10


def test_prune_pauses_between_transactions(tmp_path: Path) -> None:
    """Each pause is longer than the transaction before it."""
    path = tmp_path / "answers.db"
    with open_store(path) as store:
        asyncio.run(keep(store, *((key_of(n), ANSWER) for n in range(2_000))))
    pauses: list[float] = []
    database = connect(path)

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        # Another process gets the lock at once.
        other = sqlite3.connect(path, isolation_level=None, timeout=0)
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
        other.close()

    try:
        pruned = prune(database, 1e9, sleep=pause)
    finally:
        database.close()
    assert pruned["answers"] == 2_000
    assert len(pauses) >= 4
    assert min(pauses) > 0


def test_prune_keeps_answers_renewed_meanwhile(tmp_path: Path) -> None:
    """An old answer that a run renews during the pruning stays."""
    path = tmp_path / "answers.db"
    now = Answer({"text": "new"}, "m", answered_at=2e9)
    with open_store(path) as store:
        asyncio.run(keep(store, *((key_of(n), ANSWER) for n in range(1_000))))
        database = connect(path)
        try:
            prune(database, 1e9, sleep=lambda _: asyncio.run(keep(store, (key_of(999), now))))
        finally:
            database.close()
    assert keys_in(path) == {key_of(999)}


# -- passwords on the command line ---------------------------------------------------------------------------------


def test_store_may_be_named_in_a_file(tmp_path: Path) -> None:
    """With `@FILE` no process list shows the password: evidence from `/proc`."""
    place = fresh_place("postgres", tmp_path)
    with open_store(place):
        pass
    (tmp_path / "store.url").write_text(place + "\n")
    command = [sys.executable, "-m", "ondine_core.store", f"@{tmp_path / 'store.url'}", "size"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        shown = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output.startswith("answers")
    assert PASSWORD.encode() not in shown


def test_no_guide_puts_a_password_into_an_argument() -> None:
    """Commands of the guides name a file or use the environment; the help says why."""
    root = Path(__file__).parents[2]
    pages = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("examples/**/*.md")]
    lines = [line for page in pages for line in page.read_text(encoding="utf-8").splitlines()]
    commands = [line for line in lines if "ondine_core.store" in line and "import" not in line]
    assert commands
    assert not [line for line in commands if "://" in line or "$ONDINE_STORE" in line or "${" in line]
    command = [sys.executable, "-m", "ondine_core.store", "--help"]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "Other users of a machine can read the arguments" in " ".join(output.split())
