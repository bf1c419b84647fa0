"""Prompts: a template with placeholders for columns, a system message and examples.

A prompt is data, not code. So its columns are known before a row is read, it is parsed when it is defined, and its hash
says whether a stored answer still belongs to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ondine_core.errors import ConfigError
from ondine_core.preprocessing.media import Gallery, MediaOptions, MediaReader
from ondine_core.preprocessing.preprocess import PreprocessedRow, Preprocessing, prepare, prepare_example
from ondine_core.prompts.braces_syntax import compile_braces
from ondine_core.prompts.system_message import compile_system
from ondine_core.prompts.template_syntax import Template, write_beside_media
from ondine_core.providers.wire_text import check_text
from ondine_core.types.cell_text import is_blank, write_cell
from ondine_core.types.media import Media, MediaKind, MediaMap
from ondine_core.types.values import Json, Message

Example: TypeAlias = tuple[Mapping[str, Any] | str, Json]
"""Input columns (or the text of the only column) and the desired answer."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as the user writes it.

    Args:
        text: The template. `{column}` stands for a column's value, `{column:image}` and `{column:document}` for the
            image or document that it holds or names; write literal braces doubled, `{{` and `}}`.
        file: Path of a file to read the template from, instead of `text`.
        syntax: `"braces"`, or `"jinja2"` for `{{ column }}`, `{{ column | image }}`, `{{ column | document }}`,
            conditions and other filters (sandboxed; undefined names fail).
            A file whose name ends in `.j2` or `.jinja` is Jinja2 unless `syntax` says otherwise.
        system: System message, the same for every row, so placeholders in it are errors. In the syntax `"braces"`,
            double the braces of a column that the prompt reads to send them literally; all else is sent as it stands.
        examples: Few-shot pairs, `({"review": "..."}, {"sentiment": "positive"})`; a template with one placeholder
            also takes `("...", {...})`.
        media: How images and documents are read and sent.
    """

    text: str | None = None
    file: str | Path | None = None
    syntax: Literal["braces", "jinja2"] | None = None
    system: str | None = None
    examples: Sequence[Example] = ()
    media: MediaOptions = MediaOptions()

    def __post_init__(self) -> None:
        if not isinstance(self.media, MediaOptions):
            raise ConfigError(f"media={self.media!r} of a prompt is not a MediaOptions.")
        kinds: dict[str, Any] = {"text": str, "file": str | Path, "system": str}
        for name, kind in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, kind | None):
                valid = "a path" if name == "file" else "a text"
                raise ConfigError(f"{name}={value!r} of a prompt is a {type(value).__name__}; give {valid}, or None.")
        examples: Any = self.examples
        if isinstance(examples, str | bytes) or not isinstance(examples, Sequence):
            # Without the value, which contains rows.
            raise ConfigError(
                f"examples of a prompt is a {type(examples).__name__}; give a list of pairs (input, answer)."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledPrompt(Template):
    """A parsed prompt.

    `examples` are input columns with the answer as the text that the model should reply. `preparation` is applied to
    each row before it is rendered, and has been applied to the examples. `reader` reads the cells of media columns.
    """

    source: str
    syntax: str
    system: str | None
    examples: tuple[tuple[Mapping[str, Any], str], ...]
    preparation: Preprocessing | None
    reader: MediaReader | None = field(repr=False, compare=False)

    @property
    def prepares(self) -> bool:
        """Whether rows are changed before they are rendered."""
        return self.reader is not None or self.preparation is not None

    @property
    def is_sanitized(self) -> bool:
        """Whether personal data and secrets are removed from rows."""
        return self.preparation is not None and self.preparation.sanitizer is not None

    def prepare(self, row: Mapping[str, Any]) -> PreprocessedRow:
        """Read the images and documents of `row`, and clean and sanitize its texts.

        Raises:
            MediaError: A cell has no image or document that can be sent.
            Exception: Any error of the user's own cleaning step.
        """
        if self.reader is None:
            return PreprocessedRow(row) if self.preparation is None else prepare(row, self.preparation)
        row = _read_media(row, self.media_columns, self.reader)
        if self.preparation is None:
            return PreprocessedRow(row)
        texts, media = _split_media(row)
        prepared = prepare(texts, self.preparation)
        return replace(prepared, values={**prepared.values, **media})

    def media_of(self, row: Mapping[str, Any]) -> MediaMap:
        """The images and documents of a prepared row, by their references."""
        return {media.reference: media for name in self.media_columns for media in _media_in(row[name])}

    @property
    def example_media(self) -> MediaMap:
        """The images and documents of the examples."""
        return {name: media for row, _ in self.examples for name, media in self.media_of(row).items()}

    @property
    def fixed(self) -> str:
        """The user's text that is the same for every row: system message and template. Examples count as rows."""
        return f"{self.system}\n{self.source}" if self.system else self.source

    @property
    def head(self) -> tuple[Message, ...]:
        """The messages before the row's own: the system message, then each example as a question and its answer."""
        system = (Message("system", self.system),) if self.system else ()
        turns = ((Message("user", self.render(row)), Message("assistant", answer)) for row, answer in self.examples)
        return (*system, *(message for turn in turns for message in turn))

    def find_missing(self, row: Mapping[str, Any]) -> str | None:
        """The column because of which `row` is skipped; `None` if it is asked about.

        It is the first needed column that is null or blank; without needed columns, the first one if all are.
        """
        if not self.needed and all(is_blank(row[name]) for name in self.columns):
            return self.columns[0]
        return next((name for name in self.needed if is_blank(row[name])), None)

    def fields(self, row: Mapping[str, Any]) -> dict[str, str]:
        """The values of the columns as the template writes them."""
        write = write_beside_media if self.media_columns else write_cell
        return {name: write(row[name]) for name in self.columns}


