"""Images and documents as columns: what each provider is sent, what is refused, and what is asked again."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from PIL import Image, TiffImagePlugin
from pypdf import PdfReader, PdfWriter

from ondine_core import (
    Answer,
    ConfigError,
    Failure,
    MediaOptions,
    ModelSpec,
    Options,
    Policy,
    Prompt,
    Report,
    ScriptedModel,
    Skipped,
    enrich,
    enrich_sync,
)
from ondine_core.batching.strategy import ONE_PER_CALL, STRATEGIES, encode
from ondine_core.engine.steps import items
from ondine_core.prompts.task import cache_key, compile_task
from ondine_core.providers.jobs import connect_jobs
from ondine_core.types.values import Batch
from tests.support.clients import CLIENTS, KEY, WIRE, Client
from tests.support.pictures import TYPES, ChangingPath, animated, bomb, document, picture, saved, write
from tests.support.provider import Provider, error, matching
from tests.support.request_content import ReceivedMedia, media_of, name_of

every_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
every_form = pytest.mark.parametrize("form", TYPES)
PHOTO = "What is this?\n{photo:image}"


def ask(  # noqa: PLR0913
    rows: Any,
    provider: Provider,
    prompt: str | Prompt = PHOTO,
    client: Client = WIRE,
    *,
    store: Any = ":memory:",
    sanitize: Any = None,
    **policy: Any,
) -> Report:
    """A run that asks a provider about rows."""
    options = Options(store=store, policy=Policy(**policy), progress_bar=False)

    model = client.connect(client.address(provider))

    async def main() -> Report:
        try:
            return await enrich(
                rows, prompt=prompt, output={"answer": str}, model=model, sanitize=sanitize, options=options
            )
        finally:
            await model.aclose()

    return asyncio.run(main())


def prompt_of(text: str = PHOTO, **media: Any) -> Prompt:
    return Prompt(text, media=MediaOptions(**media))


def look(prompt: str) -> Any:
    """The names of the images that a prompt shows, one a row."""
    if not prompt.startswith("["):
        return {"answer": prompt.rpartition("\n")[2]}
    first, _, _ = prompt.partition("\n")
    return {"answers": [{"id": row["id"], "answer": row["x"]} for row in json.loads(first)]}


def seen(provider: Provider) -> list[ReceivedMedia]:
    return [media for asked in provider.ledger.requests for media in asked.media]


def failures(rows: Any, prompt: str | Prompt = PHOTO) -> list[str]:
    """The failures of rows that must not be asked."""
    with WIRE.provider() as provider:
        report = ask(rows, provider, prompt)
        assert provider.ledger.requests == []
    return [outcome.detail for outcome in report.outcomes if isinstance(outcome, Failure)]


# -- requests ------------------------------------------------------------------------------------------------------


@every_client
@every_form
def test_the_image_meant_arrives_byte_for_byte(client: Client, form: str) -> None:
    """In the right block, with the right media type, between the surrounding text."""
    content = picture(3, form)
    with client.provider() as provider:
        report = ask({"photo": [content]}, provider, "Before {photo:image} after: x", client)
        (asked,) = provider.ledger.requests
    assert [outcome for outcome in report.outcomes if isinstance(outcome, Failure)] == []
    (media,) = asked.media
    assert (media.content, media.media_type) == (content, TYPES[form])
    assert media.kind == ("image" if "anthropic" in client.name.lower() else "image_url")
    assert f"Before {name_of(content)} after: x" in asked.prompt


@every_client
def test_a_document_arrives_byte_for_byte(client: Client) -> None:
    """A PDF is sent as a document, not as a picture."""
    content = document("An invoice over 12 EUR", "Page 2")
    with client.provider() as provider:
        ask({"invoice": [content]}, provider, "Read {invoice:document}: x", client)
        (asked,) = provider.ledger.requests
    (media,) = asked.media
    assert (media.content.rstrip(), media.media_type) == (content.rstrip(), "application/pdf")
    assert media.kind == ("document" if "anthropic" in client.name.lower() else "file")


@every_client
def test_each_row_of_a_batch_is_sent_with_its_own_image(client: Client) -> None:
    """An image is next to its row's id, however many rows a call has."""
    contents = [picture(number) for number in range(7)]
    with client.provider(answer=look) as provider:
        report = ask({"photo": contents}, provider, client=client, batch_size=4)
        sizes = [len(asked.media) for asked in provider.ledger.requests]
    assert report.column("answer") == [name_of(content) for content in contents]
    assert sorted(sizes) == [3, 4]


