"""`LLMAssetComponent` through the real `dg`, in a project such as `create-dagster` makes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster.components.testing import create_defs_folder_sandbox

from ondine_dagster import LLMAssetComponent
from tests.support.provider import Provider

PYPROJECT = """\
[project]
name = "shop"
version = "0.1.0"

[tool.dg]
directory_type = "project"

[tool.dg.project]
root_module = "shop"
"""
DEFINITIONS = """\
from pathlib import Path

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
"""
TICKETS = """\
import dagster as dg
import pandas as pd


@dg.asset(key=["shop", "tickets"])
def tickets() -> pd.DataFrame:
    return pd.DataFrame({"body": ["I love it", "It broke"]})
"""
Dg = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one asset, to which the first test below adds another."""
    root = tmp_path_factory.mktemp("project")
    files = {
        "pyproject.toml": PYPROJECT,
        "src/shop/__init__.py": "",
        "src/shop/definitions.py": DEFINITIONS,
        "src/shop/defs/__init__.py": "",
        "src/shop/defs/tickets.py": TICKETS,
        "home/dagster.yaml": "telemetry: {enabled: false}\n",
    }
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def run(project: Path) -> Dg:
    """Runs `dg` in the project, with nobody at the keyboard."""

    def run_dg(*arguments: str, status: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | variables
        environment |= {"PYTHONPATH": "src", "DAGSTER_HOME": str(project / "home"), "HOME": str(project / "home")}
        done = subprocess.run(
            [Path(sys.executable).with_name("dg"), *arguments],
            cwd=project,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        ours = [line for line in done.stderr.splitlines() if "Warning" in line and "ondine" in line]
        assert not ours
        return done

    return run_dg


@pytest.fixture(scope="module")
def labels(project: Path, run: Dg) -> Path:
    """The folder that `dg scaffold defs` writes."""
    run("scaffold", "defs", "ondine_dagster.LLMAssetComponent", "ticket_labels", "--upstream", "shop/tickets",
        "--column", "body")  # fmt: skip
    return project / "src/shop/defs/ticket_labels"


def test_dg_lists_the_component(run: Dg) -> None:
    """Installing the package is enough."""
    listed = json.loads(run("list", "components", "--json").stdout)
    listed = listed["items"] if isinstance(listed, dict) else listed
    (summary,) = [one["summary"] for one in listed if one["key"] == "ondine_dagster.LLMAssetComponent"]
    assert summary == "An asset whose rows a language model adds columns to: `llm_asset`, in YAML."


def test_scaffolding_asks_nothing_and_what_it_writes_is_valid(run: Dg, labels: Path) -> None:
    """YAML and definitions, without a key."""
    assert sorted(file.name for file in labels.iterdir()) == ["defs.yaml", "prompt.md"]
    checked = run("check", "defs")
    assert "All component YAML validated successfully" in checked.stdout
    listed = run("list", "defs", "--json").stdout
    assert all(f'"{name}"' in listed for name in ("shop/tickets", "ticket_labels", "llm_for_ticket_labels"))
    assert "OPENAI_API_KEY" in run("list", "envs").stdout


def test_what_was_scaffolded_materializes(run: Dg, labels: Path, project: Path) -> None:
    """With another model, in the processes that Dagster starts."""
    file = labels / "defs.yaml"
    text = file.read_text(encoding="utf-8")
    model = 'model: {model: openai_compatible/m, base_url: "{{ env.SHOP_URL }}"}'
    file.write_text(text.replace("model: openai/gpt-4o-mini", model), encoding="utf-8")
    try:
        with Provider(lambda _: {"sentiment": "positive", "topic": "x"}) as provider:
            run("launch", "--assets", "*", SHOP_URL=provider.base_url)
            asked = {request.prompt.rpartition("Text: ")[2] for request in provider.books.requests}
    finally:
        file.write_text(text, encoding="utf-8")
    assert asked == {"I love it", "It broke"}
    with dg.DagsterInstance.from_config(str(project / "home")) as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey("ticket_labels"))
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata["ondine/rows_succeeded"].value == 2


def test_a_mistake_is_found_in_the_yaml_alone(run: Dg, labels: Path) -> None:
    """`dg check yaml` names file, line and attribute."""
    file = labels / "defs.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("batch_size: 1", "batch_size: 0"), encoding="utf-8")
    try:
        found = run("check", "yaml", status=1).stdout
    finally:
        file.write_text(text, encoding="utf-8")
    line = 1 + [one.strip().startswith("batch_size") for one in text.splitlines()].index(True)
    assert f"defs.yaml:{line} - ondine_dagster.LLMAssetComponent attributes.batch_size" in found


# -- what is written, in whatever folder and form ------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Class `(LocalFileCodeReference|CodeReferencesMetadataValue)`")
@pytest.mark.filterwarnings("ignore:`parse_obj_as` is deprecated")
@pytest.mark.filterwarnings("ignore:Function `load_definitions_from_modules?`")
@pytest.mark.parametrize("scaffold_format", ["yaml", "python"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"upstream": "shop/tickets", "model": "groq/llama: 3 'x' \"y\""},
        {"resource_key": "small", "upstream": "yes"},
        {"model": "llama_cpp/gemma-3-270m", "column": "Größe"},
    ],
    ids=str,
)
def test_what_is_scaffolded_loads(scaffold_format: str, fields: Mapping[str, str]) -> None:
    """Whatever it was told, in both forms alike."""
    with create_defs_folder_sandbox() as sandbox:
        folder = sandbox.scaffold_component(
            LLMAssetComponent,
            "ticket-labels",
            dict(fields),
            scaffold_format=scaffold_format,  # type: ignore[arg-type]
        )
        with sandbox.load_component_and_build_defs(folder) as (_, defs):
            (asset,), resources = defs.assets or (), defs.resources or {}
        if scaffold_format == "yaml":
            written = yaml.safe_load((folder / "defs.yaml").read_text(encoding="utf-8"))
            needed = written.get("requirements", {}).get("env", [])
            assert needed == ([] if {"resource_key", "column"} & fields.keys() else
                              [f"{fields.get('model', 'openai').partition('/')[0].upper()}_API_KEY"])  # fmt: skip
    assert isinstance(asset, dg.AssetsDefinition)
    (spec,) = asset.specs
    assert spec.key == dg.AssetKey("ticket_labels")
    (dependency,) = spec.deps
    assert dependency.asset_key == dg.AssetKey.from_user_string(fields.get("upstream", "reviews"))
    if "resource_key" in fields:
        assert "small" in asset.required_resource_keys
    else:
        assert resources["llm_for_ticket_labels"].model == fields.get("model", "openai/gpt-4o-mini")
    assert f"{{{fields.get('column', 'review')}}}" in spec.metadata["ondine/prompt"].value
