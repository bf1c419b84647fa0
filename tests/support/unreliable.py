"""A model that obeys a schedule of faults, and a store that forgets nothing, both for virtual time."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, get_args

from hypothesis import strategies as st

from ondine_core.errors import RefusedError, TransientError
from ondine_core.values import Answer, Call, Key, Numbers, Reply, Usage

Fault = Literal[
    *("none", "garbage", "empty", "wrong type", "fenced", "prose"),
    *("truncated", "refused", "429", "429 later", "500", "lost"),
]
FAULTS: tuple[Fault, ...] = get_args(Fault)

schedules = st.tuples(st.lists(st.sampled_from(FAULTS), max_size=40), st.sampled_from(FAULTS))
"""What befalls the first calls, one a call, and what befalls all later ones."""


class UnreliableModel:
    """Answers `Say: x` with `{"answer": "x"}`, or fails as the schedule tells.

    Attributes:
        asked: The text of every call, in order.
        arrivals: When each came in.
        replies: Usage of every reply given.
    """

    def __init__(self, schedule: tuple[Sequence[Fault], Fault], latency_s: float = 0.05, *, lanes: int = 8) -> None:
        first, ever_after = schedule
        self._faults = itertools.chain(first, itertools.repeat(ever_after))
        self._latency_s = latency_s
        self.max_concurrency: int | None = lanes
        self.asked: list[str] = []
        self.replies: list[Usage] = []
        self.arrivals: list[float] = []
        self.in_flight = self.peak_in_flight = 0

    async def __call__(self, call: Call) -> Reply:
        text = call.messages[-1].content.splitlines()[0].removeprefix("Say: ")
        self.asked.append(text)
        self.arrivals.append(asyncio.get_running_loop().time())
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        fault = next(self._faults)
        try:
            # Later calls are quicker, so that answers come back in another order than they were asked.
            await asyncio.sleep(self._latency_s * (1 + 1 / len(self.asked)))
            return self._reply(text, fault)
        finally:
            self.in_flight -= 1

    async def aclose(self) -> None:
        """Nothing to close."""

    def _reply(self, text: str, fault: Fault) -> Reply:  # noqa: C901  (one case a fault)
        good = json.dumps({"answer": text})
        usage, finish_reason = Usage(10, 4, 3), "stop"
        match fault:
            case "429":
                raise TransientError("slow down")
            case "429 later":
                raise TransientError("slow down", retry_after_s=2.0)
            case "500":
                raise TransientError("broken")
            case "lost":
                raise TransientError("no reply", cost_unknown=True)
            case "refused":
                raise RefusedError("declined")
            case "garbage":
                good = good[:-3]
            case "empty":
                good = ""
            case "wrong type":
                good = '{"answer": 7}'
            case "fenced":
                good = f"```json\n{good}\n```"
            case "prose":
                good = f"Sure! {good}"
            case "truncated":
                finish_reason = "length"
        self.replies.append(usage)
        return Reply(good, usage, finish_reason)


class MemoryStore:
    """Answers in a dictionary; `put` takes a moment, as a commit does."""

    def __init__(self, commit_s: float = 0.01) -> None:
        self._commit_s = commit_s
        self.answers: dict[Key, Answer] = {}
        self.numbers: dict[str, Numbers] = {}

    async def get(self, keys: Sequence[Key]) -> Mapping[Key, Answer]:
        return {key: self.answers[key] for key in keys if key in self.answers}

    async def put(self, answers: Iterable[tuple[Key, Answer]]) -> None:
        await asyncio.sleep(self._commit_s)
        self.answers.update(answers)

    async def update(self, name: str, step: Callable[[Numbers | None], Numbers]) -> Numbers:
        self.numbers[name] = step(self.numbers.get(name))
        return self.numbers[name]
