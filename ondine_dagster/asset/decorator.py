"""An LLM column as an asset: the decorator, its twin for factories, and the step they share.

The decorated function is an ordinary asset function that returns the rows to enrich; this module wraps it in another
that takes the same arguments and hands the rows to `step`.
"""

# No `from __future__ import annotations` here: Dagster reads the annotations of functions made in this module.
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Unpack

import dagster as dg

from ondine_core.batching.calibration import CalibrationPlan
from ondine_core.batching.strategy import find_strategy
from ondine_core.preprocessing.cleaning import Clean
from ondine_core.preprocessing.sanitizer import Sanitize
from ondine_core.prompts.output_schema import Output
from ondine_core.prompts.task import compile_task
from ondine_core.prompts.template import Prompt
from ondine_core.types.protocols import ChatModel
from ondine_core.types.values import ModelSpec, OnMissing, PromptCache, RetriedReason, Tier
from ondine_dagster.asset.arguments import check_function, check_twin, with_valid_arguments
from ondine_dagster.asset.definition import check_arguments, code_version, definition_metadata, key_of, unknown_argument
from ondine_dagster.asset.enrichment import AssetArguments, LLMAssetArguments
from ondine_dagster.asset.signature import wrap
from ondine_dagster.checks.evaluation import golden_inputs
from ondine_dagster.checks.types import Check
from ondine_dagster.checks.validation import fit_checks
from ondine_dagster.resource import LLMResource, own_resource, own_resource_key
from ondine_dagster.run.failed_rows import define
from ondine_dagster.run.partitions import PartitionBy
from ondine_dagster.run.plan import Enrichment, OnRowError

__all__ = ["build_llm_asset", "llm_asset"]


