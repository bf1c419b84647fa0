"""The job of a client, and the correct answers. It depends only on the standard library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.workload import Workload, answer_to, review

__all__ = ["Job"]


@dataclass(frozen=True)
class Job(Workload):
    """One run of one client.

    Args:
        folder: Folder in which the client may keep answers between runs.
        distinct: Number of different texts; 0: one for each row.
        changed: Whether the last row's text differs from the first run's.
    """

    folder: str = ""
    distinct: int = 0
    changed: bool = False

    @property
    def numbers(self) -> list[int]:
        """The number of each row's text; no text repeats before all have occurred once."""
        numbers = [row % (self.distinct or self.rows) for row in range(self.rows)]
        return [*numbers[:-1], self.rows] if self.changed else numbers

    @property
    def reviews(self) -> list[str]:
        """The texts."""
        return [review(number) for number in self.numbers]

    def count_lost_and_wrong(self, answers: Sequence[Any]) -> tuple[int, int]:
        """The number of rows without an answer, and of rows with a wrong one."""
        pairs = list(zip(self.numbers, answers, strict=True))
        lost = sum(answer is None for _, answer in pairs)
        wrong = sum(answer is not None and answer != answer_to(f"#{number}") for number, answer in pairs)
        return lost, wrong