@pytest.mark.parametrize("name", STRATEGIES)
def test_images_work_in_every_batch_format(name: str) -> None:
    """No format splits or escapes a reference."""
    contents = [picture(number) for number in range(3)]
    with WIRE.provider(lambda _: "?") as provider:
        ask({"photo": contents, "name": ["a", "b", "c"]}, provider, "{name}: {photo:image}",
            batch_size=3, strategy=STRATEGIES[name], max_repairs=0)  # fmt: skip
        first = provider.ledger.requests[0]
    assert [media.content for media in first.media] == contents


def test_several_images_and_lists_of_images_keep_their_order() -> None:
    """In a row and in a cell, at any place and in any number."""
    a, b, c, d = (picture(number) for number in range(4))
    rows = [{"first": a, "others": [b, c]}, {"first": d, "others": []}]
    with WIRE.provider() as provider:
        report = ask(rows, provider, "One {first:image} and {others:image} and again {first:image}")
        assert [media.content for media in seen(provider)] == [a, b, c, a]
    assert report.outcomes[1] == Skipped("others")


def test_examples_may_have_images() -> None:
    """For single rows and batches."""
    shown, asked = picture(1), picture(2)
    prompt = Prompt(PHOTO, examples=[({"photo": shown}, {"answer": "red"})])
    with WIRE.provider() as provider:
        ask({"photo": [asked]}, provider, prompt)
        ask({"photo": [asked, picture(3)]}, provider, prompt, batch_size=2)
        alone, together = [[media.content for media in one.media] for one in provider.ledger.requests][:2]
    assert alone == [shown, asked]
    assert together == [shown, asked, picture(3)]


def test_jinja2_shows_images_by_a_filter() -> None:
    """Also in conditions and loops."""
    text = (
        "{% if photo %}{{ photo | image }}{% endif %}{% for p in more %}{{ loop.index }}: {{ p | image }} {% endfor %}"
    )
    prompt = Prompt(text, syntax="jinja2")
    a, b, c = (picture(number) for number in range(3))
    with WIRE.provider() as provider:
        ask([{"photo": a, "more": [b, c]}, {"photo": None, "more": [c]}], provider, prompt,
            on_missing="ask", max_concurrency=1)  # fmt: skip
        prompts = [asked.prompt for asked in provider.ledger.requests]
    assert prompts == [f"{name_of(a)}1: {name_of(b)} 2: {name_of(c)} ", f"1: {name_of(c)} "]


@pytest.mark.parametrize(
    "template",
    [
        "{% set shown = photos[1] %}{{ shown | image }}",
        "{% set photos = photos[1] %}{{ photos | image }}",
        "{% with shown = photos[1] %}{{ shown | image }}{% endwith %}",
        "{% for photo in photos[1:] %}{% set shown = photo %}{{ shown | image }}{% endfor %}",
        "{{ photos[1] | image }}",
    ],
)
def test_jinja2_may_give_images_another_name(template: str) -> None:
    """The column is the one that the name is for."""
    with WIRE.provider(look) as provider:
        ask({"photos": [[picture(1), picture(2)]]}, provider, Prompt(f"Colour?\n{template}", syntax="jinja2"))
        assert [media.content for media in seen(provider)] == [picture(2)]


def test_jinja2_takes_only_columns_as_images() -> None:
    """A name that is none was an error of Python's when the run began."""
    with pytest.raises(ConfigError, match="takes 'one' as image, which is no column"):
        failures(
            {"photo": [picture()]},
            Prompt("{% macro show(one) %}{{ one | image }}{% endmacro %}{{ show(photo) }}", syntax="jinja2"),
        )


def test_plain_jinja2_template_is_sent_once_for_all_rows() -> None:
    """`{{ photo | image }}` is hoisted like `{photo:image}`."""
    task = compile_task(Prompt("See {{ photo | image }} ok", syntax="jinja2"), "a", ModelSpec("test/x"))
    assert task.prompt.hoisted == "See {photo} ok"
    assert compile_task("See {photo:image} ok", "a", ModelSpec("test/x")).prompt.hoisted == "See {photo} ok"


def test_detail_is_passed_on() -> None:
    """OpenAI's `detail` option."""
    with WIRE.provider() as provider:
        ask({"photo": [picture()]}, provider, prompt_of(detail="low"))
        assert [media.detail for media in seen(provider)] == ["low"]


# -- cells ---------------------------------------------------------------------------------------------------------


