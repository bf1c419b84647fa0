"""The pure steps of a run, in their order: render, dedup, judge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from ondine_core.batching.strategy import BatchStrategy
from ondine_core.preprocessing.preprocess import PreprocessedRow
from ondine_core.preprocessing.sanitizer import has_placeholder, restore
from ondine_core.prompts.output_schema import Invalid
from ondine_core.prompts.task import Task, cache_key
from ondine_core.prompts.template import CompiledPrompt
from ondine_core.providers.finish_reasons import finish_kind
from ondine_core.providers.reply_text import THOUGHTS_ONLY, strip_reasoning
from ondine_core.providers.wire_text import storable_text
from ondine_core.types.cell_text import NoTextError
from ondine_core.types.media import Media, MediaError
from ondine_core.types.values import Batch, Failure, Item, Json, Key, OnMissing, Reply, RowKey, Skipped


class ParsedReply(NamedTuple):
    """The outcomes of a reply: answers by key, failures by key, and the batches to ask again."""

    answers: tuple[tuple[Key, Mapping[str, Json]], ...] = ()
    failures: tuple[tuple[Key, Failure], ...] = ()
    retry: tuple[Batch, ...] = ()


def render(
    prompt: CompiledPrompt,
    columns: Mapping[str, Sequence[Any]],
    indices: Iterable[int],
    note: Callable[[PreprocessedRow], None] = lambda _: None,
    on_missing: OnMissing = "skip",
) -> Iterator[str | Failure | Skipped]:
    """Render the prompt of each row in `indices`, lazily; yields its text, or why the row has none.

    If rows are preprocessed, `note` is called with each preprocessed row.
    """
    for index in indices:
        what = "the row cannot be cleaned"
        try:
            row: Mapping[str, Any] = {name: columns[name][index] for name in prompt.columns}
            if prompt.prepares:
                prepared = prompt.prepare(row)
                note(prepared)
                row = prepared.values
            what = "the template cannot be filled from this row"
            missing = None if on_missing == "ask" else prompt.find_missing(row)
            if missing is None:
                text = prompt.render(row)
        except NoTextError as error:
            yield Failure("prompt", f"{what}: {error}")
        except MediaError as error:
            yield Failure("prompt", f"an image or document of the row cannot be sent: {error}")
        except Exception as error:  # noqa: BLE001  (a template may raise any error for a value; only its row fails)
            yield Failure("prompt", f"{what} ({type(error).__name__})")
        else:
            if missing is None:
                yield storable_text(text)
            elif on_missing == "skip":
                yield Skipped(missing)
            else:
                yield Failure("missing", f"column {missing!r} is null or blank")


def items(
    task: Task, columns: Mapping[str, Sequence[Any]], pending: Iterable[tuple[Key, int]], *, with_fields: bool
) -> Iterator[Item]:
    """Render the prompts in `pending`, keys with a row of each, lazily so that few texts are in memory.

    With `with_fields`, they also have the values of their placeholders.
    """
    prompt = task.prompt
    key_of = cache_key(task)
    for key, index in pending:
        row: Mapping[str, Any] = {name: columns[name][index] for name in prompt.columns}
        try:
            if prompt.prepares:
                row = prompt.prepare(row).values
            text = storable_text(prompt.render(row))
            if prompt.reader is not None and key_of(text) != key:
                raise MediaError("its content has changed since the run began; run again")
        except MediaError as error:
            # Loading this image fails, so the row fails when its call is encoded, and not the packing of batches.
            broken = Media("image", "", key.hex(), load=partial(_refuse, str(error)))
            fields = dict.fromkeys(prompt.columns, broken.reference) if with_fields else {}
            yield Item(key, broken.reference, fields, {broken.reference: broken})
            continue
        fields = {name: storable_text(text) for name, text in prompt.fields(row).items()} if with_fields else {}
        yield Item(key, text, fields, prompt.media_of(row))


def _refuse(reason: str) -> bytes:
    raise MediaError(reason)


def dedup(texts: Iterable[str | Failure | Skipped], key: Callable[[str], Key]) -> tuple[list[RowKey], dict[Key, int]]:
    """Each row's key (or failure, or why it is skipped), and the first row of each unique prompt."""
    rows: list[RowKey] = []
    first: dict[Key, int] = {}
    for index, text in enumerate(texts):
        row = key(text) if isinstance(text, str) else text
        rows.append(row)
        if isinstance(row, bytes):
            first.setdefault(row, index)
    return rows, first


