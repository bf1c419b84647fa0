"""The arguments of `llm_asset` and the attributes of its component, each declared once.

A new argument is a field of `Arguments` and a line of `BuildArguments`, which repeats the fields for type checkers:
these do not read the fields of a model as keywords.
"""

# No `from __future__ import annotations` here: Dagster reads the annotations of models made in this module.
import keyword
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, TypeAlias, TypedDict, get_args

import dagster as dg
from pydantic import BeforeValidator, ConfigDict, Field

from ondine_core.batching.formats import RowFormatName
from ondine_core.engine.policy import RETRY_FAILED_ROWS, is_retry
from ondine_core.errors import ConfigError
from ondine_core.preprocessing.cleaning import Clean
from ondine_core.preprocessing.sanitizer import Sanitize
from ondine_core.prompts.output_schema import Output
from ondine_core.prompts.template import Prompt
from ondine_core.types.numbers import is_number, is_positive, is_whole
from ondine_core.types.protocols import ChatModel
from ondine_core.types.values import ModelSpec, OnMissing, PromptCache, RetriedReason, Tier
from ondine_dagster.checks.check import Check
from ondine_dagster.config.answer_by import ANSWER_BY, is_answer_by
from ondine_dagster.config.variables import refuse_bool
from ondine_dagster.resource import LLMResource

OnRowError: TypeAlias = Literal["null", "drop", "raise"]

PartitionBy: TypeAlias = str | Mapping[str, str]
"""The column that says which partition a row belongs to; with several dimensions, the column of each."""


@dataclass(frozen=True, slots=True)
class _Must:
    """A test of the values of an argument, and the valid values in words.

    Its error names the argument and the valid values; Python's own would mostly be that two types cannot be compared.
    """

    is_valid: Callable[[Any], bool]
    valid: str

    def check(self, name: str, value: Any) -> None:
        if not self.is_valid(value):
            raise ConfigError(f"{name}={value!r} must be {self.valid}.")


_is_count = partial(is_whole, least=1)
_is_share = partial(is_number, least=0, most=1)


