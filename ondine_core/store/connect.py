"""Opens the database at a store address: a Postgres URL or connection string, or the path of a file.

An address often comes from an environment variable or from another tool's settings, so other spellings with the same
meaning are accepted. Everything else that may not be a path is refused without being quoted: as a path, a mistyped URL
would name a file after its password.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from ondine_core.errors import ConfigError
from ondine_core.store.database import Database, Durability
from ondine_core.store.postgres import PostgresDatabase
from ondine_core.store.schema import migrate
from ondine_core.store.sqlite import SqliteDatabase
from ondine_core.types.numbers import is_number

_WRAPPING = " \t\r\n\v\f\xa0\ufeff\u200b\u2060\"'`;\u2018\u2019\u201c\u201d"
"""Blanks, byte order marks and quotes that env files, shells and copying leave around a value."""
_SCHEME = re.compile(r"(?:jdbc:)?(?P<scheme>[a-z][a-z0-9.-]+)(?:\+\w+)?:(?P<slashes>/*)(?P<rest>.*)", re.IGNORECASE)
_KEYWORD = re.compile(
    r"(?:host|hostaddr|port|dbname|user|password|passfile|service|sslmode|options|connect_timeout|application_name"
    r"|target_session_attrs)\s*=",
    re.IGNORECASE,
)
"""The start of a connection string of libpq."""
_SECRET = re.compile(r"://|(?:passw(?:or)?d|passwd|pwd|secret)[\"']?\s*[:=]|^//[^/]*@", re.IGNORECASE)
_URL_WITHOUT_SCHEME = re.compile(r"(?![/~.]|[a-z]:[/\\]).*:.*@", re.IGNORECASE)

_VALID = "Give the path of a file, or postgresql://user:password@host:5432/database."


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """Where a store is: the path of a file, or a URL or connection string of libpq."""

    kind: Literal["file", "postgres"]
    text: str = field(repr=False)


def parse_address(path_or_url: str | Path) -> StoreAddress:
    """Parse the address of a store.

    Raises:
        ConfigError: It is neither a path nor an address of Postgres; the message quotes at most its scheme.
    """
    if not isinstance(path_or_url, str | os.PathLike):
        # `None`, for instance of an unset variable, would name a file "None".
        raise ConfigError(f"The address of the answer store is a {type(path_or_url).__name__}. {_VALID}")
    text = str(path_or_url).strip(_WRAPPING)
    if not text:
        raise ConfigError(f"The address of the answer store is empty. {_VALID}")
    if not text.isprintable() and re.search(r"[\x00-\x1f\x7f]", text):
        raise ConfigError(f"The address of the answer store holds a line break or control character. {_VALID}")
    url = _SCHEME.fullmatch(text)
    scheme = url["scheme"].lower() if url else ""
    if url and url["slashes"]:
        return _parse_url(scheme, url["slashes"], url["rest"])
    if url and scheme in ("file", "sqlite"):
        return StoreAddress("file", _parse_path(scheme, "", url["rest"]))
    keyword = _KEYWORD.match(text)
    if keyword and keyword[0].islower() and ";" not in text:
        return StoreAddress("postgres", text)
    is_url_like = scheme.startswith(("postgres", "jdbc", "mysql", "redis", "mongodb", "http"))
    if keyword or is_url_like or _SECRET.search(text) or _URL_WITHOUT_SCHEME.match(text):
        raise ConfigError(
            "The address of the answer store looks like a URL or a connection string, and cannot be read as one "
            f"(it is not repeated here, since it may hold a password). {_VALID}"
        )
    return StoreAddress("file", text)


def _parse_url(scheme: str, slashes: str, rest: str) -> StoreAddress:
    if scheme in ("postgresql", "postgres"):
        # A URL that was converted to a `Path` has one slash instead of two.
        return StoreAddress("postgres", f"postgresql:{'//' if slashes == '/' else slashes}{rest}")
    if scheme in ("file", "sqlite"):
        return StoreAddress("file", _parse_path(scheme, slashes, rest))
    # The rest of the URL is not quoted, since it may hold a password.
    raise ConfigError(f"An answer store cannot be a {scheme!r} URL. {_VALID}")


def _parse_path(scheme: str, slashes: str, rest: str) -> str:
    """The path in `sqlite:///relative`, `sqlite:////absolute`, `file:///absolute` or `file:relative`."""
    path: str | None = None
    if scheme == "sqlite":
        if len(slashes) == 2:  # noqa: PLR2004
            path = ":memory:" if rest in ("", ":memory:") else None
        elif len(slashes) > 2:  # noqa: PLR2004
            path = slashes[3:] + rest
    elif len(slashes) == 2:  # noqa: PLR2004
        path = unquote(rest.removeprefix("localhost")) if rest.startswith("localhost/") else None
    else:
        path = unquote(slashes[-1:] + rest)
    if not path or "?" in rest or _SECRET.search(path):
        raise ConfigError(
            f"The {scheme!r} URL of the answer store cannot be read; write sqlite:///relative/path, "
            "sqlite:////absolute/path or file:///absolute/path, without anything after a question mark, or the path "
            "alone."
        )
    return path


def default_store_path(storage: str | Path) -> str:
    """The default store of a Dagster instance with this storage folder, apart from Dagster's own databases."""
    return str(Path(storage) / "ondine" / "answers.db")


def find_dagster_store(home: str, environment: Mapping[str, str]) -> str:
    """Find the default store of the Dagster instance in `home` (DAGSTER_HOME), without importing Dagster.

    Its `dagster.yaml` may name variables of `environment`.

    Raises:
        ConfigError: `dagster.yaml` cannot be read, or does not name the folder of the storage.
    """
    import yaml

    folder = Path(home).expanduser()
    file = folder / "dagster.yaml"
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else None
        config = ((settings or {}).get("local_artifact_storage") or {}).get("config") or {}
        base = config.get("base_dir", folder)
        if isinstance(base, Mapping):
            base = environment[base["env"]]
        return default_store_path(Path(base) / "storage")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{str(file)!r} does not say where the instance's storage is ({type(error).__name__}); name the store."
        ) from error


def connect(
    path_or_url: str | Path,
    *,
    durability: Durability = "process",
    wait_timeout_s: float = 30.0,
    create: bool = True,
) -> Database:
    """Open the store at `path_or_url` and migrate it to the newest format.

    See `open_store` for the arguments and errors. Unless `create`, a missing store is an error.
    """
    address = parse_address(path_or_url)
    if not is_number(wait_timeout_s, 0):
        raise ConfigError(f"wait_timeout_s={wait_timeout_s!r} must be a number of seconds, 0 or more.")
    database: Database
    if address.kind == "file":
        database = SqliteDatabase(address.text, durability=durability, wait_timeout_s=wait_timeout_s, create=create)
    else:
        database = PostgresDatabase(address.text, wait_timeout_s=wait_timeout_s)
    try:
        migrate(database, create=create)
    except BaseException:
        database.close()
        raise
    return database
