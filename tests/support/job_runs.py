"""Runs at the tier "batch" against a provider in memory, on a virtual clock; they can be killed at any step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from ondine_core.engine.jobs.waits import continue_materialization, end_wait
from ondine_core.engine.options import Options
from ondine_core.engine.policy import Policy
from ondine_core.engine.report import Report
from ondine_core.engine.run import run
from ondine_core.engine.runtime import open_runtime
from ondine_core.errors import JobsUnderWayError, ProviderError, StoreError
from ondine_core.limits.budget_limit import BudgetLimit
from ondine_core.prompts.task import compile_task
from ondine_core.prompts.template import Prompt
from ondine_core.providers.media_parts import openai_content
from ondine_core.store import Store
from ondine_core.telemetry.call_sampler import Emitted
from ondine_core.telemetry.emitter import EventEmitter
from ondine_core.types.clock import Clock
from ondine_core.types.ledger import Origin
from ondine_core.types.values import Call, ModelSpec, Reply, Tier
from tests.support.request_content import text_of
from tests.support.simulated_jobs import BATCH_PRICE, JobProvider, KillableStore, Killed, KillPoint, reply_to

__all__ = ["JobWorld", "words"]


def words(count: int) -> list[str]:
    """`count` different rows."""
    return [f"w{number}" for number in range(count)]


@dataclass
class _LiveModel:
    """Answers live calls at the same price, and records them in the same ledger."""

    provider: JobProvider
    kill_point: KillPoint
    max_concurrency: int | None = 8
    max_batch_size: int | None = None

    async def __call__(self, call: Call) -> Reply:
        text = text_of(openai_content(call.messages[-1].content, call.media))
        outcome = self.provider.answer(text) or reply_to(text)
        if isinstance(outcome, ProviderError):
            raise outcome
        self.provider.billed[text] += 1
        self.provider.usd += BATCH_PRICE.cost(outcome.usage)
        self.kill_point.step()
        return outcome

    async def aclose(self) -> None:
        """Nothing to close."""


@dataclass
class JobWorld:
    """A provider, a store, and runs that fill one column of a table.

    Args:
        clock: Virtual time.
        path: The store's path.
        max_cost_usd: Cap of a materialization.
        question: The prompt, with the column `word`.
        system: The system message.
        output: The output column.
        model: The model that is asked.
        store_takes_s: Seconds until a run has the result of a request to the store, in which other runs go on.
        budget_run: The run that the next ones repeat, if they do.
    """

    clock: Clock
    path: Path
    max_cost_usd: Decimal | None = Decimal(1)
    team_usd: Decimal | None = None
    question: str = "Say {word}"
    system: str | None = None
    output: str = "said"
    model: str = "openai/m"
    store_takes_s: float = 0.0
    budget_run: str | None = None
    warnings: list[str] = field(default_factory=list)
    events: list[Emitted] = field(default_factory=list)
    runs: int = 0
    provider: JobProvider = field(init=False)

    def __post_init__(self) -> None:
        self.provider = JobProvider(self.clock.now, reply_to)

    async def run(
        self,
        rows: Sequence[str],
        *,
        kill_point: KillPoint | None = None,
        tier: Tier = "batch",
        account: str = "a",
        asset: str = "asset",
        **policy: Any,
    ) -> Report | JobsUnderWayError | None:
        """Run once; returns the report, the error that jobs are under way, or `None` if the run was killed."""
        kill_point = kill_point or KillPoint()
        store = KillableStore(self.path, kill_point, self.store_takes_s)
        running = asyncio.ensure_future(self._run(store, rows, kill_point, tier, account, asset, policy))
        try:
            return await running
        except JobsUnderWayError as error:
            return error
        except BaseExceptionGroup as group:
            if group.subgroup(Killed) is None:
                raise
        except Killed:
            pass
        finally:
            store.close()
        return None

    async def _run(  # noqa: PLR0913, PLR0917  (one caller)
        self,
        store: Store,
        rows: Sequence[str],
        kill_point: KillPoint,
        tier: Tier,
        account: str,
        asset: str,
        policy: Mapping[str, Any],
    ) -> Report:
        self.runs += 1
        spec = ModelSpec(self.model, "k", max_output_tokens=16, tier=tier)
        task = compile_task(Prompt(self.question, system=self.system), self.output, spec)
        team = () if self.team_usd is None else (BudgetLimit(self.team_usd, "team", "ever"),)
        origin = Origin(f"run-{self.runs}", asset)
        chosen = Policy(**{"batch_min_rows": 3, "batch_wait_s": 0.0, **policy})
        options = Options(
            store=store,
            policy=await continue_materialization(store, origin, chosen),
            price=BATCH_PRICE,
            max_cost_usd=self.max_cost_usd,
            caps=team,
            on_threshold=self.warnings.append,
            on_warning=self.warnings.append,
            origin=origin,
            budget_run=self.budget_run,
            clock=self.clock,
        )
        async with AsyncExitStack() as stack:
            runtime = await open_runtime(spec, store, options, stack, _LiveModel(self.provider, kill_point))
        runtime = replace(
            runtime,
            connect_jobs=lambda _: self.provider.api(kill_point, account),
            emitter=EventEmitter(emit=self.events.append),
        )
        report = await run(task, {"word": rows}, runtime, options)
        await end_wait(store, origin)
        return report

    async def finish(self, rows: Sequence[str], *, max_runs: int = 30, **policy: Any) -> Report:
        """Run repeatedly, with pauses, until all rows have an outcome; returns the last report."""
        for _ in range(max_runs):
            report = await self.run(rows, **policy)
            if isinstance(report, Report):
                return report
            await self.clock.sleep(self.provider.takes_s / 2 + 200)
        raise AssertionError(f"After {max_runs} runs some rows have no outcome.")

    async def read(self, query: Callable[[Any], Any]) -> Any:
        """The result of a query of the store."""
        store = KillableStore(self.path, KillPoint())
        try:
            return await store.read(query)
        finally:
            with suppress(StoreError):
                store.close()
