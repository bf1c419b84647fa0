"""Run one client in its own environment: `python -m tests.benchmarks.peers.peer_client NAME` reads the job from stdin.

Each client is written as its documentation shows, with its disk cache or resumption on if it has one. (litellm no
longer has a disk cache; its memory cache keeps 200 answers, and halved its rows a second.) The job is JSON, and the
result is printed as one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from tests.benchmarks import clients
from tests.benchmarks.peers.job import Job
from tests.benchmarks.workload import PROMPT, SENTIMENTS

__all__ = ["CLIENTS"]

Answers: TypeAlias = Sequence[Any]
Run: TypeAlias = Callable[[], Any]
_MODEL, _KEY, _UNLIMITED = "gpt-4.1-nano", "no-key", 10_000_000
_JINJA = PROMPT.replace("{review}", "{{ review }}")


def _answer_model() -> Any:
    from typing import Literal

    from pydantic import BaseModel, Field

    class Answer(BaseModel):
        """The output for a review."""

        sentiment: Literal[SENTIMENTS] = Field(description="The sentiment")  # type: ignore[valid-type]
        topic: str = Field(description="What the review is about")

    return Answer


def _plain(client: Callable[[Any], Any]) -> Callable[[Job], Run]:
    """A client of the main benchmark, run with a job."""

    def prepare(job: Job) -> Run:
        run = client(job)

        async def answers(outcome: Awaitable[Any]) -> Answers:
            return (await outcome).answers

        def run_job() -> Any:
            outcome = run()
            return answers(outcome) if asyncio.iscoroutine(outcome) else list(outcome.answers)

        return run_job

    return prepare


async def _in_loops(job: Job, ask: Callable[[str], Awaitable[Any]]) -> Answers:
    """Ask every row from `concurrency` loops that share one iterator."""
    answers: list[Any] = [None] * job.rows
    rows = iter(enumerate(job.reviews))

    async def loop() -> None:
        for at, text in rows:
            answers[at] = await ask(PROMPT.format(review=text))

    await asyncio.gather(*(loop() for _ in range(job.concurrency)))
    return answers


def instructor(job: Job) -> Run:
    """A loop around instructor's asynchronous client with its cache on disk."""
    import instructor as library
    from instructor.cache import DiskCache

    model = _answer_model()
    client: Any = library.from_provider(
        f"openai/{_MODEL}",
        async_client=True,
        mode=library.Mode.JSON_SCHEMA,
        cache=DiskCache(directory=job.folder),
        cache_namespace="reviews",  # the default differs between processes
        base_url=job.base_url,
        api_key=_KEY,
    )

    async def ask(text: str) -> Any:
        answer = await client.create(messages=[{"role": "user", "content": text}], response_model=model)
        return answer.model_dump()

    return lambda: _in_loops(job, ask)


def pydantic_ai(job: Job) -> Run:
    """A loop around an agent of pydantic-ai with the provider's structured output."""
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel(_MODEL, provider=OpenAIProvider(base_url=job.base_url, api_key=_KEY))
    agent: Any = Agent(model, output_type=NativeOutput(_answer_model()))

    async def ask(text: str) -> Any:
        return (await agent.run(text)).output.model_dump()

    return lambda: _in_loops(job, ask)


def fenic(job: Job) -> Run:
    """`semantic.map` over a frame with fenic's response cache; fenic decides the number of calls in flight."""
    import fenic as fc

    model = fc.OpenAILanguageModel(model_name=_MODEL, rpm=_UNLIMITED, tpm=100 * _UNLIMITED, base_url=job.base_url)
    semantic = fc.SemanticConfig(language_models={"model": model}, llm_response_cache=fc.LLMResponseCacheConfig())
    session = fc.Session.get_or_create(
        fc.SessionConfig(app_name="benchmark", db_path=Path(job.folder), semantic=semantic)
    )
    frame = session.create_dataframe({"review": job.reviews})
    column = fc.semantic.map(_JINJA, review=fc.col("review"), response_format=_answer_model())

    def run() -> Answers:
        return [row["answer"] for row in frame.select(column.alias("answer")).to_pylist()]

    return run


