"""The component that makes an `llm_asset` from attributes in YAML.

The attributes are declared in `ondine_dagster/run/arguments.py`; this module has those that differ in YAML.
"""

# No `from __future__ import annotations` here: Dagster reads the annotations of models made in this module.
import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Self, get_args

import dagster as dg
from pydantic import BaseModel, ConfigDict, ValidationError

from ondine_core.errors import ConfigError
from ondine_dagster.asset.decorator import llm_asset
from ondine_dagster.component.check_fields import ResolvedChecks
from ondine_dagster.component.fields import (
    OpFields,
    ResolvedCleaning,
    ResolvedOutput,
    ResolvedPrompt,
    ResolvedSanitizer,
)
from ondine_dagster.component.model_field import ResolvedLLM, check_key
from ondine_dagster.component.scaffolder import LLMAssetScaffolder
from ondine_dagster.component.templates import check_resolves
from ondine_dagster.resource import own_resource_key
from ondine_dagster.run.arguments import Arguments


def _resolver(resolved: Any, description: str) -> Any:
    """Dagster's resolver of the type `resolved`, with this description."""
    _, resolver = get_args(resolved)
    return resolver.with_outer_resolver(dg.Resolver.default(description=description))


class _AssetFields(dg.Model):
    """The asset and its upstream; a class of its own, so that these attributes come first."""

    asset: Annotated[
        dg.AssetSpec, _resolver(dg.ResolvedAssetSpec, "The asset: its key, and its other properties in Dagster.")
    ]
    upstream: Annotated[dg.AssetKey, _resolver(dg.ResolvedAssetKey, "Key of the asset that has the rows.")]


@dg.scaffold_with(LLMAssetScaffolder)
class LLMAssetComponent(dg.Component, Arguments, _AssetFields, dg.Resolvable):
    """An asset whose rows a language model adds columns to: `llm_asset`, in YAML.

    The asset is the table `upstream` with the output columns, as `llm_asset` makes it. In a subclass, `rows` chooses
    the rows to ask about and `get_asset_spec` changes the asset's spec; both may call `super()`.

    In YAML:

    ```yaml
    type: ondine_dagster.LLMAssetComponent
    attributes:
      asset: {key: ticket_labels, group_name: enrich}
      upstream: support_tickets
      prompt: {file: prompt.md}
      output: {sentiment: {type: string, enum: [positive, negative]}, topic: string}
      model: openai/gpt-6-luna
    ```
    """

    model_config = ConfigDict(defer_build=False)

    # The attributes that have another form in YAML; `Arguments` declares the others.
    prompt: ResolvedPrompt
    output: ResolvedOutput
    clean: ResolvedCleaning = ()
    sanitize: ResolvedSanitizer = None
    answer_by: str | None = None
    """At the batch tier, when answers are wanted, in quotes: a time of day, as in "06:00" (UTC) or "06:00
    Europe/Berlin", or seconds after the start of the first run, as in "7200". Then jobs are cancelled, and the rest is
    asked at once at the standard tier, at its price."""
    checks: ResolvedChecks = ()
    llm: ResolvedLLM = None
    io_manager_key: str | None = None
    """The IO manager that stores the asset."""
    op: OpFields | None = None
    """How Dagster runs the step: pool, tags, retry_policy, backfill_policy."""

    @classmethod
    def model(cls) -> type[BaseModel]:
        """The model of the attributes in YAML; those without a description get their docstring in Python."""
        yaml_model = super().model()
        docstrings = {**_docstrings(Arguments), **_docstrings(LLMAssetComponent)}
        undescribed = [
            name for name, field in yaml_model.model_fields.items() if name in docstrings and not field.description
        ]
        for name in undescribed:
            yaml_model.model_fields[name].description = " ".join(docstrings[name].split())
        if undescribed:
            yaml_model.model_rebuild(force=True)
        return yaml_model

    def get_asset_spec(self) -> dg.AssetSpec:
        """The asset's spec for Dagster."""
        return self.asset

    def rows(self, context: dg.AssetExecutionContext, upstream: Any) -> Any:  # noqa: ARG002
        """The rows to enrich.

        Args:
            context: The context of the step.
            upstream: The value of the asset `upstream`.

        Returns:
            A pandas, polars or pyarrow frame.
        """
        return {} if upstream is None else upstream  # Dagster's IO managers load None for a missing partition

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:  # noqa: ARG002
        """The asset, and its resource if it has a model of its own."""
        resources = {} if self.llm is None else {self._resource_key: self.llm}
        return dg.Definitions(assets=[self._asset()], resources=resources)

    @classmethod
    def resolve_from_model(cls, context: dg.ResolutionContext, model: BaseModel) -> Self:
        """Resolve the attributes as Dagster does; errors get the line of the attribute in the file."""
        try:
            for name, field in cls.model_fields.items():
                if not any(isinstance(note, dg.Resolver) for note in field.metadata):
                    check_resolves(context.at_path(name), getattr(model, name))
            component: Self = super().resolve_from_model(context, model)
            check_key(component.llm)
            component._asset()
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = str(next(iter(first["loc"]), ""))
            raise ConfigError(_located(context, f"{name}={first['input']!r}: {first['msg']}.", [name])) from None
        except ConfigError as error:
            raise ConfigError(_located(context, str(error), type(model).model_fields)) from None
        return component

    def _asset(self) -> dg.AssetsDefinition:
        if self.llm is not None and self.resource_key:
            raise ConfigError(f"resource_key={self.resource_key!r} and a model of its own; give one of the two.")

        def rows_of(context, rows):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202  (as in `build_llm_asset`)
            return self.rows(context, rows)

        arguments = {name: getattr(self, name) for name in Arguments.model_fields}
        arguments["resource_key"] = self._resource_key
        arguments |= _asset_arguments(self.get_asset_spec()) | (self.op.arguments() if self.op else {})
        if self.io_manager_key:
            arguments["io_manager_key"] = self.io_manager_key
        return llm_asset(ins={"rows": dg.AssetIn(key=self.upstream)}, **arguments)(rows_of)

    @property
    def _resource_key(self) -> str:
        """The resource key of the asset; an asset with a model of its own has a key of its own."""
        if self.llm is None:
            return "llm" if self.resource_key is None else self.resource_key
        return own_resource_key(self.get_asset_spec().key)


