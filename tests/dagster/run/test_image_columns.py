"""Assets that ask about images: what is sent, kept, and shown in metadata and logs."""

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
from tests.support.pictures import document, picture, write
from tests.support.provider import Provider
from tests.support.seeing import name_of

PROMPT = "Which colour is it?\n{photo:image}"
COLOUR = {"colour": {"type": "string", "enum": ["red", "blue"]}, "seen": str}
SECRET = b"s3cret"
FRAMES: list[Callable[[dict[str, list[Any]]], Any]] = [pd.DataFrame, pl.DataFrame, pa.table]
every_frame = pytest.mark.parametrize("frame", FRAMES, ids=["pandas", "polars", "pyarrow"])


def look(prompt: str) -> Any:
    """The colour and the names of the images that a prompt shows, one a row."""
    first, _, _ = prompt.partition("\n")
    if not first.startswith("["):
        return {"colour": "red", "seen": prompt.rpartition("\n")[2]}
    return {"answers": [{"id": row["id"], "colour": "red", "seen": row["photo"]} for row in json.loads(first)]}


@pytest.fixture
def provider() -> Iterator[Provider]:
    """A provider that says which image it was shown."""
    with Provider(look) as running:
        yield running


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as one:
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
    # The instance's own IO manager, which writes to files.
    return dg.materialize(assets, resources={"llm": llm}, instance=instance, **options)


def metadata(result: dg.ExecuteInProcessResult, name: str = "colours") -> dict[str, Any]:
    (event,) = [one for one in result.get_asset_materialization_events() if one.asset_key == dg.AssetKey(name)]
    return {key: one.value for key, one in event.step_materialization_data.materialization.metadata.items()}


def logged(result: dg.ExecuteInProcessResult, instance: dg.DagsterInstance) -> str:
    """All that the event log has of a run."""
    return "\n".join(map(repr, instance.all_logs(result.run_id)))


# -- frames and columns --------------------------------------------------------------------------------------------


@every_frame
@pytest.mark.parametrize("batch_size", [1, 3])
def test_bytes_go_through_every_kind_of_frame(
    frame: Any, batch_size: int, provider: Provider, instance: dg.DagsterInstance
) -> None:
    """Read by the default IO manager, asked, answered in their own rows, and stored as they were."""
    contents: list[Any] = [*(picture(number) for number in range(4)), None]
    result = run(colours(frame({"id": [*range(5)], "photo": contents}), batch_size=batch_size), provider, instance)
    table = result.output_for_node("colours")
    rows = table.to_pylist() if isinstance(table, pa.Table) else list(map(dict, _dicts(table)))
    assert [row["photo"] for row in rows[:4]] == contents[:4]
    assert [row["seen"] for row in rows[:4]] == [name_of(content) for content in contents[:4]]
    assert metadata(result)["ondine/rows_skipped"] == 1
    assert len(provider.books.requests) == (4 if batch_size == 1 else 2)


def _dicts(table: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = table.to_dicts() if isinstance(table, pl.DataFrame) else table.to_dict("records")
    return found


def test_columns_come_from_the_images_they_were_asked_of(provider: Provider, instance: dg.DagsterInstance) -> None:
    """Lineage of an image column is that of a text column."""
    rows = pd.DataFrame({"id": [1], "photo": [picture()], "size": ["S"]})
    result = run(colours(rows, "Size {size}: {photo:image}"), provider, instance)
    lineage = metadata(result)["dagster/column_lineage"].deps_by_column
    assert [(dep.asset_key.to_user_string(), dep.column_name) for dep in lineage["colour"]] == [
        ("photos", "size"),
        ("photos", "photo"),
    ]
    schema = {column.name: column.type for column in metadata(result)["dagster/column_schema"].columns}
    assert schema.keys() >= {"photo", "colour"}


# -- what is shown -------------------------------------------------------------------------------------------------


@every_frame
def test_no_byte_of_an_image_is_metadata_or_log(frame: Any, provider: Provider, instance: dg.DagsterInstance) -> None:
    """A preview describes images, thumbnails are drawn anew; bytes beside them, and those that fail, are not shown."""
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
    """In the messages as in the rows."""
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
    """By an argument, and they are where rows are sanitized; then a file's name is not said either."""
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
    """With what their cells hold, so that somebody can look at them."""
    result = run(colours(frame({"photo": [picture(), SECRET]}), failed_rows=True), provider, instance)
    failed = result.output_for_node("colours", "failed")
    row = failed.to_pylist()[0] if isinstance(failed, pa.Table) else _dicts(failed)[0]
    assert row["photo"] == SECRET
    assert row["error_reason"] == "prompt"
    assert "no PNG, JPEG, GIF, WebP or PDF" in row["error_detail"]


@every_frame
def test_checks_work_with_images(frame: Any, provider: Provider, instance: dg.DagsterInstance) -> None:
    """Labelled images are asked like any row; distributions are compared; rates are counted."""
    checks = [
        GoldenCheck(rows=frame({"photo": [picture(7), picture(8)], "colour": ["red", "blue"]}), min_score=0.5),
        DriftCheck("colour"),
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
    assert len(provider.books.requests) == 4


# -- what is asked again -------------------------------------------------------------------------------------------


def test_only_what_changed_is_asked_again(tmp_path: Path, provider: Provider, instance: dg.DagsterInstance) -> None:
    """The same content under another path is known, and one byte more is not."""
    names = write(tmp_path, picture(1), picture(2))
    prompt = Prompt(PROMPT, media=MediaOptions(root=tmp_path))

    def calls(*cells: str) -> int:
        before = len(provider.books.requests)
        run(colours(pd.DataFrame({"photo": list(cells)}), prompt), provider, instance)
        return len(provider.books.requests) - before

    assert calls(*names, *names) == 2
    (tmp_path / "copy.png").write_bytes(picture(1))
    assert calls(*names, "copy.png") == 0
    (tmp_path / "copy.png").write_bytes(picture(3))
    assert calls(*names, "copy.png") == 1


# -- definitions ---------------------------------------------------------------------------------------------------


def test_the_code_version_says_how_images_are_read() -> None:
    """What changes the question makes the asset stale; how long a download may take does not."""

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
def test_what_is_wrong_is_said_when_definitions_load(arguments: dict[str, Any], message: str) -> None:
    """With where the option belongs."""
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
    (asked,) = provider.books.requests
    assert [media.media_type for media in asked.media] == ["application/pdf"]
