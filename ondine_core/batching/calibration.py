"""Compares answers of rows asked together with those of the same rows asked alone, on a sample before a large run.

The share of rows that agree decides, not its interval, which is wide at affordable sample sizes: with 49 of 50 rows it
is 0.90 to 1.00. If its lower end had to reach 0.98, no sample under 189 rows could pass. If its upper end had to, a
size that spoils every twentieth answer would usually pass with 50 rows; by the share it passes one time in four. A size
that spoils every hundredth answer fails one time in eleven, which costs calls but no answer. The interval is reported.

A model that samples also disagrees with itself, least at `temperature=0`; the measurement includes that.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ondine_core.batching.agreement import Calibration, Values, compare
from ondine_core.errors import ConfigError
from ondine_core.prompts.output_schema import Column
from ondine_core.types.numbers import is_number, is_whole
from ondine_core.types.values import Key


@dataclass(frozen=True, slots=True)
class CalibrationPlan:
    """The settings of a calibration.

    Args:
        rows: The number of rows to ask in both ways.
        min_agreement: The share of rows, from 0 to 1, that has to agree in every column that decides.
        on_disagreement: `"lower"` halves the batch size until enough rows agree, `"stop"` does not start the run.
    """

    rows: int
    min_agreement: float = 0.98
    on_disagreement: Literal["lower", "stop"] = "lower"

    def __post_init__(self) -> None:
        if not is_whole(self.rows, 1):
            raise ConfigError(f"calibrate={self.rows!r} must be a whole number of at least 1.")
        if not is_number(self.min_agreement, 0, 1):
            raise ConfigError(f"min_agreement={self.min_agreement!r} is a share, from 0 to 1.")
        if self.on_disagreement not in ("lower", "stop"):
            raise ConfigError(f"on_disagreement={self.on_disagreement!r}; valid are 'lower' and 'stop'.")


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """The result of a calibration: the size to use, and the comparisons in order.

    `complaint` says how the requested size disagrees, if it does; with `stop`, the run must not start.
    """

    batch_size: int
    calibrations: tuple[Calibration, ...] = ()
    complaint: str | None = None
    stop: bool = False


def sample(keys: Sequence[Key], n: int, rng: random.Random) -> list[Key]:
    """A random sample of `n` of `keys`, or all if there are fewer, in the order of `keys`."""
    return [keys[index] for index in sorted(rng.sample(range(len(keys)), min(n, len(keys))))]


def next_size(calibration: Calibration, min_agreement: float) -> int | None:
    """Half of the size that was tried; `None` if enough rows agree at it."""
    if calibration.batch_size == 1 or calibration.lowest.share >= min_agreement:
        return None
    return calibration.batch_size // 2


async def calibrate(
    ask: Callable[[Sequence[Key], int], Awaitable[Mapping[Key, Values]]],
    chosen: Sequence[Key],
    batch_size: int,
    columns: Sequence[Column],
    plan: CalibrationPlan,
) -> CalibrationResult:
    """Find a batch size, at most `batch_size`, at which the `chosen` rows get the same answers as alone.

    `ask` asks the rows of some keys, a number of rows a call, without looking up known answers; a failed row is `None`
    in its result or absent from it.
    """
    # No call of the sample can have more rows than the sample.
    size = tried = min(batch_size, len(chosen))
    if size <= 1:
        return CalibrationResult(batch_size)
    alone = dict.fromkeys(chosen) | dict(await ask(chosen, 1))
    calibrations: list[Calibration] = []
    while size > 1:
        batched = dict.fromkeys(chosen) | dict(await ask(chosen, size))
        calibrations.append(compare(alone, batched, columns, size))
        smaller = next_size(calibrations[-1], plan.min_agreement)
        if smaller is None:
            break
        if plan.on_disagreement == "stop":
            complaint = _complain(calibrations[0], plan, None)
            return CalibrationResult(tried, tuple(calibrations), complaint, stop=True)
        size = smaller
    if size == tried:
        return CalibrationResult(batch_size, tuple(calibrations))
    return CalibrationResult(size, tuple(calibrations), _complain(calibrations[0], plan, size))


def _complain(first: Calibration, plan: CalibrationPlan, size: int | None) -> str:
    advice = "lower batch_size or min_agreement, or set on_disagreement='lower'"
    todo = advice if size is None else f"batch_size={size} is used instead"
    return (
        f"With batch_size={first.batch_size}, {first.lowest}, which is less than "
        f"min_agreement={plan.min_agreement!r}; {todo}."
    )
