"""The supported Pythons of this machine, and environments made for them with `uv`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
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


def share_bytecode(environment: Path) -> None:
    """Give an environment the bytecode that this one has of the same files, since uv links both to its cache.

    To compile Dagster and what it imports takes ten seconds.
    """
    here = Path(sysconfig.get_path("purelib"))
    there = environment / here.relative_to(sys.prefix)
    ending = f".{sys.implementation.cache_tag}.pyc"
    for package in there.glob("*"):  # none, if that is of another Python
        for compiled in (here / package.name).rglob(f"__pycache__/*{ending}"):
            source = compiled.parents[1] / f"{compiled.name.removesuffix(ending)}.py"
            same, copy = there / source.relative_to(here), there / compiled.relative_to(here)
            if same.exists() and same.samefile(source) and not copy.exists():
                copy.parent.mkdir(exist_ok=True)
                copy.hardlink_to(compiled)
