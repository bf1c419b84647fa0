"""`mlx_lm.server` with tiny random models, asked like any OpenAI-compatible server."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ondine_core import Failure, FatalError, ModelSpec, Options, Prompt, Report, enrich_sync
from tests.support.server_process import free_port, run_server
from tests.support.tiny_mlx import CHAT_TEMPLATE, END, write_tiny_model

pytestmark = pytest.mark.slow

REFUSES_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + CHAT_TEMPLATE
)


@dataclass(frozen=True)
class MLXServer:
    """A running server, which loads the model that a request names.

    Attributes:
        base_url: Its address.
        folder: Where the models are.
    """

    base_url: str
    folder: Path

    def model(self, name: str, **spec: Any) -> ModelSpec:
        """One of its models."""
        fields = {"base_url": self.base_url, "max_output_tokens": 5, **spec}
        return ModelSpec(f"openai_compatible/{self.folder / name}", **fields)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLXServer]:
    pytest.importorskip("mlx_lm", reason="there are no wheels of MLX for this machine")
    folder = tmp_path_factory.mktemp("mlx")
    write_tiny_model(folder / "endless", token_biases={END: -1000})
    write_tiny_model(folder / "without_system", chat_template=REFUSES_SYSTEM, token_biases={END: -1000})
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(folder / "endless"), "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with run_server(command, f"{address}/v1/models", folder / "log", environment):
        yield MLXServer(f"{address}/v1", folder)


def ask(model: ModelSpec, rows: int = 2, prompt: Prompt | str = "Say: {text}", output: Any = "said") -> Report:
    texts = [chr(ord("a") + number) for number in range(rows)]
    return enrich_sync({"text": texts}, prompt=prompt, output=output, model=model, options=Options(store=":memory:"))


def read_tokens(*contents: str) -> int:
    """Tokens of these messages in the tiny models' template: one for each character, and the marks."""
    return sum(2 + len(content) for content in contents) + 1


def test_replies_at_the_output_bound_are_truncated(server: MLXServer) -> None:
    """No row gets the text of a model that never ends; each call is counted with its tokens."""
    report = ask(server.model("endless"))
    assert report.column("said") == [None, None]
    assert [outcome.reason for outcome in report.outcomes if isinstance(outcome, Failure)] == ["truncated"] * 2
    assert (report.spend.answered, report.spend.usage.output_tokens) == (2, 10)
    assert report.spend.usage.input_tokens == 2 * read_tokens("Say: a")
    assert report.spend.usage.is_complete


def test_system_message_is_sent(server: MLXServer) -> None:
    """Its tokens are counted."""
    report = ask(server.model("endless"), 1, Prompt("Say: {text}", system="Be brief."))
    assert report.spend.usage.input_tokens == read_tokens("Be brief.", "Say: a")


def test_model_without_system_role_gets_the_message_with_the_row(server: MLXServer) -> None:
    """The server refuses the first call (404, with the template's message); no row is lost."""
    report = ask(server.model("without_system"), 3, Prompt("Say: {text}", system="Be brief."))
    assert report.spend.answered == 3
    assert report.spend.usage.input_tokens == 3 * read_tokens("Be brief.\n\nSay: a")


def test_schema_that_the_server_ignores_is_put_into_the_prompt(server: MLXServer) -> None:
    """This server has no structured output and does not say so."""
    ignored = ask(server.model("endless"), 1, output={"mood": "string"})
    report = ask(server.model("endless", settings={"structured_output": "words"}), 1, output={"mood": "string"})
    assert ignored.spend.usage.input_tokens == read_tokens("Say: a")
    assert report.spend.usage.input_tokens > read_tokens("Say: a", '"mood"', '"string"')


@pytest.mark.parametrize(
    ("fault", "name", "spec", "message"),
    [
        ("account", "endless", {"path": "/v2"}, "404: Not Found: .*check model and base_url"),
        ("account", "nowhere", {}, "404.*check model and base_url"),
        ("setup", "endless", {"params": {"top_p": 2}}, "400: top_p must be at most 1: .*change it, or leave it out"),
        ("setup", "endless", {"params": {"seed": "x"}}, "400: seed must be of type int: .*change it, or leave it out"),
    ],
    ids=["address", "model", "value", "type"],
)
def test_wrong_address_model_or_parameter_stops_the_run_at_once(
    server: MLXServer, fault: str, name: str, spec: dict[str, Any], message: str
) -> None:
    """With the server's message and what to check."""
    base_url = server.base_url.replace("/v1", spec.pop("path", "/v1"))
    with pytest.raises(FatalError, match=message) as caught:
        ask(server.model(name, base_url=base_url, **spec), 30)
    assert caught.value.fault == fault
