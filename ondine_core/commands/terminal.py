"""Parses the arguments of commands, and writes tables, instants and amounts to the terminal."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TypeAlias

from ondine_core.errors import OndineError
from ondine_core.store.database import Database
from ondine_core.types.ledger import Origin
from ondine_core.types.values import Key

Command: TypeAlias = Callable[[Database, argparse.Namespace], None]
"""Runs a command on a store."""
AddCommand: TypeAlias = Callable[[str, Command, str], argparse.ArgumentParser]
"""`add_command`, bound to the commands of a program."""

_AGES_S = {"h": 3600, "d": 86400, "w": 7 * 86400}


def add_command(
    commands: argparse._SubParsersAction[Any], name: str, command: Command, what: str
) -> argparse.ArgumentParser:
    """Add a command, described by `what`, to `commands`; returns its parser, to which arguments can be added."""
    added: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what.capitalize() + ".")
    added.set_defaults(command=command)
    return added


def run_command(command: Callable[[], None]) -> int:
    """Run a function that writes to standard output; returns the exit code."""
    if sys.stdout is None:  # it is closed; output is lost, as with `print`
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  (to the end of the process)
    try:
        command()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader closed the output, as `head` does
        _end_output()
    except (OndineError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        _end_output()
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _end_output() -> None:
    """Write the rest of the output; drop it if that fails, since Python 3.14 would report the failure again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# -- arguments -----------------------------------------------------------------------------------------------------


def add_filters(parser: argparse.ArgumentParser, dated: str) -> None:
    """Add the options `--since`, with the help `dated`, and `--asset`."""
    parser.add_argument("--since", type=to_since, default=0.0, metavar="WHEN", help=f"{dated}; 2026-01-31, 7d, 12h")
    parser.add_argument("--asset", type=to_text, metavar="ASSET", help="only what was asked for this asset, as in a/b")


def to_text(argument: str) -> str:
    """Decode an argument as UTF-8, also if the locale has another encoding (`LC_ALL=C`)."""
    try:
        return argument.encode("utf-8", "surrogateescape").decode("utf-8")
    except ValueError:
        raise argparse.ArgumentTypeError(f"{argument!r} is not UTF-8") from None


def to_row(text: str) -> Mapping[str, object]:
    """Parse a row, which is a JSON object."""
    try:
        row = json.loads(to_text(text))
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise argparse.ArgumentTypeError("a row is a JSON object of column to value")
    return row


def to_key(text: str) -> Key:
    """Parse a key, which is hexadecimal."""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not a key; `failures` and `export` list keys")
    return key


def to_count(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def to_since(text: str) -> float:
    """Parse a date or an age to seconds since the epoch."""
    if re.fullmatch(r"\d+[hdw]", text):
        return time.time() - to_age_s(text)
    try:
        at = datetime.fromisoformat(text)
        return (at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a date or age; write 2026-01-31, 7d or 12h") from None


def to_age_s(text: str) -> float:
    """Parse an age such as `90d` to seconds."""
    match = re.fullmatch(r"(\d{1,5})([hdw])", text)  # five digits, since the calendar begins in the year 1
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not an age; write 90d, 12h or 8w")
    return float(match[1]) * _AGES_S[match[2]]


# -- output --------------------------------------------------------------------------------------------------------


def set_output(encoding: str | None = None) -> None:
    """Set the encoding of standard output, and escape characters that it does not have."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")


def write_table(rows: Sequence[Sequence[str | int]], *, texts: Collection[int] = (0,)) -> None:
    """Write aligned columns: those with their index in `texts` to the left, figures to the right."""
    shown = [[cell if isinstance(cell, str) else f"{cell:,}" for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        cells = [
            cell.ljust(width) if number in texts else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def write_lines(lines: Sequence[tuple[str, str]]) -> None:
    """Write lines of a name and a text, which may come from any source."""
    write_table([(name, printable(text)) for name, text in lines], texts=(0, 1))


def show_usd(usd: Decimal | None, at_most_calls: int) -> str:
    """An amount, with `<=` if calls are included at their maximum cost."""
    if usd is None:
        return "?"
    return f"<= {usd:,.6f}" if at_most_calls else f"{usd:,.6f}"


def show_asset(origin: Origin) -> str:
    """Asset and partition, empty if both are unknown."""
    return "/".join(filter(None, (origin.asset, origin.partition)))


def show_instant(at: float) -> str:
    """An instant to the minute."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"


def show_iso(at: float) -> str:
    """An instant in ISO 8601, for other programs."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def printable(text: str) -> str:
    """Escape the control characters of `text`, which may be commands of the terminal."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def warn(message: str) -> None:
    """Write a warning to standard error."""
    sys.stderr.write(f"warning: {message}\n")
