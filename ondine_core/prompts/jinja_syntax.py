"""Jinja2 as a syntax of prompts, for conditions, loops and filters; imported only for a prompt in this syntax."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ondine_core.errors import ConfigError
from ondine_core.preprocessing.media import Gallery
from ondine_core.prompts.template_syntax import MEDIA_KINDS, Template, find_media_columns, split_fixed
from ondine_core.types.cell_text import ensure_deterministic, replace_sets
from ondine_core.types.media import Media, MediaKind, escape_marks


def compile_jinja2(source: str) -> Template:
    """Compile a Jinja2 template, which runs in a sandbox; undefined names fail.

    Raises:
        ConfigError: It does not parse, or needs another template.
    """
    # Autoescape is for HTML; a model must see the text unchanged.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    del environment.filters["random"]  # it would make another prompt in each run, which is paid again
    environment.filters |= dict.fromkeys(MEDIA_KINDS, lambda value: value)
    try:
        tree = environment.parse(source)
        kinds = _media_columns(tree)
        environment.finalize = _write_beside_media if kinds else _write
        template = environment.from_string(tree)
    except TemplateSyntaxError as error:
        message = str(error.message).rstrip(".")
        raise ConfigError(f"The Jinja2 prompt does not parse, line {error.lineno}: {message}.") from None
    if any(True for _ in meta.find_referenced_templates(tree)):
        raise ConfigError("The Jinja2 prompt includes or extends another template; write it all in one.")
    free = meta.find_undeclared_variables(tree) - environment.globals.keys()
    ordered = dict.fromkeys(node.name for node in tree.find_all(nodes.Name) if node.name in free)
    pieces = [_strip_media_filter(piece) for output in tree.body for piece in getattr(output, "nodes", (output,))]
    hoisted: str | None = None
    if all(isinstance(piece, nodes.TemplateData | nodes.Name) for piece in pieces):
        hoisted = "".join(
            piece.data if isinstance(piece, nodes.TemplateData) else f"{{{piece.name}}}" for piece in pieces
        )
    always_read = _names_always_read(tree)
    needed = tuple(name for name in ordered if name in always_read)
    literals: list[str | None] = [getattr(piece, "data", None) for piece in pieces]

    def render(row: Mapping[str, Any]) -> str:
        return template.render({name: replace_sets(row[name]) for name in ordered})

    return Template(tuple(ordered), render, hoisted, needed, *split_fixed(literals), kinds)


def _write(value: Any) -> Any:
    return "" if value is None else ensure_deterministic(value)


def _write_beside_media(value: Any) -> Any:
    if value is None:
        return ""
    return value if isinstance(value, Media | Gallery) else escape_marks(str(ensure_deterministic(value)))


def _strip_media_filter(piece: Any) -> Any:
    """The name node in `{{ name | image }}`; other nodes are returned as they are."""
    is_kind = isinstance(piece, nodes.Filter) and piece.name in MEDIA_KINDS and not (piece.args or piece.kwargs)
    return piece.node if is_kind and isinstance(piece.node, nodes.Name) else piece


def _media_columns(tree: Any) -> dict[str, MediaKind]:
    """The columns that a Jinja2 template uses as images or documents, and as which of the two.

    The filter stands at a column, or at a name that a loop or `set` gives to a column.
    """
    used = [
        (name, node.name)
        for node in tree.find_all(nodes.Filter)
        if node.name in MEDIA_KINDS and node.node is not None
        for name in _names_in(node.node)
    ]
    # The inner and later bindings first, since their values may use names of the outer ones.
    for target, value in reversed(list(_bindings(tree))):
        kinds = find_media_columns(used)
        for name in [name for name in _names_in(target) if name in kinds]:
            used = [(other, kind) for other, kind in used if other != name]
            used += [(other, kinds[name]) for other in _names_in(value)]
    kinds, columns = find_media_columns(used), meta.find_undeclared_variables(tree)
    for name in kinds:
        if name not in columns:
            raise ConfigError(
                f"The Jinja2 prompt takes {name!r} as {kinds[name]}, which is no column; apply the filter to a column, "
                "or to a name that a loop or 'set' gives to one."
            )
    return kinds


def _bindings(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Each place where a template gives names to values: the node of the names, and that of the values."""
    for node in tree.find_all((nodes.For, nodes.Assign, nodes.With)):
        if isinstance(node, nodes.For):
            yield node.target, node.iter
        elif isinstance(node, nodes.Assign):
            yield node.target, node.node
        else:
            yield from zip(node.targets, node.values, strict=True)


def _names_in(node: Any) -> list[str]:
    return [name.name for name in (node, *node.find_all(nodes.Name)) if isinstance(name, nodes.Name)]


def _names_always_read(node: Any) -> set[str]:
    """The names that a Jinja2 template reads outside of `if`, `or` and the filter `default`."""
    if isinstance(node, nodes.If | nodes.CondExpr | nodes.Or):
        return set()
    if isinstance(node, nodes.Filter) and node.name in ("default", "d"):
        return set()
    if isinstance(node, nodes.Name):
        return {node.name}
    return {name for child in node.iter_child_nodes() for name in _names_always_read(child)}
