"""The YAML twin of `llm_asset`: attributes in, the same factory called, its asset out.

Everything an attribute means is decided in `assets`; this module only says which attributes there are.
"""

# No `from __future__ import annotations` here: Dagster reads the annotations of models made in this module.
import inspect
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self, get_args

import dagster as dg
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from ondine_core.errors import ConfigError
from ondine_core.types.values import OnMissing, PromptCache, RetriedReason, Tier
from ondine_dagster.asset.decorator import llm_asset
from ondine_dagster.component.check_fields import ResolvedChecks
from ondine_dagster.component.fields import (
    OpFields,
    ResolvedCleaning,
    ResolvedOutput,
    ResolvedPrompt,
    ResolvedSanitizer,
)
from ondine_dagster.component.model_field import ResolvedLLM, check_key
from ondine_dagster.component.scaffolder import LLMAssetScaffolder
from ondine_dagster.component.templates import must_resolve
from ondine_dagster.resource import own_resource_key
from ondine_dagster.run.plan import OnRowError

__all__ = ["LLMAssetComponent"]


def _said(description: str) -> Any:
    return dg.Resolver.default(description=description)


def _resolver(resolved: Any, description: str) -> Any:
    """How Dagster reads what it calls `resolved`, with another description."""
    _, resolver = get_args(resolved)
    return resolver.with_outer_resolver(_said(description))


