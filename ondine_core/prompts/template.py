"""What is asked about a row: a template with placeholders for columns, a system message and examples.

A prompt is data, not code. So its columns are known before a row is seen, it parses when it is defined rather than when
it is paid for, and its fingerprint says whether an answer is still the answer to the same question.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from ondine_core.errors import ConfigError
from ondine_core.preprocessing.media import Gallery, MediaOptions, MediaReader
from ondine_core.preprocessing.preprocess import Prepared, Preprocessing, prepare, prepare_example
from ondine_core.providers.wire_text import check_text
from ondine_core.types.cell_text import ensure_deterministic, is_blank, with_sorted_sets, write_cell
from ondine_core.types.media import Media, MediaKind, MediaMap, escape_marks
from ondine_core.types.values import Json, Message

__all__ = ["CompiledPrompt", "Example", "Prompt", "compile_prompt", "explain_uncacheable"]

Example: TypeAlias = tuple[Mapping[str, Any] | str, Json]
"""Input columns (or the only column's text) and the answer wanted for them."""

Render: TypeAlias = Callable[[Mapping[str, Any]], str]


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
        system: System message, the same for every row.
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
            raise ConfigError(f"media={self.media!r} of a prompt is no MediaOptions.")
        kinds: dict[str, Any] = {"text": str, "file": str | Path, "system": str}
        for name, kind in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, kind | None):
                valid = "a path" if name == "file" else "a text"
                raise ConfigError(f"{name}={value!r} of a prompt is a {type(value).__name__}; give {valid}, or None.")
        examples: Any = self.examples
        if isinstance(examples, str | bytes) or not isinstance(examples, Sequence):
            # Without their value: they are rows with their answers.
            raise ConfigError(
                f"examples of a prompt is a {type(examples).__name__}; give a list of pairs (input, answer)."
            )


@dataclass(frozen=True, slots=True)
class CompiledPrompt:
    """A prompt that parsed.

    Args:
        source: Template text as written.
        syntax: The syntax it is written in.
        columns: Columns it reads, in order of first use.
        render: Row to text.
        system: System message.
        examples: Few-shot pairs: the input's columns, and the answer in the very form asked of the model.
        hoisted: The template with `{column}` for each placeholder, to be said once for many rows; `None` for a template
            whose logic depends on the row.
        preparation: What is done to a row before it is rendered, if anything is; to the examples it was done already.
        needed: Columns that it reads in every row: all of them, but for those that a Jinja2 template reads in
            conditions and defaults only.
        lead: Text before the first column: with it the prompt of every row begins.
        rest: Text after it, as far as it is the same for every row.
        media_columns: Columns whose cells hold or name images or documents, and which of the two.
        reader: Reads these cells; `None` if there are none.
    """

    source: str
    syntax: str
    columns: tuple[str, ...]
    render: Render = field(repr=False, compare=False)
    system: str | None = None
    examples: tuple[tuple[Mapping[str, Any], str], ...] = ()
    hoisted: str | None = None
    preparation: Preprocessing | None = None
    needed: tuple[str, ...] = ()
    lead: str = ""
    rest: str = ""
    media_columns: Mapping[str, MediaKind] = field(default_factory=dict)
    reader: MediaReader | None = field(default=None, repr=False, compare=False)

    @property
    def prepares(self) -> bool:
        """Whether anything is done to a row before it is rendered."""
        return self.reader is not None or self.preparation is not None

    def prepare(self, row: Mapping[str, Any]) -> Prepared:
        """`row` as it is rendered: its images and documents are read, and its texts are cleaned and sanitized.

        Raises:
            MediaError: A cell holds no image or document that can be sent.
            Exception: Whatever a step of the user's raises.
        """
        return _prepare(row, self.media_columns, self.reader, self.preparation)

    def media_of(self, row: Mapping[str, Any]) -> MediaMap:
        """The images and documents of a row that was prepared, by their references."""
        return {media.reference: media for name in self.media_columns for media in _listed(row[name])}

    @property
    def example_media(self) -> MediaMap:
        """The images and documents of the examples."""
        return {name: media for row, _ in self.examples for name, media in self.media_of(row).items()}

    @property
    def fixed(self) -> str:
        """What the user says to every row; examples are not in it, for they are rows."""
        return f"{self.system}\n{self.source}" if self.system else self.source

    @property
    def head(self) -> tuple[Message, ...]:
        """Messages before the row's own: system, then each example as a question and its answer."""
        system = (Message("system", self.system),) if self.system else ()
        turns = ((Message("user", self.render(row)), Message("assistant", answer)) for row, answer in self.examples)
        return (*system, *(message for turn in turns for message in turn))

    def find_missing(self, row: Mapping[str, Any]) -> str | None:
        """The first column for want of which there is nothing to ask about `row`; `None` if there is none.

        That is a needed column that is null or blank, or any column when all are.
        """
        if not self.needed and all(is_blank(row[name]) for name in self.columns):
            return self.columns[0]
        return next((name for name in self.needed if is_blank(row[name])), None)

    def fields(self, row: Mapping[str, Any]) -> dict[str, str]:
        """The values that the template would write, as texts."""
        if self.media_columns:
            return {name: _write_beside_media(row[name]) for name in self.columns}
        return {name: write_cell(row[name]) for name in self.columns}


