"""What one run does differently: the fields that the Launchpad shows, and what they change.

They are about this run only. What an answer means is the definition's, so a run that was configured by hand leaves
nothing behind but answers that every later run finds.
"""

# No `from __future__ import annotations` here: Dagster reads the annotations of config classes.
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

import dagster as dg
from pydantic import ConfigDict, Field, model_validator

from ondine_core.errors import ConfigError
from ondine_core.options import Options
from ondine_core.values import ModelSpec

__all__ = ["LLMAssetConfig", "StrictConfig", "configure", "plain_texts"]


class StrictConfig(dg.Config):
    """A config that knows every name it is given: a misspelt cap is an error, not a missing one."""

    model_config = ConfigDict(hide_input_in_errors=True)  # it may carry a key

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and cls.model_config.get("extra") != "allow":
            known = set(cls.model_fields) | {field.alias for field in cls.model_fields.values() if field.alias}
            for name in given:
                if name not in known:
                    raise ConfigError(_unknown_field(cls.__name__, name, known))
        return given


def plain_texts(given: Mapping[str, Any]) -> dict[str, str]:
    """The texts among fields as they were given; an `EnvVar` is a text, too, but only its name is known."""
    return {name: value for name, value in given.items() if type(value) is str}


_ELSEWHERE = {
    "max_cost_usd": "budgets",
    "reasoning_effort": "params",
    "rpm": "requests_per_minute",
    "seed": "params",
    "top_p": "params",
    "tpm": "tokens_per_minute",
}
"""Names that others use, and the field that has it here."""


def _unknown_field(kind: str, name: str, known: set[str]) -> str:
    near = [meant] if (meant := _ELSEWHERE.get(name)) in known else get_close_matches(name, known, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{kind} has no field {name!r}.{hint} Valid are {', '.join(sorted(known))}."


class LLMAssetConfig(StrictConfig):
    """Run config of an `llm_asset`. An asset function may take a subclass of it as `config`, with fields of its own."""

    max_rows: int | None = Field(
        default=None,
        gt=0,
        description="Enrich the first so many rows only; the table has no others then. To try a prompt on ten.",
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
    retry_failed_rows: bool = Field(
        default=True, description="Ask again about rows that failed in an earlier run; otherwise they stay failed."
    )
    max_cost_usd: float | None = Field(
        default=None, gt=0, description="Cap on the cost of this run in USD, instead of the asset's own."
    )
    model: str | None = Field(
        default=None,
        description="Another model than the resource's, as in 'openai/gpt-4o'; of another provider's, the key comes "
        "from its usual environment variable.",
    )


def configure(
    config: LLMAssetConfig, spec: ModelSpec, options: Options, *, opened: bool, since: float
) -> tuple[ModelSpec, Options]:
    """Who is asked, and how, when `config` has its way.

    Args:
        config: What this run does differently.
        spec: Whom the resource would ask.
        options: How it would.
        opened: Whether the model is open already, so that there is no choice any more.
        since: When the run, or the one that it repeats, was created, in seconds since the epoch.

    Raises:
        ConfigError: Another model is wanted than the one that is open.
    """
    policy = replace(options.policy, retry_failed_rows=config.retry_failed_rows)
    if config.full_refresh:
        policy = replace(policy, reuse_since=since)
    options = replace(options, policy=policy)
    if config.max_cost_usd is not None:
        options = replace(options, max_cost_usd=config.max_cost_usd)
    if config.model in (None, spec.model):
        return spec, options
    if opened:
        raise ConfigError(f"model={config.model!r} cannot be asked: the resource is no LLMResource but one open model.")
    return _another(spec, config.model), replace(options, price=None)


def _another(spec: ModelSpec, model: str) -> ModelSpec:
    """`spec` for another model: of the same provider as it stands, else without what only that provider knows."""
    if model.partition("/")[0] == spec.model.partition("/")[0]:
        settings = {name: value for name, value in spec.settings.items() if name != "base_model"}
        return replace(spec, model=model, settings=settings)
    return ModelSpec(model, None, None, spec.timeout_s, spec.temperature, spec.max_output_tokens)
