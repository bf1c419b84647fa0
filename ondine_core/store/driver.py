"""Loads the Postgres driver when a Postgres URL is given, and explains its errors without showing a password."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from ondine_core.errors import ConfigError, StoreError

if TYPE_CHECKING:
    import psycopg

_LIVENESS = {
    "application_name": "ondine",
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
"""Settings by which a server that disappears without closing its connections is noticed in half a minute; the URL can
replace them."""
_ENCODING = {"client_encoding": "UTF8"}
"""Other encodings, which may be the default of the server or the environment, cannot write all names."""

_UNAVAILABLE = re.compile(
    "starting up|shutting down|recovery mode|not yet accepting|too many|slots are reserved"
    # Messages of poolers: PgBouncer, Supavisor, RDS Proxy, PgCat.
    "|no more connections|max clients|max client connections|server login has been failing|cannot connect to server"
    "|query_wait_timeout|timed.out waiting|all servers down",
    re.IGNORECASE,
)
"""Messages of a server or pooler that refuses connections for the moment. Only English messages are recognised."""

_TRY_LATER = ("08", "57P", "53300")
"""Codes of errors after which the server is waited for: the connection failed, the server is starting or shutting down,
all connections are taken."""
_REFUSED_FOR_GOOD = re.compile(
    "statement pooling|unsupported startup parameter|no such (?:user|database)|not support SSL"
)

_UNREACHABLE = "Check that the server runs and that host, user and password are right; what was stored before is safe."
_GONE = (
    "The tables of the store were removed, or the database was: what it held is gone unless you have a copy. Run again "
    "to begin with an empty store, which pays for every answer again."
)
_MISSING = (
    "Check the name of the database, or create it. If it was there before, what it held is gone unless you have a copy."
)
_ADVICE = {
    "08006": _UNREACHABLE,
    "25006": "The server takes no writes (a replica, or its disk is full?); name the primary, or let it take writes.",
    "3D000": _MISSING,
    "3F000": _GONE,
    "42501": "Let this user make the schema `ondine` and use it, for instance by GRANT CREATE ON DATABASE.",
    "42P01": _GONE,
    "53100": "Free some space on the server and run again; what was stored before is safe.",
    "53200": "The server is out of memory; run again later. What was stored before is safe.",
    "55P03": "Another process has held the lock for too long; stop that one, or wait and run again.",
    "57014": "Raise statement_timeout for this user; what was stored before is safe.",
    "57P01": _UNREACHABLE,
}
_STATEMENT_MODE = (
    "The pooler hands out a session for each statement (statement mode), so nothing can be written together: connect "
    "to the server itself, or set pool_mode to transaction or session."
)
_STARTUP_PARAMETERS = (
    "Leave `options` and other settings out of the URL, connect to the server itself, or let the pooler ignore them "
    "(ignore_startup_parameters)."
)
_NO_CONNECTION_LEFT = (
    "All connections of the server or pooler are taken; each running step takes one. Let fewer runs go on at once, "
    "raise max_connections, or connect through a pooler; what was stored before is safe."
)
_ADVICE_BY_WORDS = (
    (re.compile("statement pooling"), _STATEMENT_MODE),
    (re.compile("unsupported startup parameter"), _STARTUP_PARAMETERS),
    (re.compile("too many|slots are reserved|no more connections|max client", re.IGNORECASE), _NO_CONNECTION_LEFT),
    (re.compile('database ".*" does not exist|no such database'), _MISSING),
)
"""Advice for errors without a code, such as those of a connection that could not be made."""

_OTHER_CLIENTS = re.compile(
    r"(?:pgbouncer|prepare_?threshold|prepared_statements|(?:prepared_)?statement_cache_size|schema|currentschema"
    r"|connection_limit|pool_timeout|pool_size|pool_mode|pool_pre_ping|pool_recycle|max_overflow|pgx_\w+"
    r"|default_query_exec_mode|socket_timeout|sslaccept|supa|workaround|stringtype|binary_parameters"
    r"|rewritebatchedinserts|tcpkeepalive)=[^&@/]*",
    re.IGNORECASE,
)
"""Options of Prisma, SQLAlchemy, JDBC, asyncpg, pgx and hosted services in a URL, which libpq refuses."""
_MODES = {"true": "require", "1": "require", "on": "require", "no-verify": "require", "false": "disable"}


def load_driver() -> Any:
    """Import the module `psycopg`.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import psycopg
        import psycopg.types.numeric
    except ImportError as error:
        raise ConfigError(
            f"A store in Postgres needs psycopg ({error}); run `pip install 'ondine-dagster[postgres]'`."
        ) from error
    logging.getLogger("psycopg").addFilter(_is_no_echo)
    return psycopg


