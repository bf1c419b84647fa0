"""The pure steps of a run, in the order they are taken: render, dedup, judge, fan out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ondine_core.batching import Strategy
from ondine_core.prompts import CompiledPrompt
from ondine_core.question import Question
from ondine_core.schema import Invalid
from ondine_core.values import Batch, Failure, Json, Key, Outcome, Reply

__all__ = ["Verdict", "dedup", "fan_out", "judge", "render"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a reply settled: answers by key, failures by key, and the batches still to be asked."""

    answers: tuple[tuple[Key, Mapping[str, Json]], ...] = ()
    failures: tuple[tuple[Key, Failure], ...] = ()
    retry: tuple[Batch, ...] = ()


def render(
    prompt: CompiledPrompt, columns: Mapping[str, Sequence[Any]], indices: Iterable[int]
) -> Iterator[str | Failure]:
    """The text of the prompt of each row in `indices`, lazily, or why the row has none."""
    names = prompt.columns
    for index in indices:
        try:
            text = prompt.render({name: columns[name][index] for name in names})
        except Exception as error:  # noqa: BLE001  (a template may stumble over anything in a value; only its row fails)
            yield Failure("prompt", f"the template cannot be filled from this row ({type(error).__name__})")
        else:
            # A lone surrogate, as broken decoders leave behind, has no place in UTF-8.
            yield text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def dedup(texts: Iterable[str | Failure], key: Callable[[str], Key]) -> tuple[list[Key | Failure], dict[Key, int]]:
    """Each row's key (or failure), and the first row that asks each unique prompt."""
    rows: list[Key | Failure] = []
    first: dict[Key, int] = {}
    for index, text in enumerate(texts):
        row = text if isinstance(text, Failure) else key(text)
        rows.append(row)
        if isinstance(row, bytes):
            first.setdefault(row, index)
    return rows, first


def judge(batch: Batch, reply: Reply, question: Question, strategy: Strategy, max_repairs: int) -> Verdict:
    """Decide what a reply means for each prompt of its batch.

    What is valid is kept. What is not is asked again with the reason while repairs are left, then it fails. A reply cut
    by the bound on output tokens is never parsed: alone in its call it fails, since the same call would be cut again.
    """
    if reply.finish_reason == "length":
        limit = question.model.max_output_tokens
        bound = f"at max_output_tokens={limit}" if limit else "by the provider"
        failure = Failure("truncated", f"the reply was cut {bound}; raise max_output_tokens")
        return Verdict(failures=tuple((key, failure) for key in batch.keys))
    texts = strategy.decode(batch, reply.text)
    answers, failures, retry = [], [], []
    for number, (key, prompt) in enumerate(zip(batch.keys, batch.prompts, strict=True), 1):
        values = question.schema.parse(texts[number]) if number in texts else Invalid("no answer came for it")
        if not isinstance(values, Invalid):
            answers.append((key, values))
        elif batch.attempt <= max_repairs:
            retry.append(Batch((key,), (prompt,), batch.attempt + 1, values.reason))
        else:
            failures.append((key, Failure("invalid", f"{values.reason} (asked {batch.attempt} times)")))
    return Verdict(tuple(answers), tuple(failures), tuple(retry))


def fan_out(rows: Sequence[Key | Failure], outcomes: Mapping[Key, Outcome]) -> list[Outcome]:
    """One outcome a row, in row order."""
    return [row if isinstance(row, Failure) else outcomes[row] for row in rows]
