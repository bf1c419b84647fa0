"""Which ordinary batches are told one by one, where a run has too many of them for that."""

from __future__ import annotations

__all__ = ["Sampler"]

_BURST = 100


class Sampler:
    """Takes a number of calls a second, and a hundred more at once at the start or after a quieter time.

    Args:
        per_second: How many; `None` takes all.
    """

    def __init__(self, per_second: float | None) -> None:
        self._per_second = per_second
        self._left = float(_BURST)
        self._at = 0.0
        self._again_at = 0.0

    def takes(self, at: float) -> bool:
        """Whether the one that begins at that second is one of them."""
        if self._per_second is None:
            return True
        if at < self._again_at:  # so nearly always, and it is asked for every batch
            return False
        since = max(0.0, at - self._at)
        self._left, self._at = min(_BURST, self._left + since * self._per_second), max(at, self._at)
        if self._left < 1:
            self._again_at = self._at + (1 - self._left) / self._per_second if self._per_second else float("inf")
            return False
        self._left -= 1
        return True
