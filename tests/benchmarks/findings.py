"""From runs to figures: medians with their spread, and ratios of runs made one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from tests.benchmarks.scenarios import Measured, Scale

__all__ = ["Finding", "findings", "table"]

_SHOWN = {
    "rows_per_s": ("rows/s", ",.0f"),
    "cpu_ms_per_row": ("CPU ms/row", ".3f"),
    "peak_rss_mib": ("peak MiB", ",.0f"),
    "start_up_s": ("start-up s", ".2f"),
    "tokens_per_row": ("tokens/row", ".1f"),
}


@dataclass(frozen=True)
class Finding:
    """A figure that has a target.

    Args:
        what: Its description.
        value: The median.
        low: The minimum of the repetitions.
        high: Their maximum.
        target: The target's description.
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
    """A Markdown table of all scenarios, a line a client, each figure with its spread."""
    header = ["scenario", "client", *(name for name, _ in _SHOWN.values()), "refused"]
    lines = [header, ["---"] * len(header)]
    for scenario, client in dict.fromkeys((run["scenario"], run["client"]) for run in runs):
        of = [run for run in runs if (run["scenario"], run["client"]) == (scenario, client)]
        cells = [_spread([run[key] for run in of], form) for key, (_, form) in _SHOWN.items()]
        refused = sum(run["server"].get("refused", 0) for run in of)
        lines.append([scenario, client, *cells, f"{refused:,}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _spread(values: Sequence[float], form: str) -> str:
    if len(values) == 1:
        return format(values[0], form)
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def findings(runs: Sequence[Measured], scale: Scale) -> Iterator[Finding]:
    """The figures for each target."""
    rows_per_s, cpu_ms = _figure("rows_per_s"), _figure("cpu_ms_per_row")
    one = _Pairs(runs, "one row a call")
    yield from one.ratio("rows/s, beside aiohttp", "ondine", "aiohttp", rows_per_s, at_least=0.7)
    yield from one.ratio("rows/s, beside litellm", "ondine", "litellm", rows_per_s, at_least=6)
    yield from one.ratio("rows/s, beside the openai SDK", "ondine", "openai", rows_per_s, at_least=1)
    yield from one.difference("CPU ms/row beyond aiohttp's", "ondine", "aiohttp", cpu_ms, at_most=0.5)
    few = _Pairs(runs, "50 in flight")
    yield from few.ratio("rows/s with 50 in flight, beside aiohttp", "ondine", "aiohttp", rows_per_s, at_least=0.9)
    claude = _Pairs(runs, "Anthropic")
    yield from claude.ratio(
        "rows/s to Anthropic, beside litellm", "ondine to Claude", "litellm to Claude", rows_per_s, at_least=5
    )
    told = _Pairs(runs, "observers")
    yield from told.ratio("rows/s with all observers, beside none", "observed", "ondine", rows_per_s, at_least=0.95)
    together = _Pairs(runs, "batches")
    yield from together.ratio(
        "rows/s with 20 rows a call, beside one", "20 a call", "1 a call", rows_per_s, at_least=10
    )
    yield from _Pairs(runs, "cached").alone("rows/s when all is known", "ondine", rows_per_s, at_least=50_000)
    yield from _Pairs(runs, "store").alone("answers/s written, 20 a call", "20 a call", rows_per_s, at_least=20_000)
    distant = _Pairs(runs, "distant store")
    yield from distant.ratio(
        "rows/s, Postgres 20 ms away, beside at hand",
        "Postgres 20 ms away",
        "Postgres at hand",
        rows_per_s,
        at_least=0.8,
    )
    yield from _limits(runs, scale)
    many = _Pairs(runs, "many rows")
    yield from many.ratio("rows/s of many rows, beside few", "many rows", "few rows", rows_per_s, at_least=0.9)
    beyond: _Of = lambda run: run["peak_rss_mib"] - run["rss_before_mib"]  # noqa: E731
    yield from many.alone("peak MiB beyond the start", "many rows", beyond, at_most=1536)
    step = _Pairs(runs, "step")
    again: _Of = lambda run: run["told"]["again_s"]  # noqa: E731
    imports: _Of = lambda run: run["start_up_s"] + run["told"]["first_s"] - run["told"]["again_s"]  # noqa: E731
    yield from step.difference("s to import, beyond Dagster's step", "step twice", "plain step", imports, at_most=0.6)
    yield from step.difference("s to set up and report, beyond it", "step twice", "plain step", again, at_most=0.3)
    inside = _Pairs(runs, "embedded")
    yield from inside.ratio(
        "rows/s of an embedded model, beside llama.cpp", "embedded", "llama.cpp", rows_per_s, at_least=0.9
    )


def _limits(runs: Sequence[Measured], scale: Scale) -> Iterator[Finding]:
    limited = _Pairs(runs, "limit")
    used: _Of = lambda run: _used(run, scale.limit)  # noqa: E731
    wasted: _Of = lambda run: run["server"]["refused"] / (run["server"]["requests"] - run["server"]["refused"])  # noqa: E731
    yield from limited.alone("share of a named limit that is used", "named", used, at_least=0.98)
    yield from limited.alone("calls refused under a named limit, a row", "named", wasted, at_most=0)
    yield from limited.alone("share of an unnamed limit that is used", "unnamed", used, at_least=0.95)
    yield from limited.alone("calls refused under an unnamed limit, a row", "unnamed", wasted, at_most=0.02)
    refused = _Pairs(runs, "refusals")
    rows_per_s = _figure("rows_per_s")
    yield from refused.ratio(
        "rows/s where 1 % is refused, beside none", "1 % refused", "all answered", rows_per_s, at_least=0.7
    )


def _used(run: Measured, limit: int) -> float:
    """The share of a limit that was used, from the first answer to the last."""
    stats = run["server"]
    answered = stats["requests"] - stats["refused"]
    return float((answered - 1) / limit / (stats["last_s"] - stats["first_s"]))


_Of = Callable[[Measured], float]


def _figure(name: str) -> _Of:
    return lambda run: float(run[name])


class _Pairs:
    """The runs of a scenario, by client and repetition."""

    def __init__(self, runs: Sequence[Measured], scenario: str) -> None:
        self._runs = {(run["client"], run["repetition"]): run for run in runs if run["scenario"] == scenario}

    def ratio(self, what: str, one: str, other: str, of: _Of, *, at_least: float) -> Iterator[Finding]:
        values = [of(run) / of(beside) for run, beside in self._pairs(one, other)]
        yield from _judge(what, values, at_least=at_least)

    def difference(self, what: str, one: str, other: str, of: _Of, *, at_most: float) -> Iterator[Finding]:
        yield from _judge(what, [of(run) - of(beside) for run, beside in self._pairs(one, other)], at_most=at_most)

    def alone(
        self, what: str, client: str, of: _Of, *, at_least: float | None = None, at_most: float | None = None
    ) -> Iterator[Finding]:
        values = [of(run) for (name, _), run in self._runs.items() if name == client]
        yield from _judge(what, values, at_least=at_least, at_most=at_most)

    def _pairs(self, one: str, other: str) -> Iterator[tuple[Measured, Measured]]:
        for (client, repetition), run in self._runs.items():
            if client == one and (beside := self._runs.get((other, repetition))):
                yield run, beside


def _judge(
    what: str, values: Sequence[float], *, at_least: float | None = None, at_most: float | None = None
) -> Iterator[Finding]:
    if not values:
        return
    value = median(values)
    met = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    target = f"at least {at_least:,g}" if at_least is not None else f"at most {at_most:,g}"
    yield Finding(what, value, min(values), max(values), target, met)
