"""Log lines: few, with the ids of their subject, and without messages or replies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import structlog

from ondine_core import ConfigError, ProviderError
from ondine_core.telemetry.registry import open_observers
from ondine_core.types.ledger import Origin
from tests.support.asking import ask, options, texts
from tests.support.provider import Provider, error, first, matching, refusal, status

ORIGIN = Origin("run-1", "labels", "2026-01-01")


@pytest.fixture(autouse=True)
def _restore_structlog() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def logged(capfd: pytest.CaptureFixture[str], provider: Provider, rows: int, observer: Any) -> list[dict[str, Any]]:
    """The JSON lines on standard error of a run."""
    ask(provider, texts(rows), replace(options(), observers=(observer,), origin=ORIGIN))
    return [json.loads(line) for line in capfd.readouterr().err.splitlines()]


def test_a_run_makes_a_few_lines(capfd: pytest.CaptureFixture[str]) -> None:
    """Its beginning, its end with figures, and each kind of failure once, not once a row."""
    with Provider(fault=matching("1", refusal)) as provider:
        lines = logged(capfd, provider, 100, "logging")
    assert [line["event"] for line in lines] == ["run started", "rows failed", "run ended"]
    assert lines[-1]["rows_done"] == 100
    assert lines[-1]["rows_failed"] == sum("1" in f"row {number}" for number in range(100))
    assert lines[1]["level"] == "warning"
    assert all((line["run"], line["asset"], line["partition"]) == ("run-1", "labels", "2026-01-01") for line in lines)


def test_debug_has_a_line_for_every_call(capfd: pytest.CaptureFixture[str]) -> None:
    """With its own id, its batch's, tokens, and why it failed."""
    with Provider(fault=first(1, status(503))) as provider:
        lines = logged(capfd, provider, 4, {"name": "logging", "level": "debug"})
    calls = [line for line in lines if line["event"] == "call ended"]
    assert len(calls) == 5
    assert len({call["call"] for call in calls}) == 5
    assert {call["batch"] for call in calls} == {1, 2, 3, 4}
    assert [call.get("error_type") for call in calls].count("overloaded") == 1
    assert sum(call.get("output_tokens", 0) for call in calls) > 0
    assert "row 1" not in json.dumps(lines)


def test_no_line_has_the_key(capfd: pytest.CaptureFixture[str]) -> None:
    """Not even if the provider repeats it."""
    key = "sentinel-5up3r-53cr3t"
    spec = {"name": "logging", "level": "debug", "form": "console"}
    with Provider(fault=error(401, f"Incorrect API key provided: {key}.")) as provider, pytest.raises(ProviderError):
        ask(provider, texts(1), replace(options(), observers=(spec,)), api_key=key)
    output = capfd.readouterr().err
    assert "run ended early" in output
    assert key not in output


def test_the_programs_own_structlog_is_used(capfd: pytest.CaptureFixture[str]) -> None:
    """Lines go where the program configured structlog."""
    seen: list[dict[str, Any]] = []

    def keep(_logger: Any, _name: str, line: dict[str, Any]) -> dict[str, Any]:
        seen.append(line)
        raise structlog.DropEvent

    structlog.configure(processors=[keep])
    with Provider() as provider:
        assert logged(capfd, provider, 1, "logging") == []
    assert [line["event"] for line in seen] == ["run started", "run ended"]


def test_lines_can_be_sent_to_a_logger() -> None:
    """Any object with `log(level, message)`; the lines are complete and have no time stamps."""
    seen: list[tuple[int, str]] = []

    class Logger:
        def log(self, level: int, message: str) -> None:
            seen.append((level, message))

    with Provider(fault=matching("row 1", refusal)) as provider:
        ask(provider, texts(2), replace(options(), observers=({"name": "logging", "logger": Logger()},)))
    assert [level for level, _ in seen] == [20, 30, 20]
    assert "rows=2" in seen[0][1]


@pytest.mark.parametrize("options_", [{"level": "loud"}, {"form": "xml"}, {"form": ""}])
def test_wrong_options_are_errors(options_: dict[str, str]) -> None:
    """They name what is valid."""
    with pytest.raises(ConfigError, match="valid are"):
        open_observers([{"name": "logging", **options_}])