def _read_media(row: Mapping[str, Any], kinds: Mapping[str, MediaKind], reader: MediaReader) -> dict[str, Any]:
    return {name: reader.read(value, kinds[name]) if name in kinds else value for name, value in row.items()}


def _split_media(row: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The columns of a row without images and documents, and those with them."""
    media = {name: value for name, value in row.items() if isinstance(value, Media | Gallery)}
    return {name: value for name, value in row.items() if name not in media}, media


def _media_in(value: Any) -> Sequence[Media]:
    """The images or documents in a cell."""
    if isinstance(value, Gallery):
        return value.items
    return (value,) if isinstance(value, Media) else ()


def compile_prompt(
    prompt: str | Prompt, dump_answer: Callable[[Json], str], preparation: Preprocessing | None = None
) -> CompiledPrompt:
    """Parse `prompt` and render its examples.

    `dump_answer` checks the answer of an example and writes it as a model should reply; `preparation` is applied to
    rows and to examples.

    Raises:
        ConfigError: The prompt or an example is not valid.
    """
    spec = Prompt(prompt) if isinstance(prompt, str) else prompt
    if not isinstance(spec, Prompt):
        raise ConfigError(f"prompt={spec!r} is not understood; give a template, or a Prompt.")
    source, syntax = _source(spec)
    check_text(source, "The prompt")
    check_text(spec.system or "", "system of the prompt")
    template = _compile(source, syntax)
    columns, kinds = template.columns, template.media_columns
    if not columns:
        raise ConfigError("The prompt reads no column, so every row would get the same answer; write {column} in it.")
    reader = MediaReader(spec.media, frozenset(kinds.values())) if kinds else None
    examples = []
    for number, example in enumerate(spec.examples, 1):
        if not isinstance(example, tuple | list) or len(example) != 2:  # noqa: PLR2004
            raise ConfigError(f"Example {number} is not a pair (input, answer).")
        example_input, answer = example
        try:
            row = _example_row(number, example_input, columns)
            if reader is not None:
                row = _read_media(row, kinds, reader)
            if preparation is not None:
                texts, media = _split_media(row)
                prepared, answer = prepare_example(texts, answer, preparation)
                row = {**prepared, **media}
            template.render(row)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"The template cannot be filled from example {number}: {error}.") from error
        try:
            examples.append((row, dump_answer(answer)))
        except ConfigError as error:
            raise ConfigError(f"The answer of example {number} does not fit the output: {error}") from None
    return CompiledPrompt(
        **{part.name: getattr(template, part.name) for part in fields(template)},
        source=source,
        syntax=syntax,
        system=spec.system and compile_system(spec.system, syntax, columns),
        examples=tuple(examples),
        preparation=preparation,
        reader=reader,
    )


def _compile(source: str, syntax: str) -> Template:
    if syntax == "braces":
        return compile_braces(source)
    from ondine_core.prompts.jinja_syntax import compile_jinja2

    return compile_jinja2(source)


def _source(spec: Prompt) -> tuple[str, str]:
    if (spec.text is None) == (spec.file is None):
        raise ConfigError("A prompt needs exactly one of text= and file=.")
    if spec.syntax not in (None, "braces", "jinja2"):
        raise ConfigError(f"Unknown prompt syntax {spec.syntax!r}; valid are 'braces' and 'jinja2'.")
    if spec.file is None:
        text, syntax = spec.text or "", spec.syntax or "braces"
    else:
        path = Path(spec.file)
        try:
            text = path.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"Cannot read the prompt file {str(path)!r} ({type(error).__name__}).") from error
        syntax = spec.syntax or ("jinja2" if path.suffix in (".j2", ".jinja", ".jinja2") else "braces")
    if not text.strip():
        raise ConfigError("The prompt is empty; write the question, with {column} where a row's value belongs.")
    return text, syntax


def _example_row(number: int, example_input: Any, columns: tuple[str, ...]) -> Mapping[str, Any]:
    """The input columns of an example, which is a mapping of them or the text of the only one."""
    if isinstance(example_input, str):
        if len(columns) != 1:
            raise ConfigError(
                f"Example {number} is a plain text, but the prompt reads {_names(columns)}; write it as a mapping."
            )
        return {columns[0]: example_input}
    if not isinstance(example_input, Mapping):
        kind = type(example_input).__name__
        raise ConfigError(f"The input of example {number} is a {kind}; give a mapping of columns.")
    missing = [column for column in columns if column not in example_input]
    if missing:
        raise ConfigError(
            f"Example {number} lacks {_names(missing)}, which the prompt reads; it has {_names(example_input)}."
        )
    return example_input


_MIN_TOKENS_AFTER, _MIN_FIXED_TOKENS = 128, 512
"""The fewest fixed tokens after the first column, and in all, that are reported: providers cache no shorter text."""


def explain_uncacheable(
    prompt: CompiledPrompt, count: Callable[[str], int] = lambda text: -(-len(text) // 4)
) -> str | None:
    """A note if much fixed text of `prompt` comes after its first column, where no prompt cache reuses it; else `None`.

    It is about calls with one row; in calls with several rows the instructions always come first.
    """
    after = count(prompt.rest)
    fixed = after + count(prompt.lead) + sum(count(message.content) for message in prompt.head)
    if after < _MIN_TOKENS_AFTER or fixed < _MIN_FIXED_TOKENS:
        return None
    column = f"{{{prompt.columns[0]}}}"
    return (
        f"About {after:,} tokens of the prompt come after its first column, {column}. A provider's prompt cache reuses "
        f"only what calls begin with, so they are paid in full for every row. Move {column} to the end, or what is the "
        "same for every row into system; either changes the question, so rows are asked again."
    )


def _names(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(repr(name) for name in names) or "nothing"
