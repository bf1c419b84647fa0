"""Token bounds of images and documents against the providers' own rules, and their effect on budgets."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from math import ceil, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core.engine.cost_tracker import CostTracker
from ondine_core.providers.media_tokens import max_media_tokens
from ondine_core.providers.pricing import Price
from ondine_core.types.media import Media
from ondine_core.types.values import Call, Message

sides = st.integers(1, 9_000)
Bill = Callable[[int, int], int]


def image(width: int, height: int, **more: str) -> Media:
    return Media("image", "image/png", "0" * 32, 1000, width, height, **more)  # type: ignore[arg-type]


# What providers bill, taken from their pages and not from the code.


def tiles(base: int, tile: int) -> Bill:
    def bill(width: float, height: float) -> int:
        if max(width, height) > 2048:
            width, height = width * 2048 / max(width, height), height * 2048 / max(width, height)
        if min(width, height) > 768:
            width, height = width * 768 / min(width, height), height * 768 / min(width, height)
        return base + tile * ceil(round(width, 6) / 512) * ceil(round(height, 6) / 512)

    return bill


def patches(factor: Decimal, most: int | None) -> Bill:
    def bill(width: int, height: int) -> int:
        count = ceil(width / 32) * ceil(height / 32)
        if most is not None and count > most:
            shrink = sqrt(32 * 32 * most / (width * height))
            across, down = width * shrink / 32, height * shrink / 32
            shrink *= min(max(1, int(across)) / across, max(1, int(down)) / down)
            count = min(most, ceil(width * shrink / 32) * ceil(height * shrink / 32))
        return ceil(count * factor)

    return bill


def claude(side: int, most: int) -> Bill:
    def bill(width: float, height: float) -> int:
        scale = min(1, side / max(width, height), sqrt(most * 784 / (width * height)))
        return min(most, ceil(width * scale / 28) * ceil(height * scale / 28))

    return bill


def gemini_2(width: int, height: int) -> int:
    if max(width, height) <= 384:
        return 258
    unit = max(1, int(min(width, height) / 1.5))
    return 258 * ceil(width / unit) * ceil(height / unit)


def qwen(width: float, height: float) -> int:
    scale = min(1.0, sqrt(12_845_056 / (width * height)))
    return max(4, ceil(width * scale / 28) * ceil(height * scale / 28))


RULES: dict[str, Bill] = {
    "openai/gpt-4o": tiles(85, 170),
    "openai/gpt-4.1-2025-04-14": tiles(85, 170),
    "azure/gpt-4o-mini": tiles(2833, 5667),
    "openai/o3": tiles(75, 150),
    "openai/gpt-5": tiles(70, 140),
    "openai/gpt-5-chat-latest": tiles(70, 140),
    "openai/gpt-5-mini": patches(Decimal("1.62"), 1536),
    "openrouter/openai/gpt-5-nano": patches(Decimal("2.46"), 1536),
    "openai/gpt-4.1-mini": patches(Decimal("1.62"), 1536),
    "openai/gpt-4.1-nano": patches(Decimal("2.46"), 1536),
    "openai/o4-mini": patches(Decimal("1.72"), 1536),
    "openai/gpt-5.5": patches(Decimal("1.2"), 10_000),
    "openai/gpt-6-astra": patches(Decimal("1.2"), None),
    "anthropic/claude-sonnet-4-5": claude(1568, 1568),
    "anthropic/claude-haiku-4-5": claude(1568, 1568),
    "anthropic/claude-3-5-sonnet-20241022": claude(1568, 1568),
    "anthropic/claude-opus-4-7": claude(2576, 4784),
    "anthropic/claude-opus-5-5": claude(2576, 4784),
    "bedrock/us.anthropic.claude-sonnet-5-v1:0": claude(2576, 4784),
    "gemini/gemini-2.5-flash": gemini_2,
    "gemini/gemini-3.1-flash-lite": lambda *_: 1120,
    "hosted_vllm/Qwen/Qwen2.5-VL-7B-Instruct": qwen,
    "ollama/llava": lambda *_: 2880,
}


@pytest.mark.parametrize("model", RULES)
@given(sides, sides)
def test_no_image_takes_more_than_its_bound(model: str, width: int, height: int) -> None:
    """For any size and shape, by every model family's rule."""
    assert max_media_tokens(model, image(width, height)) >= RULES[model](width, height)