def judge(batch: Batch, reply: Reply, task: Task, strategy: BatchStrategy, max_repairs: int) -> ParsedReply:
    """Decide what a reply means for each prompt of its batch.

    Valid answers are kept, and only the other prompts are asked again: with the reason while the batch has repairs
    left, then in halves, then alone; then they fail. A reply that is cut, or cannot be read, is never parsed as if it
    were complete: its batch is halved, and a single prompt fails, because the same call would be cut again. Every batch
    that is asked again is smaller in (prompts, repairs left), so this ends.
    """
    answer = read_answer(reply, task.model.max_output_tokens, "".join(item.text for item in batch.items))
    if isinstance(answer, Failure):
        return shrink(batch, answer, max_repairs)
    texts = _split(batch, answer, task, strategy)
    if isinstance(texts, Failure):
        return shrink(batch, texts, max_repairs)
    answers, unanswered = [], []
    for number, item in enumerate(batch.items, 1):
        values = task.schema.parse(texts[number]) if number in texts else Invalid("the reply has no single answer")
        if isinstance(values, Invalid):
            unanswered.append((item, values.reason))
        else:
            answers.append((item.key, values))
    if not unanswered:
        return ParsedReply(tuple(answers))
    items = tuple(item for item, _ in unanswered)
    reasons = list(dict.fromkeys(reason for _, reason in unanswered))
    is_first_alone = len(items) == 1 < len(batch.items)
    if batch.repairs_left or is_first_alone:
        left = max_repairs if is_first_alone else batch.repairs_left - 1
        again = Batch(items, left, batch.attempt + 1, "; ".join(reasons[:_MAX_REASONS]))
        return ParsedReply(tuple(answers), retry=(again,))
    rest = Batch(items, 0, batch.attempt)
    parsed = shrink(rest, Failure("invalid", f"{reasons[0]} (asked {batch.attempt} times)"), max_repairs)
    return parsed._replace(answers=tuple(answers))


def _split(batch: Batch, answer: str, task: Task, strategy: BatchStrategy) -> Mapping[int, str] | Failure:
    """The text of each answer by its place in the batch, or why none can be read; the strategy may be the user's."""
    try:
        texts: Any = strategy.decode(batch, answer, task)
    except Exception as error:  # noqa: BLE001  (a user's strategy may raise any error)
        return Failure("invalid", f"the strategy {strategy.name!r} raised {type(error).__name__} for the reply")
    if texts is None:
        return Failure("invalid", "the reply cannot be read")
    if not isinstance(texts, Mapping) or not all(isinstance(text, str) for text in texts.values()):
        return Failure("invalid", f"the strategy {strategy.name!r} returned something else than texts by place")
    return texts


_MAX_REASONS = 3
_TURN_OFF = "raise max_output_tokens, or lower reasoning_effort (some servers have a switch in extra_body instead)"


def read_answer(reply: Reply, max_output_tokens: int | None, asked: str) -> str | Failure:
    """The text of a complete reply to the prompts' texts `asked`, without reasoning; or why there is none."""
    reason = reply.finish_reason
    ending = finish_kind(reason)
    if ending == "tool":
        return Failure("invalid", f"the model called a tool instead of answering (finish_reason {reason!r})")
    if ending != "whole":
        if finish_kind(reason, unknown="whole") == "whole":
            return Failure(
                "truncated", f"the reply ended for an unknown reason (finish_reason {reason!r}): it may be cut"
            )
        bound = f"at max_output_tokens={max_output_tokens}" if max_output_tokens else "by the provider"
        said = "" if reason == "length" else f" (finish_reason {reason!r})"
        if _was_thinking(reply, asked):
            return Failure("truncated", f"the reply was cut {bound}{said} while the model was thinking; {_TURN_OFF}")
        what_helps = "shorten the row" if "context" in reason or reason == "model_length" else "raise max_output_tokens"
        return Failure("truncated", f"the reply was cut {bound}{said}; {what_helps}")
    if reply.reasoning_only:
        return Failure("invalid", f"the reply has no text but for reasoning_content; {_TURN_OFF}")
    answer = strip_reasoning(reply.text, asked)
    return Failure("truncated", f"{THOUGHTS_ONLY}; {_TURN_OFF}") if answer is None else answer


def _was_thinking(reply: Reply, asked: str) -> bool:
    """Whether a reply was cut before its answer began."""
    if reply.text.strip():
        return strip_reasoning(reply.text, asked) is None
    return reply.reasoning_only or reply.usage.reasoning_tokens > 0


def shrink(batch: Batch, failure: Failure, max_repairs: int) -> ParsedReply:
    """Halve a batch that failed as a whole; a single prompt fails."""
    if len(batch.items) == 1:
        return ParsedReply(failures=((batch.items[0].key, failure),))
    middle = len(batch.items) // 2
    halves = (batch.items[:middle], batch.items[middle:])
    return ParsedReply(
        retry=tuple(Batch(half, max_repairs if len(half) == 1 else 0, batch.attempt + 1) for half in halves)
    )


def make_restorer(
    prompt: CompiledPrompt, columns: Mapping[str, Sequence[Any]]
) -> Callable[[int, Mapping[str, Json]], Mapping[str, Json]] | None:
    """Make a function that replaces placeholders in the answer of a row by the row's data; `None` if there are none."""
    preparation = prompt.preparation
    if preparation is None or not preparation.restores:
        return None

    def give_back(index: int, values: Mapping[str, Json]) -> Mapping[str, Json]:
        # Most answers have no placeholder; then the row need not be prepared again.
        if not any(map(has_placeholder, values.values())):
            return values
        try:
            raw = prompt.prepare({name: columns[name][index] for name in prompt.columns}).raw
        except MediaError:  # its file was removed since it was answered
            return values
        return {name: restore(value, raw) for name, value in values.items()} if raw else values

    return give_back
