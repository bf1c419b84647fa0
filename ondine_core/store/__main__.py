"""`python -m ondine_core.store`: inspect an answer store, copy it, prune it, export it.

It may be used while runs are active. The commands are in `ondine_core.commands`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NoReturn

from ondine_core.commands import batch_jobs, copies, failed_prompts, spending, upkeep
from ondine_core.commands.terminal import add_command, run_command, set_output
from ondine_core.errors import ConfigError
from ondine_core.store.connect import connect, find_dagster_store


def main(arguments: Sequence[str]) -> int:
    """Run a command; returns the exit code."""
    options = _parse(arguments)
    set_output()

    def command() -> None:
        with closing(connect(options.store, create=False)) as database:
            options.command(database, options)

    return run_command(command)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # The message quotes a URL that is in the wrong place, which may hold a password.
        message = re.sub(r"(?<=:)[^\s:]*(?=@)|(?<=://)\S*(?=@)", "***", message)
        super().error(re.sub(r"(?i)(passw\w*|pwd)(\s*[=:]\s*)('[^']*'|[^\s&;,]+)", r"\1\2***", message))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m ondine_core.store",
        description="Query, copy, prune and export an answer store.",
        epilog="Other users of a machine can read the arguments of a command: give a URL with a password in the "
        "environment variable ONDINE_STORE, or in a file.",
    )
    parser.add_argument(
        "store",
        metavar="STORE",
        help="a file of answers, a postgresql:// URL without a password, or @FILE, a text file with one of these; "
        "if left out, what ONDINE_STORE says, or the default store of the Dagster instance in DAGSTER_HOME",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in (spending, failed_prompts, upkeep, batch_jobs, copies):
        group.add_commands(partial(add_command, commands))

    arguments = list(arguments)
    if arguments and arguments[0] in commands.choices:
        try:
            path_or_url = default_store(os.environ)
        except ConfigError as error:
            parser.error(f"name the STORE before {arguments[0]!r}, or set ONDINE_STORE; {error}")
        arguments = [path_or_url, *arguments]
    if arguments and arguments[0].startswith("@"):
        try:
            arguments[0] = Path(arguments[0][1:]).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            parser.error(str(error))
    return parser.parse_args(arguments)


def default_store(environment: Mapping[str, str]) -> str:
    """The store to use if the command names none.

    Raises:
        ConfigError: There is no default.
    """
    path_or_url = environment.get("ONDINE_STORE")
    if path_or_url:
        return path_or_url
    home = environment.get("DAGSTER_HOME")
    if home:
        return find_dagster_store(home, environment)
    raise ConfigError("DAGSTER_HOME is not set either.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
