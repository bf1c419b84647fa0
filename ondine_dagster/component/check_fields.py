"""The YAML fields of checks: the `type` of a check and its arguments.

The models are made from the check classes, so every check has the same arguments in YAML as in Python.
"""

# No `from __future__ import annotations` here: Dagster reads the annotations of models made in this module.
import dataclasses
import inspect
import typing
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias, Union

import dagster as dg
from pydantic import BaseModel, Field, create_model

from ondine_dagster.checks.check import Check
from ondine_dagster.checks.types import KINDS
from ondine_dagster.component.fields import Fields
from ondine_dagster.component.templates import OrTemplate, fill_fields


def _fields_of(kind: type[Check]) -> type[BaseModel]:
    hints = typing.get_type_hints(kind, include_extras=True)
    yaml_fields: dict[str, Any] = {"type": (Literal[kind.type], Field(description="Which check it is."))}
    for field in dataclasses.fields(kind):
        declared, *notes = typing.get_args(hints[field.name])
        annotation: Any = Annotated[OrTemplate[declared], *notes]  # type: ignore[valid-type, misc]
        yaml_fields[field.name] = annotation, ... if field.default is dataclasses.MISSING else field.default
    model: type[BaseModel] = create_model(
        f"{kind.__name__}Fields",
        __base__=Fields,
        __doc__=inspect.getdoc(kind),
        **yaml_fields,
    )
    return model


_ANY_CHECK: Any = Union[tuple(_fields_of(kind) for kind in KINDS)]  # noqa: UP007  (of a tuple)


def _resolve_checks(context: dg.ResolutionContext, value: str | Sequence[BaseModel]) -> Any:
    if isinstance(value, str):  # Dagster accepts a text, as it may be a template; `llm_asset` refuses it
        return value
    return [fill_fields(context.at_path(index), check) for index, check in enumerate(value)]


ResolvedChecks: TypeAlias = Annotated[
    Any,  # in Python also checks
    dg.Resolver(
        _resolve_checks,
        model_field_type=list[Annotated[_ANY_CHECK, Field(discriminator="type")]],
        description="Asset checks that each materialization answers.",
        examples=[[{"type": "error_rate", "max_rate": 0.01, "blocking": True}]],
    ),
]
