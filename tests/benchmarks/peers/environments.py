"""Make an environment for each peer with uv, and reuse it the next time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["REQUIREMENTS", "EnvironmentMissingError", "python_of"]

REQUIREMENTS: Mapping[str, Sequence[str]] = {
    "openai": ("openai>=3", "orjson"),
    # 1.107.0 was a compromised release.
    "litellm": ("litellm>=1.108", "orjson"),
    # Its disk cache needs diskcache.
    "instructor": ("instructor>=1.17", "diskcache"),
    "pydantic-ai": ("pydantic-ai-slim[openai]>=2",),
    # fenic 0.13 passes openai an httpx client, which openai 3 no longer accepts or installs.
    "fenic": ("fenic>=0.13", "openai<3", "httpx"),
    "curator": ("bespokelabs-curator>=0.1.31",),
    "data-designer": ("data-designer>=0.9.7",),
}
"""The requirements of each peer, by its name in the table."""
_MAX_S = 900


class EnvironmentMissingError(Exception):
    """An environment could not be made; the text is the reason."""


def python_of(name: str, requirements: Sequence[str], folder: Path) -> Path:
    """The Python of a peer's environment in `folder`, which is made unless it exists.

    Raises:
        EnvironmentMissingError: The peer cannot be installed.
    """
    environment = folder / f"{name}-{sys.version_info.major}.{sys.version_info.minor}"
    python = environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    installed, wanted = environment / "installed.json", json.dumps(list(requirements))
    if installed.is_file() and installed.read_text(encoding="utf-8") == wanted:
        return python
    _uv("venv", "--clear", "--python", sys.executable, str(environment))
    _uv("pip", "install", "--python", str(python), *requirements)
    installed.write_text(wanted, encoding="utf-8")
    return python


def _uv(*arguments: str) -> None:
    command = [sys.executable, "-m", "uv", "--quiet", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_MAX_S, check=False)
    except subprocess.TimeoutExpired:
        raise EnvironmentMissingError(f"uv {arguments[0]} took more than {_MAX_S} s") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise EnvironmentMissingError(lines[-1] if lines else f"uv {arguments[0]} ended with {done.returncode}")
