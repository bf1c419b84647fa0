"""The contents of what is published, and what must not be in it."""

from __future__ import annotations

import re
import subprocess
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from ondine_core import __version__
from tests.support.distributions import ROOT, Distributions

SECRETS = re.compile(
    rb"\bsk-(?:(?:proj|svcacct|admin|ant-\w+)-[\w-]{20,}|[A-Za-z0-9]{20,})"
    rb"|\bAIza[\w-]{35}|\bgh[pousr]_[A-Za-z0-9]{36}|\bAKIA[0-9A-Z]{16}|\bxox[abprs]-[A-Za-z0-9-]{10,}|\bhf_[A-Za-z]{30,}"
    rb"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?:\s|\\n)*[A-Za-z0-9+/]{20}|\bpypi-[A-Za-z0-9_-]{50,}"
)
HOMES = re.compile(rb"/(?:root|home/\w+|Users/\w+)/[\w.]|[A-Z]:\\\\?Users\\")
HERE = re.compile(b"|".join(re.escape(str(path).encode()) + rb"(?![\w-])" for path in (ROOT, Path.home())))

MADE_UP = "tests/support/pii_corpus.txt"


def findings(files: dict[str, bytes]) -> list[str]:
    """Texts that look like a secret or a path of a developer's machine, with their file."""
    patterns = (SECRETS, HOMES, HERE)
    return [
        f"{name}: {found[0]!r}" for name, text in files.items() for kind in patterns if (found := kind.search(text))
    ]


def read_wheel(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def read_sdist(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        files = {member.name.partition("/")[2]: archive.extractfile(member) for member in archive.getmembers()}
        return {name: file.read() for name, file in files.items() if file}


def test_the_wheel_has_the_two_packages_typed_and_licensed_and_nothing_else(distributions: Distributions) -> None:
    """Without tests, docs and the example; with `py.typed` and the licences."""
    names = set(read_wheel(distributions.wheel))
    about = f"ondine_dagster-{__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"ondine_core", "ondine_dagster", about}
    assert {"ondine_core/py.typed", "ondine_dagster/py.typed", f"{about}/licenses/LICENSE"} <= names
    sources = {
        str(file.relative_to(ROOT))
        for package in ("ondine_core", "ondine_dagster")
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {name for name in names if not name.startswith(about)} == sources


def test_wheel_metadata(distributions: Distributions) -> None:
    """Name, version, licence, Python versions and the page for PyPI."""
    files = read_wheel(distributions.wheel)
    metadata = Parser().parsestr(files[f"ondine_dagster-{__version__}.dist-info/METADATA"].decode())
    assert (metadata["Name"], metadata["Version"], metadata["Requires-Python"]) == (
        "ondine-dagster",
        __version__,
        ">=3.11",
    )
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "## Install" in metadata.get_payload()
    assert b"registry_modules" in files[f"ondine_dagster-{__version__}.dist-info/entry_points.txt"]


def test_source_distribution_has_what_a_wheel_needs(distributions: Distributions) -> None:
    """The wheel is built from it; it has no caches or outputs."""
    names = set(read_sdist(distributions.sdist))
    assert {name.partition("/")[0] for name in names} == {
        *("ondine_core", "ondine_dagster", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"),
        *(".gitignore", "PKG-INFO"),
    }


def test_no_secret_and_no_developers_path_is_published(distributions: Distributions) -> None:
    """Neither in the wheel nor in the source distribution."""
    assert findings(read_wheel(distributions.wheel)) == []
    assert findings(read_sdist(distributions.sdist)) == []


def test_no_secret_and_no_developers_path_is_in_the_tree() -> None:
    """Of all files that git knows, except the corpus of made-up ones."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout  # noqa: S607
    names = [name for name in tracked.split("\0") if name and (ROOT / name).is_file()]
    assert len(names) > 100
    assert findings({name: (ROOT / name).read_bytes() for name in names if name != MADE_UP}) == []


@pytest.mark.parametrize(
    "parts",
    [
        ("sk-", "proj-", "a1B2" * 8),
        ("sk-", "ant-api03-", "a1B2" * 8),
        ("AK", "IA", "ABCDEFGH12345678"),
        ("gh", "p_", "a" * 36),
        ("-----BEGIN ", "RSA PRIVATE", " KEY-----\n", "MIIE" * 16),
        ("/ho", "me/ada/", "project"),
        ("/Us", "ers/ada/", "project"),
        ("/ro", "ot/", ".cache"),
        ("C:\\", "Users\\", "ada"),
        (str(ROOT), "/ondine_core"),
    ],
)
def test_search_finds_known_secrets_and_paths(parts: tuple[str, ...]) -> None:
    """The search itself works."""
    assert findings({"a file": f"key = '{''.join(parts)}'".encode()})
