"""An asset with the spend by asset, model and day, from the ledger of the store.

The ledger has every call, also those of runs without a materialization, which failed, were terminated or killed.
"""

# No `from __future__ import annotations` here: Dagster reads the annotations of functions made in this module.
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from importlib.util import find_spec
from typing import Any, Literal, TypeAlias, get_args

import dagster as dg

from ondine_core.errors import ConfigError, OndineError
from ondine_core.store.connect import connect
from ondine_core.store.queries import Spending, read_spending
from ondine_core.types.numbers import is_whole
from ondine_dagster.reporting.markdown import in_place
from ondine_dagster.reporting.metadata import failure
from ondine_dagster.resource import LLMResource, default_store

Frame: TypeAlias = Literal["pandas", "polars", "pyarrow"]

_MAX_DAYS = 100_000
"""More days would begin before Python's first date."""
_LINES_SHOWN = 20
_BAR_LENGTH = 20
"""Characters of the longest bar."""


def spend_report(
    *,
    name: str = "llm_spend",
    days: int | None = None,
    frame: Frame = "pandas",
    resource_key: str = "llm",
    store: str | None = None,
    **asset_arguments: Any,
) -> dg.AssetsDefinition:
    """An asset with the spend: a table with a row for each asset, model and day (UTC), and a bar chart as metadata.

    Its columns are `asset`, `model`, `day`, `calls`, `input_tokens`, `cached_input_tokens`, `output_tokens`,
    `reasoning_tokens`, `unpriced_calls`, `at_most_calls` (included in `cost_usd` at the most that they can have cost),
    `unknown_calls` (under way or lost), `paid_twice` (prompts), `requests_in_jobs` (of batch jobs that are under way),
    `cost_usd` (of calls with a price; null if none has one), `unknown_at_most_usd` (the most that the unknown calls can
    cost), and `in_jobs_at_most_usd` (the most that the requests of batch jobs can cost).

    Args:
        name: Name of the asset.
        days: Only the last days, today included; by default all days of the ledger.
        frame: The kind of table.
        resource_key: The `LLMResource` whose store is read.
        store: The store to read instead: a file, or a `postgresql://` URL. Then no resource is needed.
        **asset_arguments: The other arguments of `@dg.asset`: a group, an automation condition, ...

    Raises:
        ConfigError: An argument is out of range, or the package of `frame` is not installed.
    """
    if days is not None and not (is_whole(days, 1) and days <= _MAX_DAYS):
        raise ConfigError(f"days={days!r} must be a whole number from 1 to {_MAX_DAYS:,}, or None for all days.")
    if frame not in get_args(Frame):
        raise ConfigError(f"frame={frame!r}; valid are 'pandas', 'polars' and 'pyarrow'.")
    if not isinstance(resource_key, str):
        raise ConfigError(f"resource_key={resource_key!r} must be the key of a resource, such as 'llm'.")
    if find_spec(frame) is None:
        raise ConfigError(f"frame={frame!r} needs the package {frame}: pip install {frame}, or name another frame.")

    def compute(context):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        llm = None if store else getattr(context.resources, resource_key)
        path_or_url = store or (llm.store if isinstance(llm, LLMResource) else None) or default_store(context.instance)
        since = None if days is None else datetime.now(UTC).date() - timedelta(days=days - 1)
        try:
            # The first asset creates the store, and it may run after the report.
            spent = _read(path_or_url, since, create=store is None)
        except OndineError as error:
            raise failure(error, None) from error
        return dg.MaterializeResult(value=_table(spent, frame), metadata=_metadata(spent))

    required = {*asset_arguments.pop("required_resource_keys", ()), *(() if store else (resource_key,))}
    arguments = {"description": "What language models cost, by asset, model and day.", **asset_arguments}
    asset: dg.AssetsDefinition = dg.asset(name=name, required_resource_keys=required, **arguments)(compute)
    return asset


_Spent = Mapping[tuple[str, ...], Spending]
"""By asset, model and day."""


def _read(path_or_url: str, since: date | None, *, create: bool) -> _Spent:
    with closing(connect(path_or_url, create=create)) as database:
        spent = read_spending(database, "asset", "model", "day")
    return {group: spending for group, spending in spent.items() if since is None or group[2] >= since.isoformat()}


