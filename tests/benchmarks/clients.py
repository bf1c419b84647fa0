"""The compared clients, each written as its users would write it: prepared first (its start-up), then run.

All send the same prompt with structured output, one row a call unless they support batches, and parse the replies.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from typing import Any, TypeAlias

from tests.benchmarks.workload import PROMPT, SCHEMA, Workload

__all__ = ["CLIENTS", "Outcome"]

_MODEL, _KEY = "bench", "no-key"
_CLAUDE = "anthropic/claude-sonnet-4-5"
_FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}


@dataclass
class Outcome:
    """The result of a run: an answer for each row in order, tokens billed, and further figures of the client."""

    answers: Sequence[Any]
    input_tokens: int = 0
    output_tokens: int = 0
    details: dict[str, Any] = field(default_factory=dict)


class Columns(Sequence[dict[str, Any]]):
    """The rows of a table stored by column; a row is made when it is read."""

    def __init__(self, columns: Mapping[str, Sequence[Any]]) -> None:
        self._columns = columns

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, row: Any) -> Any:
        return {name: column[row] for name, column in self._columns.items()}


Run: TypeAlias = Callable[[], Coroutine[Any, Any, Outcome] | Outcome]


def _messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": PROMPT.format(review=text)}]


async def _in_loops(work: Workload, ask: Callable[[str], Awaitable[tuple[Any, int, int]]]) -> Outcome:
    """Ask every row from `concurrency` loops that share one iterator, the cheapest bound on calls in flight."""
    answers: list[Any] = [None] * work.rows
    outcome = Outcome(answers)
    rows = iter(enumerate(work.reviews))

    async def loop() -> None:
        for at, text in rows:
            answers[at], sent, written = await ask(text)
            outcome.input_tokens += sent
            outcome.output_tokens += written

    await asyncio.gather(*(loop() for _ in range(work.concurrency)))
    return outcome


def bare(work: Workload) -> Run:
    """A loop around aiohttp and orjson without a store, limits or validation: the upper bound of the speed."""
    import aiohttp
    import orjson

    async def ask(session: aiohttp.ClientSession, text: str) -> tuple[Any, int, int]:
        body = orjson.dumps({"model": _MODEL, "messages": _messages(text), "response_format": _FORMAT})
        async with session.post(f"{work.base_url}/chat/completions", data=body) as response:
            data = orjson.loads(await response.read())
        usage = data["usage"]
        answer = orjson.loads(data["choices"][0]["message"]["content"])
        return answer, usage["prompt_tokens"], usage["completion_tokens"]

    async def run() -> Outcome:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {_KEY}"}
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
            return await _in_loops(work, partial(ask, session))

    return run


def openai_sdk(work: Workload) -> Run:
    """The openai SDK's asynchronous client."""
    import openai
    import orjson

    async def ask(client: openai.AsyncOpenAI, text: str) -> tuple[Any, int, int]:
        create: Any = client.chat.completions.create
        completion = await create(model=_MODEL, messages=_messages(text), response_format=_FORMAT)
        usage = completion.usage
        answer = orjson.loads(completion.choices[0].message.content)
        return answer, usage.prompt_tokens, usage.completion_tokens

    async def run() -> Outcome:
        async with openai.AsyncOpenAI(base_url=work.base_url, api_key=_KEY) as client:
            return await _in_loops(work, partial(ask, client))

    return run


def litellm_loop(work: Workload, model: str = f"openai/{_MODEL}") -> Run:
    """A loop around litellm's `acompletion`."""
    import litellm
    import orjson

    # For Anthropic litellm expects the root of the API.
    base_url = work.base_url.removesuffix("/v1") if model.startswith("anthropic/") else work.base_url

    async def ask(text: str) -> tuple[Any, int, int]:
        completion: Any = await litellm.acompletion(
            model=model,
            messages=_messages(text),
            response_format=_FORMAT,
            base_url=base_url,
            api_key=_KEY,
        )
        usage = completion.usage
        answer = orjson.loads(completion.choices[0].message.content)
        return answer, usage.prompt_tokens, usage.completion_tokens

    return lambda: _in_loops(work, ask)


def ondine(work: Workload, observers: tuple[Any, ...] = (), model: str = f"openai_compatible/{_MODEL}") -> Run:
    """`ondine_core.enrich_sync` with its answers stored in a file."""
    import aiohttp  # noqa: F401  (its first call would import it; the other clients import it at start-up)

    from ondine_core import ModelSpec, Options, Policy, enrich_sync
    from ondine_core.limits.rates import Rates

    per_minute = None if work.requests_per_s is None else round(60 * work.requests_per_s)

    def run() -> Outcome:
        report = enrich_sync(
            {"review": work.reviews},
            prompt=PROMPT,
            output=SCHEMA,
            model=ModelSpec(model, api_key=_KEY, base_url=work.base_url),
            options=Options(
                store=work.store or ":memory:",
                policy=Policy(max_concurrency=work.concurrency, batch_size=work.batch_size),
                rates=Rates(requests_per_minute=per_minute),
                observers=observers,
            ),
        )
        usage, spend = report.spend.usage, report.spend
        details = {"calls": spend.calls, "refused": spend.refused, "reused": report.progress.rows_reused}
        return Outcome(Columns(report.values()), usage.input_tokens, usage.output_tokens, details)

    return run


_OBSERVERS_IMPORT = (
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk.metrics",
    "opentelemetry.sdk.trace",
    "prometheus_client",
    "requests",
    "structlog",
)
"""Imported in advance, so that the import counts as start-up, as for the other clients."""


