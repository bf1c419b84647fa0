"""Addresses of media in cells: passed on, or fetched from the public internet only."""

from __future__ import annotations

import asyncio
import gzip
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ondine_core import MediaOptions, ModelSpec, Options, Prompt, Report, enrich_sync
from ondine_core.preprocessing.media.fetching import fetch, is_public
from ondine_core.types.media import MediaError
from tests.support.anthropic_provider import AnthropicProvider
from tests.support.pictures import document, picture
from tests.support.provider import Provider

LARGE = bytes(3_000_000)


class Site:
    """A web site on 127.0.0.1 and 127.0.0.2, with the number of requests for each page."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked: Counter[str] = Counter()
        self.pages: dict[str, tuple[int, dict[str, str], bytes]] = {
            "/p.png": (200, {}, picture(1)),
            "/same.png": (200, {"Content-Type": "text/html"}, picture(1)),
            "/other.png": (200, {}, picture(2)),
            "/x.pdf": (200, {}, document("hello")),
            "/gone": (404, {}, b"no"),
            "/large": (200, {}, LARGE),
            "/zip": (200, {"Content-Encoding": "gzip"}, gzip.compress(LARGE)),
            "/here": (302, {"Location": "/p.png"}, b""),
            "/inside": (302, {"Location": f"http://127.0.0.2:{port}/p.png"}, b""),
            "/named": (307, {"Location": f"http://inside.test:{port}/p.png"}, b""),
            "/file": (302, {"Location": "file:///etc/passwd"}, b""),
            "/loop": (302, {"Location": "/loop"}, b""),
        }

    def url(self, page: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{page}"


@contextmanager
def site() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked[self.path] += 1
            if self.path == "/slow":
                threading.Event().wait(3)
            status, headers, body = found.pages.get(self.path, (404, {}, b""))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(body)
            except OSError:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Nothing is written."""

    server = ThreadingHTTPServer(("0.0.0.0", 0), Handler)  # noqa: S104  (for 127.0.0.2)
    server.daemon_threads = True
    found = Site(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(cells: list[Any], provider: Provider, text: str = "See {photo:image}", **media: Any) -> Report:
    prompt = Prompt(text, media=MediaOptions(**media))
    is_anthropic = isinstance(provider, AnthropicProvider)
    model = "anthropic/claude-sonnet-4-5" if is_anthropic else "openai/gpt-4o-mini"
    spec = ModelSpec(model, api_key="k", base_url=provider.address if is_anthropic else provider.base_url)
    return enrich_sync({"photo": cells}, prompt=prompt, output="a", model=spec, options=Options(progress_bar=False))


def get(
    url: str,
    folder: Path,
    is_allowed: Callable[[str], bool] = lambda address: address == "127.0.0.1",
    resolve: Callable[..., Any] = socket.getaddrinfo,
    **options: Any,
) -> bytes | str:
    """The content of an address, or why it is not fetched."""
    chosen = MediaOptions(fetch=True, **options)
    found = asyncio.run(fetch(iter([url]), chosen, folder, is_allowed, resolve))[url]
    if isinstance(found, MediaError):
        assert list(folder.iterdir()) == []
        return str(found)
    return found.read_bytes()


# -- passed on -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Provider, AnthropicProvider])
def test_address_is_passed_to_the_provider(kind: type[Provider]) -> None:
    """The provider fetches it, this process does not; the same address is asked once."""
    with site() as pages, kind() as provider:
        ask([pages.url("/p.png"), f" {pages.url('/p.png')} "], provider)
        assert not pages.asked
        (asked,) = provider.ledger.requests
    assert [media.url for media in asked.media] == [pages.url("/p.png")]


def test_document_addresses_are_passed_to_providers_that_fetch_them() -> None:
    """Anthropic fetches them; for OpenAI they are fetched here."""
    url = "https://example.org/x.pdf"
    with AnthropicProvider() as provider:
        ask([url], provider, "See {photo:document}")
        assert [media.url for media in provider.ledger.requests[0].media] == [url]
    with Provider() as provider:
        report = ask([url], provider, "See {photo:document}")
        assert "set fetch=True" in str(report.outcomes[0])


# -- fetched -------------------------------------------------------------------------------------------------------


def test_fetched_media_are_keyed_by_content() -> None:
    """Two addresses of one picture are one prompt; each address is fetched once."""
    with site() as pages, Provider() as provider:
        urls = [pages.url(page) for page in ("/p.png", "/same.png", "/p.png", "/other.png", "/here")]
        report = ask(urls, provider, fetch=True, allow_private=True)
        sent = [media.content for asked in provider.ledger.requests for media in asked.media]
        assert pages.asked == Counter({"/p.png": 2, "/same.png": 1, "/other.png": 1, "/here": 1})
    assert sorted(sent) == sorted([picture(1), picture(2)])
    assert report.failures == {}


def test_failed_fetch_fails_its_row_alone() -> None:
    """With a reason."""
    with site() as pages, Provider() as provider:
        cells = [pages.url("/p.png"), pages.url("/gone"), pages.url("/x.pdf"), "http://127.0.0.1:9/p.png"]
        report = ask(cells, provider, fetch=True, allow_private=True)
    reasons = [str(outcome) for outcome in report.outcomes][1:]
    assert [
        part in one for part, one in zip(("status 404", "application/pdf", "be fetched"), reasons, strict=True)
    ] == [True] * 3


def test_limits_of_fetching(tmp_path: Path) -> None:
    """Bytes (also after decompression), seconds, and redirects are bounded."""
    with site() as pages:
        assert "max_bytes=1,000" in get(pages.url("/large"), tmp_path, max_bytes=1000)
        assert "max_bytes=1,000" in get(pages.url("/zip"), tmp_path, max_bytes=1000)
        assert "timeout_s=0.3" in get(pages.url("/slow"), tmp_path, timeout_s=0.3)
        assert "redirects more than 5" in get(pages.url("/loop"), tmp_path)


# -- private networks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"],  # noqa: S104
)
def test_loopback_is_not_reached(host: str) -> None:
    """By any name."""
    with site() as pages, Provider() as provider:
        report = ask([f"http://{host}:{pages.port}/p.png"], provider, fetch=True, timeout_s=5)
        assert not pages.asked
        assert not provider.ledger.requests
    assert "private network" in str(report.outcomes[0]) or "be fetched" in str(report.outcomes[0])


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        *[
            (address, False)
            for address in (
                *("10.0.0.1", "172.16.3.4", "192.168.1.1", "127.0.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),  # noqa: S104
                *("224.0.0.1", "255.255.255.255", "192.0.2.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1"),
                *("fd00:ec2::254", "ff02::1", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:db8::1"),
            )
        ],
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    """Private networks, cloud metadata services and embedded private addresses are not public."""
    assert is_public(address) is public


def test_redirect_to_a_private_address_is_refused(tmp_path: Path) -> None:
    """By address, by name, and to other schemes."""

    def resolve(host: str, port: int, **_: Any) -> Any:
        return socket.getaddrinfo("127.0.0.2" if host == "inside.test" else host, port, type=socket.SOCK_STREAM)

    with site() as pages:
        assert get(pages.url("/here"), tmp_path) == picture(1)
        pages.asked.clear()
        for path in tmp_path.iterdir():
            path.unlink()
        assert "private network" in get(pages.url("/inside"), tmp_path)
        assert "private network" in get(pages.url("/named"), tmp_path, resolve=resolve)
        assert "neither http nor https" in get(pages.url("/file"), tmp_path)
        assert pages.asked == Counter({"/inside": 1, "/named": 1, "/file": 1})


def test_dns_rebinding_has_no_effect(tmp_path: Path) -> None:
    """The connection goes to the address that was checked, and all addresses of a name must be public."""
    answers = iter([["127.0.0.1"], ["127.0.0.2"], ["127.0.0.1", "127.0.0.2"]])
    asked = []

    def resolve(host: str, port: int, **_: Any) -> Any:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in next(answers)]

    with site() as pages:
        url = pages.url("/p.png", "rebinding.test")
        assert get(url, tmp_path, resolve=resolve) == picture(1)
        assert asked == ["rebinding.test"]
        for path in tmp_path.iterdir():
            path.unlink()
        assert "private network" in get(url, tmp_path, resolve=resolve)
        assert "private network" in get(url, tmp_path, resolve=resolve)
        assert pages.asked == Counter({"/p.png": 1})
