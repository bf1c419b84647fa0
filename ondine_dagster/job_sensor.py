"""A sensor that polls batch jobs without a step, and requests a run when they have ended.

The store has the assets and partitions that wait for jobs, with the run that submitted the jobs. The sensor asks the
provider for the state of the jobs and repeats the run for assets that still wait, with its partition, config and tags.
"""

# No `from __future__ import annotations` here: Dagster reads the annotations of functions made in this module.
import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from time import time
from typing import Any

import dagster as dg

from ondine_core.engine.in_thread import run_in_thread
from ondine_core.engine.jobs.polling import poll_jobs
from ondine_core.errors import ConfigError, OndineError
from ondine_core.providers.job_api import JobApi
from ondine_core.providers.jobs import connect_jobs
from ondine_core.providers.settings import another_model
from ondine_core.store import Store, job_tables, open_store, parse_address
from ondine_core.types.job_record import JobRecord, JobWait
from ondine_core.types.numbers import is_whole
from ondine_dagster.resource import LLMResource, default_store, find_own_resource
from ondine_dagster.run.failed_rows import FAILED_OUTPUT

_POLLS_AT_ONCE = 8
_POLL_TIMEOUT_S = 40.0
"""For all polls of a store: Dagster ends a tick after a minute."""
_DIGEST_BYTES = 12
_NOTES_SHOWN = 20
_NO_ROOM_TICKS = 5
"""Intervals of the sensor after which a run that found no room for a job is repeated."""
_RUN_KEY, _PARTITION = "dagster/run_key", "dagster/partition"
_REPEATED_TAGS = frozenset(
    (
        *("dagster/asset_partition_range_start", "dagster/asset_partition_range_end", "dagster/backfill"),
        *("dagster/concurrency_key", "dagster/image", "dagster/isolation", "dagster/max_retries"),
        *("dagster/max_runtime", "dagster/priority", "dagster/retry_on_asset_or_op_failure", "dagster/retry_strategy"),
    )
)
"""Dagster's own tags that configure a run; the others describe its origin."""
_DAGSTER_TAGS = ("dagster/", ".dagster/")