def _prepare(
    row: Mapping[str, Any],
    kinds: Mapping[str, MediaKind],
    reader: MediaReader | None,
    preparation: Preprocessing | None,
) -> Prepared:
    if reader is None:
        return Prepared(row) if preparation is None else prepare(row, preparation)
    row = {name: reader.read(value, kinds[name]) if name in kinds else value for name, value in row.items()}
    if preparation is None:
        return Prepared(row)
    media = {name: value for name, value in row.items() if isinstance(value, Media | Gallery)}
    prepared = prepare({name: value for name, value in row.items() if name not in media}, preparation)
    return replace(prepared, values={**prepared.values, **media})


def _listed(value: Any) -> Sequence[Media]:
    if isinstance(value, Gallery):
        return value.items
    return (value,) if isinstance(value, Media) else ()


def _write_beside_media(value: Any) -> str:
    """A value as it stands in a prompt with images, of which no text of a row may name one."""
    return str(value) if isinstance(value, Media | Gallery) else escape_marks(write_cell(value))


def compile_prompt(
    prompt: str | Prompt, dump_answer: Callable[[Json], str], preparation: Preprocessing | None = None
) -> CompiledPrompt:
    """Parse `prompt` and render its examples.

    Args:
        prompt: The prompt, or just its template.
        dump_answer: Checks an example's answer and writes it in the very form asked of the model.
        preparation: What is done to a row before it is rendered, and to the input of an example.

    Raises:
        ConfigError: The template does not parse, its file cannot be read, or an example does not fit.
    """
    spec = Prompt(prompt) if isinstance(prompt, str) else prompt
    if not isinstance(spec, Prompt):
        raise ConfigError(f"prompt={spec!r} is not understood; give a template, or a Prompt.")
    source, syntax = _source(spec)
    check_text(source, "The prompt")
    check_text(spec.system or "", "system of the prompt")
    template = (_compile_jinja2 if syntax == "jinja2" else _compile_braces)(source)
    columns, kinds = template.columns, template.kinds
    reader = MediaReader(spec.media, frozenset(kinds.values())) if kinds else None
    if not columns:
        raise ConfigError("The prompt reads no column, so every row would get the same answer; write {column} in it.")
    examples = []
    for number, example in enumerate(spec.examples, 1):
        if not isinstance(example, tuple | list) or len(example) != 2:  # noqa: PLR2004
            raise ConfigError(f"Example {number} is not a pair (input, answer).")
        given, answer = example
        try:
            row = _example_row(number, given, columns)
            row, answer = _prepare_example(row, answer, kinds, reader, preparation)
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
        source,
        syntax,
        columns,
        template.render,
        spec.system,
        tuple(examples),
        template.hoisted,
        preparation,
        template.needed,
        lead=template.lead,
        rest=template.rest,
        media_columns=kinds,
        reader=reader,
    )


def _prepare_example(
    row: Mapping[str, Any],
    answer: Json,
    kinds: Mapping[str, MediaKind],
    reader: MediaReader | None,
    preparation: Preprocessing | None,
) -> tuple[Mapping[str, Any], Json]:
    row = _prepare(row, kinds, reader, None).values
    if preparation is None:
        return row, answer
    media = {name: value for name, value in row.items() if isinstance(value, Media | Gallery)}
    texts, answer = prepare_example({n: v for n, v in row.items() if n not in media}, answer, preparation)
    return {**texts, **media}, answer


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
            text = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"Cannot read the prompt file {str(path)!r} ({type(error).__name__}).") from error
        syntax = spec.syntax or ("jinja2" if path.suffix in (".j2", ".jinja", ".jinja2") else "braces")
    if not text.strip():
        raise ConfigError("The prompt is empty; write the question, with {column} where a row's value belongs.")
    return text, syntax


def _example_row(number: int, given: Mapping[str, Any] | str, columns: tuple[str, ...]) -> Mapping[str, Any]:
    if isinstance(given, str):
        if len(columns) != 1:
            raise ConfigError(
                f"Example {number} is a plain text, but the prompt reads {_names(columns)}; write it as a mapping."
            )
        return {columns[0]: given}
    if not isinstance(given, Mapping):
        raise ConfigError(f"The input of example {number} is a {type(given).__name__}; give a mapping of columns.")
    missing = [column for column in columns if column not in given]
    if missing:
        raise ConfigError(f"Example {number} lacks {_names(missing)}, which the prompt reads; it has {_names(given)}.")
    return given


