"""A model that follows a schedule of faults, and a store in memory, both for a virtual clock."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, get_args

from hypothesis import strategies as st

from ondine_core.errors import RefusedError, TransientError
from ondine_core.types.ledger import Audit, CallFinished, CallStarted, Claim, RunStarted, UsageTotals
from ondine_core.types.media import Media, split_media
from ondine_core.types.protocols import Numbers
from ondine_core.types.values import Answer, Call, Failure, Key, Reply, Usage
from tests.support.pictures import picture

Fault = Literal[
    *("none", "garbage", "empty", "wrong type", "fenced", "prose"),
    *("truncated", "refused", "429", "429 later", "500", "503", "lost", "timed out", "slow"),
    *("reorder", "drop", "repeat", "contradict", "alien", "text ids", "shift", "null"),
]
FAULTS: tuple[Fault, ...] = get_args(Fault)

schedules = st.tuples(st.lists(st.sampled_from(FAULTS), max_size=40), st.sampled_from(FAULTS))
"""The faults of the first calls, one for each, and the fault of all later ones."""


MAX_CALLS = 5000


@cache
def image_of(text: str) -> bytes:
    """An image that `UnreliableModel` reads as this text."""
    image = picture(int.from_bytes(text.encode()))
    _TEXTS[image] = text
    return image


def _text_of(part: str | Media) -> str:
    return part if isinstance(part, str) else _TEXTS[part.load()]


_TEXTS: dict[bytes, str] = {}


class UnreliableModel:
    """Answers `Say: x` with `{"answer": "x"}`, or fails as the schedule says.

    Attributes:
        asked: The text of every row of every call, in order.
        sizes: Rows of each call.
        arrivals: The time at which each call arrived.
        replies: The usage of every reply.
        lost: Calls that were answered and billed, but whose reply never arrived.
    """

    def __init__(
        self, schedule: tuple[Sequence[Fault], Fault], latency_s: float = 0.05, *, parallel_limit: int = 8
    ) -> None:
        first, later = schedule
        self._faults = itertools.chain(first, itertools.repeat(later))
        self._latency_s = latency_s
        self.max_concurrency: int | None = parallel_limit
        self.max_batch_size: int | None = None
        self.asked: list[str] = []
        self.sizes: list[int] = []
        self.replies: list[Usage] = []
        self.arrivals: list[float] = []
        self.in_flight = self.peak_in_flight = self.lost = 0

    async def __call__(self, call: Call) -> Reply:
        first_line = "".join(map(_text_of, split_media(call.messages[-1].content, call.media))).partition("\n")[0]
        many = first_line.startswith("[")
        items = json.loads(first_line) if many else [{"id": 1, "x": first_line.removeprefix("Say: ")}]
        texts = [item["x"] for item in items]
        assert len(self.sizes) < MAX_CALLS, f"the run does not end after {MAX_CALLS} calls"
        self.asked += texts
        self.sizes.append(len(texts))
        self.arrivals.append(asyncio.get_running_loop().time())
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        fault = next(self._faults)
        self.lost += fault in ("lost", "timed out")
        try:
            # Later calls take less time, so that answers arrive in another order.
            await asyncio.sleep(self._latency_s * (1 + 1 / len(self.asked)) * (100 if fault == "slow" else 1))
            return self._reply(items, fault, many=many)
        finally:
            self.in_flight -= 1

    async def aclose(self) -> None:
        """Nothing to close."""

    def _reply(self, items: list[dict[str, Any]], fault: Fault, *, many: bool) -> Reply:
        failure = {
            "429": TransientError("slow down", kind="limited"),
            "429 later": TransientError("slow down", retry_after_s=2.0, kind="limited"),
            "500": TransientError("broken"),
            "503": TransientError("too busy", kind="overloaded"),
            "lost": TransientError("connection reset", cost_unknown=True),
            "timed out": TransientError("no reply in time", cost_unknown=True, kind="overloaded"),
            "refused": RefusedError("declined"),
        }.get(fault)
        if failure:
            raise failure
        answers: list[dict[str, Any]] = [{"id": item["id"], "answer": item["x"]} for item in items]
        if fault == "wrong type":
            answers[0]["answer"] = 7
        if many:
            answers = _scramble(answers, fault)
        good = json.dumps({"answers": answers} if many else {"answer": answers[0]["answer"]})
        text = {
            "garbage": good[:-3],
            "empty": "",
            "null": "null",
            "fenced": f"```json\n{good}\n```",
            "prose": f"Sure! {good}",
        }.get(fault, good)
        usage = Usage(10, 4, 3)
        self.replies.append(usage)
        return Reply(text, usage, "length" if fault == "truncated" else "stop")


def _scramble(answers: list[dict[str, Any]], fault: Fault) -> list[dict[str, Any]]:
    return {
        "reorder": answers[::-1],
        "drop": answers[1:],
        "repeat": [*answers, *answers],
        "contradict": [*answers, {"id": answers[0]["id"], "answer": "something else"}],
        "alien": [*answers, {"id": 99, "answer": "whose?"}, {"answer": "nobody's"}],
        "text ids": [{**answer, "id": str(answer["id"])} for answer in answers],
        "shift": [{**answer, "id": answer["id"] + 1000} for answer in answers],
    }.get(fault, answers)


class MemoryStore:
    """A store in dictionaries; recording and settling a call take `commit_s`, as a commit does.

    Attributes:
        answers: Answers by key.
        failures: Failures by key, without keys that have an answer.
        calls: Calls whose outcome is not recorded, by id.
        lines: Settled calls, in order.
        numbers: Shared numbers by name.
    """

    def __init__(self, commit_s: float = 0.01) -> None:
        self._commit_s = commit_s
        self.answers: dict[Key, Answer] = {}
        self.failures: dict[Key, Failure] = {}
        self.calls: dict[bytes, CallStarted] = {}
        self.lines: list[CallFinished] = []
        self.numbers: dict[str, Numbers] = {}
        self.runs: dict[bytes, tuple[bytes, Numbers]] = {}
        self.last_run: dict[bytes, bytes] = {}
        self.leases: dict[bytes, str] = {}
        self.released: set[bytes] = set()

    async def get(self, keys: Sequence[Key]) -> Mapping[Key, Answer]:
        return {key: self.answers[key] for key in keys if key in self.answers}

    async def get_failures(self, keys: Sequence[Key]) -> Mapping[Key, Failure]:
        return {key: self.failures[key] for key in keys if key in self.failures}

    async def get_unseen(self) -> frozenset[Key]:
        return frozenset(key for sent in self.calls.values() for key in sent.keys)

    async def join(self, started: RunStarted) -> Mapping[bytes, Numbers]:
        run, task, process, lease = started.run, started.task, started.process, started.lease
        if lease:
            for other in [other for other, held in self.leases.items() if held == lease]:
                self.runs.pop(other, None)
            self.leases[run] = lease
        self.runs[run] = (task, process)
        self.last_run[task] = run
        return {other: where for other, (asked, where) in self.runs.items() if asked == task and other != run}

    async def leave(self, *runs: bytes) -> None:
        for run in runs:
            self.runs.pop(run, None)

    async def send(self, sent: CallStarted) -> frozenset[Key] | None:
        await asyncio.sleep(self._commit_s)
        taken: frozenset[Key] | None = None
        if sent.task and (sent.is_shared or self.last_run.get(sent.task) != sent.call[:8]):
            known = self.answers if not sent.ignores_answers else {}
            held = {key for key, claim in (await self.get_claims(sent.keys)).items() if claim.run != sent.call[:8]}
            taken = frozenset(key for key in sent.keys if key in known or key in held)
        if not taken:
            self.calls[sent.call] = sent
        return taken

    async def get_claims(self, keys: Sequence[Key]) -> Mapping[Key, Claim]:
        calls = [sent for sent in self.calls.values() if sent.call[:8] in self.runs and sent.call not in self.released]
        held = {key: sent.call for sent in calls for key in sent.keys}
        return {key: Claim(held[key], held[key][:8], self.runs[held[key][:8]][1]) for key in keys if key in held}

    async def release(self, calls: Sequence[bytes]) -> None:
        self.released.update(calls)

    async def settle(self, settled: CallFinished) -> None:
        await asyncio.sleep(self._commit_s)
        if self.calls.pop(settled.sent.call, None):
            self.lines.append(settled)
        self.answers.update(settled.answers)
        self.failures.update(settled.failures)
        self.failures = {key: failure for key, failure in self.failures.items() if key not in self.answers}

    async def audit(self, run: str, asset: str | None = None) -> Audit:
        lines = [line for line in self.lines if line.sent.origin.run == run and asset in (None, line.sent.origin.asset)]
        unseen = [CallFinished(sent, "refused", usd=sent.at_most_usd) for sent in self.calls.values()]
        return Audit(
            _sum(line for line in lines if line.outcome == "answered"),
            _sum(line for line in lines if line.outcome == "refused"),
            _sum(line for line in unseen if line.sent.origin.run == run and asset in (None, line.sent.origin.asset)),
            sum(line.paid_twice for line in lines),
        )

    async def update(self, name: str, step: Callable[[Numbers | None], Numbers]) -> Numbers:
        self.numbers[name] = step(self.numbers.get(name))
        return self.numbers[name]


def _sum(lines: Iterable[CallFinished]) -> UsageTotals:
    return sum((UsageTotals(1, line.usage, line.usd, int(line.at_most)) for line in lines), UsageTotals())
