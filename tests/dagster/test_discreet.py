"""The law "discreet": text matching a sanitizer rule appears nowhere, whatever the rows and however calls end.

Searched are: the provider, the store's files, everything that Dagster keeps (events, metadata, failures, compute
logs), output and logs, a collector of spans, and the texts of reports and errors.
"""

import base64
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ondine_core import Answer, ModelSpec, OndineError, Options, Policy, Prompt, enrich_sync
from ondine_dagster import LLMResource, llm_asset
from tests.support.asking import QUICK
from tests.support.collector import Collector
from tests.support.provider import Fault, Provider, error, filtered, garbage, matching, status, truncated

NUMBERS = st.integers(0, 9999)
DATA = st.one_of(
    NUMBERS.map("user{:04}@example.com".format),
    NUMBERS.map("(555) 867-{:04}".format),
    NUMBERS.map("+49 30 90{:04}".format),
    NUMBERS.filter(bool).map("536-90-{:04}".format),
    NUMBERS.map(lambda number: f"10.77.{number // 100}.{number % 100}"),
    st.sampled_from(["4111 1111 1111 1111", "5555-5555-5555-4444", "378282246310005"]),
    st.sampled_from(["DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432"]),
    NUMBERS.map("ghp_16C7e42F292c6912E7710c838347Ae{:04}".format),
    NUMBERS.map("customer C-77{:04}".format),
)
TEXTS = st.lists(
    st.one_of(DATA, st.sampled_from(["call", "<b>or</b>", "<EMAIL_1>", "&amp;", "ünï", "\x00", "fail", "cut"])),
    min_size=1,
    max_size=4,
)
SANITIZERS: dict[str, Any] = {
    "redact": {"mode": "redact"},
    "placeholder": {"mode": "placeholder"},
    "hash": {"mode": "hash", "salt": "a salt of sixteen"},
}
OWN = {"patterns": {"CUSTOMER": r"\bC-\d{6}\b"}}
FAULTS: dict[str, Fault | None] = {
    "answered": None,
    "refused": matching("fail", error(400, "Your prompt was: {prompt}")),
    "declined": matching("fail", filtered),
    "truncated": matching("cut", truncated),
    "broken": matching("fail", garbage),
    "unauthorized": status(401),
}


def secrets_of(rows: list[list[str]]) -> set[bytes]:
    """The raw data in `rows`, as UTF-8, as in JSON, and without optional surroundings."""
    found = {
        part.removeprefix("customer ")
        for row in rows
        for part in row
        if any(map(str.isdigit, part)) and "<" not in part
    }
    return {part.encode() for part in found}


def with_base64_decoded(text: bytes) -> bytes:
    """`text`, and the content of base64 in it."""
    parts = re.findall(rb"base64,([0-9A-Za-z+/=]{8,})", text)
    return b"\n".join([text, *map(base64.b64decode, parts)])


