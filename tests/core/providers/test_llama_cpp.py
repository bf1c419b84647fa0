"""The embedded model: the real llama.cpp with the weights of the extra `local`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from time import process_time

import pytest

from ondine_core.api import enrich, enrich_sync
from ondine_core.engine.options import Options
from ondine_core.errors import ConfigError, FatalError
from ondine_core.prompts.template import Prompt
from ondine_core.providers import connect
from ondine_core.providers.llama_cpp import continuation
from ondine_core.types.protocols import TokenCounter
from ondine_core.types.values import Call, Message, ModelSpec

MODEL = "llama_cpp/gemma-3-270m"
MOODS = Prompt(
    "Give the sentiment of each review.\n\nReview: {review}",
    examples=[
        ("Works like a charm, I love it.", "positive"),
        ("Broken on arrival, what a waste.", "negative"),
        ("Best lamp I ever had!", "positive"),
        ("It tore on the first day. Terrible.", "negative"),
    ],
)
STORY = Prompt("Continue.\n\nText: {text}")
OUTPUT = {"mood": {"type": "string", "enum": ["positive", "negative"]}}


def test_a_base_model_classifies_by_continuation() -> None:
    """With examples and a grammar the base model answers in the required form, and mostly right."""
    rows = [
        {"review": "I love these shoes, they are perfect."},
        {"review": "Terrible. It stopped working after a day."},
        {"review": "Fantastic tent, great quality."},
        {"review": "Waste of money, very disappointed."},
    ]
    report = enrich_sync(rows, prompt=MOODS, output=OUTPUT, model=MODEL)
    assert report.failures == {}
    right = sum(map(str.__eq__, report.column("mood"), ["positive", "negative", "positive", "negative"]))
    assert right >= 3
    assert report.spend.usd == 0
    assert report.spend.usage.output_tokens > 0


def test_free_text_ends_with_the_answer() -> None:
    """Without a grammar the model does not continue with the next question."""
    prompt = Prompt(
        "Name the product.\n\nReview: {review}", examples=[("My kettle leaks.", "kettle"), ("Nice shoes!", "shoes")]
    )
    (outcome,) = enrich_sync(
        [{"review": "This lamp is bright."}], prompt=prompt, output="product", model=MODEL
    ).outcomes
    assert "lamp" in outcome.values["product"].lower()
    assert "Review:" not in outcome.values["product"]


def test_tokens_are_counted_by_the_models_tokenizer() -> None:
    """Gemma's own tokenizer differs from OpenAI's."""

    async def count(texts: list[str]) -> list[int]:
        model = connect(ModelSpec(MODEL))
        assert isinstance(model, TokenCounter)
        try:
            return await model.count_tokens(texts)
        finally:
            await model.aclose()

    assert asyncio.run(count(["ten tokens", "", "2026"])) == [2, 0, 4]


def test_the_weights_load_once_a_process() -> None:
    """A second model of the same file uses the running server."""

    async def ask_twice() -> list[str | None]:
        ids = []
        for _ in range(2):
            model = connect(ModelSpec(MODEL, max_output_tokens=4))
            ids.append((await model(Call((Message("user", "One two three"),)))).request_id)
            await model.aclose()
        return ids

    first, second = asyncio.run(ask_twice())
    assert first != second


def test_answer_at_the_output_bound_is_truncated() -> None:
    """The bound on output tokens is reported as such."""
    report = enrich_sync([{"review": "fine"}], prompt=MOODS, output=OUTPUT, model=ModelSpec(MODEL, max_output_tokens=2))
    assert list(report.failures) == ["truncated: the reply was cut at max_output_tokens=2; raise max_output_tokens"]


def test_an_interrupt_stops_the_generation() -> None:
    """Cancelling ends the call at once, not when the model has finished generating.

    Processor time is measured; generating the whole reply takes many seconds on any machine.
    """

    async def main() -> float:
        await enrich(
            [{"text": "warm up"}], prompt=STORY, output="text_out", model=ModelSpec(MODEL, max_output_tokens=1)
        )
        task = asyncio.create_task(
            enrich(
                [{"text": "Once upon a time"}],
                prompt=STORY,
                output="story",
                model=ModelSpec(MODEL, max_output_tokens=2000),
            )
        )
        await asyncio.wait({task}, timeout=0.3)
        started = process_time()
        task.cancel()
        await asyncio.wait({task})
        return process_time() - started

    assert asyncio.run(main()) < 1


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere.gguf", "there is no file 'nowhere.gguf'"), ("gemma-4", "there is no file 'gemma-4'")],
)
def test_missing_model_is_an_error(name: str, message: str) -> None:
    """It says what was looked for and what is valid."""
    with pytest.raises(ConfigError, match=message):
        connect(ModelSpec(f"llama_cpp/{name}"))


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n"], ids=["empty", "pointer"])
def test_a_file_that_is_no_model_is_an_error(tmp_path: Path, content: bytes) -> None:
    """Before the first call."""
    (tmp_path / "none.gguf").write_bytes(content)
    with pytest.raises(ConfigError, match="not in the format GGUF"):
        connect(ModelSpec(f"llama_cpp/{tmp_path}/none.gguf"))


def test_broken_weights_are_fatal(tmp_path: Path) -> None:
    """They stop the run and are not retried row by row."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF, but broken off")
    with pytest.raises(FatalError, match=r"broken\.gguf"):
        enrich_sync([{"text": "x"}], prompt=STORY, output="y", model=f"llama_cpp/{broken}", options=Options())


def test_continuation_writes_shared_instructions_once() -> None:
    """Instructions come first and once, then examples as questions and answers, then the row."""
    turns = [
        Message("system", "You are brief."),
        Message("user", "Classify.\n\nReview: good"),
        Message("assistant", '{"mood": "positive"}'),
        Message("user", "Classify.\n\nReview: bad"),
    ]
    assert continuation(turns) == (
        'You are brief.\n\nClassify.\n\nReview: good\nAnswer: {"mood": "positive"}\n\nReview: bad\nAnswer:'
    )


def test_continuation_without_examples_is_the_prompt() -> None:
    """A prompt alone is written as it stands."""
    assert continuation([Message("user", "Classify.\nReview: bad")]) == "Classify.\nReview: bad\nAnswer:"
