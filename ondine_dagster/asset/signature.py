"""Wraps the user's function for Dagster: the same parameters, and those that the step needs in addition."""

# No `from __future__ import annotations` here: Dagster reads the annotations of functions made in this module.
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import dagster as dg

from ondine_core.errors import ConfigError
from ondine_dagster.checks.evaluation import labelled_inputs
from ondine_dagster.config.launchpad import LLMAssetConfig
from ondine_dagster.run.plan import Enrichment
from ondine_dagster.run.step import Results, StepInput, materialize


def wrap(
    function: Callable[..., Any], enrichment: Enrichment, resource_key: str, asset_arguments: Mapping[str, Any]
) -> Callable[..., Any]:
    """A function for `@dg.asset` with the parameters of `function` and those of the step.

    Inputs in `asset_arguments` that are not parameters are passed to `**` of `function`. The resource is read from the
    context if there are `required_resource_keys`, and otherwise is a parameter.
    """
    as_parameter = not asset_arguments.get("required_resource_keys")
    all_ins = dict(asset_arguments.get("ins") or {})
    # Other values are left out here, and refused by Dagster.
    ins = {name: asset_in for name, asset_in in all_ins.items() if isinstance(asset_in, dg.AssetIn)}
    own = _parameters(function, ins)
    if as_parameter and resource_key in own:
        _check_resource(function, own[resource_key])
    labelled = _labelled(enrichment, own, ins)
    context_name = next((name for name in own if name in _CONTEXT_NAMES), None)
    rest = [parameter for name, parameter in own.items() if name != context_name]

    def run_step(context: dg.AssetExecutionContext, arguments: Mapping[str, Any]) -> Results:
        _check_has_run(function, context)
        llm = arguments[resource_key] if as_parameter else getattr(context.resources, resource_key)
        own_arguments = {parameter.name: arguments[parameter.name] for parameter in rest if parameter.name in arguments}
        if context_name is not None:
            own_arguments[context_name] = context
        rows = function(**own_arguments)
        inputs = {name: value for name, value in own_arguments.items() if name in context.op_def.input_dict}
        config = arguments.get(_CONFIG)
        step_input = StepInput(
            rows,
            llm,
            config if isinstance(config, LLMAssetConfig) else LLMAssetConfig(),
            inputs,
            {name: arguments[source] for name, source in labelled.items()},
        )
        return materialize(context, enrichment, step_input)

    def compute(context, **arguments):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN003, ANN202
        return run_step(context, arguments)

    added = [inspect.Parameter("context", _KIND)]
    if as_parameter and resource_key not in own:
        # Any object may replace the resource, for instance a fake model.
        added.append(inspect.Parameter(resource_key, _KIND, annotation=dg.ResourceParam[object]))
    if _CONFIG not in own and "config_schema" not in asset_arguments:
        added.append(inspect.Parameter(_CONFIG, _KIND, annotation=LLMAssetConfig))
    added += [inspect.Parameter(name, _KIND) for name, source in labelled.items() if name == source]
    ordered = sorted(rest, key=lambda parameter: parameter.default is not inspect.Parameter.empty)
    signature = inspect.Signature([*added, *ordered])
    compute.__signature__ = signature  # type: ignore[attr-defined]
    # Dagster 1.12 reads these.
    compute.__annotations__ = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if parameter.annotation is not inspect.Parameter.empty
    }
    # Dagster's code references and tracebacks show the place in the code object; `__wrapped__` would not change it.
    code = function.__code__
    compute.__code__ = compute.__code__.replace(co_filename=code.co_filename, co_firstlineno=code.co_firstlineno)
    compute.__name__ = function.__name__
    compute.__doc__ = function.__doc__
    compute.__module__ = function.__module__
    return compute


def check_function(function: Any) -> None:
    """Refuse a function that cannot return rows, or has parameters that cannot be passed by name."""
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        raise ConfigError(
            f"llm_asset was given a {type(function).__name__} where a plain function that returns the rows to enrich "
            "was expected; write one with def, which may call it."
        )
    is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    if is_async or inspect.isgeneratorfunction(function):
        raise ConfigError(
            f"{function.__name__!r} must be a plain function that returns the rows to enrich, "
            "neither async nor a generator; the calls to the model are concurrent anyway."
        )
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in {parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY}:
            raise ConfigError(
                f"{function.__name__!r} takes {str(parameter)!r} by position, but Dagster gives inputs by name; write "
                "each as a parameter of its own, or **inputs together with ins={...}."
            )


