"""Cleaning and sanitizing in an asset: arguments, code version, metadata, and what is shown of rows."""

from typing import Any

import dagster as dg
import pandas as pd
import pytest

from ondine_core import ConfigError
from ondine_dagster import Sanitizer, ScriptedModel, llm_asset
from tests.support import instances

ROWS = pd.DataFrame(
    {
        "text": [
            "<i>by</i> ann@example.com",
            "fail, bob@example.com",
            "by <EMAIL_1>",
            "word " * 200,
            "by zoe@example.com",
        ]
    }
)


def echo(prompt: str) -> Any:
    return "no answer" if "fail" in prompt else {"echo": prompt.removeprefix("Text: ")}


def asset(**arguments: Any) -> dg.AssetsDefinition:
    @llm_asset(prompt="Text: {text}", output={"echo": str}, **arguments)
    def answers() -> pd.DataFrame:
        return ROWS

    return answers


def materialized(**arguments: Any) -> tuple[pd.DataFrame, dict[str, Any], dg.ExecuteInProcessResult]:
    result = instances.materialize([asset(**arguments)], resources={"llm": ScriptedModel(echo)})
    (event,) = result.asset_materializations_for_node("answers")
    return result.output_for_node("answers"), {name: found.value for name, found in event.metadata.items()}, result


def test_the_table_has_its_data_and_the_metadata_has_marks() -> None:
    """Input columns are unchanged, answers are restored, and the preview shows the sanitized text."""
    table, metadata, _ = materialized(clean=["html", {"truncate": 20}], sanitize="placeholder")
    assert list(table["text"]) == list(ROWS["text"])
    assert list(table["echo"].drop(index=[1, 3])) == ["by ann@example.com", "by <EMAIL_1>", "by zoe@example.com"]
    assert pd.isna(table["echo"][1])
    preview = metadata["ondine/preview"]
    assert preview.count("by \\<EMAIL\\_1\\>") == 6
    assert "@" not in preview
    assert "\\[…\\]" in preview
    assert (metadata["ondine/rows_sanitized"], metadata["ondine/rows_truncated"]) == (3, 1)


def test_dropped_rows_are_not_shown() -> None:
    """The preview has the rows of the table."""
    table, metadata, _ = materialized(sanitize="redact", on_row_error="drop")
    assert len(table) == 4
    assert "fail" not in metadata["ondine/preview"]
    assert len(metadata["ondine/preview"].splitlines()) == 2 + 4


def test_truncated_rows_are_a_warning_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    """Rows that were truncated are a warning in the log."""
    materialized(clean=[{"truncate": 20}])
    assert "1 of 5 rows were truncated before they were asked." in capfd.readouterr().err


def test_no_preprocessing_metadata_without_preprocessing() -> None:
    """Its figures appear only if rows may have been changed."""
    _, metadata, _ = materialized()
    assert not [name for name in metadata if "sanitized" in name or "truncated" in name]


def test_preprocessing_is_in_the_definition_and_the_code_version() -> None:
    """Changing it makes the asset stale; an asset without it is unchanged."""
    variants: list[dict[str, Any]] = [
        {},
        {"clean": ["html"]},
        {"clean": ["html", {"truncate": 9}]},
        {"sanitize": "redact"},
        {"sanitize": "placeholder"},
        {"sanitize": Sanitizer(rules=["email"])},
        {"sanitize": Sanitizer(patterns={"X": "C-1"})},
        {"sanitize": Sanitizer(patterns={"X": "C-2"})},
    ]
    specs = [next(iter(asset(**variant).specs)) for variant in variants]
    assert len({spec.code_version for spec in specs}) == len(variants)
    assert specs[0].code_version == next(iter(asset(clean=[], sanitize=None).specs)).code_version
    shown = specs[2].metadata["ondine/preparation"]
    assert shown == "clean html, truncate(9, openai/gpt-4o-mini, ' […]')"
    assert str(specs[5].metadata["ondine/preparation"]) == "sanitize redact: EMAIL"


@pytest.mark.parametrize(
    "wrong", [{"clean": ["htm"]}, {"sanitize": "mask"}, {"sanitize": {"patterns": {"X": r"(\w+)+!"}}}]
)
def test_invalid_preprocessing_fails_when_the_definitions_load(wrong: dict[str, Any]) -> None:
    """No run is needed to find out."""
    with pytest.raises(ConfigError):
        asset(**wrong)
