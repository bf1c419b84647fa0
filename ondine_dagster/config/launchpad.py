"""Run config: the fields that the Launchpad shows, and their effect.

They apply to one run only and do not change the meaning of an answer, so later runs can reuse the answers of a
configured run.
"""

# No `from __future__ import annotations` here: Dagster reads the annotations of config classes.
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import Field, field_validator

from ondine_core.engine.options import Options
from ondine_core.errors import ConfigError
from ondine_core.providers.settings import another_model
from ondine_core.types.values import ModelSpec, PromptCache, Tier
from ondine_dagster.config.answer_by import check_answer_by
from ondine_dagster.config.strict import StrictConfig
from ondine_dagster.config.variables import Count, Positive


class Sample(StrEnum):
    """Which rows a trial asks about."""

    first = "first"
    random = "random"


class TierName(StrEnum):
    """The price class of the calls of a run."""

    standard = "standard"
    flex = "flex"
    priority = "priority"
    batch = "batch"


class PromptCacheName(StrEnum):
    """Whether the provider caches the fixed part of prompts in a run."""

    auto = "auto"
    off = "off"
    hour = "1h"


if TYPE_CHECKING:  # Dagster knows only enums; code gives their values, as in LLMAssetConfig(sample="random")
    SampleChoice: TypeAlias = Sample | Literal["first", "random"]
    TierChoice: TypeAlias = TierName | Tier
    PromptCacheChoice: TypeAlias = PromptCacheName | PromptCache
else:
    SampleChoice, TierChoice, PromptCacheChoice = Sample, TierName, PromptCacheName


class LLMAssetConfig(StrictConfig):
    """Run config of an `llm_asset`. An asset function may take a subclass of it as `config`, with fields of its own."""

    max_rows: Count | None = Field(
        default=None,
        description="Trial: ask about this many rows and show them in an observation. Nothing is materialized and no "
        "check runs; the answers are kept for the real run.",
    )
    sample: SampleChoice = Field(
        default=Sample.first,
        description="Which rows a trial with max_rows asks about: 'first', or 'random' with a fixed seed, so that a "
        "repeated trial reuses its answers.",
    )
    dry_run: bool = Field(
        default=False,
        description="Count rows, prompts, known answers and tokens, estimate cost and time, and stop: nothing is asked "
        "or spent, and nothing is materialized.",
    )
    full_refresh: bool = Field(
        default=False,
        description="Ask about every row again, also where the answer is known. Answers of this run are reused when it "
        "is retried.",
    )
    retry_failed_rows: bool | None = Field(
        default=None,
        description="Whether rows that failed in an earlier run are asked again, for whatever reason; by default as "
        "the asset says.",
    )
    keep_replies: bool | None = Field(
        default=None,
        description="Whether what the model replies to rows that fail in this run is kept in the store for thirty "
        "days, sanitized like rows, for 'python -m ondine_core.store why'; by default as the asset says.",
    )
    max_cost_usd: Positive | None = Field(
        default=None, description="Cap on the cost of this run in USD, instead of the asset's own."
    )
    model: str | None = Field(
        default=None,
        description="Another model than the resource's, as in 'openai/gpt-6-luna'; of another provider's, the key is "
        "read from its usual environment variable.",
    )
    tier: TierChoice | None = Field(
        default=None,
        description="The provider's price class for this run, instead of the asset's own: 'standard', 'flex' (cheaper, "
        "waits for capacity), 'priority' (more expensive) or 'batch' (cheaper, answered within a day). It asks nothing "
        "again.",
    )
    answer_by: str | None = Field(
        default=None,
        description="At the batch tier, when the answers of this run are wanted, instead of the asset's own: a time of "
        "day, as in '06:00' (UTC) or '06:00 Europe/Berlin', or seconds after the start of the first run, as in '7200'; "
        "'0' ends the wait for jobs now. What they do not answer is asked at once at the standard tier, at its price.",
    )
    prompt_cache: PromptCacheChoice | None = Field(
        default=None,
        description="Whether the provider caches the fixed part of prompts in this run, instead of the asset's own: "
        "'auto', 'off', or 'hour' for an hour where there is a choice. It asks nothing again.",
    )

    @field_validator("answer_by")
    @classmethod
    def _check_answer_by(cls, answer_by: str | None) -> Any:
        return check_answer_by(answer_by)


def configure(config: LLMAssetConfig, spec: ModelSpec, options: Options, *, opened: bool) -> tuple[ModelSpec, Options]:
    """Apply the run config to the model spec and the options.

    Raises:
        ConfigError: The config names another model, but the model is already `opened`.
    """
    policy = options.policy
    if config.retry_failed_rows is not None:
        policy = replace(policy, retry_failed_rows=config.retry_failed_rows)
    if config.keep_replies is not None:
        policy = replace(policy, keep_replies=config.keep_replies)
    options = replace(options, policy=policy)
    if config.max_cost_usd is not None:
        options = replace(options, max_cost_usd=config.max_cost_usd)
    if config.model not in (None, spec.model):
        if opened:
            raise ConfigError(
                f"model={config.model!r} cannot be asked: the resource is not an LLMResource but one open model."
            )
        spec = another_model(spec, config.model)
        options = replace(options, price=None)
    if config.tier is not None:
        spec = replace(spec, tier=TierName(config.tier).value)
    if config.prompt_cache is not None:
        spec = replace(spec, prompt_cache=PromptCacheName(config.prompt_cache).value)
    return spec, options
