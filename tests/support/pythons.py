"""The supported Pythons of this machine, and environments made for them with `uv`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

VERSIONS = ("3.11", "3.12", "3.13")
ENVIRONMENT = "TEST_ENVIRONMENT"
"""A variable with the version and the resolution to test the wheel with instead of the usual ones."""


@cache
def find_pythons() -> dict[str, str]:
    """The interpreter of each version on this machine: on the path, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = {}
    for version in VERSIONS:
        for candidate in (f"python{version}", *map(str, sorted(pyenv.glob(f"{version}.*/bin/python")))):
            asked = [
                candidate,
                "-c",
                "import sys; print(sys.version.startswith(sys.argv[1]) and sys.executable)",
                version,
            ]
            try:
                said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
            except (OSError, subprocess.CalledProcessError):  # missing, or a pyenv shim without a version
                continue
            if said != "False":
                found[version] = said
                break
    return found


def uv(*arguments: str | Path) -> str:
    """The output of `uv`; its errors go to standard error.

    Raises:
        CalledProcessError: It fails.
    """
    program = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    command = [program, *map(str, arguments), "--quiet"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def make_environment(folder: Path, python: str) -> str:
    """The interpreter of a new, empty environment at `folder`."""
    uv("venv", "--clear", "--python", python, folder)
    return str(folder / "bin" / "python")