_JINJA2 = re.compile(r"(?<!\{)(?:\{\{ \w+(?:\.\w+)*(?: *\|[^{}]*)? \}\}|\{%[^{}]*%\}|\{#[^{}]*#\})(?!\})")
_JINJA2_PLACEHOLDER = re.compile(r"\{\{[^{}\"':]*\}\}")
"""What can be nothing else than Jinja2 (doubled once more, it is text), and what is probably that without a column."""


@dataclass(frozen=True, slots=True)
class _Template:
    """A template that parsed; see `CompiledPrompt`, and `kinds` there are its media columns."""

    columns: tuple[str, ...]
    render: Render
    hoisted: str | None
    needed: tuple[str, ...]
    lead: str
    rest: str
    kinds: Mapping[str, MediaKind]


_MEDIA_KINDS: tuple[MediaKind, ...] = get_args(MediaKind)


def _compile_braces(source: str) -> _Template:
    try:
        pieces = list(string.Formatter().parse(source))
    except ValueError as error:
        raise ConfigError(
            f"The prompt does not parse: {error}. {{column}} marks a placeholder; double literal braces, {{{{ }}}}."
        ) from None
    parts: list[tuple[str, str | None]] = []
    for literal, name, spec, conversion in pieces:
        known = not spec or spec in _MEDIA_KINDS
        plain = name is None or (bool(name.strip()) and known and not conversion and not set(name) & set("[]\"'."))
        if not plain:
            raise ConfigError(
                f"The prompt has {{{name}}} where a column name was expected. Double literal braces, {{{{ }}}}, "
                "or use Prompt(..., syntax='jinja2') for expressions."
            )
        parts.append((literal, name))
    kinds = _kinds_of((name, spec) for _, name, spec, _ in pieces if name is not None)
    columns = tuple(dict.fromkeys(name for _, name in parts if name is not None))
    found = _JINJA2.search(source)
    if found:
        raise ConfigError(
            f"The prompt has {found[0]}, which is Jinja2; write {{column}} for a placeholder, or "
            "Prompt(..., syntax='jinja2'). Doubled braces without blanks inside are literal ones."
        )
    found = _JINJA2_PLACEHOLDER.search(source)
    if found and not columns:
        raise ConfigError(
            f"The prompt reads no column: {found[0]} stands for literal braces. Write {{column}} for a placeholder, or "
            "Prompt(..., syntax='jinja2')."
        )
    hoisted = "".join(literal + (f"{{{name}}}" if name is not None else "") for literal, name in parts)
    first = next((at for at, (_, name) in enumerate(parts) if name is not None), len(parts))
    literals = [literal for literal, _ in parts]
    lead, rest = "".join(literals[: first + 1]), "".join(literals[first + 1 :])
    render = partial(_render_braces, tuple(parts), _write_beside_media if kinds else write_cell)
    return _Template(columns, render, hoisted, columns, lead, rest, kinds)


def _render_braces(
    parts: tuple[tuple[str, str | None], ...], write: Callable[[Any], str], row: Mapping[str, Any]
) -> str:
    return "".join([literal + (write(row[name]) if name is not None else "") for literal, name in parts])


def _kinds_of(used: Iterable[tuple[str, str | None]]) -> dict[str, MediaKind]:
    """Which columns hold images or documents, from each use of a column and what it is used as.

    Raises:
        ConfigError: One is used as two things.
    """
    found: dict[str, set[str]] = {}
    for name, kind in used:
        found.setdefault(name, set()).add(kind or "text")
    for name, uses in found.items():
        if len(uses) > 1:
            both = " and as ".join(sorted(uses))
            raise ConfigError(f"The prompt reads {name!r} as {both}; give each a column of its own.")
    return {name: kind for name, uses in found.items() for kind in _MEDIA_KINDS if kind in uses}


