"""The default syntax of prompts: `{column}` stands for a column's value, and doubled braces for themselves."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

from ondine_core.errors import ConfigError
from ondine_core.prompts.template_syntax import (
    MEDIA_KINDS,
    Template,
    find_media_columns,
    split_fixed,
    write_beside_media,
)
from ondine_core.types.cell_text import write_cell

_JINJA2 = re.compile(r"(?<!\{)(?:\{\{ \w+(?:\.\w+)*(?: *\|[^{}]*)? \}\}|\{%[^{}]*%\}|\{#[^{}]*#\})(?!\})")
_JINJA2_PLACEHOLDER = re.compile(r"\{\{[^{}\"':]*\}\}")
"""What can be nothing else than Jinja2 (doubled once more, it is text), and what is probably that without a column."""


def compile_braces(source: str) -> Template:
    """A template with `{column}` for the value of a column."""
    try:
        pieces = list(string.Formatter().parse(source))
    except ValueError as error:
        raise ConfigError(
            f"The prompt does not parse: {error}. {{column}} marks a placeholder; double literal braces, {{{{ }}}}."
        ) from None
    parts: list[str | tuple[str]] = []
    for literal, name, spec, conversion in pieces:
        parts.append(literal)
        if name is None:
            continue
        known = not spec or spec in MEDIA_KINDS
        if not name.strip() or not known or conversion or set(name) & set("[]\"'."):
            written = f"{name}{f'!{conversion}' if conversion else ''}{f':{spec}' if spec else ''}"
            raise ConfigError(
                f"The prompt has {{{written}}} where a column name was expected, as in {{review}}, {{photo:image}} or "
                "{invoice:document}. Double literal braces, {{ }}, or use Prompt(..., syntax='jinja2') for expressions."
            )
        parts.append((name,))
    kinds = find_media_columns((name, spec) for _, name, spec, _ in pieces if name is not None)
    columns = tuple(dict.fromkeys(name for _, name, _, _ in pieces if name is not None))
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
    hoisted = "".join(part if isinstance(part, str) else f"{{{part[0]}}}" for part in parts)
    lead, rest = split_fixed([part if isinstance(part, str) else None for part in parts])
    write = write_beside_media if kinds else write_cell

    def render(row: Mapping[str, Any]) -> str:
        return "".join([part if isinstance(part, str) else write(row[part[0]]) for part in parts])

    return Template(columns, render, hoisted, columns, lead, rest, kinds)
