"""Replies larger than any answer lose only their call; neither memory nor the run suffers."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain, repeat
from time import sleep

import pytest

from ondine_core import TransientError
from ondine_core.providers.reply_body import MAX_REPLY_BYTES, decompress
from tests.support.asking import one_call_to
from tests.support.raw_server import Connection, RawServer, completion, http_reply

MIB = 2**20
_CHILD = """
import asyncio, json, resource, sys
from ondine_core import Call, ModelSpec, TransientError
from ondine_core.providers import connect
from ondine_core.types.values import Message

async def main():
    model = connect(ModelSpec(sys.argv[2], base_url=sys.argv[1], api_key="none", timeout_s=60))
    call = Call((Message("user", "hello"),))
    await model(call)  # the first reply is an ordinary one: all is loaded
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        await model(call)
        end = "answered"
    except Exception as error:
        end = f"{type(error).__name__}, cost unknown: {getattr(error, 'cost_unknown', False)}: {error}"
    await model.aclose()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([end, (peak - before) / 1024]))

asyncio.run(main())
"""


def plain(status: str, *headers: str) -> bytes:
    return "\r\n".join((f"HTTP/1.1 {status}", "Content-Type: application/json", *headers)).encode() + b"\r\n\r\n"


def endless_body() -> Iterator[bytes]:
    return chain([plain("200 OK")], repeat(b"x" * MIB))


def endless_whitespace_in_chunks() -> Iterator[bytes]:
    chunk = b"%x\r\n" % MIB + b" " * MIB + b"\r\n"
    return chain([plain("200 OK", "Transfer-Encoding: chunked")], repeat(chunk))


def tiny_chunks() -> Iterator[bytes]:
    return chain([plain("200 OK", "Transfer-Encoding: chunked")], repeat(b"1\r\n \r\n" * 10_000))


def large_body() -> Iterator[bytes]:
    size = 600 * MIB
    return chain([plain("200 OK", f"Content-Length: {size}")], repeat(b" " * MIB, 600))


def large_error() -> Iterator[bytes]:
    return chain([plain("500 Oops", f"Content-Length: {600 * MIB}")], repeat(b"<p>" * (MIB // 3), 1800))


def endless_headers() -> Iterator[bytes]:
    return chain([b"HTTP/1.1 200 OK\r\n"], (b"".join(b"x-%d: 1\r\n" % n for n in range(5_000)) for _ in repeat(0)))


def endless_header() -> Iterator[bytes]:
    return chain([b"HTTP/1.1 200 OK\r\nx: "], repeat(b"y" * MIB))


def endless_interim_replies() -> Iterator[bytes]:
    return repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000)


def endless_trailers() -> Iterator[bytes]:
    return chain([plain("200 OK", "Transfer-Encoding: chunked") + b"0\r\n"], repeat(b"x: y\r\n" * 10_000))


def many_values() -> Iterator[bytes]:
    """As Python objects these are twenty times as large."""
    return iter([http_reply(b"[" + b"[]," * (MIB // 1) + b"[]]")])


@cache
def zeros(wbits: int) -> bytes:
    """About two MiB that decompress to half a GiB."""
    packer = zlib.compressobj(1, wbits=wbits)
    return b"".join([*(packer.compress(bytes(16 * MIB)) for _ in range(32)), packer.flush()])


def bomb() -> Iterator[bytes]:
    return iter([http_reply(zeros(31), "Content-Encoding: gzip")])


def nested_bomb() -> Iterator[bytes]:
    return iter([http_reply(gzip.compress(zeros(31)), "Content-Encoding: gzip, gzip")])


def deflate_bomb() -> Iterator[bytes]:
    return iter([http_reply(zeros(-15), "Content-Encoding: deflate")])


def brotli_that_was_not_asked_for() -> Iterator[bytes]:
    return iter([http_reply(b"\x00" * 100, "Content-Encoding: br")])


CLAUDE = json.dumps(
    {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
        "content": [{"type": "text", "text": "fine"}], "usage": {"input_tokens": 5, "output_tokens": 5},
    }
).encode()  # fmt: skip

HOSTILE = [
    endless_body, endless_whitespace_in_chunks, tiny_chunks, large_body, large_error, endless_headers, endless_header,
    endless_interim_replies, endless_trailers, many_values, bomb, nested_bomb, deflate_bomb,
    brotli_that_was_not_asked_for,
]  # fmt: skip


def ask_in_a_process(
    model: str, reply: Callable[[], Iterator[bytes]], fine: bytes = completion("fine")
) -> tuple[str, float]:
    """How the call ended, and by how many MiB its process's memory grew at most."""
    served: list[int] = []

    def script(connection: Connection) -> None:
        while (_ := connection.read_request()) is not None:
            served.append(1)
            for data in [http_reply(fine)] if len(served) == 1 else reply():
                connection.send(data)

    with RawServer(script) as server:
        command = [sys.executable, "-c", _CHILD, server.base_url, model]
        ended = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    end, grown = json.loads(ended.stdout)
    return end, grown


