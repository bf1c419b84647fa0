"""A model that answers from a script: a public fake for users' tests, deterministic and without a network.

Pass it where a model is expected, so the test runs the real pipeline: `enrich(..., model=ScriptedModel(...))` or
`resources={"llm": ScriptedModel(...)}`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from ondine_core.errors import ConfigError, ProviderError
from ondine_core.types.field_types import check_types
from ondine_core.types.values import Call, Reply, Usage


@dataclass(eq=False, repr=False)
class ScriptedModel:
    """Answers every call from a function or a mapping and keeps a record of the calls.

    Args:
        answers: A function from the last message's text to the answer; or a mapping, of which the first key in that
            text gives the answer. An answer is a text, any JSON value, or a `Reply` for full control.
        latency_s: Seconds that each reply takes.
        faults: The outcomes of the first calls, one item a call: an exception to raise, or `None` to answer normally.
        max_batch_size: The most prompts in a call. By default each prompt has a call of its own, whatever the asset's
            `batch_size`, so scripts need not read batches.
        name: Its name in keys and reports. Scripts that share a store and answer differently need different names.
        sleep: Waits for seconds; tests pass that of a virtual clock.

    Attributes:
        calls: The calls made so far.

    Example:
        >>> model = ScriptedModel({"love": {"sentiment": "positive"}, "": {"sentiment": "neutral"}})
    """

    answers: Callable[[str], Any] | Mapping[str, Any]
    _: KW_ONLY
    latency_s: float = 0.0
    faults: Iterable[ProviderError | None] = ()
    max_batch_size: int | None = 1
    name: str = "ScriptedModel"
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    calls: list[Call] = field(default_factory=list, init=False)
    max_concurrency: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        check_types(self, ConfigError)
        self._answer = self.answers if callable(self.answers) else _look_up(self.answers)
        self._faults = iter(self.faults)

    async def __call__(self, call: Call) -> Reply:
        """Answer as scripted; see `ChatModel`."""
        self.calls.append(call)
        fault = next(self._faults, None)
        await self.sleep(self.latency_s)
        if fault is not None:
            raise fault
        answer = self._answer(call.messages[-1].content)
        if isinstance(answer, Reply):
            return answer
        text = answer if isinstance(answer, str) else json.dumps(answer)
        # About four characters a token, so that tests can compute costs.
        usage = Usage(sum(len(message.content) for message in call.messages) // 4, 0, len(text) // 4)
        return Reply(text, usage, request_id=f"scripted-{len(self.calls)}", latency_s=self.latency_s)

    async def aclose(self) -> None:
        """Nothing to close."""


def _look_up(answers: Mapping[str, Any]) -> Callable[[str], Any]:
    def answer(text: str) -> Any:
        for part, scripted in answers.items():
            if part in text:
                return scripted
        raise ConfigError(f"The script has no answer for this prompt; its keys are {', '.join(map(repr, answers))}.")

    return answer
