"""What the arguments of `llm_asset` may be, each by itself: one table, read before anything is made of them.

Python would say of most mistakes that two types cannot be compared; these messages name the argument and what is valid.
"""

from __future__ import annotations

import functools
import inspect
import keyword
import math
import typing
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

import dagster as dg

from ondine_core.engine.policy import RETRY_FAILED_ROWS, is_retry
from ondine_core.errors import ConfigError
from ondine_core.prompts.template import Prompt
from ondine_core.types.values import ModelSpec, OnMissing, PromptCache, Tier
from ondine_dagster.config.answer_by import ANSWER_BY, is_answer_by
from ondine_dagster.resource import LLMResource
from ondine_dagster.run.plan import OnRowError

__all__ = ["check_function", "check_twin", "with_valid_arguments"]

P = ParamSpec("P")
R = TypeVar("R")


def with_valid_arguments(make: Callable[P, R]) -> Callable[P, R]:
    """`make` of keyword arguments, which are checked first.

    Raises:
        ConfigError: One is not valid, or `make` stands over a function as a decorator without arguments.
    """

    @functools.wraps(make)
    def checked(*given: P.args, **arguments: P.kwargs) -> R:
        if given:
            raise ConfigError(
                f"@{make.__name__} stands without arguments over {getattr(given[0], '__name__', given[0])!r}, or has "
                f"one without its name; write @{make.__name__}(prompt=..., output=...)."
            )
        _check_values(arguments)
        return make(*given, **arguments)

    return checked


def check_function(function: Any) -> None:
    """Check that `function` is one that returns rows, with parameters that can be given by name.

    Raises:
        ConfigError: It is not.
    """
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        raise ConfigError(
            f"llm_asset was given a {type(function).__name__} where a plain function that returns the rows to enrich "
            "was expected; write one with def, which may call it."
        )
    kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    if any(is_such(function) for is_such in kinds):
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


def check_twin(upstream: Any, arguments: Mapping[str, Any]) -> None:
    """Check what `build_llm_asset` has of its own.

    Raises:
        ConfigError: `upstream` is no key, or there are other inputs.
    """
    path = [upstream] if isinstance(upstream, str) else upstream
    is_path = isinstance(path, list | tuple) and all(isinstance(part, str) and part for part in path)
    if not isinstance(upstream, dg.AssetKey) and not (is_path and path):
        raise ConfigError(
            f"upstream={upstream!r} must be the key of the asset that has the rows: a text, a list of texts or an "
            "AssetKey (of an asset in Python, its .key)."
        )
    if "ins" in arguments:
        raise ConfigError(
            f"ins={arguments['ins']!r}: the one input of build_llm_asset is upstream={upstream!r}; for others, write "
            "a function with @llm_asset(ins=...)."
        )


def _check_values(arguments: Mapping[str, Any]) -> None:
    for name, (is_valid, valid) in _VALID.items():
        if name in arguments and not is_valid(arguments[name]):
            raise ConfigError(f"{name}={arguments[name]!r} must be {valid}.")
    checks = arguments.get("checks", ())
    if isinstance(checks, str | Mapping) or not isinstance(checks, Iterable):
        # Without its value, which may hold labelled rows.
        raise ConfigError(
            f"checks is a {type(checks).__name__}; it must be a list of checks, be it of one: checks=[...]."
        )
    if arguments.get("model") is not None and arguments.get("resource_key") is not None:
        raise ConfigError(f"resource_key={arguments['resource_key']!r} and a model of its own; give one of the two.")
    disagreement = arguments.get("on_disagreement", "lower")
    if disagreement != "lower" and arguments.get("calibrate") is None:
        raise ConfigError(
            f"on_disagreement={disagreement!r} is about calibrating, which calibrate=None leaves out; say how many "
            "rows to calibrate with, as in calibrate=50."
        )


def _is_count(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 1


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real | Decimal) and math.isfinite(value)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_resource_key(value: Any) -> bool:
    # It becomes a parameter of the step, beside these two.
    usable = isinstance(value, str) and value.isidentifier() and not keyword.iskeyword(value)
    return usable and value not in {"context", "config"}


def _is_model(value: Any) -> bool:
    named = isinstance(value, str) and bool(value.strip())
    return value is None or named or isinstance(value, ModelSpec | LLMResource) or _is_open_model(value)


def _is_open_model(value: Any) -> bool:
    return callable(value) and not isinstance(value, type) and hasattr(value, "aclose")


def _one_of(*values: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: isinstance(value, str) and value in values, f"one of {', '.join(map(repr, values))}"


_VALID: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "prompt": (
        lambda value: isinstance(value, str | Prompt),
        "a text with {column} where a value belongs, or a Prompt",
    ),
    "batch_size": (
        lambda value: (isinstance(value, str) and value == "auto") or _is_count(value),
        "a whole number of at least 1, or 'auto'",
    ),
    "calibrate": (
        lambda value: value is None or _is_count(value),
        "how many rows to calibrate with, a whole number of at least 1, or None",
    ),
    "min_agreement": (_is_share, "a share, a number from 0 to 1"),
    "on_disagreement": _one_of("lower", "stop"),
    "max_cost_usd": (
        lambda value: value is None or (_is_number(value) and value > 0),
        "more than 0: a finite number of USD, or None for no cap",
    ),
    "model": (
        _is_model,
        "the name of a model, as in 'openai/gpt-4o-mini', or an LLMResource, a ModelSpec or a ChatModel",
    ),
    "resource_key": (
        lambda value: value is None or _is_resource_key(value),
        "the key of a resource: letters, digits and underscores, such as 'llm', but not 'context' or 'config'",
    ),
    "model_column": (
        lambda value: value is None or (isinstance(value, str) and bool(value.strip())),
        "the name of a column, or None",
    ),
    "on_missing": _one_of(*typing.get_args(OnMissing)),
    "on_row_error": _one_of(*typing.get_args(OnRowError)),
    "max_error_rate": (
        lambda value: value is None or _is_share(value),
        "a share, a number from 0 to 1 (5 % is 0.05), or None",
    ),
    "retry_failed_rows": (is_retry, RETRY_FAILED_ROWS),
    "failed_rows": (lambda value: isinstance(value, bool), "True or False"),
    "tier": (
        lambda value: value is None or (isinstance(value, str) and value in typing.get_args(Tier)),
        f"one of {', '.join(map(repr, typing.get_args(Tier)))}, or None for the resource's",
    ),
    "answer_by": (lambda value: value is None or is_answer_by(value), f"{ANSWER_BY}, or None"),
    "prompt_cache": (
        lambda value: value is None or (isinstance(value, str) and value in typing.get_args(PromptCache)),
        f"one of {', '.join(map(repr, typing.get_args(PromptCache)))}, or None for the resource's",
    ),
    "keep_replies": (lambda value: isinstance(value, bool), "True or False"),
    "thumbnails": (lambda value: isinstance(value, bool), "True or False"),
}
"""Arguments, which of their values are valid, and how that is said."""
