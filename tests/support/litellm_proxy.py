"""LiteLLM's proxy in an environment of its own, in front of the tests' provider."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ondine_core import ModelSpec
from tests.support.pythons import make_environment, share_bytecode, uv
from tests.support.server_process import free_port, run_server

__all__ = ["FIVE_CALLS_KEY", "MASTER_KEY", "LiteLLMProxy", "install_litellm_proxy", "run_litellm_proxy"]

MASTER_KEY = f"sk-{secrets.token_hex(16)}"
"""The master key; the proxy refuses to start with a weaker one."""
FIVE_CALLS_KEY = "sk-of-a-team-with-five-calls-at-once"
_REQUIREMENT = "litellm[proxy]>=1.100,!=1.107.0"
# The proxy stores keys in a database; without one, a function provides the keys besides the master key.
_KEYS = f"""
from litellm.proxy._types import UserAPIKeyAuth

async def find_key(request, api_key):
    if api_key == {FIVE_CALLS_KEY!r}:
        return UserAPIKeyAuth(api_key=api_key, max_parallel_requests=5)
"""


@dataclass(frozen=True)
class LiteLLMProxy:
    """A running proxy."""

    base_url: str

    def model(self, name: str, key: str | None = MASTER_KEY, **spec: Any) -> ModelSpec:
        """The model with this name at the proxy."""
        return ModelSpec(f"openai_compatible/{name}", base_url=self.base_url, api_key=key, **spec)


def install_litellm_proxy(folder: Path) -> Path:
    """Install the proxy in a new environment at `folder`, or skip the test; returns the path of the program."""
    try:
        python = make_environment(folder, sys.executable)
        uv("pip", "install", "--python", python, _REQUIREMENT)
    except subprocess.CalledProcessError:
        pytest.skip(f"{_REQUIREMENT} cannot be installed here")
    share_bytecode(folder)
    return Path(python).with_name("litellm")


@contextmanager
def run_litellm_proxy(program: Path, folder: Path, upstream: str) -> Iterator[LiteLLMProxy]:
    """Run a proxy that sends calls to `upstream` and does not retry, until the block ends.

    It serves `small`, `hasty` (with a time-out of half a second), `five` (five concurrent calls), and `pair` (two
    deployments, of which one is not used for some time after a rate limit).
    """

    def deployment(name: str, **params: Any) -> dict[str, Any]:
        asked = {"model": "openai/gpt-4o-mini", "api_base": upstream, "api_key": "of the provider", "max_retries": 0}
        return {"model_name": name, "litellm_params": asked | params}

    config = {
        "model_list": [
            deployment("small"),
            deployment("hasty", timeout=0.5),
            deployment("five", max_parallel_requests=5),
            deployment("pair"),
            deployment("pair", api_key="another of the provider"),
        ],
        "router_settings": {"num_retries": 0},
        "litellm_settings": {"num_retries": 0},
        "general_settings": {"master_key": MASTER_KEY, "custom_auth": "team_keys.find_key"},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "team_keys.py").write_text(_KEYS)
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [program, "--config", folder / "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    environment |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONUNBUFFERED": "1"}
    with run_server([*map(str, command)], f"{address}/health/liveliness", folder / "proxy.log", environment):
        yield LiteLLMProxy(f"{address}/v1")
