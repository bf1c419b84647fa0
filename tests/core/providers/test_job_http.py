"""Result lines in chunks of any size, and what is kept of a provider's messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core.providers.http_client import Endpoint, constant
from ondine_core.providers.jobs.job_adapter import epoch_s, fingerprint, problem_of
from ondine_core.providers.jobs.job_http import JobHttp, ResultLine, split_lines
from ondine_core.providers.reply_body import decode
from tests.support.raw_server import Connection, RawServer

MAX_BYTES = 6


class Pieces:
    """A body that arrives in these chunks."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    async def iter_chunked(self, _: int) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


def lines_of(pieces: list[bytes]) -> list[ResultLine]:
    async def main() -> list[ResultLine]:
        stream: Any = Pieces(pieces)
        return [line async for line in split_lines(stream, MAX_BYTES)]

    return asyncio.run(main())


@given(st.lists(st.text("ab \n", max_size=9).map(str.encode), max_size=9))
def test_lines_are_the_same_for_any_chunks(pieces: list[bytes]) -> None:
    """None is lost, cut or joined; of a line that is too long the beginning is kept and marked."""
    lines = [line for line in b"".join(pieces).split(b"\n") if line[:MAX_BYTES].strip()]
    found = [line for line in lines_of(pieces) if line.content.strip()]
    assert [line.content for line in found] == [line[:MAX_BYTES] for line in lines]
    assert [line.is_whole for line in found] == [len(line) <= MAX_BYTES for line in lines]


def test_body_in_another_charset_is_read() -> None:
    """A response and the lines of a file, as a live reply is: by the charset that its Content-Type declares."""
    body = '{"custom_id": "r\u00e9sum\u00e9"}'.encode("latin-1")
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=latin-1\r\nContent-Length: {len(body)}\r\n\r\n"

    def script(connection: Connection) -> None:
        while connection.read_head():
            connection.send(head.encode() + body)

    async def main(url: str) -> tuple[Any, list[ResultLine]]:
        http = JobHttp(Endpoint(url, 5.0, constant({})), 2**20)
        try:
            return await http.get("/job"), [line async for line in http.lines("/file", "results")]
        finally:
            await http.aclose()

    with RawServer(script) as server:
        response, (line,) = asyncio.run(main(server.base_url))
    assert response == decode(line.content, line.content_type) == {"custom_id": "r\u00e9sum\u00e9"}


@pytest.mark.parametrize(
    ("message", "is_quota"),
    [
        ("Enqueued token limit reached for gpt-4o in organization org-1. Limit: 90,000 enqueued tokens.", True),
        ("Too many batches: the limit of queued requests is reached.", True),
        ("Your account has 10 in progress batch jobs.", True),
        ("You exceeded your current quota, please check your plan and billing details.", False),
        ("The model `m` is not supported by the Batch API.", False),
    ],
)
def test_job_quota_is_distinguished_from_other_problems(message: str, is_quota: bool) -> None:
    """Exhausted credit, for one, does not end by waiting."""
    assert problem_of(message).is_quota is is_quota


def test_problem_text_holds_neither_keys_nor_long_quotations() -> None:
    """A long quotation may be a row."""
    row = "the customer wrote that the parcel never came to her house"
    problem = problem_of(f"Invalid JSON: '{row}' with key sk-abcdefghij", "invalid_json", 7)
    assert row not in problem.message
    assert "sk-abcdefghij" not in problem.message
    assert problem.line == 7


def test_account_id_follows_from_key_and_address() -> None:
    """It is the same in every process and does not contain the key."""
    found = {fingerprint(key, address) for key in ("k1", "k2") for address in ("http://a", "http://b")}
    assert len(found) == 4
    assert fingerprint("k1", "http://a") in found


def test_provider_timestamps_are_read() -> None:
    """As seconds or ISO 8601; any other value counts as recent."""
    assert epoch_s(1_700_000_000) == epoch_s("2023-11-14T22:13:20Z") == epoch_s("2023-11-14T22:13:20.000000000Z")
    assert epoch_s(None) == epoch_s("yesterday") == inf
