"""A server or gateway that sends unrequested replies: each answer stays with its own row."""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core import ModelSpec, RefusedError, TransientError, enrich_sync
from ondine_core.batching.strategy import STRATEGIES, draw_ids
from ondine_core.providers.tokenizer import counter
from ondine_core.types.values import Batch, Item
from tests.support.asking import PROMPT, one_call_to, options, texts
from tests.support.batches import task
from tests.support.raw_server import Connection, RawServer, completion, http_reply

STRAY = http_reply(completion('{"answer":"stray"}'))


def answer_to(body: Any) -> bytes:
    """The right reply to a request with one row, or with many."""
    prompt = body["messages"][-1]["content"]
    if prompt.startswith("["):
        rows = [{"id": row["id"], "answer": row["x"]} for row in json.loads(prompt.partition("\n")[0])]
        return http_reply(completion(json.dumps({"answers": rows})))
    return http_reply(completion(json.dumps({"answer": prompt.rpartition(": ")[2]})))


def ask_rows(server: RawServer, count: int = 40, **chosen: Any) -> list[str | None]:
    """The answers to `count` different rows, which echo their rows."""
    model = ModelSpec("openai_compatible/m", base_url=server.base_url, timeout_s=5)
    report = enrich_sync(
        texts(count), prompt=PROMPT, output={"answer": "string"}, model=model, options=options(**chosen)
    )
    return report.column("answer")


def with_each_reply(
    extra: Callable[[bytes], bytes], pause_s: float = 0.0, latency_s: float = 0.0
) -> Callable[[Connection], None]:
    """A server that sends extra bytes after each reply, at once or later."""

    def script(connection: Connection) -> None:
        while (body := connection.read_request()) is not None:
            time.sleep(latency_s)
            reply = answer_to(body)
            if not pause_s:
                connection.send(reply + extra(reply))
                continue
            connection.send(reply)
            time.sleep(pause_s)
            connection.send(extra(reply))

    return script


def never_mixed(answers: list[str | None], count: int = 40) -> bool:
    """Whether each row has its own answer, or none."""
    return all(answer in (None, f"row {number}") for number, answer in enumerate(answers)) and len(answers) == count


LATER = {
    "a reply": lambda _: STRAY,
    "the same again": lambda reply: reply,
    "half a reply": lambda _: STRAY[: len(STRAY) // 2],
    "a time-out of a gateway": lambda _: http_reply(b"", "Connection: close", status="408 Request Timeout"),
    "no HTTP": lambda _: b"\x00\x01 what is this",
    "chunks": lambda _: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "an interim reply": lambda _: b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n",
}


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("extra", LATER.values(), ids=LATER)
def test_bytes_on_an_idle_connection_are_no_reply(extra: Callable[[bytes], bytes], batch_size: int) -> None:
    """A connection with unrequested bytes is not reused; every row has its own answer."""
    with RawServer(with_each_reply(extra, pause_s=0.002, latency_s=0.05)) as server:
        answers = ask_rows(server, max_concurrency=1, batch_size=batch_size)
    assert answers == [f"row {number}" for number in range(40)]
    assert server.connections > 1


def test_server_that_sent_extra_bytes_gets_a_connection_for_each_call() -> None:
    """After that on one connection, none is reused."""

    def script(connection: Connection) -> None:
        while (body := connection.read_request()) is not None:
            time.sleep(0.05)
            connection.send(answer_to(body))
            if connection.number == 1:
                connection.send(STRAY)

    with RawServer(script) as server:
        answers = ask_rows(server, max_concurrency=4)
    assert never_mixed(answers)
    assert server.connections >= 30


@pytest.mark.parametrize("extra", [lambda _: STRAY, lambda reply: reply], ids=["another", "the same"])
def test_two_replies_to_one_request_are_both_rejected(extra: Callable[[bytes], bytes]) -> None:
    """The call counts as lost."""
    with RawServer(with_each_reply(extra)) as server, pytest.raises(TransientError, match="another request") as caught:
        one_call_to(server.base_url)
    assert caught.value.cost_unknown


def test_reply_before_the_end_of_the_request_is_rejected() -> None:
    """A server cannot answer an unread request, so the reply belongs to another call."""

    def script(connection: Connection) -> None:
        connection.read_head()
        connection.send(STRAY)
        time.sleep(0.2)
        connection.sock.recv(2**20)

    with RawServer(script) as server, pytest.raises(TransientError):
        one_call_to(server.base_url, "x" * 2**25)


def test_early_refusal_of_a_large_request_is_read() -> None:
    """A server may refuse it by its headers and close the connection; further writes do not lose the refusal."""

    def script(connection: Connection) -> None:
        connection.read_head()
        connection.send(http_reply(b"{}", "Connection: close", status="413 Content Too Large"))

    with RawServer(script) as server, pytest.raises(RefusedError, match="413"):
        one_call_to(server.base_url, "x" * 2**23)


def test_interim_replies_are_skipped() -> None:
    """Status 1xx before the real reply."""

    def script(connection: Connection) -> None:
        while (body := connection.read_request()) is not None:
            connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 3 + answer_to(body))

    with RawServer(script) as server:
        answers = ask_rows(server)
    assert answers == [f"row {number}" for number in range(40)]
    assert server.connections < 40


