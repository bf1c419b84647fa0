"""Store addresses: accepted or refused, and no secret becomes a file name or part of a message."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core import Options
from ondine_core.errors import ConfigError, OndineError
from ondine_core.store import open_store, parse_address
from ondine_core.store.__main__ import main
from ondine_core.store.driver import parse
from ondine_dagster import LLMResource
from tests.support.postgres import server

SECRET = "geheim"  # noqa: S105  (what a password is here)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, where a misread address would become a file."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings_of(address: str) -> dict[str, Any]:
    parsed = parse_address(address)
    assert parsed.kind == "postgres"
    settings, place = parse(parsed.text)
    assert SECRET not in place + repr(parsed)
    return settings


# -- Postgres ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me:geheim@db.internal:5433/answers",
        "postgres://me:geheim@db.internal:5433/answers",
        "POSTGRESQL://me:geheim@db.internal:5433/answers",
        '"postgresql://me:geheim@db.internal:5433/answers"',
        "'postgresql://me:geheim@db.internal:5433/answers';",
        ' \t"postgresql://me:geheim@db.internal:5433/answers" \r\n',
        "\ufeffpostgresql://me:geheim@db.internal:5433/answers\n",
        "\u200b\u201cpostgresql://me:geheim@db.internal:5433/answers\u201d",
        "postgresql+psycopg2://me:geheim@db.internal:5433/answers",
        "postgresql+psycopg://me:geheim@db.internal:5433/answers",
        "postgresql+asyncpg://me:geheim@db.internal:5433/answers",
        "postgresql:/me:geheim@db.internal:5433/answers",
        "jdbc:postgresql://db.internal:5433/answers?user=me&password=geheim",
        "JDBC:PostgreSQL://me:geheim@db.internal:5433/answers?prepareThreshold=0",
        "host=db.internal port=5433 dbname=answers user=me password=geheim",
        "password = 'geheim' user=me host = db.internal port=5433 dbname=answers",
        "user=me password=geheim host=db.internal port=5433 dbname=answers sslmode=require",
    ],
)
def test_spellings_of_a_postgres_address_are_equal(address: str) -> None:
    """Quotes, blanks, a byte order mark, driver names, other tools' schemes, and connection strings."""
    settings = settings_of(address)
    found = tuple(str(settings[name]) for name in ("host", "port", "dbname", "user", "password"))
    assert found == ("db.internal", "5433", "answers", "me", SECRET)


def test_path_object_of_a_url_is_read_as_the_url() -> None:
    """`Path` makes one slash of two."""
    assert settings_of(str(Path("postgresql://me:geheim@db/answers")))["host"] == "db"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://me@db/x?sslmode=verify-full&sslrootcert=system", {"sslmode": "verify-full"}),
        ("postgresql://me@db/x?sslmode=require&channel_binding=require", {"channel_binding": "require"}),
        ("postgresql://me@db/x?connect_timeout=3&application_name=mine", {"connect_timeout": "3"}),
        ("postgresql://me@db/x?options=-c%20statement_timeout%3D5000", {"options": "-c statement_timeout=5000"}),
        ("postgresql://me@a:5432,b:5433/x?target_session_attrs=read-write", {"host": "a,b", "port": "5432,5433"}),
        ("postgresql://me@a,b:5433/x", {"host": "a,b", "port": ",5433"}),
        ("postgresql:///x?host=/var/run/postgresql", {"host": "/var/run/postgresql"}),
        ("postgresql://%2Fvar%2Frun%2Fpostgresql/x", {"host": "/var/run/postgresql"}),
        ("postgresql://me@[2001:db8::1]:5433/x", {"host": "2001:db8::1", "port": "5433"}),
        ("postgresql://me:p%40ss%2Fw%3Ard%25@db/x", {"password": "p@ss/w:rd%"}),
        ("postgresql://me:pa?ss=1&ssl=1@db/x?ssl=true", {"password": "pa?ss=1&ssl=1", "sslmode": "require"}),
        ("postgresql://me:pa#ss@db/x", {"password": "pa#ss"}),
        ("postgresql://me@db/x?ssl=true", {"sslmode": "require"}),
        ("postgresql://me@db/x?ssl=require", {"sslmode": "require"}),
        ("postgresql://me@db/x?sslmode=no-verify", {"sslmode": "require"}),
        (
            "postgresql://postgres.ref@aws.pooler.example:6543/postgres?pgbouncer=true&connection_limit=1",
            {"port": "6543"},
        ),
        (
            "postgresql://me@ep-1-pooler.example/db?sslmode=require&options=endpoint%3Dep-1",
            {"options": "endpoint=ep-1"},
        ),
        ("postgres://u:p@ec2.example:5432/d1?sslmode=require", {"dbname": "d1"}),
        ("postgresql://me@db/x?schema=public&pool_timeout=0&statement_cache_size=0", {"dbname": "x"}),
        ("postgresql://me@db/x?prepare_threshold=0&sslmode=disable", {"sslmode": "disable"}),
    ],
)
def test_usual_options_are_understood(url: str, expected: dict[str, str]) -> None:
    """Options of libpq are passed on; those of other clients are removed."""
    settings = settings_of(url)
    assert {name: str(settings[name]) for name in expected} == expected