@cache
def _docstrings(declared: type) -> Mapping[str, str]:
    """The docstrings of a class's attributes; read when YAML is loaded, since at import they would slow every step."""
    (parsed,) = ast.parse(textwrap.dedent(inspect.getsource(declared))).body
    body = parsed.body if isinstance(parsed, ast.ClassDef) else []
    return {
        attribute.target.id: docstring.value.value
        for attribute, docstring in pairwise(body)
        if isinstance(attribute, ast.AnnAssign)
        and isinstance(attribute.target, ast.Name)
        and isinstance(docstring, ast.Expr)
        and isinstance(docstring.value, ast.Constant)
        and isinstance(docstring.value.value, str)
    }


_SPEC_FIELDS = (
    *("key", "description", "metadata", "group_name", "code_version", "owners", "kinds"),
    *("automation_condition", "partitions_def", "freshness_policy"),
)
"""The fields that `AssetSpec` and `@dg.asset` have in common."""


def _asset_arguments(spec: dg.AssetSpec) -> dict[str, Any]:
    """The fields of `spec` as arguments of `@dg.asset`."""
    arguments = {name: getattr(spec, name) for name in _SPEC_FIELDS}
    arguments["deps"] = list(spec.deps)
    arguments["tags"] = {name: value for name, value in spec.tags.items() if not name.startswith("dagster/kind/")}
    return {name: value for name, value in arguments.items() if value}


def _located(context: dg.ResolutionContext, message: str, attributes: Iterable[str]) -> str:
    """`message` with the file and line of the first attribute that it names, in the singular or plural."""
    tree = context.source_position_tree
    if tree is None:
        return message
    attribute_of = {word: name for name in attributes for word in (name, name.removesuffix("s"))}
    named = [attribute_of[word] for word in re.findall(r"\w+", message) if word in attribute_of]
    # Without the text of the line, which may contain a secret.
    source = tree.source_error(yaml_path=[*context.path, *named[:1]], inline_error_message="", value_error=True)
    return f"{source.file_name}:{source.start_line_no} - {source.location}: {message}"
