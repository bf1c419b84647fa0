"""The model as a Dagster resource, with its rate limits, its budgets and the store of answers."""

import dataclasses
import re
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import dagster as dg
from pydantic import Field, field_validator, model_validator

from ondine_core.engine.options import Options
from ondine_core.engine.policy import Policy
from ondine_core.errors import ConfigError
from ondine_core.limits.budget_limit import BudgetLimit, Period
from ondine_core.limits.rates import Rates
from ondine_core.providers import connect
from ondine_core.providers.pricing import Price
from ondine_core.providers.settings import another_model, check_address, check_params
from ondine_core.providers.tiers import find_tiers
from ondine_core.store import (
    NETWORK_FILE_SYSTEMS,
    PASSING_FILE_SYSTEMS,
    find_file_system,
    parse_address,
)
from ondine_core.store.connect import default_store_path
from ondine_core.telemetry.registry import check_observers
from ondine_core.types.values import ModelSpec
from ondine_dagster.config.strict import StrictConfig, plain_texts
from ondine_dagster.config.variables import (
    AtLeastOne,
    Count,
    DurabilityField,
    NonNegative,
    Positive,
    PromptCacheField,
    TierField,
    keep_int_variables,
    name_of,
    read_variables,
)


class SharedBudget(StrictConfig):
    """A budget shared by all assets and runs that name it, on the same store, for a period."""

    name: str = Field(description="Assets, runs and processes whose resource names it draw from one budget.")
    max_cost_usd: Positive = Field(description="USD for the period.")
    period: str = Field(default="month", description="'run', 'day', 'month' (both UTC) or 'ever'.")
    warn_at: list[NonNegative] = Field(default=[0.75, 0.9], description="Shares at which a warning is logged once.")

    @model_validator(mode="before")
    @classmethod
    def _check_plain_values(cls, given: Any) -> Any:
        plain = plain_texts(given)
        BudgetLimit(Decimal(1), plain.get("name", "unknown"), cast("Period", plain.get("period", "month")))
        return given

    @field_validator("warn_at")
    @classmethod
    def _check_shares(cls, warn_at: list[float]) -> list[float]:
        shares = [share for share in warn_at if isinstance(share, float)]  # the others are variables
        BudgetLimit(Decimal(1), warn_at=tuple(shares))
        return warn_at

    def cap(self) -> BudgetLimit:
        """The budget for the engine."""
        amount = Decimal(str(self.max_cost_usd))
        return BudgetLimit(amount, self.name, cast("Period", self.period), tuple(self.warn_at))