@pytest.mark.parametrize("echo", ["header", "id"])
def test_echoed_request_id_of_another_call_is_rejected(echo: str) -> None:
    """Each call has an id; a reply that repeats another call's id belongs to that call."""
    names: list[str] = []

    def script(connection: Connection) -> None:
        head = connection.read_head() or b""
        names.append(head.lower().partition(b"x-request-id: ")[2].split(b"\r\n")[0].decode())
        name = names[0]
        body = completion('{"answer":"x"}', **({"id": f"chatcmpl-{name}"} if echo == "id" else {}))
        connection.send(http_reply(body, *([f"x-request-id: {name}"] if echo == "header" else [])))
        connection.sock.recv(2**16)

    with RawServer(script) as server:
        answers = ask_rows(server, 2, max_concurrency=1)
    assert answers == ["x", None]
    assert len(set(names)) == len(names) > 2  # asked again, each time with a new id


def test_reply_to_another_batch_is_rejected() -> None:
    """If a gateway shifts replies by one call, their ids belong to no row that was sent."""
    lock, last = threading.Lock(), [http_reply(completion('{"answers":[]}'))]

    def script(connection: Connection) -> None:
        while (body := connection.read_request()) is not None:
            if not body["messages"][-1]["content"].startswith("["):
                connection.send(http_reply(b"{}", status="400 Bad Request"))
                continue
            with lock:
                connection.send(last[-1])
                last.append(answer_to(body))

    with RawServer(script) as server:
        answers = ask_rows(server, 100, batch_size=20)
    assert never_mixed(answers, 100)


@pytest.mark.parametrize("name", STRATEGIES)
def test_random_ids_cost_no_extra_tokens(name: str) -> None:
    """Three digits are one token; ids are new in each call, and the fixed part is the same."""
    asked = task(PROMPT, {"answer": "string"})
    items = tuple(Item(b"", "", {"text": f"row {number}"}) for number in range(40))
    strategy, rng = STRATEGIES[name], random.Random(7)
    drawn = [draw_ids(40, rng) for _ in range(50)]
    calls = [strategy.encode(Batch(items, ids=ids), asked) for ids in ((), *drawn)]
    for model in ("openai/gpt-4o", "openai/gpt-4"):
        count = counter(model, cautious=False)
        counted, *others = [count(call.messages[-1].content) for call in calls]
        assert max(others) <= counted
    assert len({call.messages[:-1] for call in calls}) == 1
    assert len(set(drawn)) == 50
    assert max(len({*one} & {*other}) for one, other in pairwise(drawn)) < 20


@given(count=st.integers(2, 3000), seed=st.integers())
def test_ids_are_distinct_and_differ_from_the_example(count: int, seed: int) -> None:
    """Distinct numbers of at least three digits in ascending order, none of them the example's."""
    ids = draw_ids(count, random.Random(seed))
    assert sorted(set(ids)) == list(ids)
    assert len(ids) == count
    assert ids[0] > 100


# -- resending ------------------------------------------------------------------------------------------------------


def closing_after_each(pause_s: float) -> Callable[[Connection], None]:
    """A server that answers once and then closes without announcing it."""

    def script(connection: Connection) -> None:
        body = connection.read_request()
        if body is not None:
            connection.send(answer_to(body))
            time.sleep(pause_s)

    return script


@pytest.mark.parametrize("pause_s", [0.0, 0.001, 0.01])
def test_closed_idle_connection_costs_at_most_one_call(pause_s: float) -> None:
    """After the first unannounced close its connections are no longer reused."""
    with RawServer(closing_after_each(pause_s)) as server:
        model = ModelSpec("openai_compatible/m", base_url=server.base_url, timeout_s=5)
        report = enrich_sync(
            texts(30), prompt=PROMPT, output={"answer": "string"}, model=model, options=options(max_concurrency=1)
        )
    assert report.column("answer") == [f"row {number}" for number in range(30)]
    assert report.spend.unknown <= 1
    assert report.spend.calls == 30 + report.spend.unknown


@pytest.mark.parametrize("reset", [False, True], ids=["end of stream", "reset"])
def test_request_that_was_read_is_not_resent(*, reset: bool) -> None:
    """A server that reads and drops a request may have charged it: the call has an unknown cost."""
    read: list[Any] = []

    def script(connection: Connection) -> None:
        connection.send(answer_to(connection.read_request()))
        if (body := connection.read_request()) is not None:
            read.append(body)
        if reset:
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with RawServer(script) as server:
        model = ModelSpec("openai_compatible/m", base_url=server.base_url, timeout_s=5)
        report = enrich_sync(
            texts(9), prompt=PROMPT, output={"answer": "string"}, model=model, options=options(max_concurrency=1)
        )
    assert report.spend.unknown == len(read) > 0
