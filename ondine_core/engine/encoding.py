"""Encodes a batch as a call."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import NamedTuple

from ondine_core.batching.prompt_window import find_oversize
from ondine_core.batching.strategy import ONE_PER_CALL, BatchStrategy, draw_ids, encode
from ondine_core.engine.policy import Policy
from ondine_core.prompts.task import Task
from ondine_core.providers.media_limits import find_unsendable
from ondine_core.types.values import Batch, Call, Failure


class EncodedBatch(NamedTuple):
    """A batch, and the call that carries it.

    `batch` has the ids of the call. `strategy` is that of the run; a single prompt is always sent as it is.
    """

    batch: Batch
    strategy: BatchStrategy
    call: Call


def encode_batch(batch: Batch, task: Task, strategy: BatchStrategy, rng: random.Random | None = None) -> EncodedBatch:
    """Encode `batch` as a call; with `rng`, its rows get random ids."""
    if len(batch.items) == 1:
        strategy = ONE_PER_CALL
    elif rng is not None:
        batch = replace(batch, ids=draw_ids(len(batch.items), rng))
    return EncodedBatch(batch, strategy, encode(strategy, batch, task))


def find_oversize_prompt(encoded: EncodedBatch, task: Task, policy: Policy, window: int | None) -> Failure | None:
    """The failure of a single prompt that cannot be sent, or does not fit into the model's context window."""
    items, call = encoded.batch.items, encoded.call
    has_media = bool(items[0].media)
    if (window is None and not has_media) or len(items) > 1:
        return None
    unsendable = find_unsendable(call, task.model) if has_media else None
    if unsendable is not None:
        return Failure("prompt", unsendable)
    # The user's figure is for prompt and reply together; many listed figures are for the prompt alone.
    reserved = task.model.max_output_tokens or 0 if policy.context_window else 0
    return find_oversize(call, window, reserved)
