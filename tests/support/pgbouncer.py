"""A real PgBouncer in front of the tests' Postgres server; Debian's package is installed if it is missing."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import pytest

from tests.support.postgres import PASSWORD, USER, server

__all__ = ["pgbouncer"]

_POOL = 3


@cache
def _find_program() -> str | None:
    folders = f"{os.environ.get('PATH', '')}:/usr/sbin"
    found = shutil.which("pgbouncer", path=folders)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        command = "apt-get update -qq; apt-get install -y -qq pgbouncer"
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}  # no service is started
        subprocess.run(["/bin/sh", "-c", command], check=False, env=environment, timeout=300, capture_output=True)
        found = shutil.which("pgbouncer", path=folders)
    return found


@contextmanager
def pgbouncer(mode: str, **settings: object) -> Iterator[int]:
    """The port of a PgBouncer with three server sessions for each database, until the block ends.

    Args:
        mode: `"transaction"`, `"session"` or `"statement"`.
        **settings: Further settings of the section `[pgbouncer]`.
    """
    program = _find_program()
    if program is None:
        pytest.skip("PgBouncer is not installed and cannot be installed here")
    folder = Path(tempfile.mkdtemp(prefix="ondine-pgbouncer-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    chosen = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "unix_socket_dir": "",
        "auth_type": "any",
        "pool_mode": mode,
        "default_pool_size": _POOL,
        "logfile": folder / "log",
        "pidfile": folder / "pid",
        **settings,
    }
    password = PASSWORD.replace("'", "''")
    lines = [
        "[databases]",
        f"* = host=127.0.0.1 port={server().port} user={USER} password='{password}'",
        "[pgbouncer]",
        *(f"{name} = {value}" for name, value in chosen.items()),
    ]
    (folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
    as_user = "nobody" if os.geteuid() == 0 else None
    if as_user:
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, as_user)
    process = subprocess.Popen(
        [program, str(folder / "pgbouncer.ini")], user=as_user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while True:
            assert process.poll() is None, (folder / "log").read_text()
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
        yield port
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)
