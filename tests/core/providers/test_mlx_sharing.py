"""One MLX model for concurrent callers: batches, cancelling, loading, memory."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from ondine_core.errors import FatalError, TransientError
from ondine_core.providers import connect
from ondine_core.providers.mlx import MlxModel
from ondine_core.types.values import ModelSpec, Reply
from tests.support.asking_mlx import (
    ENDLESS,
    ask,
    ask_in_turn,
    ask_together,
    ask_with,
    task,
    texts,
    use,
    write_models,
)
from tests.support.tiny_mlx import write_llama_4, write_tiny_model

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models."""
    return write_models(tmp_path_factory.mktemp("mlx"))


def test_concurrent_calls_are_batched(models: Path) -> None:
    """Each gets the reply it would get alone, in a fraction of the steps."""
    calls = [task(f"Row {number * number}" + "!" * number) for number in range(16)]

    async def both(model: MlxModel) -> tuple[list[Reply], list[Reply], int, int, int]:
        start = model.work
        together = await ask_together(model, calls)
        middle = model.work
        alone = await ask_in_turn(model, calls)
        return together, alone, middle.steps - start.steps, model.work.steps - middle.steps, middle.most_at_once

    together, alone, steps, steps_alone, most_at_once = use(models / "chat", both)
    assert texts(together) == texts(alone)
    assert [reply.usage.output_tokens for reply in together] == [reply.usage.output_tokens for reply in alone]
    assert len(set(texts(alone))) > 8
    assert most_at_once >= 12
    assert steps < steps_alone / 6


def test_call_joins_a_running_batch(models: Path) -> None:
    """It waits neither for a batch to fill nor for one to end."""

    async def join(model: MlxModel) -> tuple[Reply, bool]:
        first = await model(task("short"))
        long = asyncio.ensure_future(ask_with(models / "endless", "Tell me everything.", max_output_tokens=3000))
        second = await model(task("short"))
        was_writing = not long.done()
        long.cancel()
        await asyncio.wait({long})
        assert second.text == first.text
        return second, was_writing

    reply, was_writing = use(models / "endless", join)
    assert was_writing
    assert reply.usage.output_tokens == 40


def test_cancelled_call_leaves_its_batch(models: Path) -> None:
    """Its generation stops; the other calls get the replies they would get alone."""
    folder = models / "endless"

    async def cancel(model: MlxModel) -> None:
        (alone,) = await ask_in_turn(model, [task("Row 1")])
        long = [asyncio.ensure_future(ask_with(folder, f"Go on {n}", max_output_tokens=30_000)) for n in range(3)]
        beside = asyncio.ensure_future(model(task("Row 1")))
        while model.work.output_tokens < alone.usage.output_tokens + 8:
            await model.count_tokens([])  # one turn of MLX's thread
        for call in long:
            call.cancel()
        await asyncio.wait(long)
        assert all(call.cancelled() for call in long)
        assert (await beside).text == alone.text
        before = model.work
        (after,) = await ask_in_turn(model, [task("Row 1")])
        assert after.text == alone.text
        assert model.work.output_tokens - before.output_tokens == model.work.steps - before.steps

    use(folder, cancel)


def test_a_model_that_cannot_batch_is_refused(tmp_path: Path) -> None:
    """mlx-lm does not batch some families (Llama 4); the error names what serves them."""
    with pytest.raises(FatalError, match=r"cannot batch models of this kind; run `mlx_lm\.server`"):
        ask(write_llama_4(tmp_path / "llama4"), task("Row"))


@pytest.mark.parametrize("window", [None, 96])
def test_common_prefix_is_computed_once(tmp_path: Path, window: int | None) -> None:
    """Shared tokens are reported as cached, and replies equal those without the cache.

    Also for models whose every other layer has a sliding window.
    """
    kinds = {"sliding_window": window, "layer_types": ["sliding_attention", "full_attention"]} if window else {}
    folder = write_tiny_model(tmp_path / "model", token_biases=ENDLESS, **kinds)
    instructions = "Classify the review. Say good or bad, and how many stars it would give. " * 4
    calls = [task(f"{instructions}\nReview: {number} {'so ' * number}") for number in range(6)]

    async def cached_and_afresh(model: MlxModel) -> tuple[list[Reply], list[Reply]]:
        cached = [await model(calls[0]), *await ask_together(model, calls[1:])]
        await model.aclose()  # frees the prefix cache
        afresh = []
        for call in calls:
            afresh.append(await model(call))
            await model.aclose()
        return cached, afresh

    cached, afresh = use(folder, cached_and_afresh)
    assert texts(cached) == texts(afresh)
    assert {reply.usage.cached_input_tokens for reply in (cached[0], *afresh)} == {0}
    assert all(0 < reply.usage.cached_input_tokens - len(instructions) < 20 for reply in cached[1:])


