"""`python -m ondine_core.store`, on SQLite and on Postgres."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import re
import shlex
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from ondine_core.errors import ConfigError
from ondine_core.limits.lease import Lease
from ondine_core.store import Store, open_store
from ondine_core.store.__main__ import default_store, main
from ondine_core.types.clock import Clock
from ondine_core.types.ledger import CallFinished, CallStarted, Origin, RunStarted
from ondine_core.types.values import Answer, Failure, Usage
from tests.support.ledger import KINDS, fresh_place, keep, key_of, keys_in, look
from tests.support.postgres import PASSWORD

DAY_S = 86400.0
ROOT = Path(__file__).parents[3]
TIMEOUT_S = 60.0

Command = Callable[..., str]


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store with the ledger of two runs, ten days apart."""
    place = fresh_place(request.param, tmp_path)
    with open_store(place) as store:
        asyncio.run(fill(store))
    return place


async def fill(store: Store) -> None:
    now = time.time()
    for number in range(20):
        old = number >= 10
        origin = Origin("run-old" if old else "run-new", "labels" if number % 2 else "topics")
        at = now - (10 * DAY_S if old else 0)
        model = "local/m" if number % 2 else "openai/m"
        run = f"{origin.run[-3:]}-{origin.asset[:4]}".encode()
        await store.join(RunStarted(run, b"q" * 16, (1.0,), origin=origin))
        await store.leave(run)
        call = run + number.to_bytes(8, "big")
        sent = CallStarted(call, origin, model, "ask", (key_of(number),), at, Decimal("0.01"))
        await store.send(sent)
        if number in (3, 13):
            continue
        if number in (4, 14):
            failures = ((key_of(number), Failure("refused", "no")),)
            await store.settle(CallFinished(sent, "refused", failures=failures))
            continue
        usd = None if number % 2 else Decimal("0.0012345")
        answer = Answer({"text": f'ü "{number}", {{}}\n'}, model, 1, 1, usd, f"req-{number}", at)
        usage = Usage(1000, 100, 20, 5)
        await store.settle(
            CallFinished(sent, "answered", usage, usd, ((key_of(number), answer),), paid_twice=number == 0)
        )


@pytest.fixture
def run(place: str, capsys: pytest.CaptureFixture[str]) -> Command:
    """The output of a command on the store."""

    def run(*arguments: str) -> str:
        assert main([place, *arguments]) == 0
        return capsys.readouterr().out

    return run


def cells(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_command_examples_of_the_guides_are_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each line on a page parses; only its store does not exist."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    lines = [
        line
        for page in pages
        for line in re.findall(
            r"^\$ .*python -m ondine_core\.store \S+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE
        )
    ]
    assert len(lines) >= 15
    for line in lines:
        assert main([str(tmp_path / "absent.db"), *shlex.split(line, comments=True)]) == 2
        assert capsys.readouterr().err.startswith("error: There is no answer store at "), line


def test_size(run: Command) -> None:
    """The number of entries, the size on disk, and the first and last date."""
    output = cells(run("size"))
    assert [row[-1] for row in output[:3]] == ["16", "2", "2"]
    assert output[3][:2] == ["on", "disk"]
    assert float(output[3][2]) > 0
    assert len(output) == 6


@pytest.mark.parametrize("by", ["asset", "model"])
def test_spend_by_asset_or_model(by: str, run: Command) -> None:
    """Calls, tokens and USD, with unpriced and unknown amounts."""
    output = run("spend", "--by", by)
    names = ("labels", "topics") if by == "asset" else ("local/m", "openai/m")
    assert cells(output)[1:3] == [
        [names[0], "8", "8,000", "800", "160", "?", "2", "0"],
        [names[1], "10", "8,000", "800", "160", "0.009876", "0", "1"],
    ]
    assert "In all $0.009876. 8 calls have no price" in output
    assert "2 calls are under way or were lost; they may cost $0.020000 more." in output


