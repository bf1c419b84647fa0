"""Fetches the addresses in cells, from the public internet only.

A cell may name any address, also one of the local network. So all IP addresses of a host name are checked, the
connection goes to one that was checked (a name that resolves to another address a moment later changes nothing), and
each redirect is checked in the same way. Fetched files are kept in a temporary folder until their calls are sent, and
removed when the process ends.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from tempfile import mkstemp
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from ondine_core.preprocessing.media.media_options import MediaOptions
from ondine_core.preprocessing.media.media_reader import MediaReader, is_url
from ondine_core.types.media import MediaError

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

_AT_ONCE = 16
_MAX_REDIRECTS = 5
_CHUNK = 2**16
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_OK = 200
_NAT64 = IPv6Network("64:ff9b::/96")

IsAllowed = Callable[[str], bool]
Resolve = Callable[..., list[Any]]


def is_public(address: str) -> bool:
    """Whether an IP address, and an IPv4 address embedded in it, belongs to the public internet."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            embedded = IPv4Address(ip.packed[-4:])
        if embedded is not None:
            return is_public(str(embedded))
    return ip.is_global and not ip.is_multicast


async def fetch_cells(reader: MediaReader, columns: Iterable[Iterable[Any]]) -> None:
    """Fetch every address in the cells of some columns; a failed fetch is reported when its row is read."""
    if not reader.options.fetch:
        return
    urls = dict.fromkeys(url for cells in columns for url in _urls(cells))
    if not urls:
        return
    is_allowed: IsAllowed = (lambda _: True) if reader.options.allow_private else is_public
    results = await fetch(iter(urls), reader.options, reader.folder, is_allowed)
    for url, result in results.items():
        old = reader.fetched.get(url)
        if isinstance(old, Path):
            old.unlink(missing_ok=True)
        reader.fetched[url] = result


def _urls(cells: Iterable[Any]) -> Iterator[str]:
    for cell in cells:
        for value in cell if isinstance(cell, list | tuple) else (cell,):
            if isinstance(value, str) and is_url(value):
                yield value.strip()


async def fetch(
    urls: Iterator[str],
    options: MediaOptions,
    folder: Path,
    is_allowed: IsAllowed,
    resolve: Resolve = socket.getaddrinfo,
) -> dict[str, Path | MediaError]:
    """Fetch addresses into files, some at a time; returns the file of each address, or the error.

    `is_allowed` says whether an IP address may be connected to; `resolve` looks host names up, and may block.
    """
    import aiohttp

    from ondine_core.providers.http_connection import Resolver

    def resolve_checked(*host: Any, **options: Any) -> list[Any]:
        addresses = resolve(*host, **options)
        if not all(is_allowed(address[0]) for *_, address in addresses):
            raise _NotAllowedError
        return addresses

    results: dict[str, Path | MediaError] = {}
    connector = aiohttp.TCPConnector(resolver=Resolver(resolve_checked), use_dns_cache=False, limit=_AT_ONCE)
    timeout = aiohttp.ClientTimeout(total=options.timeout_s)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), headers={"Accept": "*/*"}
    ) as session:

        async def work() -> None:
            for url in urls:
                try:
                    results[url] = await _fetch_one(session, url, options, folder, is_allowed)
                except MediaError as error:
                    results[url] = error
                except _NotAllowedError:
                    results[url] = MediaError(_NOT_ALLOWED)
                except TimeoutError:
                    results[url] = MediaError(f"its address did not answer within timeout_s={options.timeout_s:g}")
                except (aiohttp.ClientError, OSError, ValueError) as error:
                    is_refused = isinstance(error.__cause__, _NotAllowedError)
                    reason = f"its address cannot be fetched ({type(error).__name__})"
                    results[url] = MediaError(_NOT_ALLOWED if is_refused else reason)

        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(work())
    return results


_NOT_ALLOWED = "its address leads into a private network; MediaOptions(allow_private=True) allows that"


class _NotAllowedError(OSError):
    """An IP address may not be connected to."""


async def _fetch_one(
    session: ClientSession, url: str, options: MediaOptions, folder: Path, is_allowed: IsAllowed
) -> Path:
    for _ in range(_MAX_REDIRECTS + 1):
        _check_url(url, is_allowed)
        async with session.get(url, allow_redirects=False) as response:
            if response.status in _REDIRECTS:
                url = urljoin(url, response.headers.get("Location", ""))
                continue
            if response.status != _OK:
                raise MediaError(f"its address answers with status {response.status}")
            return await _save(response, options.max_bytes, folder)
    raise MediaError(f"its address redirects more than {_MAX_REDIRECTS} times")


def _check_url(url: str, is_allowed: IsAllowed) -> None:
    """Refuse other schemes than http and https, and IP addresses that are not allowed; names are checked at look-up."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise MediaError("its address is neither http nor https")
    with suppress(ValueError):
        if not is_allowed(str(ip_address(parts.hostname))):
            raise _NotAllowedError


async def _save(response: ClientResponse, max_bytes: int, folder: Path) -> Path:
    handle, name = mkstemp(dir=folder)
    size = 0
    try:
        with os.fdopen(handle, "wb") as file:
            async for chunk in response.content.iter_chunked(_CHUNK):
                size += len(chunk)
                if size > max_bytes:
                    raise MediaError(f"it has more than max_bytes={max_bytes:,} bytes")
                file.write(chunk)
    except BaseException:
        os.unlink(name)  # noqa: PTH108  (pathlib is refused in a coroutine)
        raise
    return Path(name)
