"""Assets with images: what is sent, stored, and shown in metadata and logs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from ondine_core import ConfigError
from ondine_dagster import (
    DriftCheck,
    ErrorRateCheck,
    GoldenCheck,
    LLMResource,
    MediaOptions,
    Prompt,
    build_llm_asset,
    llm_asset,
)
from tests.support import instances
from tests.support.pictures import document, picture, write
from tests.support.provider import Provider
from tests.support.request_content import name_of

PROMPT = "Which colour is it?\n{photo:image}"
COLOUR = {"colour": {"type": "string", "enum": ["red", "blue"]}, "seen": str}
SECRET = b"s3cret"
FRAMES: list[Callable[[dict[str, list[Any]]], Any]] = [pd.DataFrame, pl.DataFrame, pa.table]
every_frame = pytest.mark.parametrize("frame", FRAMES, ids=["pandas", "polars", "pyarrow"])


def look(prompt: str) -> Any:
    """The colour and the names of the images in a prompt, one a row."""
    first, _, _ = prompt.partition("\n")
    if not first.startswith("["):
        return {"colour": "red", "seen": "[" + prompt.rpartition("[")[2]}
    return {"answers": [{"id": row["id"], "colour": "red", "seen": row["x"]} for row in json.loads(first)]}


@pytest.fixture
def provider() -> Iterator[Provider]:
    """A provider that replies with the image it was shown."""
    with Provider(look) as running:
        yield running


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with instances.ephemeral() as one:
        yield one


def colours(rows: Any, prompt: str | Prompt = PROMPT, **arguments: Any) -> list[dg.AssetsDefinition]:
    """An upstream asset with these rows, and the one that asks about them."""

    @dg.asset
    def photos() -> Any:
        return rows

    def of_photos(photos: Any) -> Any:
        return photos

    return [photos, llm_asset(**{"prompt": prompt, "output": COLOUR, "name": "colours"} | arguments)(of_photos)]


def run(
    assets: list[dg.AssetsDefinition], provider: Provider, instance: dg.DagsterInstance, **options: Any
) -> dg.ExecuteInProcessResult:
    llm = LLMResource(model="openai_compatible/eyes", base_url=provider.base_url)
    # The instance's default IO manager, which writes to files.
    return dg.materialize(assets, resources={"llm": llm}, instance=instance, **options)


def metadata(result: dg.ExecuteInProcessResult, name: str = "colours") -> dict[str, Any]:
    (event,) = [one for one in result.get_asset_materialization_events() if one.asset_key == dg.AssetKey(name)]
    return {key: one.value for key, one in event.step_materialization_data.materialization.metadata.items()}


def logged(result: dg.ExecuteInProcessResult, instance: dg.DagsterInstance) -> str:
    """Everything that the event log has of a run."""
    return "\n".join(map(repr, instance.all_logs(result.run_id)))


# -- frames and columns --------------------------------------------------------------------------------------------


@every_frame
@pytest.mark.parametrize("batch_size", [1, 3])
def test_bytes_go_through_every_kind_of_frame(
    frame: Any, batch_size: int, provider: Provider, instance: dg.DagsterInstance
) -> None:
    """Loaded by the default IO manager, asked, answered in their own rows, and stored unchanged."""
    contents: list[Any] = [*(picture(number) for number in range(4)), None]
    result = run(colours(frame({"id": [*range(5)], "photo": contents}), batch_size=batch_size), provider, instance)
    table = result.output_for_node("colours")
    rows = table.to_pylist() if isinstance(table, pa.Table) else list(map(dict, _dicts(table)))
    assert [row["photo"] for row in rows[:4]] == contents[:4]
    assert [row["seen"] for row in rows[:4]] == [name_of(content) for content in contents[:4]]
    assert metadata(result)["ondine/rows_skipped"] == 1
    assert len(provider.ledger.requests) == (4 if batch_size == 1 else 2)


def _dicts(table: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = table.to_dicts() if isinstance(table, pl.DataFrame) else table.to_dict("records")
    return found


def test_column_lineage_includes_image_columns(provider: Provider, instance: dg.DagsterInstance) -> None:
    """As for text columns."""
    rows = pd.DataFrame({"id": [1], "photo": [picture()], "size": ["S"]})
    result = run(colours(rows, "Size {size}: {photo:image}"), provider, instance)
    lineage = metadata(result)["dagster/column_lineage"].deps_by_column
    sources = {(dep.asset_key.to_user_string(), dep.column_name) for dep in lineage["colour"]}
    assert sources == {("photos", "size"), ("photos", "photo")}
    schema = {column.name: column.type for column in metadata(result)["dagster/column_schema"].columns}
    assert schema.keys() >= {"photo", "colour"}


# -- metadata -----------------------------------------------------------------------------------------------------


@every_frame
def test_no_image_bytes_are_in_metadata_or_logs(frame: Any, provider: Provider, instance: dg.DagsterInstance) -> None:
    """Previews describe images and thumbnails are re-encoded; other byte columns and failing images are not shown."""
    rows = frame({"photo": [picture(3), SECRET], "raw": [SECRET, SECRET]})
    result = run(colours(rows, "{raw}: {photo:image}", failed_rows=True), provider, instance)
    shown = metadata(result)
    assert "image, 24 x 16, " in shown["ondine/preview"]
    assert "image, cannot be read" in shown["ondine/preview"]
    assert "(data:image/jpeg;base64," in shown["ondine/thumbnails"]
    failed = metadata(result, "colours_failed")
    assert "| prompt | 6 bytes | image, cannot be read |" in failed["ondine/preview"]
    assert SECRET.decode() not in logged(result, instance)
    assert picture(3).hex() not in logged(result, instance)


@pytest.mark.parametrize("config", [{"max_rows": 2}, {"dry_run": True}])
def test_a_trial_and_a_dry_run_describe_the_images_they_show(
    config: dict[str, Any], provider: Provider, instance: dg.DagsterInstance
) -> None:
    """In messages and in rows."""
    assets = colours(pd.DataFrame({"photo": [picture(1), picture(2)]}))
    run_config = dg.RunConfig({"colours": {"config": config}})
    result = run(assets, provider, instance, run_config=run_config)
    (seen,) = [event.asset_observation_data.asset_observation for event in result.get_asset_observation_events()]
    shown = {key: str(one.value) for key, one in seen.metadata.items()}
    (messages,) = [text for key, text in shown.items() if key.endswith("messages")]
    assert "[image, 24 x 16, " in messages
    assert not set(messages) & {"\ue000", "\ue001"}
    if "max_rows" in config:
        assert "image, 24 x 16, " in shown["ondine/trial/rows"]
        assert "data:image/jpeg" in shown["ondine/trial/thumbnails"]


@pytest.mark.parametrize("arguments", [{"thumbnails": False}, {"sanitize": "redact"}])
def test_thumbnails_can_be_left_out(
    arguments: dict[str, Any], tmp_path: Path, provider: Provider, instance: dg.DagsterInstance
) -> None:
    """By an argument; sanitized assets have none, nor file names."""
    (tmp_path / "me@shop.example.png").write_bytes(picture())
    prompt = Prompt(PROMPT, media=MediaOptions(root=tmp_path))
    result = run(colours(pd.DataFrame({"photo": ["me@shop.example.png"]}), prompt, **arguments), provider, instance)
    shown = metadata(result)
    assert "ondine/thumbnails" not in shown
    assert "24 x 16" in shown["ondine/preview"]
    assert ("sanitize" in arguments) is ("shop" not in shown["ondine/preview"])


# -- failed rows, checks -------------------------------------------------------------------------------------------


@every_frame
def test_rows_whose_image_cannot_be_read_are_in_the_table_of_failed_rows(
    frame: Any, provider: Provider, instance: dg.DagsterInstance
) -> None:
    """With their cells, so that a person can look at them."""
    result = run(colours(frame({"photo": [picture(), SECRET]}), failed_rows=True), provider, instance)
    failed = result.output_for_node("colours", "failed")
    row = failed.to_pylist()[0] if isinstance(failed, pa.Table) else _dicts(failed)[0]
    assert row["photo"] == SECRET
    assert row["error_reason"] == "prompt"
    assert "not a PNG, JPEG, GIF, WebP or PDF" in row["error_detail"]


@every_frame
def test_checks_work_with_images(frame: Any, provider: Provider, instance: dg.DagsterInstance) -> None:
    """Labelled images are asked like any row; drift and rates are computed."""
    checks = [
        GoldenCheck(rows=frame({"photo": [picture(7), picture(8)], "colour": ["red", "blue"]}), min_score=0.5),
        DriftCheck(column="colour", max_distance=0.5),
        ErrorRateCheck(max_rate=0.1),
    ]
    assets = colours(frame({"photo": [picture(1), picture(2)]}), checks=checks)
    run(assets, provider, instance)
    found = run(assets, provider, instance).get_asset_check_evaluations()
    assert {check.check_name: check.passed for check in found} == {
        "golden": True,
        "drift_colour": True,
        "error_rate": True,
    }
    assert len(provider.ledger.requests) == 4


# -- asking again -------------------------------------------------------------------------------------------------


def test_only_what_changed_is_asked_again(tmp_path: Path, provider: Provider, instance: dg.DagsterInstance) -> None:
    """The same content under another path is reused; one more byte is asked."""
    names = write(tmp_path, picture(1), picture(2))
    prompt = Prompt(PROMPT, media=MediaOptions(root=tmp_path))

    def calls(*cells: str) -> int:
        before = len(provider.ledger.requests)
        run(colours(pd.DataFrame({"photo": list(cells)}), prompt), provider, instance)
        return len(provider.ledger.requests) - before

    assert calls(*names, *names) == 2
    (tmp_path / "copy.png").write_bytes(picture(1))
    assert calls(*names, "copy.png") == 0
    (tmp_path / "copy.png").write_bytes(picture(3))
    assert calls(*names, "copy.png") == 1


# -- definitions ---------------------------------------------------------------------------------------------------


def test_code_version_includes_the_media_options() -> None:
    """Those that change the prompt do, a download's time-out does not."""

    def version(**media: Any) -> str | None:
        prompt = Prompt("{photo:image}", media=MediaOptions(**media))
        (_, asset) = colours(pd.DataFrame(), prompt)
        return asset.code_versions_by_key[asset.key]

    assert version() == version(timeout_s=3, root="/")
    assert len({version(), version(max_side_px=512), version(max_side_px=256)}) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_side_px": 512}, r"prompt=Prompt\(..., media=MediaOptions\(max_side_px=...\)\)"),
        ({"media": MediaOptions()}, r"prompt=Prompt\(..., media=...\)"),
        ({"thumbnails": 3}, "thumbnails=3 must be True or False"),
        ({"prompt": "{photo:picture}"}, "photo"),
        ({"prompt": "{photo:image} {photo}"}, "as image and as text"),
    ],
)
def test_invalid_media_options_are_errors_when_definitions_load(arguments: dict[str, Any], message: str) -> None:
    """The error says where the option belongs."""
    given: dict[str, Any] = {"name": "colours", "upstream": "photos", "prompt": PROMPT, "output": COLOUR} | arguments
    with pytest.raises(ConfigError, match=message):
        build_llm_asset(**given)


def test_documents_are_asked_and_described(provider: Provider, instance: dg.DagsterInstance) -> None:
    """An invoice is a document; it has pages and no thumbnail."""
    rows = pd.DataFrame({"invoice": [document("12 EUR")]})
    result = run(colours(rows, "Which colour?\n{invoice:document}"), provider, instance)
    shown = metadata(result)
    assert "document, 1 page, " in shown["ondine/preview"]
    assert "ondine/thumbnails" not in shown
    (asked,) = provider.ledger.requests
    assert [media.media_type for media in asked.media] == ["application/pdf"]
