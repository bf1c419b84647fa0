"""Variables of the environment in the fields of a resource: `dg.EnvVar`, read when a step starts.

Dagster reads them itself where a field is a text or a whole number without bounds. Numbers with bounds, fractions and
values inside a mapping reach the step as `{"env": NAME}`, into which Dagster converts an `EnvVar`.
"""

# No `from __future__ import annotations` here: Pydantic reads the annotations made in this module.
import os
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import dagster as dg
from pydantic import Field, GetCoreSchemaHandler, ValidationError, ValidatorFunctionWrapHandler
from pydantic_core import CoreSchema, core_schema

from ondine_core.errors import ConfigError

_IntEnvVar = type(dg.EnvVar.int(""))


class _OrVariable:
    """Allows a variable for a field of type `number`; it is read and validated when a step starts."""

    def __init__(self, number: Any) -> None:
        self._number = number

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(_validate, handler.generate_schema(self._number))


def no_flag(value: Any) -> Any:
    """Pydantic would take `true` for 1."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is not a number; write how many")  # noqa: TRY004  (what Pydantic reports)
    return value


def _validate(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    if isinstance(value, dg.EnvVar | _IntEnvVar):
        return value
    name = _name_of(value)
    if name is None:
        return validate(no_flag(value))
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
    name = _name_of(value)
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


def _name_of(value: Any) -> str | None:
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
else:
    # `Any` for Dagster, which checks numbers before Pydantic does and does not accept a variable in their place.
    Positive = Annotated[Any, _OrVariable(Annotated[float, Field(gt=0)])]
    NonNegative = Annotated[Any, _OrVariable(Annotated[float, Field(ge=0)])]
    AtLeastOne = Annotated[Any, _OrVariable(Annotated[float, Field(ge=1)])]
    Count = Annotated[Any, _OrVariable(Annotated[int, Field(gt=0)])]
