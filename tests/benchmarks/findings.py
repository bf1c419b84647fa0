"""Compute figures from runs: medians with their spread, and ratios of consecutive runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from tests.benchmarks.scenarios import Measured, Scale

__all__ = ["Finding", "findings", "table"]

_COLUMNS = {
    "rows_per_s": ("rows/s", ",.0f"),
    "cpu_ms_per_row": ("CPU ms/row", ".3f"),
    "peak_rss_mib": ("peak MiB", ",.0f"),
    "start_up_s": ("start-up s", ".2f"),
    "tokens_per_row": ("tokens/row", ".1f"),
}


@dataclass(frozen=True)
class Finding:
    """A measured figure, compared with its target.

    Args:
        what: Description of the figure.
        value: The median.
        low: The minimum of the repetitions.
        high: The maximum of the repetitions.
        target: Description of the target.
        met: Whether the median meets it.
    """

    what: str
    value: float
    low: float
    high: float
    target: str
    met: bool

    def __str__(self) -> str:
        word = "met" if self.met else "NOT MET"
        return f"| {self.what} | {self.value:,.3g} | {self.low:,.3g} to {self.high:,.3g} | {self.target} | {word} |"


def table(runs: Sequence[Measured]) -> str:
    """A Markdown table with one line for each client of each scenario, and the spread of each figure."""
    header = ["scenario", "client", *(name for name, _ in _COLUMNS.values()), "refused"]
    lines = [header, ["---"] * len(header)]
    for scenario, client in dict.fromkeys((run["scenario"], run["client"]) for run in runs):
        repetitions = [run for run in runs if (run["scenario"], run["client"]) == (scenario, client)]
        cells = [_spread([run[key] for run in repetitions], form) for key, (_, form) in _COLUMNS.items()]
        refused = sum(run["server"].get("refused", 0) for run in repetitions)
        lines.append([scenario, client, *cells, f"{refused:,}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _spread(values: Sequence[float], form: str) -> str:
    if len(values) == 1:
        return format(values[0], form)
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def findings(runs: Sequence[Measured], scale: Scale) -> Iterator[Finding]:
    """Compare the figures with their targets."""
    rows_per_s, cpu_ms = _figure("rows_per_s"), _figure("cpu_ms_per_row")
    one = _Pairs(runs, "one row a call")
    yield from one.ratio("rows/s relative to aiohttp", "ondine", "aiohttp", rows_per_s, at_least=0.7)
    yield from one.ratio("rows/s relative to litellm", "ondine", "litellm", rows_per_s, at_least=6)
    yield from one.ratio("rows/s relative to the openai SDK", "ondine", "openai", rows_per_s, at_least=1)
    yield from one.difference("CPU ms/row beyond aiohttp's", "ondine", "aiohttp", cpu_ms, at_most=0.5)
    few = _Pairs(runs, "50 in flight")
    yield from few.ratio("rows/s with 50 in flight, relative to aiohttp", "ondine", "aiohttp", rows_per_s, at_least=0.9)
    claude = _Pairs(runs, "Anthropic")
    yield from claude.ratio(
        "rows/s to Anthropic, relative to litellm", "ondine to Claude", "litellm to Claude", rows_per_s, at_least=5
    )
    watched = _Pairs(runs, "observers")
    yield from watched.ratio(
        "rows/s with all observers, relative to none", "observed", "ondine", rows_per_s, at_least=0.95
    )
    together = _Pairs(runs, "batches")
    yield from together.ratio(
        "rows/s with 20 rows a call, relative to one", "20 a call", "1 a call", rows_per_s, at_least=10
    )
    yield from _Pairs(runs, "cached").alone("rows/s when all answers are stored", "ondine", rows_per_s, at_least=50_000)
    yield from _Pairs(runs, "store").alone("answers/s written, 20 a call", "20 a call", rows_per_s, at_least=20_000)
    distant = _Pairs(runs, "distant store")
    yield from distant.ratio(
        "rows/s with Postgres 20 ms away, relative to a local one",
        "Postgres 20 ms away",
        "local Postgres",
        rows_per_s,
        at_least=0.8,
    )
    yield from _limits(runs, scale)
    many = _Pairs(runs, "many rows")
    yield from many.ratio("rows/s of many rows, relative to few", "many rows", "few rows", rows_per_s, at_least=0.9)
    beyond: _Metric = lambda run: run["peak_rss_mib"] - run["rss_before_mib"]  # noqa: E731
    yield from many.alone("peak MiB beyond the start", "many rows", beyond, at_most=1536)
    step = _Pairs(runs, "step")
    again: _Metric = lambda run: run["details"]["again_s"]  # noqa: E731
    imports: _Metric = lambda run: run["start_up_s"] + run["details"]["first_s"] - run["details"]["again_s"]  # noqa: E731
    yield from step.difference("s to import, more than a plain step", "step twice", "plain step", imports, at_most=0.6)
    yield from step.difference(
        "s to set up and report, more than a plain step", "step twice", "plain step", again, at_most=0.3
    )
    inside = _Pairs(runs, "embedded")
    yield from inside.ratio(
        "rows/s of an embedded model, relative to llama.cpp", "embedded", "llama.cpp", rows_per_s, at_least=0.9
    )


def _limits(runs: Sequence[Measured], scale: Scale) -> Iterator[Finding]:
    limited = _Pairs(runs, "limit")
    used: _Metric = lambda run: _used(run, scale.limit)  # noqa: E731
    wasted: _Metric = lambda run: run["server"]["refused"] / (run["server"]["requests"] - run["server"]["refused"])  # noqa: E731
    yield from limited.alone("share of a configured limit that is used", "configured", used, at_least=0.98)
    yield from limited.alone("calls refused under a configured limit, a row", "configured", wasted, at_most=0)
    yield from limited.alone("share of an unconfigured limit that is used", "unconfigured", used, at_least=0.95)
    yield from limited.alone("calls refused under an unconfigured limit, a row", "unconfigured", wasted, at_most=0.02)
    at_fifty = "unconfigured, 50 in flight"
    yield from limited.alone("the same share with 50 calls in flight", at_fifty, used, at_least=0.93)
    yield from limited.alone("the same refusals with 50 calls in flight", at_fifty, wasted, at_most=0.03)
    refused = _Pairs(runs, "refusals")
    rows_per_s = _figure("rows_per_s")
    yield from refused.ratio(
        "rows/s with 1 % refused, relative to none", "1 % refused", "all answered", rows_per_s, at_least=0.7
    )


def _used(run: Measured, limit: int) -> float:
    """The share of the limit's requests that were answered between the first answer and the last."""
    stats = run["server"]
    answered = stats["requests"] - stats["refused"]
    return float((answered - 1) / limit / (stats["last_s"] - stats["first_s"]))


