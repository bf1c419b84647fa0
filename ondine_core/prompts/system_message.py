"""The system message of a prompt, which is the same for every row: a placeholder in it is a mistake.

It is sent as it stands, except that doubled braces around a column that the prompt reads are written once, as in the
prompt itself. Other doubled braces stay, since models are also asked about templates.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ondine_core.errors import ConfigError
from ondine_core.prompts.template_syntax import MEDIA_KINDS

_KIND = f"(?::(?:{'|'.join(MEDIA_KINDS)}))?"
_IF_LITERAL = {
    "braces": "or double its braces if it is meant literally",
    "jinja2": "and inside {% raw %} if it is meant literally",
}


def compile_system(system: str, syntax: str, columns: Sequence[str]) -> str:
    """The system message as it is sent, from the one that the user wrote and the columns that the prompt reads."""
    check_system(system, syntax, columns)
    names = _alternatives(columns)
    if syntax == "jinja2" or not names:
        return system
    doubled = re.compile(rf"(?<!\{{)(?:\{{\{{)+(?:{names}){_KIND}(?:\}}\}})+(?!\}})")
    return doubled.sub(lambda found: re.sub(r"\{\{|\}\}", lambda braces: braces[0][0], found[0]), system)


def check_system(system: str, syntax: str, columns: Sequence[str]) -> None:
    """Refuse a system message with a placeholder of one of `columns`."""
    names = _alternatives(columns)
    if not names:
        return
    if syntax == "jinja2":
        placeholder = rf"\{{\{{[-+]?\s*(?:{names})(?!\w)[^{{}}]*\}}\}}"
    else:
        placeholder = rf"(?<!\{{)(?:\{{\{{)*(\{{(?:{names}){_KIND}\}})(?:\}}\}})*(?!\}})"
    found = re.search(placeholder, system)
    if found:
        written = found[found.re.groups]
        raise ConfigError(
            f"The system message has {written}, but it is the same for every row and sent as it stands; write the "
            f"placeholder in the text of the prompt, {_IF_LITERAL[syntax]}."
        )


def _alternatives(columns: Sequence[str]) -> str:
    """A pattern of column names; a number in braces is rather a part of a regular expression."""
    return "|".join(re.escape(name) for name in map(str, columns) if name.strip() and not name.isdecimal())
