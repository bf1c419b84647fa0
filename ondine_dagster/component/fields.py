"""YAML fields of prompts, outputs, cleaning, sanitizer and step, and how they are resolved.

Prompts and outputs are passed on unchanged, since braces in them are for the model. Elsewhere, a text that consists of
`{{ ... }}` is a template of Dagster's.
"""

# No `from __future__ import annotations` here: Dagster reads the annotations of models made in this module.
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import dagster as dg
import yaml
from dagster.components.resolved.core_models import (
    MultiRunBackfillPolicyModel,
    SingleRunBackfillPolicyModel,
    resolve_backfill_policy,
)
from pydantic import ConfigDict, Field

from ondine_core.errors import ConfigError
from ondine_core.preprocessing.media import MediaOptions
from ondine_core.preprocessing.media.media_options import Detail
from ondine_core.prompts.output_schema import is_pattern
from ondine_core.prompts.template import Example, Prompt
from ondine_dagster.component.templates import OrTemplate, fill, fill_fields


class Fields(dg.Model):
    """Base of the YAML fields, which are built at first use: each step imports them, but none reads YAML."""

    model_config = ConfigDict(defer_build=True)


_MEDIA = MediaOptions()

# -- prompts and outputs -------------------------------------------------------------------------------------------


class ExampleFields(Fields):
    """A few-shot example."""

    input: str | dict[str, Any] = Field(description="Columns and their values, or the value of the only column.")
    answer: Any = Field(description="The answer wanted: output columns and their values, or a text.")


class MediaFields(Fields):
    """The arguments of `MediaOptions`."""

    root: str | None = Field(
        None,
        description="Folder of the files that cells may name, relative to this one; by default the working folder.",
    )
    max_side_px: OrTemplate[int | None] = Field(
        None, description="Larger images are scaled down to this many pixels a side."
    )
    detail: OrTemplate[Detail | None] = Field(None, description="Resolution at which an OpenAI model reads images.")
    pages: str | None = Field(None, description="Which pages of documents are sent, in quotes: '2', '1-3', '4-'.")
    as_text: OrTemplate[bool] = Field(
        default=False, description="Whether the text of documents is sent instead of their pages."
    )
    keep_metadata: OrTemplate[bool] = Field(
        default=False, description="Whether images keep metadata, such as the place."
    )
    fetch: OrTemplate[bool] = Field(
        default=False, description="Whether addresses are fetched here, and not by the provider."
    )
    allow_private: OrTemplate[bool] = Field(
        default=False, description="Whether addresses of private networks may be fetched."
    )
    timeout_s: OrTemplate[float] = Field(_MEDIA.timeout_s, description="Seconds that fetching one address may take.")
    max_bytes: OrTemplate[int] = Field(_MEDIA.max_bytes, description="Larger images and documents fail their row.")
    max_pixels: OrTemplate[int] = Field(_MEDIA.max_pixels, description="Images of more pixels fail their row.")
    check_model: OrTemplate[bool] = Field(
        default=True, description="Whether a model that takes no images, by the price list, is refused."
    )


class PromptFields(Fields):
    """A prompt with more than its text."""

    text: str | None = Field(None, description="The template, `{column}` where a row's value belongs.")
    file: str | None = Field(None, description="File with the template instead, relative to this one.")
    syntax: Literal["braces", "jinja2"] | None = Field(
        None,
        description="'jinja2' for `{{ column }}`, conditions and filters; files named .j2 or .jinja have it anyway.",
    )
    system: str | None = Field(None, description="System message, the same for every row.")
    examples: list[ExampleFields | list[Any]] | str = Field(
        default=[],
        description="Few-shot examples, each a mapping of input and answer or a pair of them; or a JSON or YAML file "
        "with such a list, relative to this one.",
    )
    media: MediaFields | None = Field(
        None, description="How images and documents are read and sent, for `{column:image}` and `{column:document}`."
    )


def _resolve_prompt(context: dg.ResolutionContext, value: str | PromptFields) -> str | Prompt:
    if isinstance(value, str):
        return value
    file = None if value.file is None else context.resolve_source_relative_path(value.file)
    examples = value.examples
    if isinstance(examples, str):
        examples = _read_examples(context.resolve_source_relative_path(examples))
    media = MediaOptions() if value.media is None else _media(context, value.media)
    return Prompt(value.text, file, value.syntax, value.system, [_example(example) for example in examples], media)


def _media(context: dg.ResolutionContext, value: MediaFields) -> MediaOptions:
    options = fill_fields(context.at_path("media"), value)
    if options.get("root") is not None:
        options["root"] = context.resolve_source_relative_path(options["root"])
    return MediaOptions(**options)


def _read_examples(file: Path) -> list[Any]:
    try:
        examples = yaml.safe_load(file.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"Cannot read the examples in {str(file)!r} ({type(error).__name__}).") from error
    if not isinstance(examples, list):
        raise ConfigError(f"{str(file)!r} has a {type(examples).__name__} where a list of examples was expected.")
    return examples


def _example(example: Any) -> Example:
    match example:
        case ExampleFields():
            return example.input, example.answer
        case {"input": example_input, "answer": answer, **rest} if not rest:
            return example_input, answer
        case [example_input, answer]:
            return example_input, answer
    raise ConfigError(
        f"An example is a pair, or a mapping of input and answer; not {json.dumps(example, default=str)}."
    )


