"""Helpers that send one call through a model, or a whole table through `enrich`, to the loopback provider."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from ondine_core import Call, ChatModel, ModelSpec, Options, Policy, Prompt, Reply, Report, RetryPolicy, enrich_sync
from ondine_core.providers import connect
from ondine_core.types.values import Message
from tests.support.provider import Provider, echo

PROMPT = "Repeat: {text}"
QUICK = RetryPolicy(first_wait_s=0.001, max_wait_s=0.01, max_outage_s=1.0)


def one_call(model: ChatModel, text: str = "Repeat: hello", call: Call | None = None) -> Reply:
    """Send one call through `model`, close it, and return the reply."""

    async def main() -> Reply:
        try:
            return await model(call or Call((Message("user", text),)))
        finally:
            await model.aclose()

    return asyncio.run(main())


def one_call_to(base_url: str, text: str = "Repeat: hello", call: Call | None = None, **settings: Any) -> Reply:
    """The reply to one call to an OpenAI-compatible server."""
    return one_call(connect(ModelSpec("openai_compatible/small", base_url=base_url, **settings)), text, call)


def texts(count: int) -> dict[str, list[str]]:
    """A table of `count` different rows."""
    return {"text": [f"row {number}" for number in range(count)]}


def echo_each(prompt: str) -> Any:
    """The provider's answer to `PROMPT`, for a single row or a batch."""
    if not prompt.startswith("["):
        return echo(prompt)
    return {"answers": [{"id": row["id"], "answer": row["x"]} for row in json.loads(prompt)]}


def options(store: str | Path = ":memory:", **policy: Any) -> Options:
    """Options with short pauses and eight concurrent calls, unless `policy` differs."""
    return Options(store=store, policy=Policy(**{"retry": QUICK, "max_concurrency": 8, **policy}))


def ask(
    provider: Provider, table: Any, chosen: Options | None = None, prompt: str | Prompt = PROMPT, **spec: Any
) -> Report:
    """Ask the provider about each row of a table with a column `text`."""
    model = ModelSpec("openai_compatible/m", base_url=provider.base_url, **spec)
    return enrich_sync(table, prompt=prompt, output={"answer": "string"}, model=model, options=chosen or options())