@pytest.mark.parametrize("reply", HOSTILE, ids=lambda reply: reply.__name__)
def test_a_hostile_reply_costs_its_call_and_little_memory(reply: Callable[[], Iterator[bytes]]) -> None:
    """An endless reply or a decompression bomb ends its call at an unknown cost, within 64 MiB."""
    end, grown = ask_in_a_process("openai_compatible/m", reply)
    assert end.startswith("TransientError, cost unknown: True"), end
    assert grown <= 64, (end, grown)


@pytest.mark.slow
@pytest.mark.parametrize("reply", [endless_body, bomb], ids=lambda reply: reply.__name__)
def test_hostile_reply_through_litellm_costs_its_call_only(reply: Callable[[], Iterator[bytes]]) -> None:
    """The same for the dialects of litellm."""
    end, grown = ask_in_a_process("anthropic/claude-3-5-haiku-latest", reply, CLAUDE)
    assert "cost unknown: True" in end, end
    assert grown <= 64, (end, grown)


@pytest.mark.parametrize(
    "encoding", ["gzip", "x-gzip", "deflate", "deflate without header", "gzip, deflate", "identity", "UTF-8"]
)
def test_a_compressed_reply_is_read(encoding: str) -> None:
    """Although the request did not allow compression."""
    body = completion("hello")
    for name in encoding.split(", "):
        packer = zlib.compressobj(wbits={"gzip": 31, "x-gzip": 31, "deflate": 15}.get(name, -15))
        body = body if name in ("identity", "UTF-8") else packer.compress(body) + packer.flush()
    header = f"Content-Encoding: {encoding.partition(' without')[0]}"

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(http_reply(body, header))

    with RawServer(script) as server:
        assert one_call_to(server.base_url).text == "hello"


def test_gzip_of_several_members_is_read_whole() -> None:
    """Servers that compress each piece by itself send one member after another."""
    body = completion("hello")

    def script(connection: Connection) -> None:
        connection.read_request()
        packed = b"".join(gzip.compress(piece) for piece in (body[:9], b"", body[9:]))
        connection.send(http_reply(packed, "Content-Encoding: gzip"))

    with RawServer(script) as server:
        assert one_call_to(server.base_url).text == "hello"


def test_gzip_of_countless_members_is_refused_at_once() -> None:
    """The event loop would stand still for many seconds."""
    with pytest.raises(TransientError, match="cannot be decompressed"):
        decompress(gzip.compress(b"") * 200_000, "gzip", MAX_REPLY_BYTES)


@pytest.mark.parametrize("body", [b"", b"\x1f\x8b", gzip.compress(completion("hello"))[:-9], b"\x78\x9c\x00"])
def test_a_damaged_compressed_reply_is_lost(body: bytes) -> None:
    """Like any other lost reply."""

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(http_reply(body, "Content-Encoding: gzip"))

    with RawServer(script) as server, pytest.raises(TransientError) as caught:
        one_call_to(server.base_url)
    assert caught.value.cost_unknown


@pytest.mark.parametrize("reply", [b"SSH-2.0-OpenSSH_9.6\r\n", b"\x15\x03\x01\x00\x02\x02\x46"], ids=["SSH", "TLS"])
def test_bytes_that_are_not_http_are_named_so(reply: bytes) -> None:
    """The usual cause is an address with another port or with http instead of https."""

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(reply)

    with RawServer(script) as server, pytest.raises(TransientError, match=r"not HTTP .* http or https") as caught:
        one_call_to(server.base_url)
    assert caught.value.cost_unknown


@pytest.mark.parametrize("rest", [b"0\r\n" + b"x: y\r\n" * 10_000, b"no number\r\n"], ids=["trailers", "chunk size"])
def test_invalid_http_after_the_headers_is_a_lost_reply(rest: bytes) -> None:
    """Its cost is unknown."""

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(plain("200 OK", "Transfer-Encoding: chunked"))
        sleep(0.1)  # so that the client has the headers on their own
        connection.send(rest)
        connection.read_head()

    with RawServer(script) as server, pytest.raises(TransientError) as caught:
        one_call_to(server.base_url)
    assert caught.value.cost_unknown


def test_reply_size_bound_follows_from_max_output_tokens() -> None:
    """A model that may write 100 tokens does not reply with two MiB."""

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(http_reply(completion("x" * 2 * MIB)))

    with RawServer(script) as server:
        assert len(one_call_to(server.base_url).text) == 2 * MIB
        with pytest.raises(TransientError, match="larger than any answer"):
            one_call_to(server.base_url, max_output_tokens=100)
