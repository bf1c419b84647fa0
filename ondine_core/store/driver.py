"""The Postgres driver, loaded only where a Postgres URL is given, and what it may say: never a password."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ondine_core.errors import ConfigError, StoreError

if TYPE_CHECKING:
    import psycopg

__all__ = ["explain", "is_about_connection", "load_driver", "may_come_up", "parse"]

_LIVENESS = {
    "application_name": "ondine",
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
"""A server that vanished without a word is noticed within half a minute; the URL may say otherwise."""

_ON_ITS_WAY = re.compile("starting up|shutting down|recovery mode|not yet accepting|too many|slots are reserved")
"""What a server says that lets nobody in at the moment, but will. In other languages it is not waited for."""

_UNREACHABLE = "Check that the server runs and that host, user and password are right; what was stored before is safe."
_ADVICE = {
    "08006": _UNREACHABLE,
    "25006": "The server takes no writes (a replica?); name the primary.",
    "42501": "Let this user make the schema `ondine` and use it, for instance by GRANT CREATE ON DATABASE.",
    "53100": "Free some space on the server and run again; what was stored before is safe.",
    "55P03": "Another process has held the lock for too long; stop that one, or wait and run again.",
    "57P01": _UNREACHABLE,
}


def load_driver() -> Any:
    """The module `psycopg`."""
    try:
        import psycopg
        import psycopg.types.numeric
    except ImportError as error:
        raise ConfigError(
            f"A store in Postgres needs psycopg ({error}); run `pip install 'ondine-dagster[postgres]'`."
        ) from error
    return psycopg


def parse(url: str) -> tuple[dict[str, Any], str]:
    """How to connect to `url`, and its name for messages."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        settings = _LIVENESS | conninfo_to_dict(url)
    except (ProgrammingError, UnicodeError):
        settings = {}
    host, port = settings.get("host", "localhost"), str(settings.get("port", "5432"))
    place = f"postgresql://{host}:{port}/{settings.get('dbname', '')}"
    # An @ or / left as it is makes part of a password the name of a host, a port or a database. Nothing is quoted here,
    # nor what the driver says.
    if not settings or "@" in place or not all(map(str.isdecimal, port.split(","))):
        raise ConfigError(
            "The URL of the answer store cannot be read; write postgresql://user:password@host:5432/database, with "
            "characters like @ / : % in the password as %40 %2F %3A %25."
        )
    return settings, place


def is_about_connection(error: psycopg.Error) -> bool:
    """Whether it is the connection that failed, or the server on its way down or up, and not the statement."""
    code = error.sqlstate or "08000"
    return isinstance(error, load_driver().OperationalError) and code.startswith(("08", "57P"))


def may_come_up(error: psycopg.Error) -> bool:
    """Whether a connection that could not be made may be made in a moment: nobody listens yet, or not to everybody.

    A server that refuses this user, password or database says so with the word FATAL, and no code reaches us.
    """
    told = str(error)
    return is_about_connection(error) and ("FATAL" not in told or bool(_ON_ITS_WAY.search(told)))


def explain(error: psycopg.Error, place: str) -> StoreError:
    """What went wrong at `place`, and what to do."""
    # A connection that could not be made has no code.
    advice = _ADVICE.get(error.sqlstate or "08006", "What was stored before is safe.")
    what = " ".join(str(error).split())
    return StoreError(f"The answer store {place!r} failed: {what}{'' if what.endswith(('.', '?')) else '.'} {advice}")