# -- loading -------------------------------------------------------------------------------------------------------


def test_connections_share_one_model(models: Path) -> None:
    """The weights load once a process, whatever connects, and stay loaded for later connections."""

    async def main() -> None:
        async with AsyncExitStack() as stack:
            spec = ModelSpec(f"mlx/{models / 'chat'}", max_output_tokens=5)
            one, two = connect(spec), connect(ModelSpec(f"mlx/{models}/../{models.name}/chat", temperature=0.5))
            assert isinstance(one, MlxModel)
            assert isinstance(two, MlxModel)
            stack.push_async_callback(one.aclose)
            stack.push_async_callback(two.aclose)
            await ask_in_turn(one, [task("Hello")])
            await ask_in_turn(two, [task("Hello")])
            assert one.work == two.work
            assert one.work.output_tokens > 5

    asyncio.run(main())


def test_unused_model_is_unloaded_for_another(models: Path) -> None:
    """Two models may not fit into memory: an idle one is unloaded for another, one in use is not."""

    async def main() -> tuple[int, int]:
        base, chat = (connect(ModelSpec(f"mlx/{models / name}", max_output_tokens=5)) for name in ("base", "chat"))
        assert isinstance(base, MlxModel)
        assert isinstance(chat, MlxModel)
        await ask_in_turn(base, [task("Hello")])
        await ask_in_turn(chat, [task("Hello")])
        await ask_in_turn(base, [task("Hello")])
        kept = base.work.output_tokens
        await base.aclose()
        await ask_with(models / "endless", "Hello", max_output_tokens=5)
        await ask_in_turn(base, [task("Hello")])
        anew = base.work.output_tokens
        await base.aclose()
        await chat.aclose()
        return kept, anew

    kept, anew = asyncio.run(main())
    assert kept >= 10
    assert anew == 5


def test_warming_up_comes_before_the_first_call(tmp_path: Path) -> None:
    """The model is loaded and has generated a token before the first call is answered."""
    fresh = write_tiny_model(tmp_path / "fresh", token_biases=ENDLESS)

    async def work(model: MlxModel) -> int:
        await model(task("Hello"))
        return model.work.output_tokens

    assert use(fresh, work, settings={"warm_up": True}) == 41


def test_counting_does_not_load_the_model(tmp_path: Path) -> None:
    """Before the first call tokens are estimated, afterwards counted."""
    fresh = write_tiny_model(tmp_path / "fresh")

    async def counts(model: MlxModel) -> tuple[list[int], list[int]]:
        before = await model.count_tokens(["ten tokens", ""])
        await model(task("Hello"))
        return before, await model.count_tokens(["ten tokens", ""])

    assert use(fresh, counts) == ([5, 0], [10, 0])


def test_slow_reply_times_out(models: Path) -> None:
    """The time-out is an overload for the engine, and generation stops."""
    with pytest.raises(TransientError, match=r"did not finish within 0\.2 s") as caught:
        ask(models / "endless", "Hello", max_output_tokens=8000, timeout_s=0.2)
    assert (caught.value.kind, caught.value.cost_unknown) == ("overloaded", False)


@pytest.mark.parametrize("busy", [False, True])
def test_process_exits_cleanly(models: Path, busy: bool) -> None:
    """MLX's thread does not crash the interpreter at exit, even while it generates."""
    code = f"""
import asyncio
from ondine_core.providers import connect
from ondine_core.providers.mlx.failures import generation_error, load_error  # noqa: E402
from ondine_core.types.values import Call, Message, ModelSpec

async def main():
    model = connect(ModelSpec("mlx/{models / "endless"}", max_output_tokens=4000 if {busy} else 4))
    call = asyncio.ensure_future(model(Call((Message("user", "Hello"),))))
    while {busy} and not model.work.output_tokens:
        await asyncio.sleep(0.01)
    print((await call).usage.output_tokens) if not {busy} else None

loop = asyncio.new_event_loop()
loop.run_until_complete(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, "terminate" in done.stderr) == (0, False), done.stderr