def cells(folder: Path) -> dict[str, Any]:
    """One picture in every form that a cell can hold."""
    content = picture(5)
    (folder / "p.txt").write_bytes(content)  # a misleading file name
    return {
        "bytes": content,
        "bytearray": bytearray(content),
        "memoryview": memoryview(content),
        "path": "p.txt",
        "absolute path": str(folder / "p.txt"),
        "Path": folder / "p.txt",
        "data URL": f"data:text/plain;base64,{base64.b64encode(content).decode()}",
    }


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "memoryview", "path", "absolute path", "Path", "data URL"])
def test_every_kind_of_cell_is_the_same_image(tmp_path: Path, kind: str) -> None:
    """Every form has the same content and the same key."""
    with WIRE.provider() as provider:
        ask({"photo": [cells(tmp_path)[kind]]}, provider, prompt_of(root=tmp_path))
        assert [media.content for media in seen(provider)] == [picture(5)]


def test_an_image_of_pillow_is_its_pixels() -> None:
    """It is asked once, however it was made, and is sent as a PNG with these pixels."""
    image = Image.open(BytesIO(picture(7)))
    with WIRE.provider() as provider:
        ask({"photo": [image, image.copy(), Image.new("CMYK", (3, 3))]}, provider)
        found = seen(provider)
    assert len(found) == 2
    assert image.tobytes() in [Image.open(BytesIO(media.content)).tobytes() for media in found]
    assert {media.media_type for media in found} == {"image/png"}


def test_a_photo_that_pillow_opened_is_sent_upright() -> None:
    """As the same file is: Pillow's pixels lie on a side, and a photo of two pictures (MPO) is no animation."""
    photo = Image.open(BytesIO(tagged("jpeg", orientation=6)))
    lying = photo.copy()
    lying.getexif().clear()
    twice = Image.open(BytesIO(saved(Image.new("RGB", (9, 4)), "mpo", save_all=True, append_images=[lying])))
    with WIRE.provider() as provider:
        ask({"photo": [photo, lying, twice]}, provider, max_concurrency=1)
        ask({"photo": [photo]}, provider, prompt_of(max_side_px=8))
        shown = [Image.open(BytesIO(media.content)) for media in seen(provider)]
    assert [image.size for image in shown] == [(10, 20), (20, 10), (9, 4), (4, 8)]
    assert not any(image.getexif() for image in shown)


def test_pixels_that_rgb_cannot_hold_are_kept_or_refused() -> None:
    """Of sixteen bits, in any byte order; decimal numbers, and a file that was cut, fail their row before the call."""
    bright = [1000 * number for number in range(60)]
    sixteen = Image.new("I", (10, 6))
    sixteen.putdata(bright)
    big_endian = Image.frombytes("I;16B", (10, 6), struct.pack(">60H", *bright))
    clear = Image.new("RGBA", (4, 4), (200, 100, 50, 0)).convert("RGBa")
    cut = Image.open(BytesIO(saved(Image.effect_noise((90, 90), 50), "jpeg")[:-500]))
    with WIRE.provider() as provider:
        report = ask({"photo": [sixteen, big_endian, clear, Image.new("F", (3, 3)), cut]}, provider, max_concurrency=1)
        shown = [Image.open(BytesIO(media.content)) for media in seen(provider)]
    assert [image.convert("I").tobytes() == sixteen.tobytes() for image in shown[:2]] == [True, True]
    assert shown[2].getpixel((0, 0))[3] == 0  # type: ignore[index]
    reasons = [outcome.detail for outcome in report.outcomes if isinstance(outcome, Failure)]
    assert [("mode F" in reason, "cannot be decoded" in reason) for reason in reasons] == [(True, False), (False, True)]


def test_a_webp_that_keeps_its_metadata_keeps_the_byte_that_pads_it() -> None:
    """Without it decoders refuse the file."""
    images = [Image.frombytes("L", (side, side), bytes(range(side * side))) for side in range(5, 16)]
    padded = [file for image in images if (file := saved(image, "webp", lossless=True))[16] % 2]
    assert padded
    with WIRE.provider() as provider:
        ask({"photo": padded}, provider, prompt_of(keep_metadata=True), max_concurrency=1)
        assert [media.content for media in seen(provider)] == padded