def echo(prompt: str) -> Any:
    """Repeat the row, and add a value with few variants, so that it is plotted."""
    try:
        rows = json.loads(prompt)
    except ValueError:
        return {"said": prompt.rpartition("Text: ")[2], "kind": prompt.rpartition("Text: ")[2][:40]}
    return {"answers": [{"id": row["id"], "said": row["x"], "kind": row["x"][:40]} for row in rows]}


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance that keeps everything in one folder."""
    with dg.DagsterInstance.local_temp(str(tmp_path)) as running:
        yield running


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(TEXTS, min_size=1, max_size=4),
    mode=st.sampled_from(sorted(SANITIZERS)),
    fault=st.sampled_from(sorted(FAULTS)),
    batch_size=st.sampled_from([1, 3]),
    on_row_error=st.sampled_from(["null", "drop", "raise"]),
    data=st.data(),
)
def test_the_law_discreet(  # noqa: PLR0913, PLR0917  (what is drawn, and the doors)
    rows: list[list[str]],
    mode: str,
    fault: str,
    batch_size: int,
    on_row_error: str,
    data: st.DataObject,
    instance: dg.DagsterInstance,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Raw data are in the restored table only."""
    folder = Path(instance.root_directory)
    texts = [" ".join(row) for row in rows]
    clean = data.draw(st.sampled_from([[], ["control"], ["html"]]))

    @llm_asset(
        prompt=Prompt(
            "Repeat.\nText: {text}", examples=[("by ann7771@example.com", {"said": "ann7771@example.com", "kind": "x"})]
        ),
        output={"said": str, "kind": str},
        clean=clean,
        sanitize=SANITIZERS[mode] | OWN,
        batch_size=batch_size,
        on_row_error=on_row_error,
    )
    def answers() -> pd.DataFrame:
        return pd.DataFrame({"text": texts})

    caplog.set_level(logging.DEBUG)
    with (
        Provider(echo, fault=FAULTS[fault]) as provider,
        Collector() as collector,
    ):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        llm = LLMResource(
            model="openai_compatible/m",
            base_url=provider.base_url,
            timeout_s=5,
            store=str(folder / "answers.db"),
            observers=["logging", {"name": "opentelemetry", "content": True, "calls_per_second": None}],
        )
        result = dg.materialize(
            [answers],
            resources={"llm": llm, "io_manager": dg.mem_io_manager},
            instance=instance,
            raise_on_error=False,
        )
        shown = [repr(event) + str(event) for event in instance.all_logs(result.run_id)]
        shown += [repr(result.failure_data_for_node("answers")), repr(llm), *capfd.readouterr()]
        shown += [record.getMessage() for record in caplog.records]
        sent = [json.dumps(asked.body, ensure_ascii=False) + str(asked.headers) for asked in provider.ledger.requests]
        spans = [request.body for request in collector.requests]
        table = result.output_for_node("answers") if result.success else None
    files = [file.read_bytes() for file in folder.rglob("*") if file.is_file()]
    doors = {
        "provider": "\n".join(sent).encode("utf-8", "replace"),
        "shown": with_base64_decoded("\n".join(shown).encode("utf-8", "replace")),
        "spans": b"\n".join(spans),
        "files": with_base64_decoded(b"\n".join(files)),
    }
    assert sent
    assert spans
    assert len(files) > 3
    for door, found in doors.items():
        for secret in (*secrets_of(rows), b"ann7771"):
            assert secret not in found, door
    if table is not None and mode == "placeholder" and fault == "answered" and clean == []:
        assert list(table["said"]) == [text.strip() for text in table["text"]]


@given(rows=st.lists(TEXTS, min_size=1, max_size=3), fault=st.sampled_from(sorted(FAULTS)))
@settings(max_examples=15, deadline=None)
def test_reports_and_errors_show_no_raw_data(rows: list[list[str]], fault: str) -> None:
    """An answer does, since it was restored."""
    with Provider(echo, fault=FAULTS[fault]) as provider:
        model = ModelSpec("openai_compatible/m", base_url=provider.base_url)
        try:
            report = enrich_sync(
                {"text": [" ".join(row) for row in rows]},
                prompt="Repeat.\nText: {text}",
                output={"said": str, "kind": str},
                model=model,
                sanitize=SANITIZERS["placeholder"] | OWN,
                options=Options(policy=Policy(retry=QUICK)),
            )
        except OndineError as error:
            chain = [error, error.__cause__, error.__context__]
            shown = " ".join(map(repr, chain))
        else:
            failures = [outcome for outcome in report.outcomes if not isinstance(outcome, Answer)]
            shown = f"{report!r} {report.failures!r} {failures!r} {report.errors()!r}"
            shown += repr([report.outcomes.as_kept(row) for row in range(len(rows))])
    assert not [secret for secret in secrets_of(rows) if secret in shown.encode("utf-8", "replace")]
