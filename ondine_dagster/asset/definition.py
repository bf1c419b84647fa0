"""The definition of an enriched asset for Dagster, and its validation."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import dagster as dg

from ondine_core.errors import ConfigError
from ondine_core.preprocessing.media import MediaOptions
from ondine_core.prompts.task import Task, check_columns
from ondine_core.prompts.template import Prompt, explain_uncacheable
from ondine_core.types.suggestion import did_you_mean
from ondine_dagster.checks.check import Check
from ondine_dagster.checks.evaluation import check_specs
from ondine_dagster.config.launchpad import LLMAssetConfig
from ondine_dagster.config.strict import EQUIVALENTS
from ondine_dagster.resource import LLMResource
from ondine_dagster.run.failed_rows import FAILED_OUTPUT
from ondine_dagster.run.partitions import check_partition_by
from ondine_dagster.run.plan import Enrichment


def key_of(asset_arguments: Mapping[str, Any], function: Callable[..., Any]) -> dg.AssetKey:
    """The asset's key, by the rules of `@dg.asset`."""
    key = asset_arguments.get("key")
    if key is not None:
        return dg.AssetKey.from_coercible(key)
    prefix = asset_arguments.get("key_prefix") or ()
    path = [prefix] if isinstance(prefix, str) else prefix
    return dg.AssetKey([*path, asset_arguments.get("name") or function.__name__])


