"""The YAML attribute `model` of an asset: the name of a model, or the fields of an `LLMResource`.

YAML has the name of a secret's variable, never the secret: a text that consists of `{{ env.NAME }}` becomes an
`EnvVar`, which is read when a step starts and never shown. Other templates are resolved when the definitions load.
"""

# No `from __future__ import annotations` here: Dagster reads the annotations of models made in this module.
import re
from typing import Annotated, Any, TypeAlias

import dagster as dg
from pydantic import Field, create_model

from ondine_core.errors import ConfigError
from ondine_dagster.component.fields import Fields
from ondine_dagster.resource import LLMResource

ModelFields = create_model(  # type: ignore[call-overload]
    "ModelFields",
    __base__=Fields,
    __doc__="The fields of an `LLMResource`.",
    **{
        name: (
            # Any field may be a template.
            field.rebuild_annotation() | str,
            Field(
                ... if field.is_required() else field.get_default(call_default_factory=True),
                description=field.description,
            ),
        )
        for name, field in LLMResource.model_fields.items()
    },
)
_TEXTS = {name for name, field in LLMResource.model_fields.items() if field.annotation in (str, str | None)}
_READ_LATE = {*_TEXTS, "settings", "observers", "params"}
"""The fields whose environment variables are read when a step starts."""


def _resolve_llm(context: dg.ResolutionContext, value: Any) -> LLMResource:
    if isinstance(value, str):
        llm: Any = _as_variable(value) or context.resolve_value(value)
        return llm if isinstance(llm, LLMResource) else LLMResource(model=llm)
    fields = {
        name: _resolve(context.at_path(name), part, read_late=name in _READ_LATE)
        for name, part in value.model_dump(exclude_unset=True).items()
    }
    return LLMResource(**fields)


def check_key(llm: Any) -> None:
    """Refuse a key in the YAML file itself."""
    if isinstance(llm, LLMResource) and not isinstance(llm.api_key, dg.EnvVar | None):
        raise ConfigError(
            'The api_key of the model must name a variable, as in "{{ env.OPENAI_API_KEY }}"; '
            "what is written here can be read in the repository and in the UI."
        )


def _resolve(context: dg.ResolutionContext, value: Any, *, read_late: bool) -> Any:
    """`value` with its templates resolved; with `read_late`, environment variables are only read when the step runs."""
    match value:
        case str():
            variable = _as_variable(value) if read_late else None
            return context.resolve_value(value) if variable is None else variable
        case dict():
            return {name: _resolve(context.at_path(name), part, read_late=read_late) for name, part in value.items()}
        case list():
            return [_resolve(context.at_path(index), part, read_late=read_late) for index, part in enumerate(value)]
    return context.resolve_value(value)


def _as_variable(template: str) -> dg.EnvVar | None:
    """The variable in a template of an environment variable; `None` for any other text."""
    match = _VARIABLE.fullmatch(template)
    return dg.EnvVar(match["dotted"] or match["called"]) if match else None


_VARIABLE = re.compile(r"""\s*\{\{\s*env(?:\.(?P<dotted>\w+)|\(\s*(['"])(?P<called>\w+)\2\s*\))\s*\}\}\s*""")

ResolvedLLM: TypeAlias = Annotated[
    Any,  # in Python also a fake
    dg.Resolver(
        _resolve_llm,
        model_field_name="model",
        model_field_type=str | ModelFields,
        inject_before_resolve=False,
        description="The model this asset asks, instead of the resource `resource_key`: its name, as in "
        "'openai/gpt-6-luna', or a mapping with the fields of an LLMResource.",
        examples=["openai/gpt-6-luna", {"model": "openai/gpt-6-luna", "requests_per_minute": 500}],
    ),
]