_Metric = Callable[[Measured], float]


def _figure(name: str) -> _Metric:
    return lambda run: float(run[name])


class _Pairs:
    """The runs of a scenario by client and repetition; runs of the same repetition are compared."""

    def __init__(self, runs: Sequence[Measured], scenario: str) -> None:
        self._runs = {(run["client"], run["repetition"]): run for run in runs if run["scenario"] == scenario}

    def ratio(self, what: str, one: str, other: str, metric: _Metric, *, at_least: float) -> Iterator[Finding]:
        values = [metric(run) / metric(beside) for run, beside in self._pairs(one, other)]
        yield from _finding(what, values, at_least=at_least)

    def difference(self, what: str, one: str, other: str, metric: _Metric, *, at_most: float) -> Iterator[Finding]:
        yield from _finding(
            what, [metric(run) - metric(beside) for run, beside in self._pairs(one, other)], at_most=at_most
        )

    def alone(
        self, what: str, client: str, metric: _Metric, *, at_least: float | None = None, at_most: float | None = None
    ) -> Iterator[Finding]:
        values = [metric(run) for (name, _), run in self._runs.items() if name == client]
        yield from _finding(what, values, at_least=at_least, at_most=at_most)

    def _pairs(self, one: str, other: str) -> Iterator[tuple[Measured, Measured]]:
        for (client, repetition), run in self._runs.items():
            if client == one and (beside := self._runs.get((other, repetition))):
                yield run, beside


def _finding(
    what: str, values: Sequence[float], *, at_least: float | None = None, at_most: float | None = None
) -> Iterator[Finding]:
    if not values:
        return
    value = median(values)
    met = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    target = f"at least {at_least:,g}" if at_least is not None else f"at most {at_most:,g}"
    yield Finding(what, value, min(values), max(values), target, met)
