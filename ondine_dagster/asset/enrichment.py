"""The keyword arguments of `llm_asset` and `build_llm_asset` that are passed on, for type checkers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Literal, TypedDict

import dagster as dg

from ondine_core.preprocessing.cleaning import Clean
from ondine_core.preprocessing.sanitizer import Sanitize
from ondine_core.types.protocols import ChatModel
from ondine_core.types.values import ModelSpec, OnMissing, PromptCache, RetriedReason, Tier
from ondine_dagster.checks.types import Check
from ondine_dagster.resource import LLMResource
from ondine_dagster.run.partitions import PartitionBy
from ondine_dagster.run.plan import OnRowError

__all__ = ["AssetArguments", "LLMAssetArguments"]


class _SharedArguments(TypedDict, total=False):
    """What `@dg.asset` takes, without `name` and `ins`."""

    automation_condition: dg.AutomationCondition[Any] | None
    backfill_policy: dg.BackfillPolicy | None
    check_specs: Sequence[dg.AssetCheckSpec] | None
    code_version: str | None
    compute_kind: str | None
    config_schema: Any
    dagster_type: dg.DagsterType | None
    deps: Iterable[Any] | None
    description: str | None
    freshness_policy: dg.FreshnessPolicy | None
    group_name: str | None
    hooks: AbstractSet[dg.HookDefinition] | None
    io_manager_def: object | None
    io_manager_key: str | None
    is_virtual: bool
    key: dg.AssetKey | str | Sequence[str] | None
    key_prefix: str | Sequence[str] | None
    kinds: AbstractSet[str] | None
    metadata: Mapping[str, Any] | None
    op_tags: Mapping[str, Any] | None
    output_required: bool
    owners: Sequence[str] | None
    partitions_def: dg.PartitionsDefinition[Any] | None
    pool: str | None
    required_resource_keys: AbstractSet[str] | None
    resource_defs: Mapping[str, object] | None
    retry_policy: dg.RetryPolicy | None
    tags: Mapping[str, str] | None


class AssetArguments(_SharedArguments, total=False):
    """What `llm_asset` passes on to `@dg.asset`."""

    ins: Mapping[str, dg.AssetIn] | None
    name: str | None


class LLMAssetArguments(_SharedArguments, total=False):
    """What `build_llm_asset` passes on to `llm_asset`."""

    answer_by: str | float | None
    batch_format: str
    batch_size: int | Literal["auto"]
    calibrate: int | None
    checks: Sequence[Check | Mapping[str, Any]]
    clean: Clean | str
    failed_rows: bool
    keep_replies: bool
    max_cost_usd: float | None
    max_error_rate: float | None
    min_agreement: float
    model: str | ModelSpec | LLMResource | ChatModel | None
    model_column: str | None
    on_disagreement: Literal["lower", "stop"]
    on_missing: OnMissing
    on_row_error: OnRowError
    partition_by: PartitionBy | None
    prompt_cache: PromptCache | None
    resource_key: str | None
    retry_failed_rows: bool | Sequence[RetriedReason]
    sanitize: Sanitize | None
    thumbnails: bool
    tier: Tier | None
