"""Dagster's templates in YAML, `{{ ... }}`: their values, and the check that they have one."""

import os
import re
from collections.abc import Mapping
from typing import Any

import dagster as dg

from ondine_core.errors import ConfigError

_ENV = re.compile(r"""\benv(?:\.|\(\s*['"])(\w+)""")
_TEMPLATE = re.compile(r"\s*\{\{.*\}\}\s*", re.DOTALL)


def fill(context: dg.ResolutionContext, value: Any) -> Any:
    """`value`, with every text that is a template replaced by its value."""
    match value:
        case str() if _TEMPLATE.fullmatch(value):
            return _resolve(context, value)
        case Mapping():
            return {name: fill(context.at_path(name), part) for name, part in value.items()}
        case list():
            return [fill(context.at_path(place), part) for place, part in enumerate(value)]
    return value


def check_resolves(context: dg.ResolutionContext, value: Any) -> None:
    """Check that templates in an attribute, or in the values of a mapping, have a value.

    A literal null is not a template.
    """
    match value:
        case str() if _TEMPLATE.fullmatch(value):
            _resolve(context, value)
        case Mapping():
            for name, part in value.items():
                check_resolves(context.at_path(name), part)


def _resolve(context: dg.ResolutionContext, template: str) -> Any:
    """The value of `template`. Dagster gives null for an unset variable, which would mean no cap or no rule."""
    found: Any = context.resolve_value(template)
    if found is None:
        attribute = ".".join(str(part) for part in context.path if part != "attributes")
        unset = [name for name in _ENV.findall(template) if name not in os.environ]
        why = f"the variable {unset[0]!r} is not set" if unset else "what it names is null"
        raise ConfigError(f"{attribute}={template!r} stands for nothing: {why}. Set it, or leave the attribute out.")
    return found