@pytest.mark.parametrize(
    "table",
    [
        lambda rows: pd.DataFrame({"photo": rows}),
        lambda rows: pl.DataFrame({"photo": rows}, schema={"photo": pl.Binary}),
        lambda rows: pa.table({"photo": pa.array(rows, pa.binary())}),
        lambda rows: pa.table({"photo": pa.array(rows, pa.large_binary())}),
    ],
    ids=["pandas", "polars", "arrow", "arrow large"],
)
def test_frames_may_have_image_columns(table: Callable[[list[bytes | None]], Any]) -> None:
    """Binary columns of every kind of frame; the result is a frame of that kind."""
    frame = table([picture(1), None, picture(2)])
    with WIRE.provider(look) as provider:
        report = ask(frame, provider)
    assert report.column("answer") == [name_of(picture(1)), None, name_of(picture(2))]
    assert type(report.to_frame(frame)) is type(frame)


@pytest.mark.parametrize(("on_missing", "sent"), [("skip", 0), ("fail", 0), ("ask", 1)])
def test_a_null_image_is_skipped_failed_or_asked_without(on_missing: Any, sent: int) -> None:
    """As `on_missing` is set."""
    with WIRE.provider() as provider:
        report = ask({"photo": [None], "name": ["tea"]}, provider, "{name}: {photo:image}",
                     on_missing=on_missing)  # fmt: skip
        assert len(provider.ledger.requests) == sent
        assert seen(provider) == []
    kinds = {"skip": Skipped, "fail": Failure, "ask": Answer}
    assert isinstance(report.outcomes[0], kinds[on_missing])


# -- keys ----------------------------------------------------------------------------------------------------------


def test_keys_of_prompts_without_images_are_unchanged() -> None:
    """Answers stored before images were supported are found."""
    task = compile_task(Prompt("Say: {text}", system="Be brief."), {"answer": str}, ModelSpec("openai/gpt-4o-mini"))
    assert cache_key(task)("Say: \ue000image:\ue001").hex() == "f28a4905eed362cf5d826f2a87942d54"


def test_same_content_under_another_name_is_not_asked_again(tmp_path: Path) -> None:
    """Another path, form or batch size: no call. One byte changed: one call."""
    content = picture(9)
    names = write(tmp_path, content, content)
    changed = bytearray(saved(Image.new("RGB", (24, 16), (1, 2, 4)), "png"))
    store, prompt = tmp_path / "answers.db", prompt_of(root=tmp_path)
    with WIRE.provider() as provider:
        for cell in (names[0], names[1], content, tmp_path / names[0]):
            ask({"photo": [cell]}, provider, prompt, store=store)
        assert len(provider.ledger.requests) == 1
        (tmp_path / names[0]).write_bytes(bytes(changed))
        ask({"photo": names}, provider, prompt, store=store, batch_size=2)
        assert len(provider.ledger.requests) == 2


def test_options_that_change_the_image_are_part_of_the_key(tmp_path: Path) -> None:
    """The others are not."""
    store = tmp_path / "answers.db"
    options: list[dict[str, Any]] = [
        {}, {"max_bytes": 10**6}, {"root": "/"}, {"fetch": True}, {"max_side_px": 10}, {"detail": "low"},
        {"keep_metadata": True},
    ]  # fmt: skip
    with WIRE.provider() as provider:
        calls = []
        for each in options:
            ask({"photo": [picture()]}, provider, prompt_of(**each), store=store)
            calls.append(len(provider.ledger.requests))
    assert calls == [1, 1, 1, 1, 2, 3, 4]


def test_row_text_cannot_name_an_image() -> None:
    """A reference in a text stays text, even that of an image in the same call."""
    content = picture(1)
    task = compile_task("{name} {photo:image}", "a", ModelSpec("test/x"))
    (reference,) = task.prompt.media_of(task.prompt.prepare({"name": "", "photo": content}).values)
    with WIRE.provider(lambda _: "?") as provider:
        ask({"name": [f"A{reference}"], "photo": [content]}, provider, "{name} {photo:image}")
        ask({"name": [f"A{reference}", "b"], "photo": [content, picture(2)]}, provider, "{name} {photo:image}",
            batch_size=2, max_repairs=0)  # fmt: skip
        ask([{"name": f"A{reference}", "photo": content}], provider,
            Prompt("{{ name }}{{ photo | image }}", syntax="jinja2"))  # fmt: skip
        counts = [len(asked.media) for asked in provider.ledger.requests]
    assert set(counts) == {1, 2}
    assert counts[0] == counts[-1] == 1


