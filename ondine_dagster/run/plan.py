"""Makes the plan of a step (task, options and model) from the definition, the resource and the run config."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import time
from typing import Any

import dagster as dg

from ondine_core.api import answer, spec_of
from ondine_core.batching.calibration import CalibrationPlan
from ondine_core.batching.strategy import BatchStrategy, explain_fallback
from ondine_core.engine.in_thread import run_in_thread
from ondine_core.engine.jobs.waits import find_wait
from ondine_core.engine.options import Options
from ondine_core.engine.report import Report
from ondine_core.errors import ConfigError
from ondine_core.prompts.task import Task
from ondine_core.store import open_store
from ondine_core.telemetry.registry import ObserverSpec
from ondine_core.types.ledger import Origin
from ondine_core.types.protocols import ChatModel
from ondine_dagster.checks.check import Ask, Check
from ondine_dagster.config.answer_by import find_deadline
from ondine_dagster.config.launchpad import LLMAssetConfig, configure
from ondine_dagster.reporting.metadata import partition_keys
from ondine_dagster.resource import LLMResource, default_store, store_warning
from ondine_dagster.run.arguments import Arguments
from ondine_dagster.run.progress import Watch

_RETRY_NUMBER = "dagster/retry_number"
"""The tag of a run that Dagster's daemon launched to retry a failed one; a run that a person launched lacks it."""


@dataclass(frozen=True, slots=True)
class Enrichment:
    """The compiled arguments of an asset.

    The model of `task` comes from the resource. `calibration` are the settings for testing the batch size before the
    run; `None` if it is not tested.
    """

    task: Task
    error_column: str
    arguments: Arguments
    strategy: BatchStrategy
    calibration: CalibrationPlan | None
    checks: Mapping[str, Check]


@dataclass(frozen=True, slots=True)
class Plan:
    """The task and options of a step; `model` is the resource if that is an open `ChatModel`."""

    task: Task
    options: Options
    model: ChatModel | None


def plan(
    context: dg.AssetExecutionContext, enrichment: Enrichment, llm: Any, config: LLMAssetConfig, watch: Watch
) -> Plan:
    """Make the plan of the step of `context`."""
    store, model = default_store(context.instance), None
    if isinstance(llm, LLMResource):
        store = llm.store or store
        spec, options = llm.spec(), llm.options(store)
        watch.every_s = llm.progress_every_s
    elif callable(llm):
        spec = spec_of(llm)
        options = Options(store=store)
        model = llm
    else:
        raise ConfigError(f"The resource is a {type(llm).__name__}; an LLMResource or a ChatModel was expected.")
    declared = enrichment.arguments
    _explain(context, enrichment, store)
    policy = replace(
        options.policy,
        batch_size=declared.batch_size,
        strategy=enrichment.strategy,
        calibration=enrichment.calibration,
        keep_replies=declared.keep_replies,
        on_missing=declared.on_missing,
        retry_failed_rows=declared.retry_failed_rows,
    )
    asset, partition = context.asset_key_for_output().to_user_string(), _partition(context)
    options = replace(
        options,
        policy=policy,
        origin=Origin(context.run.run_id, asset, partition),
        budget_run=_find_retried_run(context),
        lease=f"{asset}/{partition}",
        max_cost_usd=declared.max_cost_usd,
        on_progress=watch.keep,
        on_wait=watch.wait,
        on_threshold=watch.warn,
        on_warning=watch.warn,
        on_job=watch.inform,
        observers=tuple(_with_dagster_log(spec, watch) for spec in options.observers),
        on_observer_error=watch.warn,
        traceparent=context.run.tags.get("traceparent"),
    )
    spec = replace(spec, tier=declared.tier or spec.tier, prompt_cache=declared.prompt_cache or spec.prompt_cache)
    spec, options = configure(config, spec, options, opened=model is not None)
    if spec.tier == "batch" and config.max_rows is not None:
        # Under another partition, as the materialization must not wait for the jobs of a trial.
        options = replace(options, origin=replace(options.origin, partition=f"{partition} (trial)".strip()))
    policy = options.policy
    if config.full_refresh:
        policy = replace(policy, reuse_since=_created_at(context))
    answer_by = declared.answer_by if config.answer_by is None else config.answer_by
    if answer_by is not None and spec.tier == "batch":
        with open_store(store) as opened:
            wait = run_in_thread(lambda: find_wait(opened, options.origin))
        policy = replace(policy, answer_by=find_deadline(answer_by, wait.since if wait else time()))
    return Plan(replace(enrichment.task, model=spec), replace(options, policy=policy), model)


def _explain(context: dg.AssetExecutionContext, enrichment: Enrichment, store: str) -> None:
    """Log notes for the user before the first call."""
    warning = store_warning(store, os.environ.get("DAGSTER_HOME"))
    if warning:
        context.log.warning(warning)
    fallback = explain_fallback(enrichment.task) if enrichment.arguments.batch_size != 1 else None
    if fallback:
        context.log.info(fallback)


def _with_dagster_log(spec: ObserverSpec, watch: Watch) -> ObserverSpec:
    """`spec`; the observer `logging` writes to Dagster's log by default."""
    mapping = {"name": spec} if isinstance(spec, str) else spec
    if isinstance(mapping, Mapping) and mapping.get("name") == "logging":
        return {"form": "console", "logger": watch, **mapping}
    return spec


def _partition(context: dg.AssetExecutionContext) -> str:
    """The partition of the run, the first and last of several, or `""`."""
    keys = partition_keys(context)
    if len(keys) > 1:
        return f"{keys[0]}...{keys[-1]}"
    return str(keys[0]) if keys else ""


def _find_retried_run(context: dg.AssetExecutionContext) -> str:
    """The first run of a series in which Dagster retried each failed run; usually this run."""
    run = context.run
    while _RETRY_NUMBER in run.tags and run.parent_run_id:
        parent = context.instance.get_run_by_id(run.parent_run_id)
        if parent is None:
            return run.parent_run_id
        run = parent
    return run.run_id


def _created_at(context: dg.AssetExecutionContext) -> float:
    """When this run, or the first run that it repeats, was created; answers since then are its own."""
    record = context.instance.get_run_record_by_id(context.run.root_run_id or context.run.run_id)
    return record.create_timestamp.timestamp() if record else time()


def ask_as_asset(plan: Plan, report: Report, watch: Watch) -> Ask:
    """A function that asks about labelled rows like the asset's rows, but by calls instead of batch jobs.

    Concurrent partitions ask one after the other, so the first one pays and the others find its answers.
    """
    options = plan.options
    size = report.calibrated.batch_size if report.calibrated else options.policy.batch_size
    options = replace(
        options,
        policy=replace(options.policy, batch_size=size, calibration=None),
        lease=f"{options.origin.asset}/labelled rows",
        on_progress=lambda _: None,
        on_wait=lambda _: None,
    )

    spec = plan.task.model
    task = replace(plan.task, model=replace(spec, tier="standard")) if spec.tier == "batch" else plan.task

    def ask(columns: Mapping[str, Sequence[Any]]) -> Report:
        try:
            return run_in_thread(lambda: answer(columns, task, options, plan.model), watch.tick)
        except Exception:
            raise
        except BaseException:
            # An interrupt: report the spend on the rows of the asset.
            watch.observe()
            raise

    return ask
