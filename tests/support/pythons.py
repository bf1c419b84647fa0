"""The supported Pythons of this machine, and environments made for them with `uv`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

VERSIONS = ("3.11", "3.12", "3.13", "3.14")
ENVIRONMENT = "TEST_ENVIRONMENT"
"""The variable that selects another Python version and resolution for the test of the wheel."""


@cache
def find_pythons() -> dict[str, str]:
    """The interpreter of each version on this machine: on the path, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = {}
    for version in VERSIONS:
        for candidate in (f"python{version}", *map(str, sorted(pyenv.glob(f"{version}.*/bin/python")))):
            command = [
                candidate,
                "-c",
                "import sys; print(sys.version.startswith(sys.argv[1]) and sys.executable)",
                version,
            ]
            try:
                printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            except (OSError, subprocess.CalledProcessError):  # missing, or a pyenv shim without a version
                continue
            if printed != "False":
                found[version] = printed
                break
    return found


def uv(*arguments: str | Path) -> str:
    """Run `uv` and return its output; errors go to standard error.

    Raises:
        CalledProcessError: The command failed.
    """
    program = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    command = [program, *map(str, arguments), "--quiet"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def make_environment(folder: Path, python: str) -> str:
    """Make a new, empty environment at `folder`; returns its interpreter."""
    uv("venv", "--clear", "--python", python, folder)
    return str(folder / "bin" / "python")


def share_bytecode(environment: Path) -> None:
    """Link the bytecode of this environment into another one, for files that uv links from its cache into both.

    Compiling Dagster and its dependencies would take ten seconds.
    """
    own_packages = Path(sysconfig.get_path("purelib"))
    packages = environment / own_packages.relative_to(sys.prefix)
    suffix = f".{sys.implementation.cache_tag}.pyc"
    for package in packages.glob("*"):  # none, if the environment has another Python
        for compiled in (own_packages / package.name).rglob(f"__pycache__/*{suffix}"):
            source = compiled.parents[1] / f"{compiled.name.removesuffix(suffix)}.py"
            same = packages / source.relative_to(own_packages)
            copy = packages / compiled.relative_to(own_packages)
            if same.exists() and same.samefile(source) and not copy.exists():
                copy.parent.mkdir(exist_ok=True)
                copy.hardlink_to(compiled)