def test_the_store_holds_no_image(tmp_path: Path) -> None:
    """Neither keys, answers nor the definition have its content."""
    with WIRE.provider() as provider:
        ask({"photo": [saved(Image.effect_noise((64, 64), 50), "png")]}, provider, store=tmp_path / "answers.db")
    kept = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"IDAT" not in kept
    assert b"iVBOR" not in kept


@pytest.mark.parametrize("size", [(24, 16), (48, 16)], ids=["looks the same", "looks another"])
def test_a_file_that_changes_while_the_run_is_on_fails_its_row(tmp_path: Path, size: tuple[int, int]) -> None:
    """An answer is never stored under the key of another content, and the other row is answered."""
    changing = ChangingPath(tmp_path / "p.png", picture(99, size=size))
    with WIRE.provider() as provider:
        report = ask({"photo": [picture(1), changing]}, provider)
        assert [media.content for media in seen(provider)] == [picture(1)]
    assert isinstance(report.outcomes[0], Answer)
    assert "has changed" in str(report.outcomes[1])


# -- refused media ------------------------------------------------------------------------------------------------

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
HOSTILE: dict[str, tuple[bytes, str]] = {
    "zero bytes": (b"", "it has 0 bytes"),
    "text": (b"not a picture at all", "not a PNG, JPEG, GIF, WebP or PDF"),
    "SVG": (SVG, "SVG"),
    "SVG behind XML": (b'<?xml version="1.0"?>' + SVG, "SVG"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
    "TIFF": (b"II*\0" + bytes(100), "TIFF"),
    "BMP": (b"BM" + bytes(100), "BMP"),
    "PDF as image": (document("x"), "application/pdf, and the prompt takes it as image"),
    "decompression bomb": (bomb(), "50000x50000 pixels"),
    "animated GIF": (animated("gif"), "animated"),
    "animated PNG": (animated("png"), "animated"),
    "animated WebP": (animated("webp"), "animated"),
    "no pixels": (b"\x89PNG\r\n\x1a\n", "corrupt"),
    "check sum": (picture()[:40] + b"!" + picture()[41:], "check sum"),
    **{f"{form} broken off": (picture(2, form)[:-6], "corrupt") for form in TYPES},
    **{f"{form} half": (picture(2, form)[: len(picture(2, form)) // 2], "corrupt") for form in TYPES},
}


@pytest.mark.parametrize(("content", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_invalid_image_fails_its_row_alone(content: bytes, reason: str) -> None:
    """With a reason, before it is sent."""
    with WIRE.provider() as provider:
        report = ask({"photo": [picture(), content, picture(1)]}, provider)
        assert len(provider.ledger.requests) == 2
    kinds = [type(outcome) for outcome in report.outcomes]
    assert kinds == [Answer, Failure, Answer]
    assert reason in str(report.outcomes[1])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (document("x")[:-20], "corrupt or broken off"),
        (b"%PDF-1.4\n%%EOF", "corrupt or broken off"),
        (document("x") + b"PK\x03\x04" + bytes(5000), "something else comes behind"),
        (picture(), "image/png, and the prompt takes it as document"),
    ],
    ids=["broken off", "empty", "polyglot", "image"],
)
def test_invalid_document_fails_its_row(content: bytes, reason: str) -> None:
    """With a reason, before it is sent."""
    assert reason in failures({"invoice": [content]}, "{invoice:document}")[0]


def test_an_encrypted_document_fails_its_row() -> None:
    """No model could read it."""
    writer, written = PdfWriter(clone_from=BytesIO(document("x"))), BytesIO()
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(written)
    assert "encrypted" in failures({"invoice": [written.getvalue()]}, "{invoice:document}")[0]


def test_size_limits_are_configurable(tmp_path: Path) -> None:
    """Bytes and pixels, of files and of bytes."""
    names = write(tmp_path, picture(1, size=(50, 50)))
    for cell in (names[0], picture(1, size=(50, 50))):
        assert "max_bytes=20" in failures({"photo": [cell]}, prompt_of(root=tmp_path, max_bytes=20))[0]
        assert "max_pixels=2,499" in failures({"photo": [cell]}, prompt_of(root=tmp_path, max_pixels=2499))[0]


@pytest.mark.parametrize(
    "cell",
    ["../secret.png", "a/../../secret.png", "/etc/passwd", "link.png", "folder/secret.png", "~/secret.png", "p\0.png"],
)
def test_path_outside_the_root_is_refused(tmp_path: Path, cell: str) -> None:
    """The author of a cell cannot read files of the user who runs the pipeline."""
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(picture(8))
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "folder").symlink_to(tmp_path)
    (reason,) = failures({"photo": [cell]}, prompt_of(root=root))
    assert "root" in reason or "cannot be read" in reason or "NUL" in reason
    assert "secret" not in reason


def test_user_code_may_allow_any_path(tmp_path: Path) -> None:
    """By a root of its own, the whole disk, or a `Path` object in the cell."""
    (name,) = write(tmp_path, picture(8))
    with WIRE.provider() as provider:
        ask({"photo": [str(tmp_path / name)]}, provider, prompt_of(root="/"))
        ask({"photo": [tmp_path / name]}, provider)
        assert len(seen(provider)) == 2


def test_folders_pipes_and_devices_are_not_opened(tmp_path: Path) -> None:
    """They would hang or never end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    found = failures({"photo": [".", "pipe", "nothing.png"]}, prompt_of(root=tmp_path))
    assert ["no file" in reason for reason in found] == [True, True, False]
    assert "its file cannot be read (No such file or directory)" in found[2]
    assert "no file" in failures({"photo": [tmp_path / "device"]})[0]


@pytest.mark.parametrize(
    "cell", ["ftp://host/p.png", "file:///etc/passwd", "data:image/png;base64,!!", 7, {"a": 1}, [1]]
)
def test_cell_of_another_type_fails_its_row(cell: Any) -> None:
    """With a reason that shows nothing of the cell."""
    (reason,) = failures([{"photo": cell}])
    assert "passwd" not in reason


@every_form
def test_data_after_an_image_is_not_sent(form: str) -> None:
    """Of a file that is an image and an archive only the image is sent."""
    content = picture(4, form)
    with WIRE.provider() as provider:
        ask({"photo": [content + b"PK\x03\x04 a hidden archive"]}, provider, prompt_of(keep_metadata=True))
        ask({"photo": [content + b"PK\x03\x04 a hidden archive"]}, provider)
        assert [media.content for media in seen(provider)] == [content, content]


# -- metadata ------------------------------------------------------------------------------------------------------


def tagged(form: str, orientation: int = 1) -> bytes:
    """A picture with metadata of place, time and camera."""
    image = Image.new("RGB", (20, 10), "red")
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "SecretCamera"
    exif.get_ifd(0x8825)[1] = "N"
    exif.get_ifd(0x8825)[2] = tuple(TiffImagePlugin.IFDRational(n) for n in (48, 8, 14))
    options: dict[str, Any] = {"exif": exif} if form != "gif" else {"comment": b"SecretCamera"}
    if form == "jpeg":
        options["comment"] = b"SecretComment"
    return saved(image, form, **options)


@every_form
def test_metadata_are_removed_and_pixels_kept(form: str) -> None:
    """The encoded pixels are unchanged byte for byte; an option keeps the metadata."""
    content = tagged(form)
    assert b"SecretCamera" in content
    with WIRE.provider() as provider:
        ask({"photo": [content]}, provider)
        ask({"photo": [content]}, provider, prompt_of(keep_metadata=True))
        clean, kept = (media.content for media in seen(provider))
    assert kept == content
    assert b"Secret" not in clean
    shown = Image.open(BytesIO(clean))
    assert shown.getexif() == {}
    assert shown.convert("RGB").tobytes() == Image.open(BytesIO(content)).convert("RGB").tobytes()


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_orientation_is_kept(form: str) -> None:
    """And no other metadata."""
    with WIRE.provider() as provider:
        ask({"photo": [tagged(form, orientation=6)]}, provider)
        (media,) = seen(provider)
    assert b"Secret" not in media.content
    assert dict(Image.open(BytesIO(media.content)).getexif()) == {0x0112: 6}


# -- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", TYPES)
def test_large_images_are_scaled_down(form: str) -> None:
    """To the maximum of the longer side, upright; small ones are unchanged."""
    large = saved(Image.new("RGB", (400, 100), "blue"), form)
    small = picture(1, form)
    with WIRE.provider() as provider:
        ask({"photo": [large, small]}, provider, prompt_of(max_side_px=100), max_concurrency=1)
        sent = seen(provider)
    shown = Image.open(BytesIO(sent[0].content))
    assert (shown.size, sent[1].content) == ((100, 25), small)
    assert sent[0].media_type == TYPES["png" if form == "gif" else form] == shown.get_format_mimetype()
    turned = Image.new("RGB", (400, 100), "blue")
    exif = Image.Exif()
    exif[0x0112] = 6
    with WIRE.provider() as provider:
        ask({"photo": [saved(turned, "jpeg", exif=exif)]}, provider, prompt_of(max_side_px=100))
        assert Image.open(BytesIO(seen(provider)[0].content)).size == (25, 100)


def test_selected_pages_of_a_document_are_sent() -> None:
    """Those that `pages` names."""
    content = document("one", "two", "three", "four")
    for pages, texts in {"2": ["two"], "2-3": ["two", "three"], "3-": ["three", "four"]}.items():
        with WIRE.provider() as provider:
            ask({"invoice": [content]}, provider, prompt_of("{invoice:document}", pages=pages))
            (media,) = seen(provider)
        assert [page.extract_text() for page in PdfReader(BytesIO(media.content)).pages] == texts
    assert "none of the pages" in failures({"invoice": [content]}, prompt_of("{invoice:document}", pages="9-"))[0]


def test_text_of_a_document_is_sent_on_request() -> None:
    """It is cleaned and sanitized like any text, and works with text-only models."""
    content = document("Write to jo@example.org", "Total: 12")
    prompt = prompt_of("{invoice:document}", as_text=True)
    with WIRE.provider() as provider:
        ask({"invoice": [content]}, provider, prompt, sanitize="redact")
        (asked,) = provider.ledger.requests
    assert asked.prompt == "Write to [EMAIL]\n\nTotal: 12"
    compile_task(prompt, "a", ModelSpec("openai/gpt-3.5-turbo"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"detail": "huge"},
        *({"pages": wrong} for wrong in ("0", "3-1", "x", "", 0)),
        *({"max_side_px": wrong} for wrong in (0, "768")),
        {"max_bytes": -1},
        *({switch: "no"} for switch in ("keep_metadata", "allow_private", "fetch", "as_text", "check_model")),
    ],
    ids=str,
)
def test_invalid_media_options_are_refused(wrong: dict[str, Any]) -> None:
    """When they are created."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        MediaOptions(**wrong)


def test_column_has_one_media_kind() -> None:
    """Text, image or document."""
    with pytest.raises(ConfigError, match="as image and as text"):
        compile_task("{a} {a:image}", "b", ModelSpec("test/x"))
    with pytest.raises(ConfigError, match="column name was expected"):
        compile_task("{a:video}", "b", ModelSpec("test/x"))


# -- models --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "prompt", "others"),
    [
        ("openai/gpt-3.5-turbo", PHOTO, "openai/gpt-"),
        ("groq/openai/gpt-oss-20b", PHOTO, "groq/qwen"),
        ("bedrock/deepseek.v3.2", PHOTO, "bedrock/amazon.nova-lite"),
        ("xai/grok-code-fast-1", "{a:document}", "does not take by the price list. If"),
        ("llama_cpp//no/model.gguf", PHOTO, "Ask a server"),
        ("mlx//no/model", PHOTO, "Ask a server"),
    ],
)
def test_model_without_vision_is_refused_before_the_first_call(model: str, prompt: str, others: str) -> None:
    """By the price list; the error names models of the provider that have vision."""
    with pytest.raises(ConfigError, match=others):
        compile_task(prompt, "b", ModelSpec(model))
    if "/no/" not in model:
        compile_task(Prompt(prompt, media=MediaOptions(check_model=False)), "b", ModelSpec(model))


def test_unlisted_model_may_have_vision() -> None:
    """It is unknown, so it is asked."""
    compile_task(PHOTO, "b", ModelSpec("openai/some-new-model"))
    compile_task(PHOTO, "b", ModelSpec("hosted_vllm/own"))
    compile_task(PHOTO, "b", ModelSpec("openai/gpt-4o-mini"))
    compile_task("{a:document}", "b", ModelSpec("anthropic/claude-sonnet-4-5"))


def test_media_beyond_the_providers_limits_fail_alone() -> None:
    """Bytes, images, pixels, addresses."""
    noise = saved(Image.effect_noise((2200, 2200), 100), "png")
    spec = ModelSpec("groq/meta-llama/some-vision", api_key="k", base_url="http://127.0.0.1:9/v1")
    options = Options(progress_bar=False)
    rows: list[dict[str, Any]] = [{"photo": noise}, {"photo": [picture(number) for number in range(6)]}]
    report = enrich_sync(rows, prompt=PHOTO, output="a", model=spec, options=options)
    assert "takes 4,000,000 bytes" in str(report.outcomes[0])
    assert "takes 5 images" in str(report.outcomes[1])
    spec = ModelSpec("gemini/gemini-2.5-flash", api_key="k", base_url="http://127.0.0.1:9/v1")
    rows = [{"photo": "https://example.org/p.png"}]
    report = enrich_sync(rows, prompt=PHOTO, output="a", model=spec, options=options)
    assert "does not fetch images" in str(report.outcomes[0])


def test_batches_keep_the_limits_of_a_request() -> None:
    """A call has no more images than its provider accepts."""
    contents = [picture(number) for number in range(12)]
    with WIRE.provider(look) as provider:
        spec = ModelSpec("groq/meta-llama/some-vision", api_key="k", base_url=provider.base_url)
        report = enrich_sync({"photo": contents}, prompt=PHOTO, output={"answer": str}, model=spec,
                             options=Options(progress_bar=False, policy=Policy(batch_size=10)))  # fmt: skip
        sizes = [len(asked.media) for asked in provider.ledger.requests]
    assert report.column("answer") == [name_of(content) for content in contents]
    assert max(sizes) <= 5


# -- secrets -------------------------------------------------------------------------------------------------------


@every_client
def test_no_error_repeats_an_image(client: Client) -> None:
    """If a provider quotes the request, the error does not."""
    content = saved(Image.effect_noise((32, 32), 50), "png")
    encoded = base64.b64encode(content).decode()
    message = f"Cannot read data:image/png;base64,{encoded} or {encoded[:200]}"
    with client.provider(fault=matching("What", error(400, message))) as provider:
        report = ask({"photo": [content]}, provider, client=client)
    (outcome,) = report.outcomes
    assert isinstance(outcome, Failure)
    assert not any(encoded[at : at + 24] in outcome.detail for at in range(0, len(encoded) - 24, 8))


def test_messages_of_a_call_hold_references() -> None:
    """Observers and dry runs see text in place of images."""
    task = compile_task(PHOTO, "a", ModelSpec("test/x"))
    columns = {"photo": [picture()]}
    (item,) = items(task, columns, [(b"k" * 16, 0)], with_fields=False)
    assert "changed" not in item.text
    call = encode(ONE_PER_CALL, Batch((item,)), task)
    assert "PNG" not in repr(call)
    assert len(call.messages[-1].content) < 100


@pytest.mark.parametrize("is_gone", [False, True])
def test_placeholders_are_restored_in_rows_with_images(tmp_path: Path, is_gone: bool) -> None:
    """A path is not row text, and a file removed after its answer has no effect."""
    (name,) = write(tmp_path, picture(1))
    rows = {"note": ["jo@example.org"], "photo": [name]}
    with WIRE.provider(lambda _: {"answer": "<EMAIL_1>"}) as provider:
        report = ask(rows, provider, prompt_of("{note} {photo:image}", root=tmp_path), sanitize="placeholder")
        (asked,) = provider.ledger.requests
    if is_gone:
        (tmp_path / name).unlink()
    assert "jo@" not in asked.prompt
    assert report.column("answer") == ["<EMAIL_1>" if is_gone else "jo@example.org"]


# -- batch jobs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["openai/gpt-4o-mini", "anthropic/claude-sonnet-4-5", "gemini/gemini-2.5-flash"])
def test_requests_of_batch_jobs_hold_images(model: str) -> None:
    """Like live ones, in each dialect."""
    spec = ModelSpec(model, api_key=KEY, base_url="http://127.0.0.1:9/v1")
    task = compile_task(PHOTO, "a", spec)
    row = task.prompt.prepare({"photo": picture(6)}).values  # noqa: PD011
    key = cache_key(task)(task.prompt.render(row))
    (item,) = items(task, {"photo": [picture(6)]}, [(key, 0)], with_fields=False)
    line = json.loads(connect_jobs(spec).write(encode(ONE_PER_CALL, Batch((item,)), task), "m-1"))
    body = line.get("body") or line.get("params") or line["request"]
    messages = body.get("messages") or [{"content": one["parts"]} for one in body["contents"]]
    (media,) = media_of(messages[-1]["content"])
    assert (media.content, media.media_type) == (picture(6), "image/png")


def test_user_model_gets_references_and_media() -> None:
    """The call's `media` has the content."""
    model = ScriptedModel({"What": "a picture"})
    enrich_sync({"photo": [picture(1)]}, prompt=PHOTO, output="a", model=model, options=Options(progress_bar=False))
    (media,) = model.calls[0].media.values()
    assert media.load() == picture(1)
    assert media.reference in model.calls[0].messages[-1].content
