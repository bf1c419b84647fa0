"""What came of one request of a batch job, read and classified as a live reply is.

Errors of a row are told by their status and codes alone: the request is not at hand, so words that may quote its text
cannot be blotted out.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import orjson

from ondine_core.errors import ProviderError, RefusedError, TransientError
from ondine_core.providers.http import decode
from ondine_core.providers.http_errors import Address, Response, turned_away, unreadable
from ondine_core.providers.job_api import JobReply
from ondine_core.providers.jobs.job_http import ResultLine
from ondine_core.providers.reply_body import check_parsable
from ondine_core.types.values import Reply

__all__ = ["Read", "read_reply", "read_row"]

Read = Callable[[Mapping[str, Any]], Reply]
"""Takes the reply out of the body of a live response."""

_OK = 200
_ID = re.compile(rb'"(?:custom_id|key)"\s*:\s*"([\w-]{1,64})"')


def read_row(line: ResultLine, read: Callable[[Mapping[str, Any]], JobReply]) -> JobReply:
    """What a line of results says; one that cannot be read is a reply that was lost, and may be billed.

    Args:
        line: The line.
        read: Reads it once it is decoded.
    """
    try:
        if line.is_whole:
            check_parsable(line.content)
            return read(decode(line.content))
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError, TransientError):
        pass
    named = _ID.search(line.content)
    what = "cannot be read" if line.is_whole else "is larger than any answer to this call can be"
    lost = TransientError(f"A line of the results of a batch job {what}.", cost_unknown=True)
    return JobReply(named[1].decode() if named else "", lost)


def read_reply(status: int, body: Any, read: Read, to: Address) -> Reply | ProviderError:
    """The reply in the body of a row's response, or why there is none.

    Args:
        status: Of the row's response.
        body: Its body, decoded.
        read: Takes the reply out of it.
        to: Who was asked.
    """
    if status != _OK:
        return turned_away(_response(status, body), None, (), to)
    try:
        return replace(read(body), tier=None)  # whatever tier it names, it is billed as part of a job
    except RefusedError as error:
        error.tier = None
        return error
    except ProviderError as error:
        return error
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError):
        return unreadable(_response(status, body), None, (), to)


def _response(status: int, body: Any) -> Response:
    return Response(status, {}, body.encode() if isinstance(body, str) else orjson.dumps(body), time.time())
