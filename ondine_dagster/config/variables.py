"""Variables of the environment in the fields of a resource: `dg.EnvVar`, read when a step starts.

Dagster reads them itself where a field is a text or a whole number without bounds. Numbers with bounds, fractions,
choices and values inside a mapping or list reach the step as `{"env": NAME}`, into which Dagster converts an `EnvVar`.
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


def no_flag(value: Any) -> Any:
    """Pydantic would take `true` for 1."""
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
    """`value` with each `EnvVar.int` as a mapping with its type, because Dagster would pass on only its name."""
    match value:
        case dict():
            return {key: keep_int_variables(part) for key, part in value.items()}
        case list():
            return [keep_int_variables(part) for part in value]
    return {"env": value.env_var_name, "type": "int"} if isinstance(value, _IntEnvVar) else value


def read_variables(value: Any) -> Any:
    """`value` with the variables inside its mappings and lists replaced by what they are set to."""
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
    """The name of the variable that `value` stands for; `None` for any other value."""
    match value:
        case dg.EnvVar():
            return value.env_var_name
        case {"env": str(name), **rest} if not rest:
            return name
    return None


def _read(name: str) -> str:
    found = os.environ.get(name)
    if found is None:
        raise ConfigError(f"A setting names the variable {name!r}, which is not set.")
    return found


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
    # `Any` for Dagster, which checks values before Pydantic does and does not accept a variable in their place.
    Positive = Annotated[Any, _OrVariable(Annotated[float, BeforeValidator(no_flag), Field(gt=0)])]
    NonNegative = Annotated[Any, _OrVariable(Annotated[float, BeforeValidator(no_flag), Field(ge=0)])]
    AtLeastOne = Annotated[Any, _OrVariable(Annotated[float, BeforeValidator(no_flag), Field(ge=1)])]
    Count = Annotated[Any, _OrVariable(Annotated[int, BeforeValidator(no_flag), Field(gt=0)])]
    TierField = Annotated[Any, _OrVariable(Tier)]
    PromptCacheField = Annotated[Any, _OrVariable(PromptCache)]
    DurabilityField = Annotated[Any, _OrVariable(Durability)]
