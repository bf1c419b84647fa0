"""Environment variables in the fields of a resource (`dg.EnvVar`), which are read when a step starts.

Dagster reads variables in fields that are texts or whole numbers without bounds. In other fields (numbers with bounds,
fractions, choices, and values inside mappings and lists) an `EnvVar` reaches the step as `{"env": NAME}`.
"""

# No `from __future__ import annotations` here: Pydantic reads the annotations made in this module.
import os
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import dagster as dg
from pydantic import BeforeValidator, Field, GetCoreSchemaHandler, ValidationError, ValidatorFunctionWrapHandler
from pydantic_core import CoreSchema, core_schema

from ondine_core.errors import ConfigError
from ondine_core.store import Durability
from ondine_core.types.values import PromptCache, Tier

_IntEnvVar = type(dg.EnvVar.int(""))


class _OrVariable:
    """Allows a variable for a field of type `kind`; it is read and validated when a step starts."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(_validate, handler.generate_schema(self._kind))


def refuse_bool(value: Any) -> Any:
    """Refuse a bool in a number's place, which Pydantic would take for 0 or 1."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is not a number; write how many")  # noqa: TRY004  (what Pydantic reports)
    return value


def _validate(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    if isinstance(value, dg.EnvVar | _IntEnvVar):
        return value
    name = name_of(value)
    if name is None:
        return validate(value)
    try:
        return validate(_read(name))
    except ValidationError as error:
        raise ConfigError(f"The variable {name!r}: {error.errors(include_url=False)[0]['msg']}.") from None


def keep_int_variables(value: Any) -> Any:
    """`value` with each `EnvVar.int` as a mapping that has its type, since Dagster would pass on only its name."""
    match value:
        case dict():
            return {key: keep_int_variables(part) for key, part in value.items()}
        case list():
            return [keep_int_variables(part) for part in value]
    return {"env": value.env_var_name, "type": "int"} if isinstance(value, _IntEnvVar) else value


def read_variables(value: Any) -> Any:
    """`value` with the variables in it, also inside mappings and lists, replaced by their values."""
    name = name_of(value)
    if name is not None:
        return _read(name)
    match value:
        case {"env": str(name), "type": "int"}:
            return _read_int(name)
        case dict():
            return {key: read_variables(part) for key, part in value.items()}
        case list():
            return [read_variables(part) for part in value]
    return value


def name_of(value: Any) -> str | None:
    """The name of the variable that `value` refers to; `None` if it is not a variable."""
    match value:
        case dg.EnvVar():
            return value.env_var_name
        case {"env": str(name), **rest} if not rest:
            return name
    return None


def _read(name: str) -> str:
    value = os.environ.get(name)
    if value is None:
        raise ConfigError(f"A setting names the variable {name!r}, which is not set.")
    return value


def _read_int(name: str) -> int:
    try:
        return int(_read(name))
    except ValueError:
        raise ConfigError(f"The variable {name!r} is not a whole number; EnvVar.int names it.") from None


if TYPE_CHECKING:
    Positive: TypeAlias = float
    NonNegative: TypeAlias = float
    AtLeastOne: TypeAlias = float
    Count: TypeAlias = int
    TierField: TypeAlias = Tier
    PromptCacheField: TypeAlias = PromptCache
    DurabilityField: TypeAlias = Durability
else:
    # `Any`, since Dagster checks values before Pydantic does, and would refuse a variable.
    Positive = Annotated[Any, _OrVariable(Annotated[float, BeforeValidator(refuse_bool), Field(gt=0)])]
    NonNegative = Annotated[Any, _OrVariable(Annotated[float, BeforeValidator(refuse_bool), Field(ge=0)])]
    AtLeastOne = Annotated[Any, _OrVariable(Annotated[float, BeforeValidator(refuse_bool), Field(ge=1)])]
    Count = Annotated[Any, _OrVariable(Annotated[int, BeforeValidator(refuse_bool), Field(gt=0)])]
    TierField = Annotated[Any, _OrVariable(Tier)]
    PromptCacheField = Annotated[Any, _OrVariable(PromptCache)]
    DurabilityField = Annotated[Any, _OrVariable(Durability)]