def test_options_work_on_a_real_server() -> None:
    """A store opens with the options of hosted services and other clients."""
    url = server().new_database()
    separators = ("?pgbouncer=true", "?prepareThreshold=0&sslmode=prefer&channel_binding=prefer", "?schema=public")
    host = f"host=127.0.0.1 port={server().port} user={url.split('//')[1].split(':')[0]}"
    password = settings_of(url)["password"]
    connection_string = f"{host} password='{password}' dbname={url.rpartition('/')[2]}"
    for address in (*(url + more for more in separators), connection_string, f'  "{url}"\n'):
        with open_store(address) as store:
            assert password not in store.location


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("answers.db", "answers.db"),
        (" 'answers.db'\n", "answers.db"),
        ("sqlite:///data/answers.db", "data/answers.db"),
        ("sqlite:////data/answers.db", "/data/answers.db"),
        ("sqlite+pysqlite:///answers.db", "answers.db"),
        ("sqlite://", ":memory:"),
        ("sqlite:///:memory:", ":memory:"),
        ("file:///data/my%20answers.db", "/data/my answers.db"),
        ("file://localhost/data/answers.db", "/data/answers.db"),
        ("file:/data/answers.db", "/data/answers.db"),
        ("file:answers.db", "answers.db"),
        (":memory:", ":memory:"),
        (r"C:\data\me@corp\answers.db", r"C:\data\me@corp\answers.db"),
        ("C:/answers.db", "C:/answers.db"),
        ("~/ondine/answers.db", "~/ondine/answers.db"),
        ("/mnt/run:2026@prod/answers.db", "/mnt/run:2026@prod/answers.db"),
        ("postgres/answers.db", "postgres/answers.db"),
        ("run:1.db", "run:1.db"),
    ],
)
def test_spellings_of_a_file_are_equal(address: str, path: str) -> None:
    """Paths and other tools' file URLs name the same file."""
    parsed = parse_address(address)
    assert (parsed.kind, parsed.text) == ("file", path)


# -- refused addresses ---------------------------------------------------------------------------------------------

