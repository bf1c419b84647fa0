"""Bounds the size of a reply, decompresses it, and decodes its JSON.

A reply that is a hundred times too large must fail its call and not exhaust the memory of the run. So its size is
bounded on the wire, after decompression, and as Python objects.
"""

from __future__ import annotations

import json
import re
import zlib
from typing import Any

import orjson

from ondine_core.errors import TransientError

SUCCESSES = range(200, 300)
"""Statuses with a reply to a call: some servers send 201, and some gateways 202 or 203."""
MAX_REPLY_BYTES = 4 * 2**20
"""The largest reply that is read: a text of 4 MiB takes up to 16 MiB as a Python string, and is copied a few times."""
_BYTES_BESIDES = 2**20
_BYTES_A_TOKEN = 4096
"""Including log probabilities of the likeliest alternatives to a token, which a request may ask for."""
_MAX_PARSED_BYTES = 32 * 2**20
_BYTES_A_VALUE = 64
_SMALL = 2**18
_CHARSET = re.compile(
    r"""charset\s*=\s*["']?((?:latin|iso|windows|cp|koi8|gb|big5|euc|shift|utf-?16|utf-?32)[\w.:-]*)""", re.IGNORECASE
)
"""Charsets of which decoding takes quadratic time, such as punycode, are left out."""
_GZIP = b"\x1f\x8b"
_MAX_MEMBERS = 256
"""The rest is copied after each member, which takes seconds for a hundred thousand empty ones."""
_GZIP_OR_ZLIB = 47
_NO_ENCODINGS = frozenset({"", "identity", "none", "utf-8", "utf8"})
"""Including what servers write that take the header for that of the charset."""
_RAW_DEFLATE = -15


def max_reply_bytes(max_output_tokens: int | None) -> int:
    """A generous bound on the bytes of a reply with at most `max_output_tokens` tokens."""
    if max_output_tokens is None:
        return MAX_REPLY_BYTES
    return min(MAX_REPLY_BYTES, _BYTES_BESIDES + _BYTES_A_TOKEN * max_output_tokens)


def unpack(status: int, content: bytes, encoding: str, max_bytes: int) -> bytes:
    """The content of a response without its encodings; empty if that of a refusal is unusable, as it costs nothing.

    Raises:
        TransientError: The content of a success is unusable: damaged, too large, or encoded as was not asked for.
    """
    try:
        unpacked = decompress(content, encoding, max_bytes)
        check_parsable(unpacked)
    except TransientError:
        if status in SUCCESSES:
            raise
        return b""
    return unpacked


def decompress(content: bytes, encoding: str, max_bytes: int) -> bytes:
    """`content` without the encodings of a `Content-Encoding` header.

    Raises:
        TransientError: It is larger than `max_bytes`, damaged, or encoded in a way that was not asked for.
    """
    for name in reversed([part.strip().lower() for part in encoding.split(",")]):
        if name in _NO_ENCODINGS:
            continue
        if name not in ("gzip", "x-gzip", "deflate"):
            raise _unusable(f"is encoded as {name[:20]!r}, which was not asked for")
        try:
            content = _inflate(content, max_bytes)
        except zlib.error:
            raise _unusable("cannot be decompressed") from None
        if len(content) > max_bytes:
            raise too_large()
    return content


def _inflate(content: bytes, max_bytes: int) -> bytes:
    """Decompress gzip, zlib or raw deflate; returns at most one byte more than `max_bytes`.

    gzip may have several members, one after another (RFC 1952, 2.2).
    """
    is_zlib = content[:1] == b"\x78" and int.from_bytes(content[:2], "big") % 31 == 0
    is_wrapped = content.startswith(_GZIP) or is_zlib
    inflated = b""
    for _ in range(_MAX_MEMBERS):
        stream = zlib.decompressobj(_GZIP_OR_ZLIB if is_wrapped else _RAW_DEFLATE)
        inflated += stream.decompress(content, max_bytes + 1 - len(inflated))
        if len(inflated) > max_bytes:
            return inflated
        if not stream.eof:
            raise zlib.error("incomplete")
        content = stream.unused_data
        if not content.startswith(_GZIP):
            return inflated
    raise zlib.error("too many members")


def check_parsable(content: bytes) -> None:
    """Refuse JSON that would be many times its size as Python objects."""
    if len(content) <= _SMALL:
        return
    values = sum(map(content.count, (b"[", b"{", b",", b":")))
    if 2 * len(content) + _BYTES_A_VALUE * values > _MAX_PARSED_BYTES:
        raise too_large()


def decode(content: bytes, content_type: str = "") -> Any:
    """Parse a body as JSON in UTF-8, else in the charset that its `content_type` declares.

    NaN and Infinity are accepted, since some servers write them for figures.
    """
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(content)
    except UnicodeDecodeError:
        declared = _CHARSET.search(content_type)
        if declared is None:
            raise
        return json.loads(content.decode(declared[1]))


def decode_text(content: bytes, content_type: str) -> str:
    """Decode a body as text in UTF-8, else in the charset that its `content_type` declares; replace invalid bytes."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        declared = _CHARSET.search(content_type)
    try:
        return content.decode(declared[1] if declared else "utf-8", "replace")
    except LookupError:
        return content.decode("utf-8", "replace")


def too_large() -> TransientError:
    """The error of a call whose reply is too large."""
    return _unusable("is larger than any answer to this call can be, and was not read to its end")


def _unusable(what: str) -> TransientError:
    return TransientError(f"The provider's reply {what}.", cost_unknown=True)