def _resolve_output(context: dg.ResolutionContext, value: str | Mapping[str, Any]) -> Any:
    return value if is_pattern(value) else fill(context, value)


ResolvedPrompt: TypeAlias = Annotated[
    str | Prompt,
    dg.Resolver(
        _resolve_prompt,
        model_field_type=str | PromptFields,
        inject_before_resolve=False,
        description="The question about a row, `{column}` where its value belongs, `{column:image}` where an image "
        "does; passed on as it stands, without Dagster's templating. Or a mapping with text or file, syntax, system, "
        "examples and media.",
        examples=["Classify this ticket.\n\nTicket: {body}", {"file": "prompt.md"}],
    ),
]
ResolvedOutput: TypeAlias = Annotated[
    Any,  # an `Output`; Pydantic would make a regular expression of a column name
    dg.Resolver(
        _resolve_output,
        model_field_type=str | dict[str, Any],
        inject_before_resolve=False,
        description="The columns wanted: a mapping of column to type or JSON schema, the JSON schema of an object, a "
        "regular expression with named groups, the name of one free-text column, or a template variable that is a "
        "Pydantic model.",
        examples=[{"sentiment": {"type": "string", "enum": ["positive", "negative"]}, "topic": "string"}, "summary"],
    ),
]

# -- cleaning and sanitizer ----------------------------------------------------------------------------------------


class SanitizerFields(Fields):
    """The arguments of a `Sanitizer`."""

    mode: OrTemplate[Literal["redact", "placeholder", "hash"]] = Field("redact", description="What replaces a match.")
    rules: OrTemplate[list[str]] = Field(default=[], description="Names of the built-in rules to use; by default all.")
    patterns: OrTemplate[dict[str, str]] = Field(
        default={}, description="Rules of your own: a name and a regular expression."
    )
    salt: str | None = Field(None, description="For 'hash': a secret, as in '{{ env.SALT }}'.")


def _resolve_sanitizer(context: dg.ResolutionContext, value: str | SanitizerFields) -> Any:
    return fill(context, value) if isinstance(value, str) else fill_fields(context, value)


ResolvedCleaning: TypeAlias = Annotated[
    Any,  # steps may be functions
    dg.Resolver(
        fill,
        model_field_type=str | list[str | dict[str, Any]],
        inject_before_resolve=False,
        description="Steps that clean the texts of a row before it is asked about, in order; the stored columns stay "
        "as they are.",
        examples=[["html", "whitespace", {"truncate": 500}]],
    ),
]
ResolvedSanitizer: TypeAlias = Annotated[
    Any,  # in Python also a `Sanitizer`
    dg.Resolver(
        _resolve_sanitizer,
        model_field_type=str | SanitizerFields,
        inject_before_resolve=False,
        description="What stands for the personal data and secrets of a row when it is asked about: 'redact' "
        "([EMAIL]), 'placeholder' (<EMAIL_1>, given back in its answer), or a mapping of mode, rules, patterns, "
        "and salt.",
        examples=["redact", {"mode": "placeholder", "patterns": {"TICKET": "T-[0-9]{4}"}}],
    ),
]

# -- the step ------------------------------------------------------------------------------------------------------


class RetryFields(Fields):
    """When Dagster runs a crashed step again; calls to the model are retried without it."""

    max_retries: OrTemplate[Annotated[int, Field(ge=0)]] = Field(
        1, description="Maximum number of retries of the step."
    )
    delay: OrTemplate[Annotated[float, Field(ge=0)] | None] = Field(None, description="Seconds before a retry.")
    backoff: OrTemplate[Literal["linear", "exponential"] | None] = Field(None, description="How the delay grows.")
    jitter: OrTemplate[Literal["full", "plus_minus"] | None] = Field(None, description="Random change of the delay.")


def _resolve_retry_policy(context: dg.ResolutionContext, value: RetryFields) -> dg.RetryPolicy:
    policy = fill_fields(context, value)
    for name, values in {"backoff": dg.Backoff, "jitter": dg.Jitter}.items():
        if policy.get(name):
            policy[name] = values[policy[name].upper()]
    return dg.RetryPolicy(**policy)


class OpFields(Fields, dg.Resolvable):
    """How Dagster runs the step."""

    pool: Annotated[str | None, dg.Resolver.default(description="Concurrency pool of the step.")] = None
    tags: Annotated[dict[str, Any] | None, dg.Resolver.default(description="Tags of the op, for the executor.")] = None
    retry_policy: Annotated[
        dg.RetryPolicy | None,
        dg.Resolver(_resolve_retry_policy, model_field_type=RetryFields, description="Retries of a crashed step."),
    ] = None
    backfill_policy: Annotated[
        dg.BackfillPolicy | None,
        dg.Resolver(
            resolve_backfill_policy,
            model_field_type=SingleRunBackfillPolicyModel | MultiRunBackfillPolicyModel,
            description="Partitions in one run of a backfill; by default one.",
        ),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """The fields that are set, as arguments of `@dg.asset`."""
        arguments = {
            "pool": self.pool,
            "op_tags": self.tags,
            "retry_policy": self.retry_policy,
            "backfill_policy": self.backfill_policy,
        }
        return {name: value for name, value in arguments.items() if value is not None}