REFUSED = [
    "mysql://me:geheim@db/answers",
    "mysql+pymysql://me:geheim@db/answers",
    "redis://:geheim@db:6379/0",
    "jdbc:mysql://db/answers?password=geheim",
    "https://me:geheim@db/answers",
    "postgresql:me:geheim@db/answers",
    r"postgresql:\\me:geheim@db\answers",
    "postgresql//me:geheim@db/answers",
    "me:geheim@db.internal:5432/answers",
    "//me:geheim@db.internal/answers",
    "DATABASE_URL=postgresql://me:geheim@db/answers",
    "export ONDINE_STORE='postgresql://me:geheim@db/answers'",
    "psql postgresql://me:geheim@db/answers",
    "./postgresql://me:geheim@db/answers",
    "Server=db;Port=5432;Password=geheim;Database=answers",
    "Host=db;Username=me;Password=geheim",
    "Data Source=db;Pwd=geheim",
    "{'host': 'db', 'password': 'geheim'}",
    "me password=geheim",
    "postgresql://me:geheim@db/answers\nOPENAI_API_KEY=geheim",
    "host=db password=geheim dbname='postgresql://me:geheim@db/x'",
    "host=db passwort=geheim",
    "postgresql://db/answers?passwort=geheim",
    "postgresql://me:geheim/geheim@db/answers",
    "sqlite://me:geheim@db/answers",
    "sqlite:///answers.db?password=geheim",
    "file://me:geheim@db/answers",
    "",
    " \n",
]


@pytest.mark.parametrize("address", REFUSED)
def test_unknown_address_is_refused_without_being_repeated(address: str, folder: Path) -> None:
    """No file is made, and neither the message nor its causes hold the secret."""
    with pytest.raises(ConfigError, match=r"path|postgresql://user:password@host") as caught, open_store(address):
        pass
    assert SECRET not in "".join(traceback.format_exception_only(caught.value))
    assert caught.value.__context__ is None
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("address", [address for address in REFUSED[:20] if address.strip()])
def test_resource_and_options_refuse_it_when_created(address: str) -> None:
    """When definitions load, or before a run begins, without the secret."""
    with pytest.raises(Exception, match="answer store") as caught:
        LLMResource(model="openai/m", store=address)
    assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError) as refused:
        Options(store=address)
    assert SECRET not in str(refused.value)


def test_options_do_not_show_the_address() -> None:
    """A store's password is in no `repr`."""
    assert SECRET not in repr(Options(store="postgresql://me:geheim@db/answers"))


@pytest.mark.parametrize("address", ["me:geheim@db/answers", "host=db passwort=geheim", "mysql://me:geheim@db/x"])
def test_command_line_refuses_it(address: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With what is wrong, without the secret."""
    assert main([address, "size"]) == 2
    captured = capsys.readouterr()
    assert "answer store" in captured.err
    assert SECRET not in captured.out + captured.err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["size", "postgresql://me:geheim@db/answers"],
        ["size", "host=db password=geheim"],
        ["size", "Password='geheim'"],
        ["me:geheim@db/answers", "siz"],
        ["x.db", "postgresql://me:gehe/im:geheim@db/answers"],
    ],
)
def test_command_line_quotes_a_misplaced_address_without_its_password(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be parsed is quoted without its password."""
    monkeypatch.setenv("ONDINE_STORE", "x.db")
    with pytest.raises(SystemExit):
        main(arguments)
    captured = capsys.readouterr()
    assert SECRET not in captured.out + captured.err
    assert "gehe" not in captured.out + captured.err


@given(
    st.text("ap:/\\@= ;\"'?#&.\n\t%{}", max_size=12),
    st.sampled_from(["postgresql://", "postgres:", "jdbc:", "://", "password=", "pwd:", ""]),
    st.text("ap:/\\@= ;\"'?#&.\n\t%{}", max_size=12),
)
def test_no_path_holds_a_url_or_a_password(before: str, middle: str, after: str) -> None:
    """For any text around a URL or a password, it never becomes the path of a file."""
    try:
        address = parse_address(before + middle + after)
    except OndineError:
        return
    if address.kind == "file":
        assert "://" not in address.text
        assert "password=" not in address.text
        assert not os.fspath(address.text).lower().startswith(("postgres:", "postgresql:", "jdbc:"))
