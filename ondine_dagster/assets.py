"""An LLM column as an asset: the decorator, its twin for factories, and the step they share.

The decorated function is an ordinary asset function that returns the rows to enrich; this module wraps it in another
that takes the same arguments and hands the rows to `step`.
"""

# No `from __future__ import annotations` here: Dagster reads the annotations of functions made in this module.
import hashlib
import inspect
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import dagster as dg

from ondine_core.batching import find_strategy
from ondine_core.calibration import CalibrationPlan
from ondine_core.errors import ConfigError
from ondine_core.prompts import Prompt
from ondine_core.question import Question, check_columns, compile_question
from ondine_core.schema import Output
from ondine_core.values import ModelSpec
from ondine_dagster.checks import Check
from ondine_dagster.dead_letters import define
from ondine_dagster.fitting import fit_checks
from ondine_dagster.judging import golden_inputs
from ondine_dagster.step import Enrichment, OnRowError, materialize

__all__ = ["build_llm_asset", "llm_asset"]


def llm_asset(  # noqa: PLR0913  (all by keyword)
    *,
    prompt: str | Prompt,
    output: Output,
    batch_size: int | Literal["auto"] = 1,
    batch_format: str = "json",
    calibrate: int | None = None,
    min_agreement: float = 0.98,
    on_disagreement: Literal["lower", "stop"] = "lower",
    max_cost_usd: float | None = None,
    resource_key: str = "llm",
    model_column: str | None = None,
    on_row_error: OnRowError = "null",
    max_error_rate: float | None = None,
    failed_rows: bool = False,
    checks: Sequence[Check | Mapping[str, Any]] = (),
    **asset_arguments: Any,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """An asset whose rows a language model adds columns to.

    The decorated function is an asset function like any other: its parameters are upstream assets, and `context`,
    config and resources as in `@dg.asset`. It returns the rows to enrich, as a pandas, polars or pyarrow frame. The
    asset is those rows with the output columns, in the same kind of frame and in the same order.

    Args:
        prompt: The question about a row, `{column}` where its value belongs; or a `Prompt` with system message,
            examples, a file, or Jinja2 syntax.
        output: The columns wanted: a Pydantic model, a JSON schema, a mapping of column to type, a regular expression
            with named groups, or the name of one free-text column.
        batch_size: Most rows in one call. With many, the instructions are sent once and answers are joined to rows by
            id; what is missing or invalid is asked again in smaller batches. It is not part of an answer's identity:
            changing it asks nothing again. `"auto"` grows it while all goes well and shrinks it when it does not.
        batch_format: How rows and answers are written in such a call: `"json"`, `"jsonl"`, `"csv"` or `"xml"`.
        calibrate: Before the run, ask so many sampled rows alone and together, and compare. Where the share of rows
            that agree is less than `min_agreement` in a column (free text apart), `on_disagreement` says what is done.
        min_agreement: A share, 0 to 1.
        on_disagreement: `"lower"` halves `batch_size` until rows agree, `"stop"` fails the step.
        max_cost_usd: Hard cap on what one materialization may cost, retries of its step included. The worst case of a
            call is charged before it leaves; when the cap is reached the step fails for good, and all answers are kept.
        resource_key: The resource that is asked, an `LLMResource` (or a bare `ChatModel`, such as a `ScriptedModel`).
        model_column: Name of a further column, which says which model answered the row.
        on_row_error: What becomes of a row without an answer: `"null"` (nulls, and the reason in `<asset>_error`),
            `"drop"`, or `"raise"`, which fails the step once all other rows are answered and kept.
        max_error_rate: Share of failed rows, 0 to 1, above which the step fails; by default it fails when no row got
            an answer.
        failed_rows: Adds a second asset, `<asset>_failed`: the rows without an answer, with the reason, how often they
            were asked, and what that cost.
        checks: Asset checks that each materialization answers: `ErrorRateCheck`, `NullRateCheck`, `CostPerRowCheck`,
            `DriftCheck`, `GoldenCheck`, or mappings with their `type` and arguments.
        **asset_arguments: Everything else `@dg.asset` takes.

    Raises:
        ConfigError: Prompt, output and the other arguments do not fit; raised when the definitions load.
    """

    def decorate(function: Callable[..., Any]) -> dg.AssetsDefinition:
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise ConfigError(
                f"{function.__name__!r} must be a plain function that returns the rows to enrich, "
                "neither async nor a generator; the calls to the model are concurrent anyway."
            )
        key = _key(asset_arguments, function)
        question = compile_question(prompt, output, ModelSpec(""))
        enrichment = Enrichment(
            question,
            f"{key.path[-1]}_error",
            on_row_error,
            max_error_rate,
            batch_size,
            find_strategy(batch_format),
            calibration=None if calibrate is None else CalibrationPlan(calibrate, min_agreement, on_disagreement),
            model_column=model_column,
            max_cost_usd=max_cost_usd,
            checks=fit_checks(checks, question),
            failed_rows=failed_rows,
        )
        _check(enrichment, asset_arguments)
        arguments = dict(asset_arguments)
        if not {"kinds", "compute_kind"} & arguments.keys():
            arguments["kinds"] = {"llm"}
        arguments["code_version"] = _code_version(question, asset_arguments.get("code_version"))
        arguments["metadata"] = _definition_metadata(question) | dict(asset_arguments.get("metadata") or {})
        if required := asset_arguments.get("required_resource_keys"):
            arguments["required_resource_keys"] = {*required, resource_key}
        labelled = {name: dg.AssetIn(key=upstream) for name, upstream in golden_inputs(enrichment.checks).items()}
        arguments["ins"] = {**(asset_arguments.get("ins") or {}), **labelled}
        compute = _wrap(function, enrichment, resource_key, as_parameter=not required)
        return define(compute, key, arguments, enrichment.checks, failed_rows=failed_rows)

    return decorate


def build_llm_asset(
    *, name: str, upstream: dg.AssetKey | str | Sequence[str], prompt: str | Prompt, output: Output, **arguments: Any
) -> dg.AssetsDefinition:
    """`llm_asset` without a function: all rows of the asset `upstream` are enriched.

    Args:
        name: Name of the asset.
        upstream: Key of the asset that has the rows.
        prompt: As for `llm_asset`.
        output: As for `llm_asset`.
        **arguments: The other arguments of `llm_asset`, those of `@dg.asset` among them.

    Raises:
        ConfigError: As for `llm_asset`.
    """

    def rows_of(rows):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202  (annotations would become Dagster types)
        return rows

    ins = {"rows": dg.AssetIn(key=dg.AssetKey(upstream) if not isinstance(upstream, dg.AssetKey) else upstream)}
    return llm_asset(name=name, ins=ins, prompt=prompt, output=output, **arguments)(rows_of)


# -- the definition ------------------------------------------------------------------------------------------------


def _key(asset_arguments: Mapping[str, Any], function: Callable[..., Any]) -> dg.AssetKey:
    if (key := asset_arguments.get("key")) is not None:
        return dg.AssetKey.from_coercible(key)
    prefix = asset_arguments.get("key_prefix") or ()
    path = [prefix] if isinstance(prefix, str) else prefix
    return dg.AssetKey([*path, asset_arguments.get("name") or function.__name__])


def _check(enrichment: Enrichment, asset_arguments: Mapping[str, Any]) -> None:
    if enrichment.on_row_error not in typing.get_args(OnRowError):
        raise ConfigError(f"on_row_error={enrichment.on_row_error!r}; valid are 'null', 'drop' and 'raise'.")
    if enrichment.batch_size != "auto" and enrichment.batch_size < 1:
        raise ConfigError(f"batch_size={enrichment.batch_size!r} must be at least 1, or 'auto'.")
    if (cap := enrichment.max_cost_usd) is not None and not cap > 0:
        raise ConfigError(f"max_cost_usd={cap!r} must be more than 0.")
    rate = enrichment.max_error_rate
    if rate is not None and not 0 <= rate <= 1:
        raise ConfigError(f"max_error_rate={rate!r} must be between 0 and 1.")
    if asset_arguments.get("check_specs"):
        raise ConfigError(
            "check_specs cannot be answered from here; take checks=[...], or write the check with "
            "@dg.asset_check(asset=...)."
        )
    declared = (asset_arguments.get("metadata") or {}).get("dagster/column_schema")
    if isinstance(declared, dg.TableSchema):
        outputs = {column.name for column in enrichment.question.schema.columns}
        outputs |= {enrichment.error_column, enrichment.model_column or ""}
        check_columns(enrichment.question, [column.name for column in declared.columns if column.name not in outputs])


def _code_version(question: Question, users: str | None) -> str:
    """Changes with the prompt, its examples and the output; the model is the resource's and shown in the metadata."""
    head = [f"{message.role}:{message.content}" for message in question.prompt.head]
    parts = [question.prompt.syntax, question.prompt.source, *head, question.schema.identity.decode()]
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=6).hexdigest()
    return f"{users}-{digest}" if users else digest