_COUNTS: Mapping[str, Callable[[Spending], int]] = {
    "calls": lambda spending: spending.calls,
    "input_tokens": lambda spending: spending.usage.input_tokens,
    "cached_input_tokens": lambda spending: spending.usage.cached_input_tokens,
    "output_tokens": lambda spending: spending.usage.output_tokens,
    "reasoning_tokens": lambda spending: spending.usage.reasoning_tokens,
    "unpriced_calls": lambda spending: spending.unpriced,
    "at_most_calls": lambda spending: spending.at_most_calls,
    "unknown_calls": lambda spending: spending.unknown,
    "paid_twice": lambda spending: spending.paid_twice,
    "requests_in_jobs": lambda spending: spending.in_jobs,
}
_AMOUNTS: Mapping[str, Callable[[Spending], float | None]] = {
    "cost_usd": lambda spending: None if spending.known_usd is None else float(spending.known_usd),
    "unknown_at_most_usd": lambda spending: float(spending.at_most_usd),
    "in_jobs_at_most_usd": lambda spending: float(spending.in_jobs_at_most_usd),
}


def _table(spent: _Spent, frame: Frame) -> Any:
    import narwhals as nw

    # pandas' type of dates needs pyarrow, which not every project has.
    day_type = nw.Object() if frame == "pandas" and find_spec("pyarrow") is None else nw.Date()
    columns: dict[str, tuple[Any, list[Any]]] = {
        "asset": (nw.String(), [asset for asset, _, _ in spent]),
        "model": (nw.String(), [model for _, model, _ in spent]),
        "day": (day_type, [date.fromisoformat(day) for _, _, day in spent]),
    }
    columns |= {name: (nw.Int64(), list(map(figure, spent.values()))) for name, figure in _COUNTS.items()}
    columns |= {name: (nw.Float64(), list(map(figure, spent.values()))) for name, figure in _AMOUNTS.items()}
    series = [nw.new_series(name, values, kind, backend=frame) for name, (kind, values) in columns.items()]
    return nw.concat([column.to_frame() for column in series], how="horizontal").to_native()


# -- figures -------------------------------------------------------------------------------------------------------


def _metadata(spent: _Spent) -> dict[str, Any]:
    total = sum(spent.values(), Spending())
    metadata: dict[str, Any] = {
        "dagster/row_count": len(spent),
        "ondine/requests": total.calls,
        "ondine/requests_unknown": total.unknown,
        "ondine/requests_unpriced": total.unpriced,
        "ondine/input_tokens": total.usage.input_tokens,
        "ondine/output_tokens": total.usage.output_tokens,
    }
    summary = f"{total.calls:,} calls of unknown cost"
    if total.known_usd is not None:
        metadata["ondine/cost_usd"] = float(total.usd)
        metadata["ondine/cost_is_upper_bound"] = total.at_most_calls > 0
        summary = f"{total.calls:,} calls, {_cost(total)}"
    return {"ondine/summary": summary, **_tables(spent), **metadata}


def _cost(spending: Spending) -> str:
    return f"{'at most ' if spending.at_most_calls else ''}${spending.usd:,.4f}"


def _tables(spent: _Spent) -> dict[str, dg.MarkdownMetadataValue]:
    """USD by asset, by model and by day, each with a bar; the most expensive and the latest come first."""
    tables = {}
    for index, name in enumerate(("asset", "model", "day")):
        groups = defaultdict[str, Spending](Spending)
        for group, spending in spent.items():
            groups[group[index]] += spending
        if name == "day":
            labels = sorted(groups, reverse=True)
        else:
            labels = sorted(groups, key=lambda label: (-groups[label].usd, label))
        shown = {label: groups[label] for label in labels[:_LINES_SHOWN]}
        tables[f"ondine/spend_by_{name}"] = dg.MetadataValue.md(_bars(name, shown))
    return tables


def _bars(name: str, groups: Mapping[str, Spending]) -> str:
    most = max((spending.usd for spending in groups.values()), default=Decimal(0))
    rows = [
        (
            label or "(none)",
            f"{spending.calls + spending.unknown + spending.in_jobs:,}",
            _cost(spending),
            "█" * round(_BAR_LENGTH * spending.usd / most) if most else "",
        )
        for label, spending in groups.items()
    ]
    return in_place([name, "calls", "USD", ""], rows)
