"""The user's function as one for Dagster: the same parameters, and those that the step needs besides."""

# No `from __future__ import annotations` here: Dagster reads the annotations of functions made in this module.
import inspect
import typing
from collections.abc import Callable
from typing import Any

import dagster as dg

from ondine_dagster.config import LLMAssetConfig
from ondine_dagster.judging import golden_inputs
from ondine_dagster.planning import Enrichment
from ondine_dagster.step import materialize

__all__ = ["wrap"]


def wrap(
    function: Callable[..., Any], enrichment: Enrichment, resource_key: str, *, as_parameter: bool, configurable: bool
) -> Callable[..., Any]:
    """A function for `@dg.asset` with the parameters of `function`, and others.

    Args:
        function: Returns the rows to enrich.
        enrichment: What is added to them.
        resource_key: The resource that is asked.
        as_parameter: Whether the resource comes as a parameter, or from the context.
        configurable: Whether there is to be an `LLMAssetConfig`, unless `function` has a config of its own.
    """
    own, labelled = _parameters(function), list(golden_inputs(enrichment.checks))
    context_name = next((name for name in own if name in _CONTEXT_NAMES), None)
    rest = [parameter for name, parameter in own.items() if name != context_name]

    def compute(context, **arguments):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN003, ANN202
        llm = arguments[resource_key] if as_parameter else getattr(context.resources, resource_key)
        given = {parameter.name: arguments[parameter.name] for parameter in rest if parameter.name in arguments}
        rows = function(**given) if context_name is None else function(**{context_name: context}, **given)
        inputs = {name: value for name, value in given.items() if name in context.op_def.input_dict}
        config = arguments.get(_CONFIG)
        return materialize(
            context,
            rows,
            enrichment,
            llm,
            config if isinstance(config, LLMAssetConfig) else LLMAssetConfig(),
            inputs,
            {name: arguments[name] for name in labelled},
        )

    added = [inspect.Parameter("context", _KIND)]
    if as_parameter and resource_key not in own:
        # Anything may stand in for the resource, a fake among others.
        added.append(inspect.Parameter(resource_key, _KIND, annotation=dg.ResourceParam[object]))
    if configurable and _CONFIG not in own:
        added.append(inspect.Parameter(_CONFIG, _KIND, annotation=LLMAssetConfig))
    added += [inspect.Parameter(name, _KIND) for name in labelled]
    ordered = sorted(rest, key=lambda parameter: parameter.default is not inspect.Parameter.empty)
    signature = inspect.Signature([*added, *ordered])
    compute.__signature__ = signature  # type: ignore[attr-defined]
    # Dagster 1.12 reads these.
    compute.__annotations__ = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if parameter.annotation is not inspect.Parameter.empty
    }
    compute.__name__, compute.__doc__, compute.__module__ = function.__name__, function.__doc__, function.__module__
    return compute


_KIND = inspect.Parameter.POSITIONAL_OR_KEYWORD
"""The only kind of parameter that Dagster takes for an input."""
_CONFIG = "config"
"""The parameter by which Dagster hands over the run config."""
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