def test_spend_by_day_stage_and_run(run: Command) -> None:
    """Each grouping has the same total; a column is as wide as its widest cell."""
    for by, rows in (("day", 2), ("stage", 1), ("run", 2)):
        output = run("spend", "--by", by).splitlines()
        table = output[: output.index("")]
        assert sum(int(line.split()[1]) for line in table[1:]) == 18
        assert len(table) == 1 + rows
        assert len({len(line) for line in table}) == 1


def test_audit(run: Command, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The ledger of a run; an unknown run is an error that says where to look."""
    output = run("audit", "run-new")
    assert "10 calls left; 1 prompts" in output
    assert cells(output)[3] == ["unknown", "(at", "most)", "1", "0", "0", "0", "0", "0", "0.010000"]
    assert main([place, "audit", "run-7"]) == 2
    assert "run 'run-7' is in the ledger; `spend --by run`" in capsys.readouterr().err


def test_prune_removes_old_entries(run: Command, place: str) -> None:
    """Except calls of unknown outcome, which budgets are charged with; a dry run only reports."""
    rehearsed, before = run("prune", "--older-than", "5d", "--dry-run"), keys_in(place)
    assert len(before) == 16
    pruned = run("prune", "--older-than", "5d")
    assert [row[-1] for row in cells(rehearsed)[1:]] == [row[-1] for row in cells(pruned)[1:]] == ["8", "1", "0", "3"]
    assert keys_in(place) == {key_of(n) for n in range(10)} - {key_of(3), key_of(4)}
    for table, rows in (("failures", 1), ("calls", 2), ("ledger", 3)):
        assert look(place, f"SELECT COUNT(*) FROM ondine.{table}") == [(rows,)]  # noqa: S608
    assert [row[-1] for row in cells(run("prune", "--older-than", "120h"))[1:]] == ["0"] * 4


def test_prune_of_an_asset(run: Command, place: str) -> None:
    """Its entries are removed at any age, other assets' kept; the ledger is kept by age alone."""
    rehearsed = run("prune", "--asset", "topics", "--dry-run")
    pruned = run("prune", "--asset", "topics")
    assert [row[-1] for row in cells(rehearsed)[1:]] == [row[-1] for row in cells(pruned)[1:]] == ["8", "2", "0", "0"]
    assert keys_in(place) == {key_of(n) for n in range(1, 20, 2)} - {key_of(3), key_of(13)}
    assert look(place, "SELECT DISTINCT asset FROM ondine.origins") == [("labels",)]
    dated = run("prune", "--asset", "labels", "--older-than", "5d")
    assert [row[-1] for row in cells(dated)[1:]] == ["4", "0", "0", "1"]
    assert keys_in(place) == {key_of(n) for n in (1, 5, 7, 9)}


def test_prune_without_age_and_asset_removes_nothing(
    place: str, run: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown asset has nothing to remove."""
    with pytest.raises(SystemExit, match="2"):
        main([place, "prune"])
    assert "--older-than AGE, --asset ASSET, or both" in capsys.readouterr().err
    assert [row[-1] for row in cells(run("prune", "--asset", "label"))[1:]] == ["0"] * 4
    assert len(keys_in(place)) == 16


@pytest.mark.parametrize(
    "arguments",
    [
        ["prune", "--older-than", "800000d"],
        ["spend", "--since", "99999999d"],
        ["spend", "--since", "9999-12-31T23:59-14:00"],
    ],
)
def test_age_beyond_the_calendar_is_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message says how an age is written."""
    with pytest.raises(SystemExit):
        main([str(tmp_path / "answers.db"), *arguments])
    assert f"{arguments[-1]!r} is not a" in capsys.readouterr().err


def test_failures_are_listed(run: Command) -> None:
    """Each failed prompt is a line with key, asset, run and reason, newest first."""
    output = run("failures").splitlines()
    assert output[0] == "2 prompts have no answer: 2 refused."
    rows = [line.split() for line in output[3:]]
    assert [row[0] for row in rows] == [key_of(4).hex(), key_of(14).hex()]
    assert rows[0][4:6] == ["topics", "run-new"]
    assert rows[0][-1] == "no"
    assert run("failures", "--limit", "1").splitlines()[-1] == "1 more; --limit N shows N of them."
    assert run("failures", "--asset", "labels") == "0 prompts have no answer.\n"
    assert key_of(14).hex() not in run("failures", "--since", "5d", "--asset", "topics")


def test_prompt_answered_later_is_not_listed_as_a_failure(place: str, run: Command) -> None:
    """The list is what the next run would retry."""
    with open_store(place) as store:
        asyncio.run(keep(store, (key_of(4), Answer({"text": "yes"}, "m", answered_at=time.time() + 1))))
    assert run("failures").startswith("1 prompts have no answer")


def test_spend_and_export_are_filtered(run: Command) -> None:
    """By asset and by age, as a date or a number of days; sums are of the filtered entries."""
    assert len(cells(run("spend"))) == 5
    assert cells(run("spend", "--asset", "topics"))[1] == "topics 10 8,000 800 160 0.009876 0 1".split()
    today = f"{datetime.fromtimestamp(time.time() - DAY_S, UTC):%Y-%m-%d}"
    for since in ("5d", today, f"{today}T00:00+00:00"):
        output = run("spend", "--since", since, "--asset", "labels")
        assert cells(output)[1][1] == "4"
        assert "1 calls are under way" in output
        exported = [
            json.loads(line)["key"] for line in run("export", "--since", since, "--asset", "labels").split("\n")[:-1]
        ]
        assert sorted(exported) == [key_of(n).hex() for n in (1, 5, 7, 9)]
    with pytest.raises(SystemExit, match="2"):
        run("spend", "--since", "lately")


def test_the_store_of_the_dagster_instance_is_the_default(tmp_path: Path) -> None:
    """Without a name the store is in the storage of DAGSTER_HOME, as `dagster.yaml` configures it."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {"DAGSTER_HOME": str(home), "ARTIFACTS": str(tmp_path / "elsewhere")}
    assert default_store(environment) == str(home / "storage" / "ondine" / "answers.db")
    config = "local_artifact_storage: {module: m, class: c, config: {base_dir: %s}}"
    for given, folder in (("/data", Path("/data")), ("{env: ARTIFACTS}", tmp_path / "elsewhere")):
        (home / "dagster.yaml").write_text(config % given)
        assert default_store(environment) == str(folder / "storage" / "ondine" / "answers.db")
    assert default_store({**environment, "ONDINE_STORE": "other.db"}) == "other.db"
    (home / "dagster.yaml").write_text(config % "{env: ABSENT}")
    for wrong in (environment, {}):
        with pytest.raises(ConfigError, match=r"name the store|not set"):
            default_store(wrong)
    (home / "dagster.yaml").write_text("[" * 500 + "]" * 500)
    with pytest.raises(ConfigError, match=r"RecursionError\); name the store"):
        default_store(environment)


def test_prune_removes_expired_leases(run: Command, place: str) -> None:
    """Old leases are removed; budgets, rates and a held lease stay."""

    async def use(store: Store) -> None:
        async with Lease(store, "old", Clock(now=lambda: 1000.0)).held():
            pass
        await store.update("budget:b", lambda _: (1.0, 1.0))
        await store.update("lease:held", lambda _: (1.0, time.time() + 60))

    with open_store(place) as store:
        asyncio.run(use(store))
    run("prune", "--older-than", "1d")
    names = {name for (name,) in look(place, "SELECT name FROM ondine.numbers")} - {"format"}
    assert names == {"budget:b", "lease:held"}


def test_prune_shrinks_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After its answers are removed."""
    path = tmp_path / "answers.db"
    with open_store(path) as store:
        asyncio.run(keep(store, *((key_of(n), Answer({"text": "x" * 1000}, "m")) for n in range(2000))))
    large = path.stat().st_size
    assert main([str(path), "prune", "--older-than", "1d"]) == 0
    assert path.stat().st_size < large / 10
    assert "2,000" in capsys.readouterr().out


def test_export_as_json_lines(run: Command) -> None:
    """Each answer is a line of JSON, with unchanged values and exact costs."""
    records = {record["key"]: record for record in map(json.loads, run("export").splitlines())}
    assert len(records) == 16
    record = records[key_of(6).hex()]
    assert record["values"] == {"text": 'ü "6", {}\n'}
    assert (record["cost_usd"], record["request_id"], record["batch_size"]) == ("0.0012345", "req-6", 1)
    assert record["answered_at"].endswith("+00:00")


def test_export_as_csv_into_a_file(run: Command, tmp_path: Path) -> None:
    """The file appears when it is complete, and `csv` reads back what was stored."""
    assert run("export", "--format", "csv", "-o", str(tmp_path / "all.csv")) == ""
    with (tmp_path / "all.csv").open(encoding="utf-8", newline="") as file:
        records = {record["key"]: record for record in csv.DictReader(file)}
    assert len(records) == 16
    assert json.loads(records[key_of(6).hex()]["values"]) == {"text": 'ü "6", {}\n'}
    assert records[key_of(7).hex()]["cost_usd"] == ""
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("in_a_file", [False, True])
def test_store_may_be_named_by_the_environment(in_a_file: bool, place: str, tmp_path: Path) -> None:
    """With ONDINE_STORE a password need not be on the command line."""
    if in_a_file:
        (tmp_path / "store.url").write_text(f"{place}\n", encoding="utf-8")
        place = f"@{tmp_path / 'store.url'}"
    result = subprocess.run(
        [sys.executable, "-m", "ondine_core.store", "audit", "run-new"],
        capture_output=True,
        text=True,
        check=True,
        env={"ONDINE_STORE": place},
        timeout=TIMEOUT_S,
    )
    assert "10 calls left" in result.stdout


def test_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    """`export | head` ends without a traceback."""
    path = tmp_path / "answers.db"
    with open_store(path) as store:
        asyncio.run(keep(store, *((key_of(n), Answer({"text": "x" * 1000}, "m")) for n in range(2000))))
    command = [sys.executable, "-m", "ondine_core.store", str(path), "export"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(TIMEOUT_S) == 0


def test_pipe_gets_what_is_exported(place: str, tmp_path: Path) -> None:
    """A pipe is written to, not replaced by a file for which its reader would wait."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = "import sys; print(open(sys.argv[1]).read())"
    with subprocess.Popen([sys.executable, "-c", read, str(pipe)], stdout=subprocess.PIPE) as reader:
        assert main([place, "export", "-o", str(pipe)]) == 0
        assert len(reader.communicate(timeout=TIMEOUT_S)[0].splitlines()) == 17  # print adds one
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("arguments", "expected"), [(["export"], r'"ü \"6'), (["why", "--key", key_of(6).hex()], r'"\xfc \"6')]
)
def test_output_does_not_depend_on_the_locale(arguments: list[str], expected: str, place: str) -> None:
    """An export is UTF-8; what a terminal cannot show is escaped for a person."""
    result = subprocess.run(
        [sys.executable, "-m", "ondine_core.store", place, *arguments],
        capture_output=True,
        check=True,
        env={"PYTHONIOENCODING": "ascii"},
        timeout=TIMEOUT_S,
    )
    assert expected in result.stdout.decode("utf-8")


def test_output_may_be_closed(place: str) -> None:
    """As by cron: the command is carried out."""
    command = f"exec {shlex.quote(sys.executable)} -m ondine_core.store {shlex.quote(place)} prune --asset topics >&-"
    result = subprocess.run(command, shell=True, capture_output=True, check=True, timeout=TIMEOUT_S)  # noqa: S602
    assert result.stderr == b""
    assert len(keys_in(place)) == 8


def test_export_needs_little_memory(tmp_path: Path) -> None:
    """Exporting a store of 30 MB takes a few hundred kilobytes."""
    path = tmp_path / "answers.db"
    with open_store(path) as store:
        for first in range(0, 3000, 100):
            answers = [(key_of(n), Answer({"text": "x" * 10_000}, "m")) for n in range(first, first + 100)]
            asyncio.run(keep(store, *answers))
    tracemalloc.start()
    try:
        assert main([str(path), "export", "-o", str(tmp_path / "out")]) == 0
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()
    assert (tmp_path / "out").stat().st_size > 30e6


@pytest.mark.parametrize(("option", "value"), [("--key", ""), ("--key", "zz"), ("--row", "[" * 10_000), ("--row", "7")])
def test_invalid_argument_of_why_is_named(
    option: str, value: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one sentence, after the usage."""
    with pytest.raises(SystemExit, match="2"):
        main([place, "why", option, value])
    assert f"argument {option}: " in capsys.readouterr().err


def test_only_the_store_is_read_from_a_file(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A text or asset that begins with @ is meant as it is; the file may end with blank lines."""
    (tmp_path / "store.url").write_text(f"{place}\n\n", encoding="utf-8")
    (tmp_path / "binary").write_bytes(b"\xff")
    named = f"@{tmp_path / 'store.url'}"
    assert main([named, "audit", "run-new"]) == 0
    assert main([named, "why", "--asset", named, "--text", named]) == 2
    assert f"No run is known that asked for {named!r}" in capsys.readouterr().err
    for wrong in (f"@{tmp_path / 'absent'}", f"@{tmp_path}", f"@{tmp_path / 'binary'}"):
        with pytest.raises(SystemExit, match="2"):
            main([wrong, "size"])


@pytest.mark.parametrize("command", [["size"], ["spend"], ["export"], ["prune", "--older-than", "1d"]])
def test_missing_store_is_an_error_and_is_not_created(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped path or database is an error in one line."""
    path = tmp_path / "absent" / "answers.db"
    url = fresh_place("postgres", tmp_path)
    for place in (str(path), url):
        assert main([place, *command]) == 2
        output = capsys.readouterr().err
        assert output.startswith("error: There is no answer store at ")
        assert output.count("\n") == 1
    assert not path.parent.exists()
    with pytest.raises(SystemExit):
        main([str(path), "prune", "--older-than", "soon"])
    (tmp_path / "empty.db").touch()
    assert main([str(tmp_path / "empty.db"), *command]) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["empty.db"]
    assert (tmp_path / "empty.db").read_bytes() == b""


@pytest.mark.parametrize(
    "arguments", [["size"], ["spend", "URL"], ["URL", "URL"], ["URL", "size", "URL"], ["URL", "size"]]
)
def test_password_is_not_repeated(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """For any error of a command line, a URL in it is shown without its password."""
    url = f"postgresql://me:{PASSWORD}@127.0.0.1:1/db"
    with pytest.raises(SystemExit, match="2"):
        sys.exit(main([url if argument == "URL" else argument for argument in arguments]))
    captured = capsys.readouterr()
    assert PASSWORD[:6] not in captured.err + captured.out
    assert captured.err


def test_export_that_cannot_be_written_is_an_error(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder, and a file in one that does not exist, are errors in one line that names them."""
    assert main([place, "export", "-o", "/nowhere/all.jsonl"]) == 2
    assert capsys.readouterr().err.startswith("error: '/nowhere/all.jsonl' is in a folder that does not exist; name a")
    assert main([place, "export", "-o", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {str(tmp_path)!r} is a folder; name a new file")
