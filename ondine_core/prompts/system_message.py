"""The system message of a prompt, which is the same for every row, so a placeholder in it is a mistake.

It is sent unchanged, except that doubled braces around a column that the prompt reads become single ones, as in the
prompt itself. Other doubled braces stay, since a prompt may be about templates.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ondine_core.errors import ConfigError
from ondine_core.prompts.template_syntax import MEDIA_KINDS


def compile_system(system: str, syntax: str, columns: Sequence[str]) -> str:
    """The system message as it is sent, with doubled braces around one of `columns` written once.

    Raises:
        ConfigError: It has a placeholder of one of `columns`.
    """
    # A number in braces is rather a part of a regular expression.
    names = "|".join(re.escape(name) for name in map(str, columns) if name.strip() and not name.isdecimal())
    if not names:
        return system
    if syntax == "jinja2":
        found = re.search(rf"\{{\{{[-+]?\s*(?:{names})(?!\w)[^{{}}]*\}}\}}", system)
        if found:
            raise _placeholder_error(found[0], "and inside {% raw %}")
        return system

    def write_once(found: re.Match[str]) -> str:
        opening, name, closing = found.groups()
        is_odd = {len(opening) % 2, len(closing) % 2}
        if is_odd == {1}:
            raise _placeholder_error(f"{{{name}}}", "or double its braces")
        return found[0] if 1 in is_odd else f"{opening[::2]}{name}{closing[::2]}"

    return re.sub(rf"(?<!\{{)(\{{+)((?:{names})(?::(?:{'|'.join(MEDIA_KINDS)}))?)(\}}+)", write_once, system)


def _placeholder_error(written: str, otherwise: str) -> ConfigError:
    return ConfigError(
        f"The system message has {written}, but it is the same for every row and sent as it stands; write the "
        f"placeholder in the text of the prompt, {otherwise} if it is meant literally."
    )