@with_valid_arguments
def llm_asset(  # noqa: PLR0913  (all by keyword)
    *,
    prompt: str | Prompt,
    output: Output,
    clean: Clean | str = (),
    sanitize: Sanitize | None = None,
    batch_size: int | Literal["auto"] = 1,
    batch_format: str = "json",
    calibrate: int | None = None,
    min_agreement: float = 0.98,
    on_disagreement: Literal["lower", "stop"] = "lower",
    max_cost_usd: float | None = None,
    model: str | ModelSpec | LLMResource | ChatModel | None = None,
    resource_key: str | None = None,
    model_column: str | None = None,
    on_missing: OnMissing = "skip",
    on_row_error: OnRowError = "null",
    max_error_rate: float | None = None,
    retry_failed_rows: bool | Sequence[RetriedReason] = True,
    failed_rows: bool = False,
    keep_replies: bool = False,
    partition_by: PartitionBy | None = None,
    tier: Tier | None = None,
    answer_by: str | float | None = None,
    prompt_cache: PromptCache | None = None,
    thumbnails: bool = True,
    checks: Sequence[Check | Mapping[str, Any]] = (),
    **asset_arguments: Unpack[AssetArguments],
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """An asset whose rows a language model adds columns to.

    The decorated function is an asset function like any other: its parameters are upstream assets, and `context`,
    config and resources as in `@dg.asset`. It returns the rows to enrich, as a pandas, polars or pyarrow frame (in a
    run of several partitions also as a mapping of partition to frame). The asset is those rows with the output columns,
    in the same kind of frame and in the same order. The Launchpad shows the fields of `LLMAssetConfig`.

    Args:
        prompt: The question about a row, `{column}` where its value belongs, `{column:image}` or `{column:document}`
            where an image or document does; or a `Prompt` with system message, examples, a file, Jinja2 syntax, or
            `MediaOptions`.
        output: The columns wanted: a Pydantic model, a JSON schema, a mapping of column to type, a regular expression
            with named groups, or the name of one free-text column.
        clean: Steps that clean the texts of a row before it is asked about, in order: `"html"`, `"markdown"`,
            `"unicode"`, `"nfkc"`, `"control"`, `"whitespace"`, `"punctuation"`, `{"truncate": 500}`, or functions from
            text to text. The stored columns stay as they are.
        sanitize: What stands for the personal data and secrets of a row when it is asked about: `"redact"`
            (`[EMAIL]`), `"placeholder"` (`<EMAIL_1>`, given back in its answer), or a `Sanitizer` with your own rules.
        batch_size: Most rows in one call. With many, the instructions are sent once and answers are joined to rows by
            id; what is missing or invalid is asked again in smaller batches. It is not part of an answer's identity:
            changing it asks nothing again. `"auto"` grows it while all goes well and shrinks it when it does not.
        batch_format: How rows and answers are written in such a call: `"json"`, `"jsonl"`, `"csv"` or `"xml"`.
        calibrate: Before the run, ask this many sampled rows alone and together, and compare. Where the share of rows
            that agree is less than `min_agreement` in a column (free text apart), `on_disagreement` says what is done.
        min_agreement: A share, 0 to 1.
        on_disagreement: `"lower"` halves `batch_size` until rows agree, `"stop"` fails the step.
        max_cost_usd: Hard cap on what one materialization may cost, retries of its step included. The worst case of a
            call is charged before it leaves; when the cap is reached the step fails for good, and all answers are kept.
        model: The model this asset asks, instead of the resource `resource_key`: its name, as in
            `"openai/gpt-4o-mini"`, an `LLMResource`, a `ModelSpec`, or a `ChatModel` such as a `ScriptedModel`.
        resource_key: The resource that is asked, an `LLMResource` (or a bare `ChatModel`); by default `"llm"`.
        model_column: Name of a further column, which says which model answered the row.
        on_missing: What is done with a row for which a column that the prompt reads is null or blank (in a Jinja2
            template, one that is read outside of conditions): `"skip"` leaves its outputs null without a call and
            counts it apart, `"fail"` makes it a failed row without a call, `"ask"` asks nevertheless.
        on_row_error: How a row without an answer is stored: `"null"` (nulls, and the reason in `<asset>_error`),
            `"drop"`, or `"raise"`, which fails the step once all other rows are answered and kept.
        max_error_rate: Share of failed rows, 0 to 1, above which the step fails; by default it fails when no row got
            an answer.
        retry_failed_rows: Whether the next run asks again about rows that failed: `True`, `False`, or the reasons for
            which it does, of `"invalid"`, `"truncated"` and `"refused"` (by the provider's content filter, for
            instance). Rows that were out of reach are always asked again; the Launchpad's field is for one run.
        failed_rows: Adds a second asset, `<asset>_failed`: the rows without an answer, with the reason, how often they
            were asked, and what that cost.
        keep_replies: Keeps what the model replied to rows that failed in the store, sanitized like rows, for thirty
            days; `python -m ondine_core.store why` shows it, and no log, error or metadata does. The Launchpad's field
            is for one run.
        partition_by: The column that says which partition a row belongs to (with several dimensions, the column of
            each), for an upstream table that has no partitions: only the rows of the run's partitions are enriched.
        tier: The provider's price class, instead of the resource's: `"standard"`, `"flex"` (cheaper, waits for
            capacity), `"priority"` (dearer) or `"batch"` (half the price at most providers, answered by jobs within a
            day). It is not part of an answer's identity; what the model does not have is an error when the step starts.
        answer_by: At the batch tier, when answers are wanted: a time of day, as in `"06:00"` (UTC) or
            `"06:00 Europe/Berlin"`, or seconds after the start of the first run. When it is reached, jobs are
            cancelled, what they answered is kept, and the rest is asked at once at the standard tier, at its price.
        prompt_cache: Whether the provider is asked to cache the fixed part of prompts, instead of the resource's:
            `"auto"`, `"off"`, or `"1h"`, for an hour where there is a choice. It is not part of an answer's identity.
        thumbnails: Whether the first images of a prompt with `{column:image}` are shown small on the asset's page. They
            stay in Dagster's event log; there are none where rows are sanitized, or without Pillow (extra `images`).
        checks: Asset checks that each materialization answers: `ErrorRateCheck`, `NullRateCheck`, `CostPerRowCheck`,
            `DriftCheck`, `GoldenCheck`, or mappings with their `type` and arguments.
        **asset_arguments: Everything else `@dg.asset` takes.

    Raises:
        ConfigError: Prompt, output and the other arguments do not fit; raised when the definitions load.
    """

    def decorate(function: Callable[..., Any]) -> dg.AssetsDefinition:
        check_function(function)
        key = key_of(asset_arguments, function)
        task = compile_task(prompt, output, ModelSpec(""), clean=clean, sanitize=sanitize)
        enrichment = Enrichment(
            task,
            f"{key.path[-1]}_error",
            on_row_error,
            max_error_rate,
            batch_size,
            find_strategy(batch_format),
            calibration=None if calibrate is None else CalibrationPlan(calibrate, min_agreement, on_disagreement),
            model_column=model_column,
            max_cost_usd=max_cost_usd,
            on_missing=on_missing,
            retry_failed_rows=retry_failed_rows,
            checks=fit_checks(checks, task),
            failed_rows=failed_rows,
            keep_replies=keep_replies,
            partition_by=partition_by,
            tier=tier,
            answer_by=answer_by,
            prompt_cache=prompt_cache,
            thumbnails=thumbnails,
        )
        check_arguments(enrichment, asset_arguments)
        arguments = dict(asset_arguments)
        if not {"kinds", "compute_kind"} & arguments.keys():
            arguments["kinds"] = {"llm"}
        arguments["code_version"] = code_version(task, asset_arguments.get("code_version"))
        metadata = definition_metadata(prompt, enrichment, function)
        arguments["metadata"] = metadata | dict(asset_arguments.get("metadata") or {})
        asked = resource_key or "llm"
        if model is not None:
            asked = own_resource_key(key)
            arguments["resource_defs"] = {**(asset_arguments.get("resource_defs") or {}), asked: own_resource(model)}
        required = asset_arguments.get("required_resource_keys")
        if required:
            arguments["required_resource_keys"] = {*required, asked}
        ins = asset_arguments.get("ins") or {}
        labelled, configurable = golden_inputs(enrichment.checks), "config_schema" not in asset_arguments
        compute = wrap(function, enrichment, asked, ins, as_parameter=not required, configurable=configurable)
        added = inspect.signature(compute).parameters
        arguments["ins"] = {**ins, **{name: dg.AssetIn(key=one) for name, one in labelled.items() if name in added}}
        try:
            with warnings.catch_warnings():
                # A model of the asset's own is one, and a user would not know what to do about the warning.
                warnings.filterwarnings("ignore", r".*`resource_defs`", dg.BetaWarning)
                return define(compute, key, arguments, enrichment.checks, failed_rows=failed_rows)
        except TypeError as error:
            raise unknown_argument(error, inspect.signature(llm_asset).parameters) from None

    return decorate


def build_llm_asset(
    *,
    name: str,
    upstream: dg.AssetKey | str | Sequence[str],
    prompt: str | Prompt,
    output: Output,
    **arguments: Unpack[LLMAssetArguments],
) -> dg.AssetsDefinition:
    """`llm_asset` without a function: all rows of the asset `upstream` are enriched.

    Args:
        name: Name of the asset.
        upstream: Key of the asset that has the rows.
        prompt: As for `llm_asset`.
        output: As for `llm_asset`.
        **arguments: The other arguments of `llm_asset`, those of `@dg.asset` among them.

    Raises:
        ConfigError: As for `llm_asset`; or `upstream` is no key.
    """
    check_twin(upstream, arguments)

    def rows_of(rows):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202  (annotations would become Dagster types)
        return rows

    ins = {"rows": dg.AssetIn(key=dg.AssetKey(upstream) if not isinstance(upstream, dg.AssetKey) else upstream)}
    return llm_asset(name=name, ins=ins, prompt=prompt, output=output, **arguments)(rows_of)
