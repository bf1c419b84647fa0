"""Jinja2 as a syntax of prompts, for conditions, loops and filters; imported only for a prompt that is written so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ondine_core.errors import ConfigError
from ondine_core.preprocessing.media import Gallery
from ondine_core.prompts.template_syntax import MEDIA_KINDS, Template, find_media_columns, split_fixed
from ondine_core.types.cell_text import ensure_deterministic, with_sorted_sets
from ondine_core.types.media import Media, MediaKind, escape_marks


def compile_jinja2(source: str) -> Template:
    """A Jinja2 template, run in a sandbox; undefined names fail.

    Raises:
        ConfigError: It does not parse, or needs another template.
    """
    # Autoescape is for HTML; a model must see the text as it stands.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
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
        hoisted = "".join(getattr(piece, "data", None) or f"{{{getattr(piece, 'name', '')}}}" for piece in pieces)
    always = _names_read_always(tree)
    needed = tuple(name for name in ordered if name in always)
    literals: list[str | None] = [getattr(piece, "data", None) for piece in pieces]

    def render(row: Mapping[str, Any]) -> str:
        return template.render({name: with_sorted_sets(row[name]) for name in ordered})

    return Template(tuple(ordered), render, hoisted, needed, *split_fixed(literals), kinds)


def _write(value: Any) -> Any:
    return "" if value is None else ensure_deterministic(value)


def _write_beside_media(value: Any) -> Any:
    if value is None or isinstance(value, Media | Gallery):
        return "" if value is None else value
    return escape_marks(str(ensure_deterministic(value)))


def _strip_media_filter(piece: Any) -> Any:
    """The name in `{{ name | image }}`; like a plain name, it can be sent once for all rows."""
    is_kind = isinstance(piece, nodes.Filter) and piece.name in MEDIA_KINDS and not (piece.args or piece.kwargs)
    return piece.node if is_kind and isinstance(piece.node, nodes.Name) else piece


def _media_columns(tree: Any) -> dict[str, MediaKind]:
    """The names that a Jinja2 template takes as images or documents: by the filter itself, or in a loop over them."""
    used = [
        (name.name, found.name)
        for found in tree.find_all(nodes.Filter)
        if found.name in MEDIA_KINDS and found.node is not None
        for name in (found.node, *found.node.find_all(nodes.Name))
        if isinstance(name, nodes.Name)
    ]
    kinds = find_media_columns(used)
    for loop in tree.find_all(nodes.For):
        targets = {loop.target, *loop.target.find_all(nodes.Name)}
        for target in [one.name for one in targets if isinstance(one, nodes.Name) and one.name in kinds]:
            names = (loop.iter, *loop.iter.find_all(nodes.Name))
            used += [(name.name, kinds[target]) for name in names if isinstance(name, nodes.Name)]
            used = [(name, kind) for name, kind in used if name != target]
    return find_media_columns(used)


def _names_read_always(node: Any) -> set[str]:
    """The names that a Jinja2 template reads outside of `if`, `or` and the filter `default`."""
    if isinstance(node, nodes.If | nodes.CondExpr | nodes.Or):
        return set()
    if isinstance(node, nodes.Filter) and node.name in ("default", "d"):
        return set()
    if isinstance(node, nodes.Name):
        return {node.name}
    return {name for child in node.iter_child_nodes() for name in _names_read_always(child)}