def _is_no_echo(record: logging.LogRecord) -> bool:
    """Whether a log record of the driver does not repeat an error that is also raised."""
    return "error ignored terminating" not in str(record.msg)


def parse(address: str) -> tuple[dict[str, Any], str]:
    """Parse a URL or connection string of libpq; returns the settings of the connection and a location for messages.

    Raises:
        ConfigError: It cannot be read; the message quotes nothing of it.
    """
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        settings = _LIVENESS | conninfo_to_dict(_drop_other_clients(address)) | _ENCODING
    except (ProgrammingError, UnicodeError):
        settings = {}
    host = settings.get("host") or settings.get("hostaddr") or "localhost"
    port = str(settings.get("port", "5432"))
    location = f"postgresql://{host}:{port}/{settings.get('dbname', '')}"
    # With an unescaped @ or / in the password, a part of it is parsed as host, port or database. So the message quotes
    # neither the address nor the driver.
    if not settings or re.search("[@=]", location) or not re.fullmatch(r"\d*(,\d*)*", port):
        raise ConfigError(
            "The address of the answer store cannot be read; write postgresql://user:password@host:5432/database, with "
            "characters like @ / : % ? # in the password as %40 %2F %3A %25 %3F %23, and after a question mark nothing "
            "but what libpq knows (sslmode, sslrootcert, connect_timeout, target_session_attrs, ...)."
        )
    return settings, location


def _drop_other_clients(address: str) -> str:
    """Remove the options that only other clients know from a URL, and write `ssl=...` as libpq does."""
    # A question mark in the password does not begin the options.
    match = re.fullmatch(r"(postgresql://(?:[^/]*@)?[^?]*)\?(.*)", address)
    if match is None:
        return address
    front, query = match.groups()
    kept = []
    for option in query.split("&"):
        name, _, value = option.partition("=")
        if name in ("ssl", "sslmode"):
            kept.append(f"sslmode={_MODES.get(value.lower(), value)}")
        elif option and not _OTHER_CLIENTS.fullmatch(option):
            kept.append(option)
    return f"{front}?{'&'.join(kept)}" if kept else front


def is_about_connection(error: psycopg.Error, *, closed: bool = False) -> bool:
    """Whether not the statement failed but the connection, or the server is starting, shutting down or full."""
    if _REFUSED_FOR_GOOD.search(str(error)):
        return False
    code = error.sqlstate or "08000"
    return closed or (isinstance(error, load_driver().OperationalError) and code.startswith(_TRY_LATER))


def may_become_available(error: psycopg.Error) -> bool:
    """Whether a connection that could not be made may succeed in a moment, since the server is starting or full.

    If the server refuses the user, password or database, the message has the word FATAL, and the error has no code.
    """
    message = str(error)
    return is_about_connection(error) and ("FATAL" not in message or bool(_UNAVAILABLE.search(message)))


def explain(error: psycopg.Error, location: str) -> StoreError:
    """Explain what went wrong at `location`, and what to do."""
    message = " ".join(str(error).split())
    if not message.endswith((".", "?")):
        message += "."
    by_words = (advice for words, advice in _ADVICE_BY_WORDS if words.search(message))
    advice = next(by_words, _ADVICE.get(error.sqlstate or "08006", "What was stored before is safe."))
    return StoreError(f"The answer store {location!r} failed: {message} {advice}")
