"""Interprets the reply to a live call or to a request of a batch job: the outcomes of its prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import NamedTuple

from ondine_core.batching.prompt_window import find_cut_prompt
from ondine_core.engine.encoding import EncodedBatch
from ondine_core.engine.policy import Policy
from ondine_core.engine.steps import ParsedReply, judge, shrink
from ondine_core.errors import RefusedError
from ondine_core.preprocessing.sanitizer import Sanitizer, redact
from ondine_core.prompts.task import Task
from ondine_core.types.progress import add_usd
from ondine_core.types.values import Answer, Batch, Failure, Key, Reply


class BatchResult(NamedTuple):
    """The outcomes of a call, and batches to ask again."""

    answers: tuple[tuple[Key, Answer], ...] = ()
    failures: tuple[tuple[Key, Failure], ...] = ()
    retry: tuple[Batch, ...] = ()
    replies: tuple[tuple[Key, str], ...] = ()
    """The replies to prompts that failed, if the policy keeps them."""
    taken: frozenset[Key] = frozenset()
    """Prompts because of which the call was not made: another run has them in flight, or they have an answer by now."""


@dataclass(slots=True)
class Interpreter:
    """Turns replies into answers, failures, and batches to ask again."""

    task: Task
    policy: Policy
    window: int | None
    now: Callable[[], float]
    _paid: dict[Key, Decimal | None] = field(default_factory=dict)
    """What prompts that are asked again have cost so far, `None` if unknown."""

    def interpret(self, sent: EncodedBatch, reply: Reply | RefusedError, usd: Decimal | None) -> BatchResult:
        """Decide what a reply or refusal means for each prompt of its batch; the call cost `usd`."""
        batch = sent.batch
        repairs = self.policy.max_repairs
        if isinstance(reply, RefusedError):
            # The whole batch may have been refused because of one row.
            return self._charge(batch, shrink(batch, Failure("refused", str(reply)), repairs), usd)
        cut = find_cut_prompt(sent.call, reply.usage, self.task.model.provider, self.window)
        if cut is not None:
            parsed = shrink(batch, cut, repairs)
        else:
            parsed = judge(batch, reply, self.task, sent.strategy, repairs)
        result = self._charge(batch, parsed, usd, reply.request_id)
        if not (self.policy.keep_replies and result.failures and reply.text):
            return result
        kept = sanitize_reply(reply.text, self.task)
        return result._replace(replies=tuple((key, kept) for key, _ in result.failures))

    def halve(self, batch: Batch, failure: Failure, usd: Decimal | None) -> BatchResult:
        """Split `batch`, after calls that cost `usd`, into halves to ask again; a single prompt fails."""
        return self._charge(batch, shrink(batch, failure, self.policy.max_repairs), usd)

    def fail(self, batch: Batch, failure: Failure, usd: Decimal | None = Decimal(0)) -> BatchResult:
        """Fail all prompts of `batch`, after a call that cost `usd` for each of them."""
        return BatchResult(
            failures=tuple((item.key, self._fail(batch, item.key, failure, usd)) for item in batch.items)
        )

    def _charge(
        self, batch: Batch, parsed: ParsedReply, usd: Decimal | None, request_id: str | None = None
    ) -> BatchResult:
        """Add the cost to a parsed reply: an answer has the cost of its last call, a failure that of all its calls."""
        name = self.task.model.model
        at = self.now()
        size = len(batch.items)
        share = None if usd is None else usd / size
        answers = tuple(
            [(key, Answer(values, name, batch.attempt, size, share, request_id, at)) for key, values in parsed.answers]
        )
        paid = self._paid
        if paid:
            for key, _ in answers:
                paid.pop(key, None)
        for item in (item for retried in parsed.retry for item in retried.items):
            paid[item.key] = add_usd(paid.get(item.key, Decimal(0)), share)
        failures = tuple((key, self._fail(batch, key, failure, share)) for key, failure in parsed.failures)
        return BatchResult(answers, failures, parsed.retry)

    def _fail(self, batch: Batch, key: Key, failure: Failure, share: Decimal | None) -> Failure:
        """Add the model, the number of attempts and their cost to the failure of a prompt."""
        cost = add_usd(self._paid.pop(key, Decimal(0)), share)
        return replace(failure, model=self.task.model.model, attempts=batch.attempt, cost_usd=cost)


# -- replies to prompts that failed --------------------------------------------------------------------------------

_KEYS = Sanitizer(rules=("api_key",))
_MAX_KEPT = 20_000
_MAX_READ = 100_000
_EDGE = 200
"""Characters that are removed at the end of a cut text, since the cut may hide a match from the rules."""


def sanitize_reply(text: str, task: Task) -> str:
    """Remove the provider's key and what the sanitizer of `task` finds from a reply, and cut a long one."""
    is_cut = len(text) > _MAX_READ
    text = text[:_MAX_READ]
    key = task.model.api_key
    if key:
        text = text.replace(key, "***")
    text = redact(text, _KEYS)
    preparation = task.prompt.preparation
    if preparation is not None and preparation.sanitizer is not None:
        text = redact(text, preparation.sanitizer)
    if is_cut:
        text = text[:-_EDGE]
    return f"{text[:_MAX_KEPT]} […]" if is_cut or len(text) > _MAX_KEPT else text