class LLMResource(StrictConfig, dg.ConfigurableResource):  # type: ignore[type-arg]
    """A language model that every `llm_asset` with this resource asks."""

    model: str = Field(
        description="Provider and model, as in 'openai/gpt-6-luna', 'anthropic/claude-sonnet-5', 'azure/deployment', "
        "'openai_compatible/my-model' (with base_url) or 'llama_cpp/gemma-3-270m' (runs in this process, needs no key)."
    )
    api_key: str | None = Field(
        default=None, repr=False, description="Key of the provider; by default its usual environment variable is read."
    )
    base_url: str | None = Field(
        default=None, description="Root of an OpenAI-compatible API up to /v1, if it is not the provider's own."
    )
    requests_per_minute: Positive | None = Field(
        default=None, description="Calls a minute, shared by every process that uses the same store."
    )
    tokens_per_minute: Positive | None = Field(
        default=None, description="Input and output tokens a minute, shared like requests_per_minute."
    )
    burst: AtLeastOne = Field(
        default=1, description="Calls that may leave at once after a pause; needs requests_per_minute."
    )
    timeout_s: Positive | None = Field(
        default=None, description="Seconds one call may take; by default 60, at the flex tier 900."
    )
    tier: TierField = Field(
        default="standard",
        description="The provider's price class: 'standard', 'flex' (cheaper, waits for capacity), 'priority' "
        "(more expensive) or 'batch' (half the price at most providers, answered by jobs within a day). Changing it "
        "asks nothing again; a tier that the model does not have is an error.",
    )
    tier_wait_timeout_s: NonNegative = Field(
        default=900.0, description="Seconds for which the flex tier may have no capacity for any call."
    )
    tier_fallback: bool = Field(
        default=False,
        description="Whether the rest of the run then goes at the standard tier, at its price; otherwise the step "
        "fails, and keeps its answers.",
    )
    batch_wait_s: NonNegative = Field(
        default=600.0,
        description="Seconds for which a step of the batch tier waits for its jobs; then it ends without a "
        "materialization, and a later run, such as that of a batch_sensor, reads the answers.",
    )
    batch_min_rows: Count = Field(
        default=20,
        description="Fewer rows than these make no batch job: they are asked at once at the standard tier, at its "
        "price.",
    )
    cancel_on_terminate: bool = Field(
        default=False,
        description="Whether the provider is asked to cancel the batch jobs of a run that is terminated; otherwise "
        "they go on, and the next run reads what they answered.",
    )
    prompt_cache: PromptCacheField = Field(
        default="auto",
        description="Whether the provider is asked to cache the fixed part of prompts: 'auto', 'off', or '1h' for an "
        "hour at a higher price for writing, where there is a choice. Changing it asks nothing again.",
    )
    max_concurrency: Count = Field(default=32, description="Maximum number of calls in flight of a step.")
    temperature: NonNegative | None = Field(
        default=None, description="Sampling temperature; by default the provider's own (0 for embedded models)."
    )
    max_output_tokens: Count | None = Field(default=None, description="Maximum number of tokens of a reply.")
    reasoning_effort: str | None = Field(
        default=None,
        description="How much a model thinks before it answers: 'none', 'minimal', 'low', 'medium', 'high', ..., as "
        "far as it has them; by default the provider's own. Thinking is paid for, and part of max_output_tokens.",
    )
    params: dict[str, Any] = Field(
        default_factory=dict, description="Further request fields, sent as they are: top_p, seed, ..."
    )
    settings: dict[str, Any] = Field(
        default_factory=dict,
        repr=False,  # it may carry a token
        description="Settings of the provider: api_version, managed_identity, regions, base_model of azure/...; "
        "structured_output of OpenAI-compatible servers; warm_up of mlx/... An unknown setting is an error.",
    )
    provider_name: str | None = Field(
        default=None, description="The provider's name in metadata, if the model's name does not contain it."
    )
    input_cost_per_1k_tokens: NonNegative | None = Field(
        default=None, description="USD, where the list price is unknown or not yours."
    )
    output_cost_per_1k_tokens: NonNegative | None = Field(
        default=None, description="USD, set together with the input's."
    )
    cached_input_cost_per_1k_tokens: NonNegative | None = Field(
        default=None, description="USD for what the provider has in its prompt cache; by default the input's."
    )
    fallbacks: list[str] = Field(
        default_factory=list,
        description="Models that take over, in this order, the rows that are left when the one before fails for good "
        "or is out of reach for five minutes; their keys come from their usual environment variables.",
    )
    budgets: list[SharedBudget] = Field(
        default_factory=list,
        description="Caps on cost across assets, runs and processes; an asset's max_cost_usd is for a materialization.",
    )
    context_window: Count | None = Field(
        default=None, description="Tokens of prompt and reply together, where the list does not know the model."
    )
    store: str | None = Field(
        default=None,
        repr=False,  # a URL may carry a password
        description="File that keeps the answers, or a postgresql:// URL where several hosts share them; by default "
        "ondine/answers.db in the Dagster instance's storage.",
    )
    durability: DurabilityField = Field(
        default="process",
        description="When a store in a file loses nothing: 'process', if a process is killed (a power cut costs about "
        "the last second); or 'power', also after a power cut or a crash of the system, with a sync at every commit.",
    )
    lease_ttl_s: Positive = Field(
        default=30.0, description="Seconds after which another run takes over from one whose process was killed."
    )
    progress_every_s: Positive = Field(
        default=10.0, description="Seconds between two progress reports of a running step."
    )
    observers: list[Any] = Field(
        default_factory=list,
        description="Receivers of events: 'logging', 'opentelemetry', 'langfuse', 'prometheus' or your own, by "
        "name, or as a mapping of 'name' and options, such as {'name': 'prometheus', 'push_gateway': 'http://...'}.",
    )

    if not TYPE_CHECKING:  # which knows the fields

        def __init__(self, **fields: Any) -> None:
            nested = {name: keep_int_variables(fields[name]) for name in _NESTED & fields.keys()}
            super().__init__(**fields | nested)

    @field_validator("observers")
    @classmethod
    def _check_observers(cls, observers: list[Any]) -> list[Any]:
        check_observers([observer for observer in observers if name_of(observer) is None])
        return observers

    @model_validator(mode="before")
    @classmethod
    def _check_plain_values(cls, given: Any) -> Any:
        """Refuse values that a step would refuse when it starts, except variables, which only a step reads."""
        plain = plain_texts(given)
        fallbacks = given.get("fallbacks")
        for model in (plain.get("model"), *(fallbacks if isinstance(fallbacks, list | tuple) else ())):
            if type(model) is str and not all(model.partition("/")):
                connect(ModelSpec(model))  # raises the error that a step would raise
        params = given.get("params")
        if isinstance(params, dict):
            effort = plain.get("reasoning_effort")
            check_params(ModelSpec(plain.get("model", "the model"), params=params, reasoning_effort=effort))
        base_url = plain.get("base_url")
        if base_url:
            check_address(base_url)
        store = plain.get("store")
        if store:
            parse_address(store)
        return given

    @classmethod
    def from_spec(cls, spec: ModelSpec, **fields: Any) -> Self:
        """The resource for `spec`, such as a preset.

        Example:
            >>> LLMResource.from_spec(preset("gpt-6-luna"), requests_per_minute=500)
            ... # doctest: +SKIP
        """
        values = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
        return cls(**{name: value for name, value in values.items() if value is not None} | fields)

    def spec(self) -> ModelSpec:
        """The model and its settings for the engine."""
        return ModelSpec(
            self.model,
            self.api_key or None,
            self.base_url or None,
            self.timeout_s,
            self.temperature,
            self.max_output_tokens,
            read_variables(self.params),
            read_variables(self.settings),
            self.provider_name,
            self.tier,
            prompt_cache=self.prompt_cache,
            reasoning_effort=self.reasoning_effort or None,
        )

    def options(self, store: str) -> Options:
        """The options of a step whose answers are in `store`."""
        return Options(
            store=store,
            durability=self.durability,
            policy=Policy(
                max_concurrency=self.max_concurrency,
                context_window=self.context_window,
                tier_wait_timeout_s=self.tier_wait_timeout_s,
                tier_fallback=self.tier_fallback,
                batch_wait_s=self.batch_wait_s,
                batch_min_rows=self.batch_min_rows,
                cancel_on_terminate=self.cancel_on_terminate,
            ),
            rates=Rates(self.requests_per_minute, self.tokens_per_minute, self.burst),
            price=self._price(),
            caps=tuple(budget.cap() for budget in self.budgets),
            lease_ttl_s=self.lease_ttl_s,
            fallbacks=tuple(self._fallback(model) for model in self.fallbacks),
            observers=tuple(read_variables(self.observers)),
        )

    def _fallback(self, model: str) -> ModelSpec:
        """The spec of the fallback `model`: this one's, without fields for this model's requests only."""
        other = another_model(self.spec(), model)
        other = dataclasses.replace(other, params={}, provider_name=None, reasoning_effort=None)
        return other if other.tier in find_tiers(other) else dataclasses.replace(other, tier="standard")

    def _price(self) -> Price | None:
        input_usd = _per_token(self.input_cost_per_1k_tokens)
        output_usd = _per_token(self.output_cost_per_1k_tokens)
        cached_usd = _per_token(self.cached_input_cost_per_1k_tokens)
        if input_usd is None and output_usd is None and cached_usd is None:
            return None
        if input_usd is None or output_usd is None:
            raise ConfigError("Set both input_cost_per_1k_tokens and output_cost_per_1k_tokens, or neither.")
        return Price(input_usd, output_usd, input_usd if cached_usd is None else cached_usd)