_KIND = inspect.Parameter.POSITIONAL_OR_KEYWORD
"""The only kind of parameter that Dagster reads as an input."""
_CONFIG = "config"
"""The parameter that receives the run config."""
_CONTEXT_NAMES = ("context", "_context", "context_", "_")
"""The names that Dagster reads as the context parameter of an asset function."""

_RESOURCE_MARK = typing.get_args(dg.ResourceParam[object])[1:]
"""Dagster's annotation of a resource parameter."""


def _parameters(function: Callable[..., Any], ins: Mapping[str, dg.AssetIn]) -> dict[str, inspect.Parameter]:
    """The parameters of `function` as keywords, with resolved annotations, so users may postpone annotations.

    `**inputs`, which Dagster would take for one input, is replaced by the remaining inputs of `ins` with a value.
    """
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError):  # a type that exists for type checkers only; Dagster accepts any value for it
        hints = {}
    declared = inspect.signature(function).parameters
    parameters: dict[str, inspect.Parameter] = {}
    for name, parameter in declared.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            remaining = [
                input_name
                for input_name, asset_in in ins.items()
                if input_name not in declared and not _is_nothing(asset_in)
            ]
            parameters |= {input_name: inspect.Parameter(input_name, _KIND) for input_name in remaining}
            continue
        annotation = hints.get(name, parameter.annotation)
        parameters[name] = parameter.replace(
            kind=_KIND,
            annotation=inspect.Parameter.empty if isinstance(annotation, str) else annotation,
        )
    return parameters


def _is_nothing(asset_in: dg.AssetIn) -> bool:
    """Whether an input only orders the assets and has no value."""
    kind = asset_in.dagster_type
    return isinstance(kind, dg.DagsterType) and kind.is_nothing


def _labelled(
    enrichment: Enrichment, own: Mapping[str, inspect.Parameter], ins: Mapping[str, dg.AssetIn]
) -> dict[str, str]:
    """The inputs of labelled rows and the parameters that receive them.

    An asset that is already an input of the function has the parameter of that input.
    """
    names = {}
    for name, parameter in own.items():
        if not _is_resource(parameter):
            asset_in = ins.get(name, dg.AssetIn())
            names[asset_in.key or dg.AssetKey([*(asset_in.key_prefix or ()), name])] = name
    return {name: names.get(upstream, name) for name, upstream in labelled_inputs(enrichment.checks).items()}


def _is_resource(parameter: inspect.Parameter) -> bool:
    """Whether Dagster reads `parameter` as a resource, by its annotation."""
    kind = parameter.annotation
    if isinstance(kind, type):
        return issubclass(kind, dg.ConfigurableResource | dg.ResourceDefinition)
    return typing.get_origin(kind) is Annotated and typing.get_args(kind)[1:] == _RESOURCE_MARK


def _check_has_run(function: Callable[..., Any], context: dg.AssetExecutionContext) -> None:
    """Refuse a call of the asset as a function, whose context has no run."""
    try:
        context.run  # noqa: B018
    except dg.DagsterError:
        name = function.__name__
        raise ConfigError(
            f"{name!r} was called as a function, but its step needs a run; in a test, write dg.materialize([{name}, "
            "...], resources={'llm': ScriptedModel(...)})."
        ) from None


def _check_resource(function: Callable[..., Any], parameter: inspect.Parameter) -> None:
    """Refuse a parameter with the name of the resource that is not a resource: it would replace the model."""
    if not _is_resource(parameter):
        name = parameter.name
        raise ConfigError(
            f"The parameter {name!r} of {function.__name__!r} has the name of resource_key={name!r}, the model that is "
            f"asked, but is an input. Name it otherwise (ins={{'rows': AssetIn({name!r})}} with a parameter rows), or "
            "choose another resource_key; if the resource is meant, annotate it with dg.ResourceParam[object]."
        )
