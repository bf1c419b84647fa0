"""The decorator `llm_asset`, and `build_llm_asset`, which makes the same asset without a function.

The decorated function is an ordinary asset function that returns the rows to enrich. It is wrapped in a function with
the same parameters, which passes the rows to `materialize`.
"""

# No `from __future__ import annotations` here: Dagster reads the annotations of functions made in this module.
import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, Unpack

import dagster as dg

from ondine_core.batching.calibration import CalibrationPlan
from ondine_core.batching.strategy import find_strategy
from ondine_core.errors import ConfigError
from ondine_core.prompts.output_schema import Output
from ondine_core.prompts.task import compile_task
from ondine_core.prompts.template import Prompt
from ondine_core.types.values import ModelSpec
from ondine_dagster.asset.definition import (
    check_arguments,
    code_version,
    define_asset,
    definition_metadata,
    key_of,
    unknown_argument,
)
from ondine_dagster.asset.signature import check_function, wrap
from ondine_dagster.checks.evaluation import fit_checks, labelled_inputs
from ondine_dagster.resource import own_resource, own_resource_key
from ondine_dagster.run.arguments import Arguments, BuildArguments, LLMAssetArguments, check_values
from ondine_dagster.run.plan import Enrichment

P = ParamSpec("P")
R = TypeVar("R")


def _by_name(make: Callable[P, R]) -> Callable[P, R]:
    """Wrap `make` so that a positional argument raises an error with the usage, and `help` lists the arguments."""

    @functools.wraps(make)
    def checked(*positional: P.args, **arguments: P.kwargs) -> R:
        if positional:
            first = getattr(positional[0], "__name__", positional[0])
            raise ConfigError(
                f"@{make.__name__} stands without arguments over {first!r}, or has "
                f"one without its name; write @{make.__name__}(prompt=..., output=...)."
            )
        return make(*positional, **arguments)

    types = {**LLMAssetArguments.__annotations__, **make.__annotations__}
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.is_required() else field.default,
            annotation=types[name],
        )
        for name, field in Arguments.model_fields.items()
    ]
    model = inspect.Parameter("model", inspect.Parameter.KEYWORD_ONLY, default=None)
    others = inspect.Parameter("asset_arguments", inspect.Parameter.VAR_KEYWORD)
    checked.__signature__ = inspect.Signature([*parameters, model, others])  # type: ignore[attr-defined]
    return checked


