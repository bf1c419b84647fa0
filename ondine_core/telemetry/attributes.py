"""What spans say: attributes named as OpenTelemetry's conventions for generative AI have it, ours under `ondine.`.

The conventions change; this module and `names` are where they are written down (release 1.42 of the conventions).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from decimal import Decimal
from operator import attrgetter
from typing import Any

import orjson

from ondine_core.telemetry.events import AskedBatch, CallEnded, Content, Endpoint, Run
from ondine_core.telemetry.names import OPERATION, provider_name
from ondine_core.types.progress import Progress
from ondine_core.types.values import Usage

__all__ = ["Attributes", "of_batch", "of_call", "of_calls", "of_progress", "of_run"]

Attributes = dict[str, Any]

_TOKENS = [attrgetter(part.name) for part in fields(Usage) if part.name.endswith("_tokens")]


def of_run(run: Run) -> Attributes:
    """What is known of a run when it begins."""
    return {**_origin(run), "ondine.model": run.model, "ondine.rows": run.rows}


def of_progress(progress: Progress) -> Attributes:
    """What a run came to. Its tokens have names of their own, so that they are not added to those of its calls."""
    spend = progress.spend
    return {
        "ondine.rows.done": progress.rows_done,
        "ondine.rows.failed": progress.rows_failed,
        "ondine.rows.reused": progress.rows_reused,
        "ondine.rows.skipped": progress.rows_skipped,
        "ondine.calls": spend.calls,
        "ondine.calls.unknown": spend.unknown,
        "ondine.input_tokens": spend.usage.input_tokens,
        "ondine.output_tokens": spend.usage.output_tokens,
        **_cost(spend.usd),
    }


def of_batch(batch: AskedBatch) -> Attributes:
    """What is known of a batch when it begins."""
    return {
        **_origin(batch.run),
        "ondine.batch": batch.number,
        "ondine.attempt": batch.attempt,
        "ondine.prompts": batch.prompts,
    }


def of_call(event: CallEnded) -> Attributes:
    """A call."""
    batch, usages = event.batch, [event.usage] if event.usage is not None else []
    attributes = of_calls(batch.run, batch.endpoint, batch.prompts, usages, [event.usd]) | {
        "ondine.call.id": event.sent.call.hex(),
        "ondine.batch": batch.number,
        "ondine.stage": event.sent.stage,
    }
    if event.finish_reason is not None:
        attributes["gen_ai.response.finish_reasons"] = (event.finish_reason,)
    if event.request_id is not None:
        attributes["gen_ai.response.id"] = event.request_id
    if event.model is not None:
        attributes["gen_ai.response.model"] = event.model
    if event.content is not None:
        attributes |= _content(event.content, event.finish_reason)
    return attributes


def of_calls(
    run: Run, endpoint: Endpoint, prompts: int, usages: Sequence[Usage], usds: Sequence[Decimal | None]
) -> Attributes:
    """One call, or several that are recorded together, whose tokens and costs are added up."""
    attributes = {
        **_origin(run),
        "gen_ai.operation.name": OPERATION,
        "gen_ai.provider.name": provider_name(endpoint.provider),
        "gen_ai.request.model": endpoint.model,
        "ondine.calls": len(usds),
        "ondine.prompts": prompts,
        **_cost(_total(usds)),
    }
    if endpoint.address is not None:
        attributes |= {"server.address": endpoint.address, "server.port": endpoint.port}
    return attributes | _usage(usages) if usages else attributes


def _total(costs: Sequence[Decimal | None]) -> Decimal | None:
    """What costs come to; `None` if one is not known."""
    known = [usd for usd in costs if usd is not None]
    return sum(known, Decimal(0)) if len(known) == len(costs) else None


def _origin(run: Run) -> Attributes:
    named = {
        "ondine.run.id": run.origin.run,
        "ondine.asset": run.origin.asset,
        "ondine.partition": run.origin.partition,
    }
    return {key: value for key, value in named.items() if value}


def _usage(usages: Sequence[Usage]) -> Attributes:
    # Part by part: to add up values would make one for every call.
    usage = Usage(*(sum(map(part, usages)) for part in _TOKENS))
    parts = {
        "gen_ai.usage.cache_read.input_tokens": usage.cached_input_tokens,
        "gen_ai.usage.cache_creation.input_tokens": usage.cache_write_tokens,
        "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
    }
    return {
        "gen_ai.usage.input_tokens": usage.input_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
        **{key: tokens for key, tokens in parts.items() if tokens},
    }


def _cost(usd: Decimal | None) -> Attributes:
    return {} if usd is None else {"ondine.cost.usd": float(usd)}


def _content(content: Content, finish_reason: str | None) -> Attributes:
    """As JSON texts: attributes of spans hold no structures yet."""
    sent = [{"role": message.role, "parts": _parts(message.content)} for message in content.messages]
    attributes = {"gen_ai.input.messages": orjson.dumps(sent).decode()}
    if content.text is not None:
        came = [{"role": "assistant", "parts": _parts(content.text), "finish_reason": finish_reason}]
        attributes["gen_ai.output.messages"] = orjson.dumps(came).decode()
    return attributes


def _parts(text: str) -> list[dict[str, str]]:
    # A lone surrogate is no character, and neither JSON nor a collector takes it.
    return [{"type": "text", "content": text.encode("utf-8", "replace").decode()}]
