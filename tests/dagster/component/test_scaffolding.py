"""Scaffolding an `LLMAssetComponent`, in any folder and in both formats."""

from collections.abc import Mapping

import dagster as dg
import pytest
import yaml
from dagster.components.testing import create_defs_folder_sandbox

from ondine_dagster import LLMAssetComponent


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
def test_scaffolded_component_loads(scaffold_format: str, fields: Mapping[str, str]) -> None:
    """With any options, in both formats."""
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
        assert resources["llm_for_ticket_labels"].model == fields.get("model", "openai/gpt-6-luna")
    assert f"{{{fields.get('column', 'review')}}}" in spec.metadata["ondine/prompt"].value