@_by_name
def llm_asset(
    *, prompt: str | Prompt, output: Output, **arguments: Unpack[LLMAssetArguments]
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Make an asset to whose rows a language model adds columns.

    The decorated function is an ordinary asset function: its parameters are upstream assets, and `context`, config and
    resources as in `@dg.asset`. It returns the rows to enrich, as a pandas, polars or pyarrow frame (in a run of
    several partitions also as a mapping of partition to frame). The asset has those rows with the output columns, in
    the same kind of frame and in the same order. The Launchpad shows the fields of `LLMAssetConfig`.

    Args:
        prompt: The question about a row, with `{column}` for the value of a column, or a `Prompt`.
        output: The output columns: a Pydantic model, a JSON schema, a mapping of column to type, or a name.
        **arguments: The other fields of [`Arguments`][ondine_dagster.run.arguments.Arguments]; `model`, the model of
            this asset, instead of the resource `resource_key`: its name, as in `"openai/gpt-6-luna"`, an `LLMResource`,
            a `ModelSpec`, or a `ChatModel` such as a `ScriptedModel`; and all arguments of `@dg.asset`.

    Raises:
        ConfigError: Prompt, output or another argument is not valid; raised when the definitions load.
    """
    asset_arguments: dict[str, Any] = {"prompt": prompt, "output": output, **arguments}
    check_values(asset_arguments)
    model = asset_arguments.pop("model", None)
    own = {name: asset_arguments.pop(name) for name in Arguments.model_fields if name in asset_arguments}
    declared = Arguments.model_construct(**own)

    def decorate(function: Callable[..., Any]) -> dg.AssetsDefinition:
        check_function(function)
        key = key_of(asset_arguments, function)
        enrichment = _enrichment(declared, key)
        check_arguments(enrichment, asset_arguments)
        definition = dict(asset_arguments)
        if not {"kinds", "compute_kind"} & definition.keys():
            definition["kinds"] = {"llm"}
        definition["code_version"] = code_version(enrichment.task, asset_arguments.get("code_version"))
        users_metadata = dict(asset_arguments.get("metadata") or {})
        definition["metadata"] = definition_metadata(enrichment, function) | users_metadata
        resource_key = declared.resource_key or "llm"
        if model is not None:
            resource_key = own_resource_key(key)
            resource_defs = asset_arguments.get("resource_defs") or {}
            definition["resource_defs"] = {**resource_defs, resource_key: own_resource(model)}
        required = asset_arguments.get("required_resource_keys")
        if required:
            definition["required_resource_keys"] = {*required, resource_key}
        compute = wrap(function, enrichment, resource_key, asset_arguments)
        parameters = inspect.signature(compute).parameters
        definition["ins"] = dict(asset_arguments.get("ins") or {})
        for name, labelled_asset in labelled_inputs(enrichment.checks).items():
            if name in parameters:
                definition["ins"][name] = dg.AssetIn(key=labelled_asset)
        try:
            with warnings.catch_warnings():
                # Users need no warning about `resource_defs`, which hold the asset's own model.
                warnings.filterwarnings("ignore", r".*`resource_defs`", dg.BetaWarning)
                return define_asset(compute, key, definition, enrichment.checks, failed_rows=declared.failed_rows)
        except TypeError as error:
            raise unknown_argument(error, {*Arguments.model_fields, "model"}) from None

    return decorate


def _enrichment(declared: Arguments, key: dg.AssetKey) -> Enrichment:
    """The compiled arguments of the asset `key`."""
    task = compile_task(
        declared.prompt, declared.output, ModelSpec(""), clean=declared.clean, sanitize=declared.sanitize
    )
    calibration = None
    if declared.calibrate is not None:
        calibration = CalibrationPlan(declared.calibrate, declared.min_agreement, declared.on_disagreement)
    return Enrichment(
        task,
        f"{key.path[-1]}_error",
        declared,
        find_strategy(declared.batch_format),
        calibration,
        fit_checks(declared.checks, task),
    )


def build_llm_asset(
    *,
    name: str,
    upstream: dg.AssetKey | str | Sequence[str],
    prompt: str | Prompt,
    output: Output,
    **arguments: Unpack[BuildArguments],
) -> dg.AssetsDefinition:
    """`llm_asset` without a function: all rows of the asset `upstream` are enriched.

    Args:
        name: Name of the asset.
        upstream: Key of the asset that has the rows.
        prompt: As for `llm_asset`.
        output: As for `llm_asset`.
        **arguments: The other arguments of `llm_asset`, also those of `@dg.asset`.

    Raises:
        ConfigError: As for `llm_asset`; or `upstream` is not a key.
    """
    _check_upstream(upstream, arguments)

    def rows_of(rows):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202  (annotations would become Dagster types)
        return {} if rows is None else rows  # Dagster's IO managers load None for a missing partition

    ins = {"rows": dg.AssetIn(key=dg.AssetKey(upstream) if not isinstance(upstream, dg.AssetKey) else upstream)}
    return llm_asset(name=name, ins=ins, prompt=prompt, output=output, **arguments)(rows_of)


def _check_upstream(upstream: Any, arguments: Mapping[str, Any]) -> None:
    if not _is_key(upstream):
        raise ConfigError(
            f"upstream={upstream!r} must be the key of the asset that has the rows: a text, a list of texts or an "
            "AssetKey (of an asset in Python, its .key)."
        )
    if "ins" in arguments:
        raise ConfigError(
            f"ins={arguments['ins']!r}: the one input of build_llm_asset is upstream={upstream!r}; for others, write "
            "a function with @llm_asset(ins=...)."
        )


def _is_key(upstream: Any) -> bool:
    if isinstance(upstream, dg.AssetKey):  # a tuple, too, which refuses iteration
        return True
    path = [upstream] if isinstance(upstream, str) else upstream
    return isinstance(path, list | tuple) and bool(path) and all(isinstance(part, str) and part for part in path)
