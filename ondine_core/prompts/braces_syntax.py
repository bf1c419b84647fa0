"""The default syntax of prompts: `{column}` stands for a column's value, and doubled braces for literal ones."""

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
"""Text that must be Jinja2 (it is literal if doubled once more), and text that probably is if there is no column."""


def compile_braces(source: str) -> Template:
    """Compile a template with `{column}` for the value of a column.

    Raises:
        ConfigError: It does not parse, or is written in Jinja2.
    """
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
        is_known_spec = not spec or spec in MEDIA_KINDS
        if not name.strip() or not is_known_spec or conversion or set(name) & set("[]\"'."):
            field = name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise ConfigError(
                f"The prompt has {{{field}}} where a column name was expected, as in {{review}}, {{photo:image}} or "
                "{invoice:document}. Double literal braces, {{ }}, or use Prompt(..., syntax='jinja2') for expressions."
            )
        parts.append((name,))
    kinds = find_media_columns((name, spec) for _, name, spec, _ in pieces if name is not None)
    columns = tuple(dict.fromkeys(name for _, name, _, _ in pieces if name is not None))
    jinja = _JINJA2.search(source)
    if jinja:
        raise ConfigError(
            f"The prompt has {jinja[0]}, which is Jinja2; write {{column}} for a placeholder, or "
            "Prompt(..., syntax='jinja2'). Doubled braces without blanks inside are literal ones."
        )
    jinja = _JINJA2_PLACEHOLDER.search(source)
    if jinja and not columns:
        raise ConfigError(
            f"The prompt reads no column: {jinja[0]} stands for literal braces. Write {{column}} for a placeholder, or "
            "Prompt(..., syntax='jinja2')."
        )
    hoisted = "".join(part if isinstance(part, str) else f"{{{part[0]}}}" for part in parts)
    lead, rest = split_fixed([part if isinstance(part, str) else None for part in parts])
    write = write_beside_media if kinds else write_cell

    def render(row: Mapping[str, Any]) -> str:
        return "".join([part if isinstance(part, str) else write(row[part[0]]) for part in parts])

    return Template(columns, render, hoisted, columns, lead, rest, kinds)
