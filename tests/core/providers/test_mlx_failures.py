"""Errors of an MLX model, its options or its repository, and their messages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.support.asking_mlx import ask, write_models  # isort: skip

from ondine_core.errors import ConfigError, FatalError, RefusedError, TransientError
from ondine_core.providers import connect
from ondine_core.providers.mlx.failures import generation_error, load_error
from ondine_core.types.values import ModelSpec
from tests.support.tiny_mlx import write_tiny_model

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models."""
    return write_models(tmp_path_factory.mktemp("mlx"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"params": {"top_p": 0}}, r"params\['top_p'\]=0 is not valid: Input should be greater than 0"),
        ({"params": {"top_k": True}}, r"params\['top_k'\]=True is not valid"),
        ({"params": {"min_p": 2}}, "min_p"),
        ({"params": {"seed": -1}}, "seed"),
        ({"params": {"repetition_penalty": 0}}, "repetition_penalty"),
        ({"params": {"adapter_path": "nowhere"}}, "is not a folder of a LoRA adapter"),
        ({"params": {"best_of": 2}}, r"params\['best_of'\] is not an option of MLX; valid are top_p, top_k"),
        ({"settings": {"warmup": True}}, "warm_up"),
        ({"settings": {"warm_up": "yes"}}, "should be a valid boolean"),
        ({"settings": {"max_concurrency": 1000}}, "should be less than or equal to 64"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"max_output_tokens": 0}, "max_output_tokens=0"),
        ({"timeout_s": 0}, "timeout_s=0"),
        ({"base_url": "http://127.0.0.1"}, "takes no base_url"),
    ],
)
def test_options_are_checked_when_connecting(models: Path, spec: dict[str, Any], message: str) -> None:
    """An unknown or invalid option is an error that lists the valid ones."""
    with pytest.raises(ConfigError, match=message):
        connect(ModelSpec(f"mlx/{models / 'chat'}", **spec))


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "nowhere", "a/b/c"])
def test_missing_folder_is_an_error(name: str) -> None:
    """It says what was looked for and what is valid."""
    with pytest.raises(ConfigError, match=f"there is no folder '{name}'; give the path of one, or a repository"):
        connect(ModelSpec(f"mlx/{name}"))


def test_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    """It is found before any row is asked."""
    with pytest.raises(ConfigError, match=r"no config\.json"):
        connect(ModelSpec(f"mlx/{tmp_path}"))


def test_a_model_that_cannot_be_loaded_is_fatal(tmp_path: Path) -> None:
    """An unknown family or broken weights stop the run; they are not retried row by row."""
    strange = write_tiny_model(tmp_path / "strange", model_type="made_up")
    broken = write_tiny_model(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"not a model")
    for folder in (strange, broken):
        with pytest.raises(FatalError, match=f"model='mlx/{folder}': mlx-lm cannot load it"):
            ask(folder, "Hello")


# MLX's messages on Metal and CUDA. On Linux CPUs there are none: loading fails, or the process dies.
NO_MEMORY = [
    "[metal::malloc] Attempting to allocate 9 bytes which is greater than the maximum allowed buffer size of 8 bytes.",
    "[metal::malloc] Resource limit (499000) exceeded.",
    "[malloc] Unable to allocate 1024 bytes.",
    "[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOf...)",
]


@pytest.mark.parametrize("message", NO_MEMORY)
def test_out_of_memory_is_classified_by_when_it_happens(message: str) -> None:
    """A model too large is fatal, too many concurrent calls are an overload, and a single call too large is refused."""
    error = RuntimeError(message)
    assert "does not fit into memory" in str(load_error("a/b", error))
    many, alone = generation_error(error, 4), generation_error(error, 1)
    assert isinstance(many, TransientError)
    assert many.kind == "overloaded"
    assert isinstance(alone, RefusedError)
    assert isinstance(generation_error(RuntimeError("shapes differ"), 4), FatalError)


class _Hub(BaseHTTPRequestHandler):
    """A local Hugging Face API that has no repositories."""

    def do_GET(self) -> None:
        status, code = {"gated": (403, "GatedRepo"), "missing": (404, "RepoNotFound"), "expired": (401, "")}.get(
            self.path.split("/")[3], (404, "RevisionNotFound")
        )
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def hub() -> Iterator[str]:
    """The address of a hub on the loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


ASK_ALL = """
import asyncio, sys
from ondine_core.providers import connect
from ondine_core.providers.mlx.failures import generation_error, load_error  # noqa: E402
from ondine_core.types.values import Call, Message, ModelSpec

async def main():
    for name in sys.argv[1:]:
        model = connect(ModelSpec(f"mlx/{name}", api_key="hf_sentinel"))
        try:
            await model(Call((Message("user", "Hello"),)))
        except Exception as error:
            print(type(error).__name__, error)

asyncio.run(main())
"""


def ask_all(*names: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The output of a process that asks each of the repositories."""
    command = [sys.executable, "-c", ASK_ALL, *names]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT, env={**os.environ, **variables}
    )


def test_hugging_face_errors_are_explained(hub: str, tmp_path: Path) -> None:
    """For a missing repository, access or revision the error says what to do, without the token."""
    done = ask_all(
        *("missing/model", "gated/model", "expired/model", "revised/model"),
        HF_HUB_OFFLINE="0",
        HF_ENDPOINT=hub,
        HF_HOME=str(tmp_path),
    )
    missing, gated, expired, revised = done.stdout.splitlines()
    assert missing.startswith(
        "FatalError model='mlx/missing/model': Hugging Face has no such repository, or it is priv"
    )
    assert "accept its terms at https://huggingface.co/gated/model" in gated
    assert "HF_TOKEN" in gated
    assert "api_key or HF_TOKEN" in expired
    assert "no such revision" in revised
    assert "sentinel" not in done.stdout + done.stderr


def test_missing_model_without_a_network_is_an_error(tmp_path: Path) -> None:
    """It says how to download the model."""
    done = ask_all("some/model", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert "FatalError model='mlx/some/model': it is not on this machine" in done.stdout
    assert "hf download some/model" in done.stdout


def test_without_the_extra_connecting_says_what_to_install() -> None:
    """The packages are checked when connecting, not at the first row."""
    code = "import sys; sys.modules['mlx_lm'] = None; from ondine_core.providers.mlx import connect_mlx as c; from "
    code += "ondine_core.types.values import ModelSpec as M; c(M('mlx/a/b'), 'a/b')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert "ConfigError: model='mlx/a/b' needs the package mlx-lm: pip install 'ondine-dagster[mlx]'" in done.stderr