def batch_sensor(
    target: Any = None,
    *,
    name: str = "batch_sensor",
    resource_keys: str | Sequence[str] = "llm",
    minimum_interval_seconds: int = 60,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.STOPPED,
    **sensor_arguments: Any,
) -> dg.SensorDefinition:
    """A sensor that polls the batch jobs of assets with `tier="batch"` and requests a run when they have ended.

    A step of the batch tier waits for its jobs for `batch_wait_s` and then ends without a materialization. This sensor
    continues from there: when all jobs that a run waits for have ended, or `answer_by` is reached, it requests a run
    with the same partition, config and tags, of the assets that wait and the downstream assets of the first run. It
    never does so twice for the same jobs, nor while the run that waits is still running, nor after a person terminated
    it.

    Args:
        target: The assets: keys, definitions, or an `AssetSelection`; by default all of the code location. Or a job
            made by `define_asset_job`, which is then run.
        name: Name of the sensor.
        resource_keys: The keys of the `LLMResource`s of the assets; assets with a model of their own need none.
        minimum_interval_seconds: Seconds between two polls of the jobs.
        default_status: Whether the sensor runs without being switched on.
        **sensor_arguments: The other arguments of `dg.SensorDefinition`: a description, tags, metadata.

    Raises:
        ConfigError: An argument is not valid.
    """
    keys = (resource_keys,) if isinstance(resource_keys, str) else resource_keys
    if not isinstance(keys, Sequence) or not all(isinstance(key, str) and key.isidentifier() for key in keys):
        raise ConfigError(f"resource_keys={resource_keys!r} must be the key of a resource, such as 'llm', or several.")
    if not is_whole(minimum_interval_seconds, 1):
        raise ConfigError(f"minimum_interval_seconds={minimum_interval_seconds!r} must be a whole number from 1.")
    target = _parse_target(target)
    is_selection = isinstance(target, dg.AssetSelection)
    selection: dg.AssetSelection = target if is_selection else target.selection

    def evaluate(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        with ExitStack() as stack:
            models = _find_models(context, keys, stack)
            return _evaluate(context, selection, models, _NO_ROOM_TICKS * minimum_interval_seconds)

    arguments = {"description": "Requests a run when the batch jobs that an asset waits for have ended."}
    return dg.SensorDefinition(
        name,
        evaluation_fn=evaluate,
        asset_selection=target if is_selection else None,
        job=None if is_selection else target,
        required_resource_keys=set(keys),
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        **(arguments | sensor_arguments),
    )


def _parse_target(target: Any) -> Any:
    """A selection of assets, or a job that has one."""
    if target is None:
        return dg.AssetSelection.all()
    if isinstance(target, dg.AssetSelection) or isinstance(getattr(target, "selection", None), dg.AssetSelection):
        return target
    assets = target if isinstance(target, list | tuple | set | frozenset) else [target]
    try:
        return dg.AssetSelection.assets(*assets)
    except Exception as error:
        raise ConfigError(
            f"target={target!r} must be keys of assets, assets, an AssetSelection, or a job made by define_asset_job."
        ) from error


# -- models --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Models:
    """The models of a code location, and the store of models that name no store.

    `shared` models are by resource key; those in `own` belong to one asset each.
    """

    shared: Mapping[str, LLMResource]
    own: Mapping[dg.AssetKey, LLMResource]
    default_store: str

    @property
    def stores(self) -> list[str]:
        return sorted({llm.store or self.default_store for llm in (*self.shared.values(), *self.own.values())})

    def of(self, key: dg.AssetKey, required: Iterable[str]) -> list[LLMResource]:
        """The models that may have submitted a job of an asset; `required` are its resource keys."""
        if key in self.own:
            return [self.own[key]]
        models = [self.shared[name] for name in required if name in self.shared]
        return models or list(self.shared.values())


def _find_models(context: dg.SensorEvaluationContext, keys: Sequence[str], stack: ExitStack) -> _Models:
    resources = {key: getattr(context.resources, key) for key in keys}
    shared = {key: llm for key, llm in resources.items() if isinstance(llm, LLMResource)}
    own = {}
    for key, asset in _assets(context).items():
        definition = find_own_resource(asset)
        if definition is not None:
            built = stack.enter_context(dg.build_resources({"llm": definition}, instance=context.instance))
            if isinstance(built.llm, LLMResource):
                own[key] = built.llm
    return _Models(shared, own, default_store(context.instance))


def _assets(context: dg.SensorEvaluationContext) -> Mapping[dg.AssetKey, dg.AssetsDefinition]:
    return context.repository_def.assets_defs_by_key if context.repository_def else {}


# -- a tick --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A run that ended while materializations of it wait for jobs."""

    run: dg.DagsterRun
    waits: tuple[JobWait, ...]

    @property
    def jobs(self) -> list[bytes]:
        return sorted({job for wait in self.waits for job in wait.jobs})

    @property
    def run_key(self) -> str:
        """A key of the run and its jobs, so that Dagster launches one run for them."""
        digest = hashlib.blake2b(b"".join(self.jobs), digest_size=_DIGEST_BYTES).hexdigest()
        return f"{self.run.run_id}-{digest}"

    @property
    def keys(self) -> list[dg.AssetKey]:
        return [dg.AssetKey.from_user_string(name) for name in sorted({wait.origin.asset for wait in self.waits})]

    def __str__(self) -> str:
        parts = sorted({wait.origin.partition for wait in self.waits if wait.origin.partition})
        names = ", ".join(key.to_user_string() for key in self.keys)
        return f"{names} [{', '.join(parts)}]" if parts else names


@dataclass(frozen=True, slots=True)
class _Polled:
    """The provider's status of the open jobs of a run.

    `is_ready` says that a new run can read results; `problem` says why the jobs could not be polled.
    """

    is_ready: bool
    jobs: Sequence[JobRecord] = ()
    problem: str = ""

    def __str__(self) -> str:
        done, requests = sum(job.done for job in self.jobs), sum(job.requests for job in self.jobs)
        states = ", ".join(sorted({job.shown_status for job in self.jobs}))
        jobs = "1 batch job" if len(self.jobs) == 1 else f"{len(self.jobs):,} batch jobs"
        return f"{jobs} under way ({states}), {done:,} of {requests:,} requests are done"


def _evaluate(
    context: dg.SensorEvaluationContext, selection: dg.AssetSelection, models: _Models, no_room_s: float
) -> dg.SensorResult:
    """Request the runs that are due, and report the jobs in progress.

    A run that found no room for a job is repeated after `no_room_s` seconds.
    """
    requests: list[dg.RunRequest] = []
    notes: list[str] = []
    problems: list[str] = []
    assets = _assets(context)
    watched = {key.to_user_string() for key in selection.resolve(list(dict.fromkeys(assets.values())))}

    @cache
    def partitions_of(key: dg.AssetKey) -> frozenset[str] | None:
        """The partitions of an asset; `None` if it is not partitioned, even if other assets of its run are."""
        definition = assets[key].partitions_def
        keys = definition.get_partition_keys(dynamic_partitions_store=context.instance) if definition else None
        return None if keys is None else frozenset(keys)

    def has_partition(key: dg.AssetKey, partition: str | None) -> bool:
        keys = partitions_of(key)
        return partition is None or keys is None or partition in keys

    for path_or_url in models.stores:
        try:
            waits = [wait for wait in _read_waits(path_or_url) if wait.origin.asset in watched]
            due = _find_due(context, waits, no_room_s, notes)
            polled = run_in_thread(partial(_poll_all, path_or_url, due, models, assets)) if due else []
        except OndineError as error:
            problems.append(str(error))
            continue
        for waiting, status in zip(due, polled, strict=True):
            partition = waiting.run.tags.get(_PARTITION)
            if status.problem:
                problems.append(f"{waiting}: {status.problem}")
            elif status.is_ready and all(has_partition(key, partition) for key in waiting.keys):
                requests.append(_request(context, waiting))
            elif status.is_ready:  # with one invalid request, Dagster would launch none
                notes.append(f"{waiting}: its jobs have ended, but there is no partition {partition!r} any more.")
            else:
                notes.append(f"{waiting}: {status}.")
    return _sensor_result(context, requests, notes, problems)


def _sensor_result(
    context: dg.SensorEvaluationContext, requests: list[dg.RunRequest], notes: list[str], problems: list[str]
) -> dg.SensorResult:
    for problem in problems:
        context.log.error(problem)
    if requests:
        return dg.SensorResult(requests)
    if problems:  # a failed tick is noticed, a skipped one is not
        raise dg.Failure("\n".join([*problems, *notes]))
    if len(notes) > _NOTES_SHOWN:
        notes[_NOTES_SHOWN:] = [f"And {len(notes) - _NOTES_SHOWN:,} more."]
    return dg.SensorResult(skip_reason="\n".join(notes) or "No asset waits for batch jobs.")


def _read_waits(path_or_url: str) -> list[JobWait]:
    address = parse_address(path_or_url)
    if address.kind != "postgres" and not Path(address.text).exists():
        return []
    with open_store(path_or_url) as store:
        return run_in_thread(lambda: store.read(job_tables.read_waits))


def _find_due(
    context: dg.SensorEvaluationContext, waits: Sequence[JobWait], no_room_s: float, notes: list[str]
) -> list[_Waiting]:
    """The runs whose jobs are to be polled; adds to `notes` why others are not."""
    by_run: dict[str, list[JobWait]] = {}
    for wait in waits:
        by_run.setdefault(wait.last_run, []).append(wait)
    due = []
    for run_id, run_waits in by_run.items():
        run = context.instance.get_run_by_id(run_id)
        if run is None:
            names = ", ".join(sorted({wait.origin.asset for wait in run_waits}))
            notes.append(f"{names}: the run {run_id} that waits for jobs is not known here, so it cannot be repeated.")
            continue
        waiting = _Waiting(run, tuple(run_waits))
        requested = context.instance.get_runs(dg.RunsFilter(tags={_RUN_KEY: waiting.run_key}), limit=1)
        if not run.is_finished:
            notes.append(f"{waiting}: the run {run_id} is running.")
        elif run.status == dg.DagsterRunStatus.CANCELED:
            notes.append(f"{waiting}: the run {run_id} was terminated; launch it again to read what its jobs answer.")
        elif requested:
            state = "has ended; if it failed, launch it again" if requested[0].is_finished else "is running"
            notes.append(f"{waiting}: the run {requested[0].run_id} was requested to read the answers and {state}.")
        elif not waiting.jobs and not _ended_before(context, run_id, time() - no_room_s):
            notes.append(f"{waiting}: the account has no room for another batch job; a run tries again soon.")
        else:
            due.append(waiting)
    return due


def _ended_before(context: dg.SensorEvaluationContext, run_id: str, time_s: float) -> bool:
    """Whether a run ended at this time (in epoch seconds) or earlier, or at an unknown time."""
    record = context.instance.get_run_record_by_id(run_id)
    return record is None or record.end_time is None or record.end_time <= time_s


# -- polling -------------------------------------------------------------------------------------------------------


async def _poll_all(
    path_or_url: str, due: Sequence[_Waiting], models: _Models, assets: Mapping[dg.AssetKey, dg.AssetsDefinition]
) -> list[_Polled]:
    """Ask providers about the jobs of several runs, some at a time."""
    slots = asyncio.Semaphore(_POLLS_AT_ONCE)
    deadline = asyncio.get_running_loop().time() + _POLL_TIMEOUT_S
    apis: dict[tuple[int, str], JobApi] = {}

    def connect(llm: LLMResource, model: str) -> JobApi:
        """The API for the jobs of `model`; one connection for each resource and model."""
        spec, key = llm.spec(), (id(llm), model)
        if key not in apis:
            apis[key] = connect_jobs(spec if spec.model == model else another_model(spec, model))
            stack.push_async_callback(apis[key].aclose)
        return apis[key]

    async def poll(waiting: _Waiting) -> _Polled:
        candidates: list[LLMResource] = []
        for key in waiting.keys:
            candidates += models.of(key, assets[key].required_resource_keys)
        try:
            async with asyncio.timeout_at(deadline), slots:
                return await _poll(store, waiting, candidates, connect)
        except OndineError as error:
            return _Polled(is_ready=False, problem=str(error))
        except TimeoutError:
            return _Polled(is_ready=False, problem=f"The provider did not answer within {_POLL_TIMEOUT_S:.0f} s.")

    with open_store(path_or_url) as store:
        async with AsyncExitStack() as stack:
            return await asyncio.gather(*map(poll, due))


async def _poll(
    store: Store, waiting: _Waiting, candidates: Sequence[LLMResource], connect: Callable[[LLMResource, str], JobApi]
) -> _Polled:
    """Poll the jobs of a run, each by the account that submitted it if one of the candidates has that."""
    read = partial(job_tables.read_jobs, jobs=waiting.jobs)
    by_api: dict[int, tuple[JobApi, list[bytes]]] = {}
    for record in await store.read(read):
        apis = [connect(llm, record.model) for llm in candidates]
        # Another account of the provider may also have access to the job.
        api = next((api for api in apis if api.account == record.account), apis[0])
        by_api.setdefault(id(api), (api, []))[1].append(record.job)
    is_ready = True
    for api, jobs in by_api.values():
        is_ready = await poll_jobs(api, store, jobs) and is_ready
    return _Polled(is_ready, await store.read(read))


# -- the run -------------------------------------------------------------------------------------------------------


def _request(context: dg.SensorEvaluationContext, waiting: _Waiting) -> dg.RunRequest:
    """The request that continues a run: the assets that wait, and the assets of the run downstream of them."""
    run = waiting.run
    assets = _assets(context)
    waiting_keys = set(waiting.keys) & assets.keys()
    outputs = [assets[key].keys_by_output_name for key in waiting_keys]
    failed_rows = {keys[FAILED_OUTPUT] for keys in outputs if FAILED_OUTPUT in keys}
    selection = dg.AssetSelection.assets(*waiting_keys, *failed_rows).downstream()
    planned = {
        entry.dagster_event.asset_key
        for entry in context.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED)
        if entry.dagster_event
    }
    chosen = sorted(selection.resolve(list(dict.fromkeys(assets.values()))) & planned)
    is_partitioned = any(assets[key].partitions_def is not None for key in chosen)
    return dg.RunRequest(
        run_key=waiting.run_key,
        run_config=run.run_config,
        tags={
            tag: value for tag, value in run.tags.items() if tag in _REPEATED_TAGS or not tag.startswith(_DAGSTER_TAGS)
        },
        partition_key=run.tags.get(_PARTITION) if is_partitioned else None,
        asset_selection=chosen,
    )
