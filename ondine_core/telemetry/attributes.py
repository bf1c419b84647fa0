"""The attributes of spans, named by OpenTelemetry's conventions for generative AI, and our own under `ondine.`.

The conventions change, so all their names are in this module (release 1.42).
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import orjson

from ondine_core.providers.wire_text import storable_text
from ondine_core.telemetry.call_sampler import gather
from ondine_core.telemetry.events import AskedBatch, CallEnded, CallsEnded, Content, Run
from ondine_core.types.progress import Progress
from ondine_core.types.values import Usage

Attributes = dict[str, Any]

OPERATION = "chat"
"""The value of `gen_ai.operation.name` for every call."""
_PROVIDERS = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "moonshot": "moonshot_ai",
    "vertex_ai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}


def provider_name(provider: str) -> str:
    """The value of `gen_ai.provider.name`; our own name if the conventions have none."""
    return _PROVIDERS.get(provider, provider)


def of_run(run: Run) -> Attributes:
    """The attributes of a run that are known when it begins."""
    return {**_origin(run), "ondine.model": run.model, "ondine.rows": run.rows}


def of_progress(progress: Progress) -> Attributes:
    """The figures of a run. Its tokens have names of their own, so they are not added to those of its calls."""
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
    """The attributes of a batch that are known when it begins."""
    return {
        **_origin(batch.run),
        "ondine.batch": batch.number,
        "ondine.attempt": batch.attempt,
        "ondine.prompts": batch.prompts,
    }


def of_call(event: CallEnded) -> Attributes:
    """The attributes of a call."""
    optional = {
        "ondine.call.id": event.sent.call.hex(),
        "ondine.batch": event.batch.number,
        "gen_ai.response.finish_reasons": None if event.finish_reason is None else (event.finish_reason,),
        "gen_ai.response.id": event.request_id,
        "gen_ai.response.model": event.model,
    }
    content = _content(event.content, event.finish_reason) if event.content else {}
    return of_calls(gather([event])) | {key: value for key, value in optional.items() if value is not None} | content


def of_calls(event: CallsEnded) -> Attributes:
    """The attributes of calls that are recorded together, with the sums of their tokens and costs."""
    endpoint = event.endpoint
    attributes = {
        **_origin(event.run),
        "gen_ai.operation.name": OPERATION,
        "gen_ai.provider.name": provider_name(endpoint.provider),
        "gen_ai.request.model": endpoint.model,
        "ondine.calls": len(event.usds),
        "ondine.prompts": event.prompts,
        "ondine.stage": event.stage,
    }
    costs = [usd for usd in event.usds if usd is not None]
    if len(costs) == len(event.usds):  # otherwise the sum is not known
        attributes |= _cost(sum(costs, Decimal(0)))
    if endpoint.address is not None:
        attributes |= {"server.address": endpoint.address, "server.port": endpoint.port}
    return attributes | _usage(event.usages) if event.usages else attributes


def _origin(run: Run) -> Attributes:
    named = {
        "ondine.run.id": run.origin.run,
        "ondine.asset": run.origin.asset,
        "ondine.partition": run.origin.partition,
    }
    return {key: value for key, value in named.items() if value}


def _usage(usages: Sequence[Usage]) -> Attributes:
    parts = {
        "gen_ai.usage.cache_read.input_tokens": sum(usage.cached_input_tokens for usage in usages),
        "gen_ai.usage.cache_creation.input_tokens": sum(usage.cache_write_tokens for usage in usages),
        "gen_ai.usage.reasoning.output_tokens": sum(usage.reasoning_tokens for usage in usages),
    }
    return {
        "gen_ai.usage.input_tokens": sum(usage.input_tokens for usage in usages),
        "gen_ai.usage.output_tokens": sum(usage.output_tokens for usage in usages),
        **{key: tokens for key, tokens in parts.items() if tokens},
    }


def _cost(usd: Decimal | None) -> Attributes:
    return {} if usd is None else {"ondine.cost.usd": float(usd)}


def _content(content: Content, finish_reason: str | None) -> Attributes:
    """The messages and the reply of a call as JSON texts, since attributes of spans cannot be structures yet."""
    sent = [{"role": message.role, "parts": _parts(message.content)} for message in content.messages]
    attributes = {"gen_ai.input.messages": orjson.dumps(sent).decode()}
    if content.text is not None:
        reply = [{"role": "assistant", "parts": _parts(content.text), "finish_reason": finish_reason}]
        attributes["gen_ai.output.messages"] = orjson.dumps(reply).decode()
    return attributes


def _parts(text: str) -> list[dict[str, str]]:
    # Neither JSON nor a collector takes a lone surrogate.
    return [{"type": "text", "content": storable_text(text)}]