@given(sides, sides, st.sampled_from([name for name in RULES if name.startswith("openai/")]))
def test_unknown_model_is_bounded_by_the_dearest_rule(width: int, height: int, model: str) -> None:
    """A deployment's name does not reveal its model."""
    assert max_media_tokens("azure/our-deployment", image(width, height)) >= RULES[model](width, height)


@pytest.mark.parametrize(
    ("model", "size", "tokens"),
    [
        # Measured, without the tokens of the prompt around them: JOHNISKING/image-token-cost.
        ("anthropic/claude-opus-5-5", (4032, 3024), 3928),
        ("anthropic/claude-opus-5-5", (1920, 1080), 2691),
        ("anthropic/claude-haiku-4-5", (4032, 3024), 1596),
        ("openai/gpt-6-astra", (4032, 3024), 14_364),
        ("openai/gpt-6-astra", (1024, 1024), 1229),
        ("openai/gpt-5.5", (3840, 2160), 9792),
        ("gemini/gemini-3.1-flash-lite", (4032, 3024), 1101),
        # From OpenAI's page.
        ("openai/gpt-4o", (1024, 1024), 765),
        ("openai/gpt-4o", (2048, 4096), 1105),
        ("openai/gpt-5-mini", (1800, 2400), 2353),
    ],
)
def test_bounds_hold_for_measured_images(model: str, size: tuple[int, int], tokens: int) -> None:
    """They are within a factor of three of the measurement."""
    assert tokens <= max_media_tokens(model, image(*size)) <= 3 * tokens


def test_low_detail_costs_the_base_tokens() -> None:
    """By OpenAI's rule of tiles."""
    assert max_media_tokens("openai/gpt-4o", image(4000, 4000, detail="low")) == 85


def test_an_unknown_size_is_bounded_as_a_large_one() -> None:
    """An address that is passed on may name an image of any size."""
    for model, rule in RULES.items():
        assert max_media_tokens(model, image(0, 0)) >= rule(8_000, 6_000)


@pytest.mark.parametrize("model", RULES)
def test_pages_are_bounded(model: str) -> None:
    """A page takes its picture and up to 3,000 tokens of text; a document passed by address counts 100 pages."""
    page = RULES[model](1_536, 1_988) + 3_000
    assert max_media_tokens(model, Media("document", "application/pdf", "0" * 32, pages=7)) >= 7 * page
    assert max_media_tokens(model, Media("document", "application/pdf", "0" * 32)) >= 100 * page


@given(st.lists(st.tuples(sides, sides), max_size=4), st.sampled_from(list(RULES)), st.text(max_size=20))
def test_reservations_hold_the_cost_of_images(sizes: list[tuple[int, int]], model: str, text: str) -> None:
    """For each use of an image, whatever text is around it."""
    media = [Media("image", "image/png", f"{n:032x}", 1, *size) for n, size in enumerate(sizes)]
    shown = [*media, *media[:1]]
    call = Call(
        (Message("user", text.join(one.reference for one in shown)),), media={one.reference: one for one in media}
    )
    price = Price(Decimal(1), Decimal(2), Decimal("0.5"))
    bound = CostTracker(price, 10, media_tokens=lambda one: max_media_tokens(model, one)).bound(call)
    words = len(text.encode()) * max(0, len(shown) - 1)
    billed = words + sum(RULES[model](one.width, one.height) for one in shown) + 10 * 2
    assert bound is not None
    assert bound >= billed