def _no_flag(value: Any) -> Any:
    """Pydantic would take `true` for 1."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is no number; write how many")  # noqa: TRY004  (what Pydantic reports)
    return value


Count = Annotated[int, Field(ge=1), BeforeValidator(_no_flag)]
Share = Annotated[float, Field(ge=0, le=1)]


@dg.scaffold_with(LLMAssetScaffolder)
class LLMAssetComponent(dg.Component, dg.Model, dg.Resolvable):
    """An asset whose rows a language model adds columns to: `llm_asset`, in YAML.

    The asset is the table `upstream` with the output columns, as `llm_asset` makes it. In a subclass, `rows` chooses
    what is asked about and `get_asset_spec` changes what Dagster knows of the asset; both may call `super()`.

    In YAML:

    ```yaml
    type: ondine_dagster.LLMAssetComponent
    attributes:
      asset: {key: ticket_labels, group_name: enrich}
      upstream: support_tickets
      prompt: {file: prompt.md}
      output: {sentiment: {type: string, enum: [positive, negative]}, topic: string}
      model: openai/gpt-4o-mini
    ```
    """

    asset: Annotated[
        dg.AssetSpec, _resolver(dg.ResolvedAssetSpec, "The asset: its key, and whatever else Dagster is to know of it.")
    ]
    upstream: Annotated[dg.AssetKey, _resolver(dg.ResolvedAssetKey, "Key of the asset that has the rows.")]
    prompt: ResolvedPrompt
    output: ResolvedOutput
    clean: ResolvedCleaning = ()
    sanitize: ResolvedSanitizer = None
    llm: ResolvedLLM = None
    resource_key: Annotated[
        str | None,
        must_resolve("The resource that is asked, an LLMResource; by default 'llm', unless `model` is given."),
    ] = None
    batch_size: Annotated[
        Count | Literal["auto"],
        _said("Most rows in one call; 'auto' grows it while all goes well. Changing it asks nothing again."),
    ] = 1
    batch_format: Annotated[
        Literal["json", "jsonl", "csv", "xml"], _said("How many rows and their answers are written in one call.")
    ] = "json"
    calibrate: Annotated[
        Count | None,
        _said("So many sampled rows are asked alone and together before the run, and compared."),
    ] = None
    min_agreement: Annotated[Share, _said("Share of calibrated rows that must agree in every column, 0 to 1.")] = 0.98
    on_disagreement: Annotated[
        Literal["lower", "stop"], _said("'lower' halves batch_size until rows agree, 'stop' fails the step.")
    ] = "lower"
    max_cost_usd: Annotated[
        Annotated[float, Field(gt=0)] | None,
        must_resolve(
            "Hard cap on what one materialization may cost, in USD.", Annotated[float, Field(gt=0)] | str | None
        ),
    ] = None
    model_column: Annotated[
        str | None, must_resolve("Name of a further column, which says which model answered the row.")
    ] = None
    on_missing: Annotated[
        OnMissing,
        _said(
            "A row for which a column that the prompt reads is null or blank: 'skip' leaves its outputs null without a "
            "call, 'fail' makes it a failed row, 'ask' asks nevertheless."
        ),
    ] = "skip"
    on_row_error: Annotated[
        OnRowError,
        _said("How a row without an answer is stored: 'null', 'drop', or 'raise', which fails the step at the end."),
    ] = "null"
    max_error_rate: Annotated[
        Share | None,
        must_resolve(
            "Share of failed rows, 0 to 1, above which the step fails; by default it does when none was answered.",
            Share | str | None,
        ),
    ] = None
    retry_failed_rows: Annotated[
        bool | list[RetriedReason],
        _said(
            "Whether the next run asks again about rows that failed: true, false, or a list of reasons, of 'invalid', "
            "'truncated' and 'refused'."
        ),
    ] = True
    failed_rows: Annotated[bool, _said("Adds a second asset, `<asset>_failed`: rows without an answer, and why.")] = (
        False
    )
    keep_replies: Annotated[
        bool,
        _said(
            "Keeps what the model replied to rows that failed in the store, sanitized like rows, for thirty days; "
            "`python -m ondine_core.store why` shows it."
        ),
    ] = False
    partition_by: Annotated[
        str | dict[str, str] | None,
        must_resolve(
            "For an upstream without partitions: the column that says which partition a row belongs to; with several "
            "dimensions, the column of each."
        ),
    ] = None
    tier: Annotated[
        Tier | None,
        must_resolve(
            "The provider's price class, instead of the resource's: 'standard', 'flex' (cheaper, waits for capacity), "
            "'priority' (dearer) or 'batch' (half the price at most providers, answered by jobs within a day). "
            "Changing it asks nothing again.",
            Tier | str | None,
        ),
    ] = None
    answer_by: Annotated[
        str | None,
        must_resolve(
            'At the batch tier, when answers are wanted, in quotes: a time of day, as in "06:00" (UTC) or '
            '"06:00 Europe/Berlin", or seconds after the start of the first run, as in "7200". Then jobs are '
            "cancelled, and the rest is asked at once at the standard tier, at its price."
        ),
    ] = None
    prompt_cache: Annotated[
        PromptCache | None,
        must_resolve(
            "Whether the provider caches the fixed part of prompts, instead of the resource's: 'auto', 'off', or '1h' "
            "for an hour, where there is a choice. Changing it asks nothing again.",
            PromptCache | str | None,
        ),
    ] = None
    thumbnails: Annotated[
        bool,
        _said(
            "Whether the first images of a prompt with `{column:image}` are shown small on the asset's page; they stay "
            "in Dagster's event log."
        ),
    ] = True
    checks: ResolvedChecks = ()
    io_manager_key: Annotated[str | None, must_resolve("The IO manager that stores the asset.")] = None
    op: Annotated[OpFields | None, _said("How Dagster runs the step: pool, tags, retry_policy, backfill_policy.")] = (
        None
    )

    def get_asset_spec(self) -> dg.AssetSpec:
        """The asset as Dagster is to know it."""
        return self.asset

    def rows(self, context: dg.AssetExecutionContext, upstream: Any) -> Any:  # noqa: ARG002
        """The rows to enrich.

        Args:
            context: The step's.
            upstream: The value of the asset `upstream`.

        Returns:
            A pandas, polars or pyarrow frame.
        """
        return upstream

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:  # noqa: ARG002
        """The asset, and the resource it asks if it has a model of its own.

        Raises:
            ConfigError: The attributes do not fit.
        """
        resources = {} if self.llm is None else {self._resource_key: self.llm}
        return dg.Definitions(assets=[self._asset()], resources=resources)

    @classmethod
    def resolve_from_model(cls, context: dg.ResolutionContext, model: BaseModel) -> Self:
        """As Dagster does it; what does not fit is said here, where the lines of the file are still known.

        Raises:
            ConfigError: The attributes do not fit; with file, line and attribute.
        """
        try:
            component: Self = super().resolve_from_model(context, model)
            check_key(component.llm)
            component._asset()
        except ValidationError as error:
            wrong = error.errors(include_url=False)[0]
            name = str(next(iter(wrong["loc"]), ""))
            raise ConfigError(_located(context, f"{name}={wrong['input']!r}: {wrong['msg']}.", [name])) from None
        except ConfigError as error:
            raise ConfigError(_located(context, str(error), type(model).model_fields)) from None
        return component

    def _asset(self) -> dg.AssetsDefinition:
        if self.llm is not None and self.resource_key:
            raise ConfigError(f"resource_key={self.resource_key!r} and a model of its own; give one of the two.")

        def rows_of(context, rows):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202  (as in `build_llm_asset`)
            return self.rows(context, rows)

        shared = inspect.signature(llm_asset).parameters.keys() & type(self).model_fields.keys()
        arguments = {name: getattr(self, name) for name in shared} | {"resource_key": self._resource_key}
        arguments |= _asset_arguments(self.get_asset_spec()) | (self.op.arguments() if self.op else {})
        if self.io_manager_key:
            arguments["io_manager_key"] = self.io_manager_key
        return llm_asset(ins={"rows": dg.AssetIn(key=self.upstream)}, **arguments)(rows_of)

    @property
    def _resource_key(self) -> str:
        """A model of the asset's own has a key of its own."""
        if self.llm is None:
            return "llm" if self.resource_key is None else self.resource_key
        return own_resource_key(self.get_asset_spec().key)


def _asset_arguments(spec: dg.AssetSpec) -> dict[str, Any]:
    """What `spec` says, as arguments of `@dg.asset`."""
    given = {
        "key": spec.key,
        "deps": list(spec.deps),
        "description": spec.description,
        "metadata": spec.metadata,
        "group_name": spec.group_name,
        "code_version": spec.code_version,
        "owners": spec.owners,
        "tags": {name: value for name, value in spec.tags.items() if not name.startswith("dagster/kind/")},
        "kinds": spec.kinds,
        "automation_condition": spec.automation_condition,
        "partitions_def": spec.partitions_def,
        "freshness_policy": spec.freshness_policy,
    }
    return {name: value for name, value in given.items() if value}


def _located(context: dg.ResolutionContext, message: str, attributes: Iterable[str]) -> str:
    """`message` with the place in the file of the attribute that it names first, be it in the singular."""
    tree = context.source_position_tree
    if tree is None:
        return message
    names = {word: name for name in attributes for word in (name, name.removesuffix("s"))}
    named = [names[word] for word in re.findall(r"\w+", message) if word in names]
    # Without the lines themselves, which may hold secrets.
    source = tree.source_error(yaml_path=[*context.path, *named[:1]], inline_error_message="", value_error=True)
    return f"{source.file_name}:{source.start_line_no} - {source.location}: {message}"
