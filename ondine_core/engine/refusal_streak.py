"""When refusals are no longer the matter of single rows: the same one again and again, and no answer between."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ondine_core.errors import FatalError, RefusedError

_MAX_UNCLEAR, _MAX_OF_ROWS = 20, 100
"""Refusals in a row that are alike: for no stated reason, and for the content of rows, which may be sorted by it."""


@dataclass(slots=True)
class RefusalStreak:
    """Refusals since the last answer.

    Attributes:
        words: The text of the last refusal, without its figures.
        alike: How many of the last ones had the same text.
        count: How many there are in all.
    """

    words: str = ""
    alike: int = 0
    count: int = 0

    def end(self) -> None:
        """Note an answer."""
        self.words = ""
        self.alike = 0
        self.count = 0

    def add(self, error: RefusedError, *, any_answer: bool) -> FatalError | None:
        """Note a refusal, and return why the run should end, if it should.

        Args:
            error: The refusal, of a request that cannot be made smaller or was not refused for its size.
            any_answer: Whether any row of the run has an answer; without one no refusal is a single row's.
        """
        # Without what differs from call to call: amounts, times, and the names of requests.
        words = re.sub(r"[\w-]*\d[\w.-]*", "0", str(error))
        self.alike = self.alike + 1 if words == self.words else 1
        self.words = words
        self.count += 1
        if not any_answer and self.count >= _MAX_UNCLEAR:
            return FatalError(f"The first {self.count} calls were all refused. {error}")
        if self.alike >= (_MAX_UNCLEAR if error.fault == "unclear" else _MAX_OF_ROWS):
            return FatalError(f"The last {self.alike} calls were all refused, in the same words. {error}")
        return None