_NESTED = {"params", "settings", "observers"}
"""The fields with mappings in which Dagster reads no variables."""


def _per_token(usd_per_1k: float | None) -> Decimal | None:
    return None if usd_per_1k is None else Decimal(str(usd_per_1k)) / 1000


_OWN = "llm_for_"


def own_resource(model: Any) -> Any:
    """The resource of an asset with a `model` of its own."""
    if isinstance(model, str):
        return LLMResource(model=model)
    return LLMResource.from_spec(model) if isinstance(model, ModelSpec) else model


def own_resource_key(asset: dg.AssetKey) -> str:
    """The resource key of an asset with a model of its own, which is different for each asset."""
    return re.sub(r"\W", "_", f"{_OWN}{asset.to_python_identifier()}")


def find_own_resource(asset: dg.AssetsDefinition) -> dg.ResourceDefinition | None:
    """The resource of an asset with a model of its own; `None` if it has none.

    It is found by the beginning of its resource key: the end names the asset, whose key may have been changed later, as
    by `load_assets_from_modules(key_prefix=...)`.
    """
    return next((definition for key, definition in asset.resource_defs.items() if key.startswith(_OWN)), None)


def default_store(instance: dg.DagsterInstance) -> str:
    """The path of the answer store of a Dagster instance, in a file of its own in the instance's storage directory."""
    return default_store_path(instance.storage_directory())


def store_warning(path: str, home: str | None = None) -> str | None:
    """A warning if answers at `path` may be lost before the next run, or damaged; else `None`.

    `home` is DAGSTER_HOME, which is accepted even if it is a temporary directory, since the user chose it.
    """
    address = parse_address(path)
    if address.kind == "postgres":
        return None
    path = address.text
    kind = find_file_system(path)
    if kind.startswith(NETWORK_FILE_SYSTEMS):
        return (
            f"The answer store {path!r} is on a network file system ({kind}), where SQLite loses data. "
            "Set LLMResource(store=...) to a file on a local disk."
        )
    file = Path(path).resolve()
    is_temporary = file.is_relative_to(Path(tempfile.gettempdir()).resolve())
    if home and file.is_relative_to(Path(home).expanduser().resolve()):
        is_temporary = False
    if is_temporary or any(part.startswith(".tmp_dagster_home") for part in file.parts):
        return (
            f"The answer store {path!r} is in a temporary directory: the next run will pay for every answer again. "
            "Set DAGSTER_HOME, or LLMResource(store=...)."
        )
    if kind in PASSING_FILE_SYSTEMS:
        return (
            f"The answer store {path!r} is lost with this container ({kind}), and other machines do not see it: every "
            "run may pay for every answer again. Set LLMResource(store=...) to a postgresql:// URL, or to a file on a "
            "volume."
        )
    return None
