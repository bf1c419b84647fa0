"""The code of the documents runs, and their links work."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster.components.testing import create_defs_folder_sandbox

from ondine_core import ScriptedModel
from ondine_core.prompts.output_schema import compile_schema
from ondine_dagster import LLMAssetComponent
from tests.support import instances

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]


GUIDES = sorted((ROOT / "docs").rglob("*.md"))


def run_block(marker: str) -> dict[str, Any]:
    """The names that the README's Python block containing `marker` defines."""
    (block,) = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if marker in code]
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(block, "README.md", "exec", dont_inherit=True), names)  # noqa: S102
    return names


def test_every_python_block_is_run_here() -> None:
    """A new block needs a test below."""
    assert README.count("```python") == 2


def test_the_decorator_example() -> None:
    """The definitions load, and the promised columns are in the result."""
    names = run_block("defs = dg.Definitions")
    dg.Definitions.validate_loadable(names["defs"])
    llm = ScriptedModel({"": {"sentiment": "positive", "topic": None}})
    result = instances.materialize([names["reviews"], names["review_sentiment"]], resources={"llm": llm})
    table = result.output_for_node("review_sentiment")
    assert list(table.columns) == ["id", "review", "sentiment", "topic", "review_sentiment_error"]


COMPONENTS = [
    pytest.param(block, id=f"{document.name}-{number}")
    for document in DOCUMENTS
    for number, block in enumerate(
        re.findall(r"```yaml[^\n]*\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    )
    if "type: ondine_dagster.LLMAssetComponent" in block
]


@pytest.mark.filterwarnings("ignore:Class `(LocalFileCodeReference|CodeReferencesMetadataValue)`")
@pytest.mark.filterwarnings("ignore:`parse_obj_as` is deprecated")
@pytest.mark.parametrize("written", COMPONENTS)
def test_component_examples_load(written: str) -> None:
    """Every whole `defs.yaml` in a document; its prompt file may read any column."""
    with create_defs_folder_sandbox() as sandbox:
        folder = sandbox.defs_folder_path / "asset"
        folder.mkdir()
        (folder / "defs.yaml").write_text(written, encoding="utf-8")
        (folder / "prompt.md").write_text("Classify this.\n{review}", encoding="utf-8")
        with sandbox.load_component_and_build_defs(folder) as (component, defs):
            assert isinstance(component, LLMAssetComponent)
            assert defs.assets


def test_the_yaml_twin_has_the_columns_of_the_decorator_example() -> None:
    """The same asset, written in two ways."""
    declared = compile_schema(run_block("defs = dg.Definitions")["Sentiment"])
    (written,) = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)]
    twin = compile_schema(written["attributes"]["output"])
    assert [(one.name, one.description) for one in twin.columns] == [
        (one.name, one.description) for one in declared.columns
    ]
    for reply in ('{"sentiment": "positive", "topic": null}', '{"sentiment": "positive", "topic": "tea"}'):
        assert twin.parse(reply) == declared.parse(reply)


def test_the_example_without_dagster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It asks the embedded model and prints what its comment says."""
    monkeypatch.chdir(tmp_path)
    run_block("enrich_sync(")
    (printed,) = re.findall(r"print\(report.*?# (.*)", README)
    assert capsys.readouterr().out.strip() == printed


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_the_code_of_a_guide_runs(guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All Python blocks of a guide in sequence, and the tests that they define."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    text = guide.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "guide"}
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        above = "\n" * text.count("\n", 0, block.start(1))  # so that a traceback names the guide's line
        exec(compile(above + block[1], guide, "exec", dont_inherit=True), names)  # noqa: S102
    for test in [value for name, value in names.items() if name.startswith("test_")]:
        test()


def test_the_shared_budget_of_the_guide_to_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dagster accepts the resource, and the engine gets the cap."""
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    guide = (ROOT / "docs" / "guides" / "cost.md").read_text(encoding="utf-8")
    (block,) = [code for code in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "SharedBudget(" in code]
    names: dict[str, Any] = {"__name__": "guide"}
    exec(compile(block, "cost.md", "exec", dont_inherit=True), names)  # noqa: S102
    llm = names["llm"].process_config_and_initialize()
    assert [str(cap) for cap in llm.options("answers.db").caps] == [
        "max_cost_usd=200.0 a month of the budget 'enrichment'"
    ]


def test_the_pools_of_the_guide_to_schedules(tmp_path: Path) -> None:
    """Dagster accepts the settings, and they match the guide's text."""
    guide = (ROOT / "docs" / "schedules.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(# dagster.yaml\n.*?)```", guide, re.DOTALL)
    (tmp_path / "dagster.yaml").write_text(block + "telemetry: {enabled: false}\n", encoding="utf-8")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        limits = instance.get_concurrency_config()
        assert limits.pool_config.default_pool_limit == 4
        assert instance.run_monitoring_enabled
        assert instance.get_settings("run_monitoring")["free_slots_after_run_end_seconds"] == 60


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_files_work(document: Path) -> None:
    """Every relative link and picture exists."""
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target
