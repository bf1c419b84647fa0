"""Whether a setting is to blame for calls that fail: they get fewer when it is turned down, or they do not.

Failures by chance (a gateway that drops one call in ten) look like a limit at first. Turning the setting down is the
experiment that tells them apart: it ends the failures that the setting had caused and changes nothing about the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["Ending", "Finding", "Suspect", "Ticket"]

Ending: TypeAlias = Literal["answered", "limited", "overloaded", "broken"]
"""How a call came back: with a reply (a refusal of its content included), turned away for the rate, turned away or
timed out for want of capacity, or lost for another reason."""

_ROUND = 20
"""So many calls at least are judged together."""
_ACCIDENTS, _FEW, _MANY = 3, 0.01, 0.25
"""So many failures in excess of a few among all may be an accident; in excess of many, while the setting rises."""
_EXPERIMENTS, _MOST = 3, 0.35
"""So many shares of failures that are alike, and not more than this on average, are not the setting's doing."""


@dataclass(slots=True)
class Ticket:
    """A call that has left: its number, when, and how it came back (`None`: not yet, or it was given up)."""

    number: int
    left_at: float
    ending: Ending | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """What failures say about a setting.

    Args:
        to_blame: Whether it is.
        share: Calls that failed among all.
        per_s: Calls a second that did not.
    """

    to_blame: bool
    share: float
    per_s: float


@dataclass(slots=True)
class _Round:
    """Calls that left one after the other, from the one with number `first` on."""

    first: int
    started: float
    ended: float = 0.0
    sent: int = 0
    back: int = 0
    failed: int = 0


class Suspect:
    """A setting, and the way calls end when it is too high.

    Failures in excess of what is usual add up from round to round and never fall below nothing, so that a trickle
    counts as well as a burst (E. S. Page, "Continuous Inspection Schemes", 1954).

    Args:
        ending: That way.
        now: The present instant.
        round_s: Seconds in which calls leave that are judged together.

    Attributes:
        since: Number of the first call that left under the present setting.
        tolerated: The share of calls that end so whatever the setting.
        took_s: Seconds after which calls that end so are back, the slowest of late.
    """

    def __init__(self, ending: Ending, now: float, round_s: float) -> None:
        self._ending, self._round_s = ending, round_s
        self.since = self._next = 0
        self.tolerated = self.took_s = 0.0
        self._round, self._last = _Round(0, now), _Round(0, now)
        self._judged, self._rising = True, False
        self._excess, self._sent, self._failed = 0.0, 0, 0
        self._shares: list[float] = []
        self._seen = self._seen_failed = 0

    @property
    def share(self) -> float:
        """Of the calls under the present setting, those that failed, as far as is known."""
        sent, failed = self._round.sent, self._round.failed
        if not self._judged:
            sent, failed = sent + self._last.sent, failed + self._last.failed
        return failed / max(1, sent)

    def leave(self, ticket: Ticket) -> None:
        """Take note that a call leaves."""
        now = ticket.left_at
        if self._judged and self._round.sent >= _ROUND and now >= self._round.started + self._round_s:
            self._round.ended, self._judged = now, False
            self._last, self._round = self._round, _Round(ticket.number, now)
        self._round.sent += 1
        self._next = ticket.number + 1

    def end(self, ticket: Ticket, now: float, *, rising: bool) -> Finding | None:
        """Take note that a call came back; returns what follows, if anything does.

        Args:
            ticket: The call, with its ending.
            now: The present instant.
            rising: The setting is still being raised: if it is to blame for few failures, there will be many soon.
        """
        failed = ticket.ending == self._ending
        if failed:
            self.took_s = max(0.98 * self.took_s, now - ticket.left_at)
        if self._rising and not rising:
            self.start(now)
        self._rising = rising
        if ticket.number >= self.since:
            belongs = self._round if ticket.number >= self._round.first else self._last
            belongs.back += 1
            belongs.failed += failed
        # Failures tell quickly: what is out for longer is none.
        told = self._last.back >= self._last.sent or now - self._last.ended > 2 * self.took_s
        if self._judged or not told:
            return None
        self._judged = True
        return self._judge(self._last, now)

    def start(self, now: float) -> None:
        """Judge only calls that leave from now on: the setting has changed."""
        self.since, self._excess, self._sent, self._failed = self._next, 0.0, 0, 0
        self._round, self._judged = _Round(self._next, now), True

    def acquit(self) -> None:
        """The last time that the setting was turned down, it helped."""
        self._shares.clear()

    def blame(self, share: float, per_s: float, experiments: int = _EXPERIMENTS) -> Finding:
        """Suspect the setting because of a share of failures, while so many calls a second did not fail."""
        self._shares.append(share)
        first, *others = self._shares[-experiments:]
        mean = (first + sum(others)) / experiments
        alike = all(first / 2 <= other <= 2 * first for other in others)
        if len(others) < experiments - 1 or not alike or mean > _MOST:
            return Finding(to_blame=True, share=share, per_s=per_s)
        self.tolerated, self._seen, self._seen_failed = max(first, *others), 0, 0
        self.acquit()
        return Finding(to_blame=False, share=share, per_s=per_s)

    def _judge(self, last: _Round, now: float) -> Finding | None:
        self._go_on_tolerating(last)
        usual = 1.5 * self.tolerated + 0.05 if self.tolerated else _MANY if self._rising else _FEW
        self._excess = max(0.0, self._excess + last.failed - usual * last.sent)
        if not self._excess:
            self._sent = self._failed = 0
            return None
        self._sent, self._failed = self._sent + last.sent, self._failed + last.failed
        if self._excess < _ACCIDENTS:
            return None
        share = self._failed / self._sent
        self.start(now)
        return self.blame(share, last.sent * (1 - share) / (last.ended - last.started))

    def _go_on_tolerating(self, last: _Round) -> None:
        """Tolerate no more than twice what there still is, as soon as enough calls have shown how much that is."""
        self._seen, self._seen_failed = self._seen + last.sent, self._seen_failed + last.failed
        if self._seen * self.tolerated > 2 * _ROUND:
            self.tolerated = min(self.tolerated, 2 * self._seen_failed / self._seen)
            self._seen = self._seen_failed = 0
        if self.tolerated < _FEW / 2:
            self.tolerated = 0.0
