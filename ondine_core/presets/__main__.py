"""`python -m ondine_core.presets`: all presets with their prices and windows, by the installed price data.

A missing figure is shown as unknown, never as zero.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import orjson

from ondine_core.commands.terminal import run_command, to_count, write_table
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
    """List presets, or with `cost` estimate the cost of many rows; returns the exit code."""
    if arguments[:1] == ["cost"]:
        options = _parse_workload(arguments[1:])
        return run_command(lambda: _show_costs(options))
    parser = argparse.ArgumentParser(
        prog="python -m ondine_core.presets", description="List presets with prices and context windows."
    )
    parser.add_argument("file", nargs="?", help="a YAML file of your own presets; if left out, those of Ondine")
    parser.add_argument("--json", action="store_true", help="write JSON instead of a table; null means unknown")
    options = parser.parse_args(arguments)
    return run_command(lambda: _list_presets(options))


def _list_presets(options: argparse.Namespace) -> None:
    presets = PRESETS if options.file is None else load_presets(options.file)
    facts = [_facts(name, spec) for name, spec in presets.items()]
    if options.json:
        _write_json(facts)
        return
    write_table([_HEADER, *map(_row, facts)], texts=(0, 1, len(_HEADER) - 1))
    sys.stdout.write(f"\nUSD per 1,000,000 tokens, window and reply in tokens, from the data of {data_source()}.\n")
    if any(fact["long_prompts_cost_more"] for fact in facts):
        sys.stdout.write("* more for long prompts\n")


def _parse_workload(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ondine_core.presets cost",
        description="Estimate the cost of many rows by model, price tier, prompt cache and rows a call.",
    )
    parser.add_argument("--rows", type=to_count, default=1_000_000, help="rows of the table")
    parser.add_argument("--input-tokens", type=to_count, default=55, help="tokens of a row")
    parser.add_argument("--output-tokens", type=to_count, default=10, help="tokens of an answer")
    parser.add_argument("--prefix-tokens", type=to_count, default=400, help="tokens that are the same for every row")
    parser.add_argument("--batch-size", type=to_count, default=20, help="rows a call, besides one")
    parser.add_argument("--json", action="store_true", help="write JSON instead of a table; null means not available")
    return parser.parse_args(arguments)


def _show_costs(options: argparse.Namespace) -> None:
    work = Workload(options.rows, options.input_tokens, options.output_tokens, options.prefix_tokens)
    sizes = sorted({1, options.batch_size})
    lines = sorted(compare_costs(PRESETS.values(), work, sizes), key=lambda line: line.usd[1][0])
    if not options.json:
        _write_costs(work, sizes, lines)
        return
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
    _write_json(facts)


def _write_json(facts: Sequence[Mapping[str, Any]]) -> None:
    sys.stdout.write(orjson.dumps(facts, option=orjson.OPT_INDENT_2).decode() + "\n")


def _write_costs(work: Workload, sizes: Sequence[int], costs: Sequence[CostLine]) -> None:
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
    write_table(table, texts=(0, 1))
    sys.stdout.write(
        f"\nUSD for {work.rows:,} rows of {work.input_tokens:,} tokens, answers of {work.output_tokens:,} and "
        f"{work.prefix_tokens:,} that are the same for every row.\n"
        "-: no prompt cache, or the prefix is too short for it.\n"
        f"Prices from the data of {data_source()}.\n"
    )


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