def observed(work: Workload) -> Run:
    """`ondine` with all observers, which export to the benchmark's provider: it accepts any request."""
    for name in _OBSERVERS_IMPORT:
        import_module(name)
    address = work.base_url.removesuffix("/v1")
    os.environ |= {"OTEL_EXPORTER_OTLP_ENDPOINT": address, "LANGFUSE_HOST": address}
    os.environ |= {"LANGFUSE_PUBLIC_KEY": "public", "LANGFUSE_SECRET_KEY": "secret"}
    prometheus = {"name": "prometheus", "push_gateway": address}
    return ondine(work, ("logging", "opentelemetry", "langfuse", prometheus))


def step(work: Workload) -> Run:
    """An `@llm_asset` that Dagster materializes in this process."""
    from tests.benchmarks.steps import materialize_llm_asset

    return lambda: Outcome(materialize_llm_asset(work))


def plain_step(work: Workload) -> Run:
    """The same rows through a plain asset: the time that Dagster itself takes."""
    from tests.benchmarks.steps import materialize_plain_asset, twice

    return lambda: Outcome([], details=twice(materialize_plain_asset, work))


def step_twice(work: Workload) -> Run:
    """A small step, and the same again when all modules are imported."""
    from tests.benchmarks.steps import materialize_llm_asset, twice

    return lambda: Outcome([], details=twice(materialize_llm_asset, work))


def store(work: Workload) -> Run:
    """The store alone: calls that take no time are recorded and settled with their answers, as the engine does."""
    from decimal import Decimal

    from ondine_core.store import open_store
    from ondine_core.types.ledger import CallFinished, CallStarted, Origin
    from ondine_core.types.values import Answer, Usage

    origin, usage, usd = Origin("run", "asset", "partition"), Usage(40, 0, 10), Decimal("0.0001")

    async def run() -> Outcome:
        numbers = iter(range(0, work.rows, work.batch_size))

        async def loop() -> None:
            for number in numbers:
                keys = tuple((number + at).to_bytes(16) for at in range(work.batch_size))
                sent = CallStarted(number.to_bytes(16), origin, _MODEL, "ask", keys, 0.0)
                values = {"sentiment": "positive", "topic": f"row {number}"}
                answers = tuple((key, Answer(values, _MODEL, 1, work.batch_size, usd, "req-1", 0.0)) for key in keys)
                await kept.send(sent)
                await kept.settle(CallFinished(sent, "answered", usage, usd, answers))

        with open_store(work.store) as kept:
            await asyncio.gather(*(loop() for _ in range(work.concurrency)))
        return Outcome([])

    return run


_MOOD: dict[str, Any] = {
    "type": "object",
    "properties": {"mood": {"type": "string", "enum": ["positive", "negative"]}},
    "required": ["mood"],
    "additionalProperties": False,
}
_MOODS = (("Works like a charm, I love it.", "positive"), ("Broken on arrival, what a waste.", "negative"))
_SLOTS = 8


def raw_llama_cpp(work: Workload) -> Run:
    """llama.cpp's own server on all processors, and a loop without a store, limits or validation."""
    import aiohttp
    import orjson
    import xllamacpp

    from ondine_core.providers.llama_cpp import gemma_weights

    params = xllamacpp.CommonParams()
    params.model.path = str(gemma_weights())
    params.n_parallel, params.n_ctx = _SLOTS, 4096 * _SLOTS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count()
    params.hostnames, params.port, params.swa_full, params.verbosity = ["127.0.0.1"], 0, True, -1
    server = xllamacpp.Server(params)
    shots = "".join(f'Review: {text}\nAnswer: {{"mood":"{mood}"}}\n\n' for text, mood in _MOODS)

    async def ask(session: aiohttp.ClientSession, text: str) -> tuple[Any, int, int]:
        prompt = f"Give the mood of each review.\n\n{shots}Review: {text}\nAnswer:"
        body = orjson.dumps({"prompt": prompt, "json_schema": _MOOD, "temperature": 0, "max_tokens": 64})
        headers = {"Content-Type": "application/json"}
        async with session.post(f"{server.listening_address}/v1/completions", data=body, headers=headers) as response:
            data = orjson.loads(await response.read())
        usage = data["usage"]
        return orjson.loads(data["choices"][0]["text"]), usage["prompt_tokens"], usage["completion_tokens"]

    async def run() -> Outcome:
        async with aiohttp.ClientSession() as session:
            await ask(session, "The first call reads the instructions.")
            outcome = await _in_loops(work, partial(ask, session))
        # A model of 270 million parameters is not always right.
        return replace(outcome, answers=[])

    return run


def embedded(work: Workload) -> Run:
    """The same rows and examples through `ondine_core.enrich_sync`, with answers stored in a file."""
    from ondine_core import Options, Prompt, enrich_sync

    prompt = Prompt("Give the mood of each review.\n\nReview: {review}", examples=list(_MOODS))

    def ask(reviews: list[str], store: str) -> Any:
        table = {"review": reviews}
        return enrich_sync(
            table, prompt=prompt, output=_MOOD, model="llama_cpp/gemma-3-270m", options=Options(store=store)
        )

    # Loading the weights counts as start-up, as it does for llama.cpp's server.
    ask(["The first call reads the instructions."], ":memory:")

    def run() -> Outcome:
        usage = ask(work.reviews, work.store).spend.usage
        return Outcome([], usage.input_tokens, usage.output_tokens)

    return run


CLIENTS: dict[str, Callable[[Workload], Run]] = {
    "aiohttp": bare,
    "ondine": ondine,
    "observed": observed,
    "step": step,
    "openai": openai_sdk,
    "litellm": litellm_loop,
    "ondine to Claude": partial(ondine, model=_CLAUDE),
    "litellm to Claude": partial(litellm_loop, model=_CLAUDE),
    "plain step": plain_step,
    "step twice": step_twice,
    "store": store,
    "llama.cpp": raw_llama_cpp,
    "embedded": embedded,
}