def curator(job: Job) -> Run:
    """An `LLM` of curator over a data set, with its response folder."""
    from bespokelabs import curator as library

    class Classifier(library.LLM):  # type: ignore[misc,name-defined,unused-ignore]
        """One prompt a row."""

        def prompt(self, input: Any) -> str:  # noqa: A002  (curator passes it by this name)
            """The prompt of a row."""
            return PROMPT.format(review=input["review"])

        def parse(self, input: Any, response: Any) -> Any:  # noqa: A002
            """The row's number with its answer."""
            return {"number": input["number"], **response.model_dump()}

    rows = [{"number": number, "review": text} for number, text in enumerate(job.reviews)]

    params = {
        "base_url": job.base_url,
        "max_concurrent_requests": job.concurrency,
        "max_requests_per_minute": _UNLIMITED,
        "max_tokens_per_minute": 100 * _UNLIMITED,
    }
    llm = Classifier(model_name=_MODEL, response_format=_answer_model(), backend="openai", backend_params=params)

    def run() -> Answers:
        found = {row.pop("number"): row for row in llm(rows, working_dir=job.folder).dataset.to_list()}
        return [found.get(number) for number in range(job.rows)]

    return run


def data_designer(job: Job) -> Run:
    """A structured column of data-designer over a seed file, resumed where possible, in groups of 100 rows."""
    import data_designer.config as dd
    import pandas as pd
    from data_designer.interface import DataDesigner

    folder, seed = Path(job.folder), Path(job.folder) / "seed.parquet"
    pd.DataFrame({"review": job.reviews}).to_parquet(seed, index=False)
    provider = dd.ModelProvider(name="provider", endpoint=job.base_url, api_key=_KEY)
    parameters = dd.ChatCompletionInferenceParams(max_parallel_requests=job.concurrency)
    model = dd.ModelConfig(alias="model", model=_MODEL, provider="provider", inference_parameters=parameters)
    builder = dd.DataDesignerConfigBuilder(model_configs=[model])
    builder.with_seed_dataset(dd.LocalFileSeedSource(path=str(seed)))
    builder.add_column(
        dd.LLMStructuredColumnConfig(name="answer", prompt=_JINJA, model_alias="model", output_format=_answer_model())
    )
    designer = DataDesigner(artifact_path=folder / "artifacts", model_providers=[provider])
    designer.set_run_config(dd.RunConfig(buffer_size=100, otel_metrics_port=None))

    def run() -> Answers:
        made = designer.create(builder, num_records=job.rows, dataset_name="bench", resume=dd.ResumeMode.IF_POSSIBLE)
        rows = made.load_dataset().to_dict("records")
        found = {row["review"]: _read(row["answer"]) for row in rows}
        return [found.get(text) for text in job.reviews]

    return run


def _read(answer: Any) -> Any:
    return json.loads(answer) if isinstance(answer, str) else dict(answer)


CLIENTS: dict[str, tuple[str, Callable[[Job], Run]]] = {
    "aiohttp": ("aiohttp", _plain(clients.bare)),
    "Ondine": ("ondine-dagster", _plain(clients.ondine)),
    "openai": ("openai", _plain(clients.openai_sdk)),
    "litellm": ("litellm", _plain(clients.litellm_loop)),
    "instructor": ("instructor", instructor),
    "pydantic-ai": ("pydantic-ai-slim", pydantic_ai),
    "fenic": ("fenic", fenic),
    "curator": ("bespokelabs-curator", curator),
    "data-designer": ("data-designer", data_designer),
}
"""For each name the distribution whose version is reported, and the function that prepares a run."""


def main() -> None:
    """Run the client and print its measurement."""
    given = json.load(sys.stdin)
    if given["core"] >= 0:
        os.sched_setaffinity(0, {given["core"]})
    distribution, prepare = CLIENTS[sys.argv[1]]
    job = Job(**given["job"])
    run = prepare(job)
    began, cpu = time.perf_counter(), time.process_time()
    outcome = run()
    answers = asyncio.run(outcome) if asyncio.iscoroutine(outcome) else outcome
    took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    lost, wrong = job.count_lost_and_wrong(answers)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    result = {
        "version": _version(distribution),
        "took_s": took_s,
        "cpu_s": cpu_s,
        "peak_rss_mib": peak_mib,
        "lost": lost,
        "wrong": wrong,
    }
    sys.stdout.write(f"\n{json.dumps(result)}\n")
    sys.stdout.flush()
    os._exit(0)  # some clients leave threads running, for which an ordinary exit would wait


def _version(distribution: str) -> str:
    if distribution == "ondine-dagster":  # it may not be installed
        from ondine_core import __version__

        return __version__
    return version(distribution)


if __name__ == "__main__":
    main()