def _compile_jinja2(source: str) -> _Template:
    from jinja2 import StrictUndefined, TemplateSyntaxError, meta, nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # Autoescape is for HTML; a model must see the text as it stands.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    environment.filters |= dict.fromkeys(_MEDIA_KINDS, lambda value: value)
    try:
        tree = environment.parse(source)
        kinds = _find_media_columns(tree)
        environment.finalize = _write_in_jinja2_beside_media if kinds else _write_in_jinja2
        template = environment.from_string(tree)
    except TemplateSyntaxError as error:
        said = str(error.message).rstrip(".")
        raise ConfigError(f"The Jinja2 prompt does not parse, line {error.lineno}: {said}.") from None
    if any(True for _ in meta.find_referenced_templates(tree)):
        raise ConfigError("The Jinja2 prompt includes or extends another template; write it all in one.")
    free = meta.find_undeclared_variables(tree) - environment.globals.keys()
    ordered = dict.fromkeys(node.name for node in tree.find_all(nodes.Name) if node.name in free)
    pieces = [_without_kind(piece) for output in tree.body for piece in getattr(output, "nodes", (output,))]
    plain = all(isinstance(piece, nodes.TemplateData | nodes.Name) for piece in pieces)
    written = (getattr(piece, "data", None) or f"{{{getattr(piece, 'name', '')}}}" for piece in pieces)
    hoisted = "".join(written) if plain else None
    always = _names_read_always(tree)
    needed = tuple(name for name in ordered if name in always)

    def render(row: Mapping[str, Any]) -> str:
        return template.render({name: with_sorted_sets(row[name]) for name in ordered})

    lead, rest = _fixed_texts(pieces)
    return _Template(tuple(ordered), render, hoisted, needed, lead, rest, kinds)


def _write_in_jinja2(value: Any) -> Any:
    return "" if value is None else ensure_deterministic(value)


def _write_in_jinja2_beside_media(value: Any) -> Any:
    if value is None or isinstance(value, Media | Gallery):
        return "" if value is None else value
    return escape_marks(str(ensure_deterministic(value)))


def _without_kind(piece: Any) -> Any:
    """The name in `{{ name | image }}`, which can be said once for all rows as a plain name can."""
    from jinja2 import nodes

    is_kind = isinstance(piece, nodes.Filter) and piece.name in _MEDIA_KINDS and not (piece.args or piece.kwargs)
    return piece.node if is_kind and isinstance(piece.node, nodes.Name) else piece


def _find_media_columns(tree: Any) -> dict[str, MediaKind]:
    """The names that a Jinja2 template takes as images or documents: by the filter itself, or in a loop over them."""
    from jinja2 import nodes

    used = [
        (name.name, found.name)
        for found in tree.find_all(nodes.Filter)
        if found.name in _MEDIA_KINDS and found.node is not None
        for name in (found.node, *found.node.find_all(nodes.Name))
        if isinstance(name, nodes.Name)
    ]
    kinds = _kinds_of(used)
    for loop in tree.find_all(nodes.For):
        targets = {loop.target, *loop.target.find_all(nodes.Name)}
        for target in [one.name for one in targets if isinstance(one, nodes.Name) and one.name in kinds]:
            names = (loop.iter, *loop.iter.find_all(nodes.Name))
            used += [(name.name, kinds[target]) for name in names if isinstance(name, nodes.Name)]
            used = [(name, kind) for name, kind in used if name != target]
    return _kinds_of(used)


def _fixed_texts(pieces: Sequence[Any]) -> tuple[str, str]:
    """The text before the first piece of a Jinja2 template that depends on the row, and the text between the others."""
    literals = [getattr(piece, "data", None) for piece in pieces]
    first = next((at for at, literal in enumerate(literals) if literal is None), len(literals))
    return "".join(map(str, literals[:first])), "".join(literal for literal in literals[first:] if literal)


def _names_read_always(node: Any) -> set[str]:
    """The names that a Jinja2 template reads outside of `if`, `or` and the filter `default`."""
    from jinja2 import nodes

    if isinstance(node, nodes.If | nodes.CondExpr | nodes.Or):
        return set()
    if isinstance(node, nodes.Filter) and node.name in ("default", "d"):
        return set()
    if isinstance(node, nodes.Name):
        return {node.name}
    return {name for child in node.iter_child_nodes() for name in _names_read_always(child)}


_LEAST_AFTER, _LEAST_FIXED = 128, 512
"""Tokens after the first column that are worth a word, and of all fixed text: no provider caches less."""


def _estimate_tokens(text: str) -> int:
    return -(-len(text) // 4)


def explain_uncacheable(prompt: CompiledPrompt, count: Callable[[str], int] = _estimate_tokens) -> str | None:
    """What of `prompt` no prompt cache can reuse since it comes after the first column; `None` if that is little.

    Args:
        prompt: As it is sent with one row a call; with several, instructions come first in any case.
        count: Text to tokens.
    """
    after = count(prompt.rest)
    fixed = after + count(prompt.lead) + sum(count(message.content) for message in prompt.head)
    if after < _LEAST_AFTER or fixed < _LEAST_FIXED:
        return None
    column = f"{{{prompt.columns[0]}}}"
    return (
        f"About {after:,} tokens of the prompt come after its first column, {column}. A provider's prompt cache reuses "
        f"only what calls begin with, so they are paid in full for every row. Move {column} to the end, or what is the "
        "same for every row into system; either changes the question, so rows are asked again."
    )


def _names(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(repr(name) for name in names) or "nothing"