def _is_filled(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_resource_key(value: Any) -> bool:
    # It becomes a parameter of the step, which also has these two.
    usable = isinstance(value, str) and value.isidentifier() and not keyword.iskeyword(value)
    return usable and value not in {"context", "config"}


def _is_model(value: Any) -> bool:
    is_open = callable(value) and not isinstance(value, type) and hasattr(value, "aclose")
    return value is None or _is_filled(value) or isinstance(value, ModelSpec | LLMResource) or is_open


def _or_none(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_valid(value)


def _in(choice: Any) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in get_args(choice)


def _named(choice: Any) -> str:
    return f"one of {', '.join(map(repr, get_args(choice)))}"


_Count = Annotated[int, Field(ge=1), BeforeValidator(refuse_bool)]
_Share = Annotated[float, Field(ge=0, le=1)]
_OnDisagreement: TypeAlias = Literal["lower", "stop"]
_FLAG = _Must(lambda value: isinstance(value, bool), "True or False")


class Arguments(dg.Model):
    """The arguments of `llm_asset`, `build_llm_asset` and `LLMAssetComponent`, besides those of `@dg.asset`."""

    # Only the fields of this class are read; Pydantic builds the component.
    model_config = ConfigDict(arbitrary_types_allowed=True, defer_build=True)

    prompt: Annotated[
        str | Prompt,
        _Must(lambda value: isinstance(value, str | Prompt), "a text with {column} where a value belongs, or a Prompt"),
    ]
    """The question about a row, `{column}` where its value belongs, `{column:image}` or `{column:document}` where an
    image or document does; or a `Prompt` with system message, examples, a file, Jinja2 syntax, or `MediaOptions`."""
    output: Output
    """The columns wanted: a Pydantic model, a JSON schema, a mapping of column to type, a regular expression with named
    groups, or the name of one free-text column."""
    clean: Clean | str = ()
    """Steps that clean the texts of a row before it is asked about, in order: `"html"`, `"markdown"`, `"unicode"`,
    `"nfkc"`, `"control"`, `"whitespace"`, `"punctuation"`, `{"truncate": 500}`, or functions from text to text. The
    stored columns stay as they are."""
    sanitize: Sanitize | None = None
    """What stands for the personal data and secrets of a row when it is asked about: `"redact"` (`[EMAIL]`),
    `"placeholder"` (`<EMAIL_1>`, given back in its answer), or a `Sanitizer` with your own rules."""
    resource_key: Annotated[
        str | None,
        _Must(
            _or_none(_is_resource_key),
            "the key of a resource: letters, digits and underscores, such as 'llm', but not 'context' or 'config'",
        ),
    ] = None
    """The resource that is asked, an LLMResource; by default 'llm', unless `model` is given."""
    batch_size: Annotated[
        _Count | Literal["auto"],
        _Must(
            lambda value: (isinstance(value, str) and value == "auto") or _is_count(value),
            "a whole number of at least 1, or 'auto'",
        ),
    ] = 1
    """Most rows in one call; 'auto' grows it while all goes well. Changing it asks nothing again. With many, the
    instructions are sent once and answers are joined to rows by id; what is missing or invalid is asked again in
    smaller batches."""
    batch_format: RowFormatName = "json"
    """How several rows and their answers are written in one call."""
    calibrate: Annotated[
        _Count | None,
        _Must(_or_none(_is_count), "how many rows to calibrate with, a whole number of at least 1, or None"),
    ] = None
    """How many sampled rows are asked alone and together before the run, and compared. Where too few agree in a column
    (free text apart), `on_disagreement` says what is done."""
    min_agreement: Annotated[_Share, _Must(_is_share, "a share, a number from 0 to 1")] = 0.98
    """Share of calibrated rows that must agree in every column, 0 to 1."""
    on_disagreement: Annotated[_OnDisagreement, _Must(_in(_OnDisagreement), _named(_OnDisagreement))] = "lower"
    """'lower' halves batch_size until rows agree, 'stop' fails the step."""
    max_cost_usd: Annotated[
        Annotated[float, Field(gt=0)] | None,
        _Must(
            _or_none(is_positive),
            "more than 0: a finite number of USD, or None for no cap",
        ),
    ] = None
    """Hard cap on what one materialization may cost, in USD, retries by Dagster included. The worst case of a call is
    charged before it leaves; when the cap is reached the step fails for good, and all answers are kept."""
    model_column: Annotated[str | None, _Must(_or_none(_is_filled), "the name of a column, or None")] = None
    """Name of a further column, which says which model answered the row."""
    on_missing: Annotated[OnMissing, _Must(_in(OnMissing), _named(OnMissing))] = "skip"
    """A row for which a column that the prompt reads is null or blank (in a Jinja2 template, one that is read outside
    of conditions): 'skip' leaves its outputs null without a call, 'fail' makes it a failed row, 'ask' asks
    nevertheless."""
    on_row_error: Annotated[OnRowError, _Must(_in(OnRowError), _named(OnRowError))] = "null"
    """How a row without an answer is stored: 'null' (nulls, and the reason in `<asset>_error`), 'drop', or 'raise',
    which fails the step at the end, when all other rows are answered and kept."""
    max_error_rate: Annotated[
        _Share | None,
        _Must(_or_none(_is_share), "a share, a number from 0 to 1 (5 % is 0.05), or None"),
    ] = None
    """Share of failed rows, 0 to 1, above which the step fails; by default it does when none was answered."""
    retry_failed_rows: Annotated[bool | Sequence[RetriedReason], _Must(is_retry, RETRY_FAILED_ROWS)] = True
    """Whether the next run asks again about rows that failed: true, false, or a list of reasons, of 'invalid',
    'truncated' and 'refused' (by the provider's content filter, for instance). Rows that were out of reach are always
    asked again; the Launchpad's field is for one run."""
    failed_rows: Annotated[bool, _FLAG] = False
    """Adds a second asset, `<asset>_failed`: rows without an answer, and why, how often they were asked, and what that
    cost."""
    keep_replies: Annotated[bool, _FLAG] = False
    """Keeps what the model replied to rows that failed in the store, sanitized like rows, for thirty days;
    `python -m ondine_core.store why` shows it, and no log, error or metadata does. The Launchpad's field is for one
    run."""
    partition_by: str | dict[str, str] | None = None
    """For an upstream without partitions: the column that says which partition a row belongs to; with several
    dimensions, the column of each. Only the rows of the run's partitions are enriched."""
    tier: Annotated[Tier | None, _Must(_or_none(_in(Tier)), f"{_named(Tier)}, or None for the resource's")] = None
    """The provider's price class, instead of the resource's: 'standard', 'flex' (cheaper, waits for capacity),
    'priority' (more expensive) or 'batch' (half the price at most providers, answered by jobs within a day). Changing
    it asks nothing again; a tier that the model does not have is an error when the step starts."""
    answer_by: Annotated[str | float | None, _Must(_or_none(is_answer_by), f"{ANSWER_BY}, or None")] = None
    """At the batch tier, when answers are wanted: a time of day, as in "06:00" (UTC) or "06:00 Europe/Berlin", or
    seconds after the start of the first run, as in "7200". Then jobs are cancelled, what they answered is kept, and the
    rest is asked at once at the standard tier, at its price."""
    prompt_cache: Annotated[
        PromptCache | None, _Must(_or_none(_in(PromptCache)), f"{_named(PromptCache)}, or None for the resource's")
    ] = None
    """Whether the provider caches the fixed part of prompts, instead of the resource's: 'auto', 'off', or '1h' for an
    hour, where there is a choice. Changing it asks nothing again."""
    thumbnails: Annotated[bool, _FLAG] = True
    """Whether the first images of a prompt with `{column:image}` are shown small on the asset's page; they stay in
    Dagster's event log. There are none where rows are sanitized, or without Pillow (extra `images`)."""
    checks: Sequence[Check | Mapping[str, Any]] = ()
    """Asset checks that each materialization answers: `ErrorRateCheck`, `NullRateCheck`, `CostPerRowCheck`,
    `DriftCheck`, `GoldenCheck`, or mappings with their `type` and arguments."""


_MODEL = _Must(
    _is_model, "the name of a model, as in 'openai/gpt-6-luna', or an LLMResource, a ModelSpec or a ChatModel"
)


def check_values(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of `llm_asset` that are not valid, before they are used.

    Raises:
        ConfigError: One is not valid, or two contradict each other.
    """
    for name, field in Arguments.model_fields.items():
        if name in arguments:
            for must in field.metadata:
                if isinstance(must, _Must):
                    must.check(name, arguments[name])
    _MODEL.check("model", arguments.get("model"))
    checks = arguments.get("checks", ())
    if isinstance(checks, str | Mapping) or not isinstance(checks, Iterable):
        # Without the value, which may contain labelled rows.
        raise ConfigError(
            f"checks is a {type(checks).__name__}; it must be a list of checks, also for a single one: checks=[...]."
        )
    if arguments.get("model") is not None and arguments.get("resource_key") is not None:
        raise ConfigError(f"resource_key={arguments['resource_key']!r} and a model of its own; give one of the two.")
    disagreement = arguments.get("on_disagreement", "lower")
    if disagreement != "lower" and arguments.get("calibrate") is None:
        raise ConfigError(
            f"on_disagreement={disagreement!r} is about calibrating, which calibrate=None leaves out; say how many "
            "rows to calibrate with, as in calibrate=50."
        )


# -- for type checkers ---------------------------------------------------------------------------------------------


class _AssetArguments(TypedDict, total=False):
    """The arguments of `@dg.asset`, without `name` and `ins`."""

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


class BuildArguments(_AssetArguments, total=False):
    """The arguments that `build_llm_asset` passes on to `llm_asset`, besides `prompt` and `output`."""

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


class LLMAssetArguments(BuildArguments, total=False):
    """The arguments of `llm_asset` besides `prompt` and `output`."""

    ins: Mapping[str, dg.AssetIn] | None
    name: str | None
