"""The commands of the quickstart, the examples without Dagster, and errors of definitions, in a new project."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing

import dagster as dg
import pytest

from tests.support.distributions import ROOT, Distributions
from tests.support.shop import Shop, follow_quickstart

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, distributions: Distributions) -> Shop:
    """The project after the quickstart's commands."""
    return follow_quickstart(distributions, tmp_path_factory.mktemp("quickstart"), {})


def test_the_quickstart_ends_with_an_enriched_asset_and_a_passing_test(shop: Shop) -> None:
    """The counts are those on the page, the page's test passes, and the second launch makes no call."""
    counts = re.findall(r"sentiment_counts - (\{.*\})", shop.output)
    assert len(counts) == 1, shop.output
    assert counts[0] in shop.page, counts
    assert re.search(r"^1 passed", shop.output, re.MULTILINE), shop.output
    assert "temporary directory" not in shop.output
    assert "No dagster instance configuration file" not in shop.output
    assert "the report still shows three calls" in shop.page
    with closing(sqlite3.connect(shop.home / "storage" / "ondine" / "answers.db")) as answers:
        assert answers.execute("SELECT sum(calls) FROM ledger").fetchone() == (3,)


def test_column_lineage_points_to_the_columns_of_the_prompt(shop: Shop) -> None:
    """It is in the metadata of the materialization."""
    with dg.DagsterInstance.from_config(str(shop.home)) as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey("review_sentiment"))
    assert event
    assert event.asset_materialization
    lineage = event.asset_materialization.metadata["dagster/column_lineage"].value
    assert isinstance(lineage, dg.TableColumnLineage)
    assert lineage.deps_by_column["sentiment"] == [dg.TableColumnDep(dg.AssetKey("reviews"), "review")]


def test_examples_of_the_readme_and_of_notebooks_run_without_dagster(shop: Shop) -> None:
    """The output is that of the README, with a progress bar only at a terminal; a notebook's cell can run twice."""
    (example,) = re.findall(r"```python\n(from ondine_core [^`]*enrich_sync.*?)```", README, re.DOTALL)
    (printed,) = re.findall(r"# (\[.*)", example)
    first, again = (shop.run_python(example, terminal=terminal) for terminal in (True, False))
    assert again.strip() == printed
    assert printed in first
    assert re.search(r"100%\|.*\| 2/2 rows .*\$0\.0000", first), first
    (cell,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/guides/notebooks.md").read_text("utf-8"), re.DOTALL)
    before, after = cell.split("report = ")
    shown = shop.run_python(
        f"{before}for _ in range(2):\n    report = {after.replace(chr(10), chr(10) + '    ')}\n"
        "print(reviews.columns.tolist(), pd.DataFrame(report).columns.tolist())\n"
        "print(report)\n"
        "print('table:', '<table' in report._repr_html_())"
    )
    assert "['review', 'sentiment', 'error'] ['sentiment']" in shown
    assert "table: True" in shown
    assert len(shown) < 1000


README = (ROOT / "README.md").read_text(encoding="utf-8")
INVALID = {
    "output={'mood': {'type': 'string', 'enum': 'good'}}": "enum",
    "output='mood', max_cost=5": "Did you mean 'max_cost_usd'",
    "output='mood', temperature=0.5": "LLMResource(..., temperature=...)",
    "output='mood', system='Be kind.'": "prompt=Prompt(..., system=...)",
    "output='mood', examples=[]": "prompt=Prompt(..., examples=...)",
    "output='mood', checks=[ErrorRateCheck]": "give a check, ErrorRateCheck(max_rate=...)",
    "output='mood', prompt='Which mood? {{ text }}'": "jinja2",
}


def test_errors_of_invalid_definitions_say_what_to_write(shop: Shop) -> None:
    """Each definition is refused with a hint when it is loaded."""
    code = [
        "from ondine_dagster import ErrorRateCheck, build_llm_asset",
        "def show(**arguments):",
        "    arguments = {'name': 'a', 'upstream': 'b', 'prompt': 'Which mood? {text}', **arguments}",
        "    try: build_llm_asset(**arguments)",
        "    except Exception as error: print(type(error).__name__, error)",
        *(f"show({arguments})" for arguments in INVALID),
    ]
    messages = shop.run_python("\n".join(code)).splitlines()
    assert len(messages) == len(INVALID)
    for message, hint in zip(messages, INVALID.values(), strict=True):
        assert message.startswith("ConfigError ")
        assert hint in message