def check_arguments(enrichment: Enrichment, asset_arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that do not fit together, as far as that is known without rows."""
    _check_names(enrichment)
    check_partition_by(enrichment.arguments.partition_by, asset_arguments.get("partitions_def"))
    if asset_arguments.get("check_specs"):
        raise ConfigError(
            "check_specs cannot be answered from here; take checks=[...], or write the check with "
            "@dg.asset_check(asset=...)."
        )
    schema = (asset_arguments.get("metadata") or {}).get("dagster/column_schema")
    if isinstance(schema, dg.TableSchema):
        outputs = {*enrichment.task.schema.names, enrichment.error_column, enrichment.arguments.model_column}
        check_columns(enrichment.task, [column.name for column in schema.columns if column.name not in outputs])


def _check_names(enrichment: Enrichment) -> None:
    """Refuse two columns of one name, of which one would overwrite the other and its paid answers."""
    error_column, model_column = enrichment.error_column, enrichment.arguments.model_column
    outputs = enrichment.task.schema.names
    if error_column in outputs:
        raise ConfigError(
            f"The output column {error_column!r} has the name of the column that says why a row failed, which is the "
            "asset's name and '_error'; rename the output column or the asset."
        )
    if error_column in enrichment.task.prompt.columns:
        raise ConfigError(
            f"The prompt reads column {error_column!r}, but that is the column that says why a row failed, the asset's "
            "name and '_error'; rename the column of the rows or the asset."
        )
    taken = {
        "an output column": outputs,
        "a column the prompt reads": enrichment.task.prompt.columns,
        "the column that says why a row failed": (error_column,),
    }
    for what, names in taken.items():
        if model_column in names:
            raise ConfigError(f"model_column={model_column!r} is also {what}; give model_column another name.")


_EQUIVALENTS = {
    **EQUIVALENTS,
    **dict.fromkeys(("budget", "max_budget"), "max_cost_usd"),
    **dict.fromkeys(("instructions", "system_prompt"), "system"),
    **dict.fromkeys(("output_schema", "output_type", "response_format", "response_model"), "output"),
    **dict.fromkeys(("result_type", "schema"), "output"),
}
"""Names in other libraries, and the equivalent argument of the asset, its prompt or its model."""


def unknown_argument(error: TypeError, own: Collection[str]) -> TypeError | ConfigError:
    """Translate an `error` of `@dg.asset` about an unknown argument into one with a suggestion.

    `own` are the arguments of `llm_asset` itself. Other errors are returned as they are.
    """
    match = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if match is None:
        return error
    name = match[1]
    equivalent = _EQUIVALENTS.get(name, name)
    suggestion = f" Did you mean {equivalent!r}?" if equivalent in own else _place_of(equivalent)
    if suggestion is None:
        suggestion = did_you_mean(name, {*own, *inspect.signature(dg.asset).parameters})
    return ConfigError(f"Neither llm_asset nor @dg.asset has an argument {name!r}.{suggestion}")


def _place_of(name: str) -> str | None:
    """A sentence that says where an argument of the prompt, the model or a run belongs; `None` for other names."""
    if name in {field.name for field in fields(Prompt)}:
        return f" It belongs to the prompt: prompt=Prompt(..., {name}=...)."
    if name in LLMResource.model_fields:
        return f" It belongs to the model: LLMResource(..., {name}=...), as the resource or as model=LLMResource(...)."
    if name in {field.name for field in fields(MediaOptions)}:
        return f" It belongs to the images of the prompt: prompt=Prompt(..., media=MediaOptions({name}=...))."
    if name in LLMAssetConfig.model_fields:
        return f" It belongs to a run: set it in the Launchpad, or with RunConfig and LLMAssetConfig({name}=...)."
    return None


def code_version(task: Task, users: str | None) -> str:
    """The version of the `users`, if any, and a hash of the prompt, examples, output and preprocessing.

    The model is not part of it, as it belongs to the resource; metadata show it.
    """
    head = [f"{message.role}:{message.content}" for message in task.prompt.head]
    parts = [task.prompt.syntax, task.prompt.source, *head, task.schema.identity.decode()]
    if task.prompt.preparation:
        parts.append(task.prompt.preparation.identity)
    if task.prompt.reader and task.prompt.reader.options.identity:
        parts.append(repr(sorted(task.prompt.reader.options.identity.items())))
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=6).hexdigest()
    return f"{users}-{digest}" if users else digest


def definition_metadata(enrichment: Enrichment, function: Callable[..., Any]) -> dict[str, Any]:
    """Metadata: the prompt, the schema of an answer, references to the code, and advice about prompt caching."""
    task = enrichment.task
    metadata: dict[str, Any] = {"ondine/prompt": dg.MetadataValue.md(f"~~~~text\n{task.prompt.source}\n~~~~")}
    schema = task.schema.json_schema
    if schema:
        metadata["ondine/output_schema"] = dg.MetadataValue.json(json.loads(schema))
    advice = explain_uncacheable(task.prompt) if enrichment.arguments.batch_size == 1 else None
    if advice:
        metadata["ondine/prompt_advice"] = advice
    if task.prompt.preparation:
        metadata["ondine/preparation"] = str(task.prompt.preparation)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # users cannot do anything about it
        references = list(_code_references(enrichment.arguments.prompt, function))
        if references:
            metadata["dagster/code_references"] = dg.CodeReferencesMetadataValue(code_references=references)
    return metadata


def _code_references(prompt: str | Prompt, function: Callable[..., Any]) -> Iterator[dg.LocalFileCodeReference]:
    code = function.__code__
    if Path(code.co_filename).is_file() and not function.__module__.startswith("ondine_dagster."):
        yield dg.LocalFileCodeReference(file_path=code.co_filename, line_number=code.co_firstlineno, label="rows")
    if isinstance(prompt, Prompt) and prompt.file is not None:
        yield dg.LocalFileCodeReference(file_path=str(Path(prompt.file).resolve()), line_number=1, label="prompt")


_STEP_ARGUMENTS = (
    *("ins", "deps", "config_schema", "required_resource_keys", "resource_defs", "hooks", "backfill_policy", "op_tags"),
    *("retry_policy", "pool", "partitions_def", "compute_kind"),
)
"""Arguments of `@dg.asset` for the step; the others are in the asset's spec."""


def define_asset(
    compute: Callable[..., Any],
    key: dg.AssetKey,
    arguments: Mapping[str, Any],
    checks: Mapping[str, Check],
    *,
    failed_rows: bool,
) -> dg.AssetsDefinition:
    """The asset of `compute`: the enriched rows, and with `failed_rows` also the asset of the failed ones."""
    if arguments.get("io_manager_def") is not None and (failed_rows or checks):
        raise ConfigError("An asset with checks or failed_rows takes io_manager_key, not io_manager_def.")
    # A dry run has no output.
    asset: dg.AssetsDefinition = dg.asset(**{"output_required": False, **arguments})(compute)
    if not (failed_rows or checks):
        return asset
    (spec,) = asset.specs
    alone = spec.replace_attributes(deps=[])
    upstream = set(asset.keys_by_input_name.values())
    # An asset may depend on its own earlier partitions; its failed rows do not, and are yielded before it.
    deps = {"result": upstream, FAILED_OUTPUT: upstream - {key}} if failed_rows and key in upstream else None
    failed = alone.replace_attributes(
        key=dg.AssetKey([*key.path[:-1], f"{key.path[-1]}_failed"]),
        description=f"The rows of {key.to_user_string()} that have no answer, and why.",
        # IO managers read metadata such as `partition_expr` and `schema`.
        metadata={name: value for name, value in spec.metadata.items() if not name.startswith(("dagster/", "ondine/"))},
        automation_condition=None,
        freshness_policy=None,
    )
    stored = {name: arguments[name] for name in ("io_manager_key",) if name in arguments}
    typed = {name: arguments[name] for name in ("dagster_type",) if arguments.get(name) is not None}
    decorate = dg.multi_asset(
        name=asset.op.name,
        outs={
            "result": dg.AssetOut.from_spec(alone, is_required=False, **stored, **typed),
            **({FAILED_OUTPUT: dg.AssetOut.from_spec(failed, is_required=False, **stored)} if failed_rows else {}),
        },
        check_specs=check_specs(checks, key),
        internal_asset_deps=deps,
        can_subset=True,  # otherwise checks must have a result, also in a dry run
        **{name: arguments[name] for name in _STEP_ARGUMENTS if name in arguments},
    )
    return decorate(compute)