def _definition_metadata(question: Question) -> dict[str, Any]:
    schema = question.schema.json_schema
    shown = {"ondine/prompt": dg.MetadataValue.md(f"~~~~text\n{question.prompt.source}\n~~~~")}
    return shown | ({"ondine/output_schema": dg.MetadataValue.json(json.loads(schema))} if schema else {})


def _wrap(
    function: Callable[..., Any], enrichment: Enrichment, resource_key: str, *, as_parameter: bool
) -> Callable[..., Any]:
    """A function for `@dg.asset` with the parameters of `function`, and the resource and labelled rows as more."""
    own, labelled = _parameters(function), list(golden_inputs(enrichment.checks))
    context_name = next((name for name in own if name in _CONTEXT_NAMES), None)
    rest = [parameter for name, parameter in own.items() if name != context_name]

    def compute(context, **arguments):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN003, ANN202
        llm = arguments[resource_key] if as_parameter else getattr(context.resources, resource_key)
        given = {parameter.name: arguments[parameter.name] for parameter in rest if parameter.name in arguments}
        rows = function(**given) if context_name is None else function(**{context_name: context}, **given)
        inputs = {name: value for name, value in given.items() if name in context.op_def.input_dict}
        results = materialize(context, rows, enrichment, llm, inputs, {name: arguments[name] for name in labelled})
        return results if enrichment.failed_rows else next(results)

    added = [inspect.Parameter("context", _KIND)]
    if as_parameter and resource_key not in own:
        # Anything may stand in for the resource, a fake among others.
        added.append(inspect.Parameter(resource_key, _KIND, annotation=dg.ResourceParam[object]))
    added += [inspect.Parameter(name, _KIND) for name in labelled]
    ordered = sorted(rest, key=lambda parameter: parameter.default is not inspect.Parameter.empty)
    compute.__signature__ = inspect.Signature([*added, *ordered])  # type: ignore[attr-defined]
    compute.__name__, compute.__doc__, compute.__module__ = function.__name__, function.__doc__, function.__module__
    return compute


_KIND = inspect.Parameter.POSITIONAL_OR_KEYWORD
"""The only kind of parameter that Dagster takes for an input."""
_CONTEXT_NAMES = ("context", "_context", "context_", "_")
"""What Dagster takes for the context parameter of an asset function."""


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of `function` as keywords, their annotations resolved, so that users may import annotations."""
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError):  # a type that exists for type checkers only; Dagster takes it for anything
        hints = {}
    parameters = {}
    for name, parameter in inspect.signature(function).parameters.items():
        annotation = hints.get(name, parameter.annotation)
        parameters[name] = parameter.replace(
            kind=_KIND,
            annotation=inspect.Parameter.empty if isinstance(annotation, str) else annotation,
        )
    return parameters
