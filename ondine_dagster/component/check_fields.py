"""Checks as they are written in YAML: the `type` of one and its arguments.

The models are made of the check classes themselves, so that a check which can be declared in Python can be written.
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
    given: dict[str, Any] = {"type": (Literal[kind.type], Field(description="Which check it is."))}
    for each in dataclasses.fields(kind):
        declared, *notes = typing.get_args(hints[each.name])
        annotation: Any = Annotated[OrTemplate[declared], *notes]  # type: ignore[valid-type, misc]
        given[each.name] = annotation, ... if each.default is dataclasses.MISSING else each.default
    model: type[BaseModel] = create_model(
        f"{kind.__name__}Fields",
        __base__=Fields,
        __doc__=inspect.getdoc(kind),
        **given,
    )
    return model


_ANY_CHECK: Any = Union[tuple(_fields_of(kind) for kind in KINDS)]  # noqa: UP007  (of a tuple)


def _resolve_checks(context: dg.ResolutionContext, value: str | Sequence[BaseModel]) -> Any:
    if isinstance(value, str):  # Dagster lets it pass, as it might have been a template; `llm_asset` says what is valid
        return value
    return [fill_fields(context.at_path(place), check) for place, check in enumerate(value)]


ResolvedChecks: TypeAlias = Annotated[
    Any,  # in Python also checks
    dg.Resolver(
        _resolve_checks,
        model_field_type=list[Annotated[_ANY_CHECK, Field(discriminator="type")]],
        description="Asset checks that each materialization answers.",
        examples=[[{"type": "error_rate", "max_rate": 0.01, "blocking": True}]],
    ),
]
