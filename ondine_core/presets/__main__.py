"""`python -m ondine_core.presets`: every preset with its prices and its window, as the price file has them now.

What the file does not say is shown as unknown. It is never a zero.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import orjson

from ondine_core.errors import ConfigError
from ondine_core.presets.catalog import PRESETS, WITHDRAWN
from ondine_core.presets.cost import CostLine, Workload, compare_costs
from ondine_core.presets.files import load_presets
from ondine_core.providers.context_window import get_context_limit
from ondine_core.providers.model_data import source as data_source
from ondine_core.providers.pricing import find_entry, find_max_output_tokens, find_price
from ondine_core.types.values import ModelSpec

_UNKNOWN = "unknown"
_HEADER = ("preset", "model", "input", "cached", "output", "window", "reply", "until")


def main(arguments: Sequence[str]) -> int:
    """List presets, or with `cost` what many rows cost; returns the exit code."""
    if arguments[:1] == ["cost"]:
        return _show_costs(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m ondine_core.presets", description="List presets with prices and context windows."
    )
    parser.add_argument("file", nargs="?", help="a YAML file of your own presets; if left out, those of Ondine")
    parser.add_argument("--json", action="store_true", help="write JSON instead of a table; null means unknown")
    options = parser.parse_args(arguments)
    try:
        presets = PRESETS if options.file is None else load_presets(options.file)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    facts = [_facts(name, spec) for name, spec in presets.items()]
    return _write(orjson.dumps(facts, option=orjson.OPT_INDENT_2).decode() + "\n" if options.json else _table(facts))


def _show_costs(arguments: Sequence[str]) -> int:
    """Compare what a table costs with each preset; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ondine_core.presets cost",
        description="Estimate the cost of many rows by model, price tier, prompt cache and rows a call.",
    )
    parser.add_argument("--rows", type=_count, default=1_000_000, help="rows of the table")
    parser.add_argument("--input-tokens", type=_count, default=55, help="tokens of a row")
    parser.add_argument("--output-tokens", type=_count, default=10, help="tokens of an answer")
    parser.add_argument("--prefix-tokens", type=_count, default=400, help="tokens that are the same for every row")
    parser.add_argument("--batch-size", type=_count, default=20, help="rows a call, besides one")
    parser.add_argument("--json", action="store_true", help="write JSON instead of a table; null means not available")
    options = parser.parse_args(arguments)
    work = Workload(options.rows, options.input_tokens, options.output_tokens, options.prefix_tokens)
    sizes = sorted({1, options.batch_size})
    lines = sorted(compare_costs(PRESETS.values(), work, sizes), key=lambda line: line.usd[1][0])
    if options.json:
        facts = [
            {
                "model": line.model,
                "tier": line.tier,
                "usd": [
                    {"rows_a_call": size, "plain": float(plain), "cached": None if cached is None else float(cached)}
                    for size, (plain, cached) in line.usd.items()
                ],
            }
            for line in lines
        ]
        return _write(orjson.dumps(facts, option=orjson.OPT_INDENT_2).decode() + "\n")
    return _write(_cost_table(work, sizes, lines))


def _write(text: str) -> int:
    """Write `text` to standard output, unless that is closed; returns the exit code."""
    if sys.stdout is None:
        return 0
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader closed it, as `head` does; nothing can be written to it any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def _cost_table(work: Workload, sizes: Sequence[int], costs: Sequence[CostLine]) -> str:
    header = ["model", "tier"]
    for size in sizes:
        rows = "1 row" if size == 1 else f"{size} rows"
        header += [f"{rows} a call", "cached"]
    table = [header]
    for cost in costs:
        cells = [cost.model, cost.tier]
        for plain, cached in cost.usd.values():
            cells += [f"{plain:,.2f}", "-" if cached is None else f"{cached:,.2f}"]
        table.append(cells)
    about = (
        f"USD for {work.rows:,} rows of {work.input_tokens:,} tokens, answers of {work.output_tokens:,} and "
        f"{work.prefix_tokens:,} that are the same for every row.\n"
        "-: no prompt cache, or the prefix is too short for it."
    )
    return (
        "\n".join([*_aligned(table, range(2, len(header))), "", about, f"Prices from the data of {data_source()}."])
        + "\n"
    )


def _aligned(rows: Sequence[Sequence[str]], figures: range) -> list[str]:
    """The rows as lines; the columns in `figures` are to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if index in figures else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _facts(name: str, spec: ModelSpec) -> dict[str, Any]:
    price = find_price(spec.model)
    return {
        "preset": name,
        "model": spec.model,
        "input_usd_per_1m_tokens": price and _per_million(price.input),
        "cached_input_usd_per_1m_tokens": price and _per_million(price.cached_input),
        "output_usd_per_1m_tokens": price and _per_million(price.output),
        "long_prompts_cost_more": price and bool(price.beyond),
        "context_window_tokens": get_context_limit(spec.model),
        "max_output_tokens": find_max_output_tokens(spec.model),
        "retired_on": (find_entry(spec.model) or {}).get("deprecation_date"),
        "withdrawn_for": WITHDRAWN.get(name) if spec == PRESETS.get(name) else None,
    }


def _per_million(usd: Decimal) -> float:
    return float(usd * 1_000_000)


def _table(facts: Sequence[Mapping[str, Any]]) -> str:
    lines = _aligned([_HEADER, *map(_row, facts)], range(2, len(_HEADER) - 1))
    source = f"USD per 1,000,000 tokens, window and reply in tokens, from the data of {data_source()}."
    longer = any(fact["long_prompts_cost_more"] for fact in facts)
    return "\n".join([*lines, "", source, *(["* more for long prompts"] if longer else [])]) + "\n"


def _row(fact: Mapping[str, Any]) -> tuple[str, ...]:
    usd = [fact[f"{kind}_usd_per_1m_tokens"] for kind in ("input", "cached_input", "output")]
    star = "*" if fact["long_prompts_cost_more"] else ""
    tokens = [fact[name] for name in ("context_window_tokens", "max_output_tokens")]
    successor = fact["withdrawn_for"]
    return (
        fact["preset"],
        fact["model"],
        *(_UNKNOWN if figure is None else f"{figure:.10g}{star}" for figure in usd),
        *(_UNKNOWN if figure is None else f"{figure:,}" for figure in tokens),
        f"withdrawn; see {successor}" if successor else fact["retired_on"] or "",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
