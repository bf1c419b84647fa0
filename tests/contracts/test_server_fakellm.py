"""fakellm, a third-party mock of OpenAI's and Anthropic's servers, asked in both dialects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ondine_core import FatalError, ModelSpec, Report, enrich_sync
from tests.support.asking import options
from tests.support.pythons import make_environment, uv
from tests.support.server_process import free_port, run_server

pytestmark = pytest.mark.slow

REQUIREMENT = "fakellm==0.3.5"
OPENAI, ANTHROPIC = "openai_compatible/gpt-4o-mini", "anthropic/claude-sonnet-4-5"
RULES: list[dict[str, Any]] = [
    {"when": {"header.x-api-key": "sk-wrong"}, "respond": {"status": 401, "error": "invalid x-api-key"}},
    {"when": {"header.authorization": "Bearer sk-wrong"}, "respond": {"status": 401, "error": "Incorrect API key"}},
    {"when": {"messages_contain": "first"}, "respond": {"content": '{"answer": "one"}'}},
    {"when": {"messages_contain": "second"}, "respond": {"content": '```json\n{"answer": "two"}\n```'}},
    {"when": {"messages_contain": "third"}, "respond": {"status": 400, "error": "Flagged by the content filter."}},
    {"when": {"messages_contain": "fourth"}, "respond": {"content": "As you wish."}},
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the mock with these rules."""
    folder = tmp_path_factory.mktemp("fakellm")
    try:
        python = make_environment(folder / "venv", sys.executable)
        uv("pip", "install", "--python", python, REQUIREMENT)
    except subprocess.CalledProcessError:
        pytest.skip(f"{REQUIREMENT} cannot be installed here")
    rules = [{"name": f"rule {number}", **rule} for number, rule in enumerate(RULES)]
    (folder / "rules.yaml").write_text(json.dumps({"version": 1, "rules": rules}))
    port = free_port()
    command = [str(Path(python).with_name("fakellm")), "serve", "--port", str(port), "--config", "rules.yaml"]
    with run_server(command, f"http://127.0.0.1:{port}/_fakellm", folder / "log", os.environ):
        yield f"http://127.0.0.1:{port}"


def ask(address: str, model: str, texts: list[str], key: str = "sk-right") -> Report:
    base_url = address if model == ANTHROPIC else f"{address}/v1"
    return enrich_sync(
        {"text": texts},
        prompt="Repeat: {text}",
        output={"answer": "string"},
        model=ModelSpec(model, base_url=base_url, api_key=key, timeout_s=120.0),
        options=options(max_repairs=1),
    )


@pytest.mark.parametrize("model", [OPENAI, ANTHROPIC])
def test_rows_get_their_own_answers_or_their_own_failures(address: str, model: str) -> None:
    """Answers belong to their rows, a content filter fails its row, and plain text is not an answer to a schema."""
    report = ask(address, model, ["first", "second", "third", "fourth"])
    third, fourth = sorted(report.failures, reverse=True)
    assert report.column("answer") == ["one", "two", None, None]
    assert third.startswith("refused: The provider replied 400")
    assert fourth.startswith("invalid")
    assert report.spend.answered == 4  # the row with plain text, twice
    assert report.spend.usage.is_complete


@pytest.mark.parametrize("model", [OPENAI, ANTHROPIC])
def test_wrong_key_stops_the_run_at_once(address: str, model: str) -> None:
    """With what to check."""
    with pytest.raises(FatalError, match="check api_key") as caught:
        ask(address, model, [f"row {number}" for number in range(30)], key="sk-wrong")
    assert caught.value.fault == "account"
