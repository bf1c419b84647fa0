"""Resolves Dagster's templates in YAML, `{{ ... }}`, and checks that they have a value."""

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias, TypeVar, Union

import dagster as dg
from pydantic import BaseModel, Field

from ondine_core.errors import ConfigError

_ENV = re.compile(r"""\benv(?:\.|\(\s*['"])(\w+)""")
_TEMPLATE = re.compile(r"\s*\{\{.*\}\}\s*", re.DOTALL)


T = TypeVar("T")
OrTemplate: TypeAlias = Union[T, Annotated[str, Field(pattern=r"^\s*\{\{[\s\S]*\}\}\s*$")]]  # noqa: UP007  (of a variable)
"""A field of this type, or a template of it."""


def fill_fields(context: dg.ResolutionContext, written: BaseModel) -> dict[str, Any]:
    """The fields that are set, with templates replaced by their values, which are validated like written ones."""
    filled = fill(context, written.model_dump(exclude_unset=True))
    return type(written).model_validate(filled).model_dump(exclude_unset=True)


def fill(context: dg.ResolutionContext, value: Any) -> Any:
    """`value` with all templates in it replaced by their values."""
    match value:
        case str() if _TEMPLATE.fullmatch(value):
            return _resolve(context, value)
        case Mapping():
            return {name: fill(context.at_path(name), part) for name, part in value.items()}
        case list():
            return [fill(context.at_path(index), part) for index, part in enumerate(value)]
    return value


def check_resolves(context: dg.ResolutionContext, value: Any) -> None:
    """Refuse a template without a value in an attribute, or in the values of a mapping; a literal null is accepted."""
    match value:
        case str() if _TEMPLATE.fullmatch(value):
            _resolve(context, value)
        case Mapping():
            for name, part in value.items():
                check_resolves(context.at_path(name), part)


def _resolve(context: dg.ResolutionContext, template: str) -> Any:
    """The value of `template`; not null, Dagster's value of an unset variable, which would mean no cap or no rule."""
    value: Any = context.resolve_value(template)
    if value is None:
        attribute = ".".join(str(part) for part in context.path if part != "attributes")
        unset = [name for name in _ENV.findall(template) if name not in os.environ]
        why = f"the variable {unset[0]!r} is not set" if unset else "what it names is null"
        raise ConfigError(f"{attribute}={template!r} stands for nothing: {why}. Set it, or leave the attribute out.")
    return value
