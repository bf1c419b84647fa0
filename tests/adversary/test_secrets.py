"""API keys are sent to the provider, with the request, and nowhere else."""

from __future__ import annotations

import importlib
import os
import pkgutil
import threading
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from typing import Any

import pytest

from ondine_core import ConfigError, FatalError, ModelSpec, ProviderError, TransientError, providers
from ondine_core.providers import connect
from ondine_core.providers.http_client import proxy_for
from tests.support.asking import one_call, one_call_to
from tests.support.raw_server import Connection, RawServer

KEY = "sk-1234567890-secret"


def asked_through_proxy(
    monkeypatch: pytest.MonkeyPatch, spec: ModelSpec, user: str = "", scheme: str = "http://"
) -> tuple[bytes, ProviderError]:
    """What a proxy reads in clear text during a call through it, and the result of the call."""
    read: list[bytes] = []

    def script(connection: Connection) -> None:
        read.append(connection.read_head() or b"")
        connection.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with RawServer(script) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"{scheme}{user}127.0.0.1:{proxy.port}")
        with pytest.raises(ProviderError) as caught:
            one_call(connect(spec))
    return b"\r\n\r\n".join(read), caught.value


SPECS = {
    "openai": ModelSpec("openai/gpt-4o-mini", api_key=KEY),
    "compatible": ModelSpec("openai_compatible/m", api_key=KEY, base_url="https://models.example.com/v1"),
    "azure key": ModelSpec("azure/m", api_key=KEY, base_url="https://me.openai.azure.com"),
    "azure token": ModelSpec("azure/m", base_url="https://me.openai.azure.com", settings={"ad_token": KEY}),
    "anthropic": ModelSpec("anthropic/claude-3-5-haiku-latest", api_key=KEY),
    "mistral": ModelSpec("mistral/mistral-small-latest", api_key=KEY),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("user", ["", "me:hunter2@"], ids=["no credentials", "credentials"])
def test_proxy_does_not_get_the_key(monkeypatch: pytest.MonkeyPatch, spec: ModelSpec, user: str) -> None:
    """The clear-text CONNECT has the host and the proxy's credentials if any, but neither key nor prompt."""
    read, failure = asked_through_proxy(monkeypatch, spec, user)
    assert read.startswith(b"CONNECT ")
    assert KEY.encode() not in read
    assert b"hello" not in read
    assert (b"Proxy-Authorization: Basic" in read) == bool(user)
    assert b"\r\nauthorization:" not in read.lower()
    assert b"api-key" not in read.lower()
    assert not any(secret in str(failure) + repr(failure) for secret in (KEY, "hunter2"))


def test_refusal_by_a_proxy_is_an_error_of_the_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so and where to look, and costs nothing."""
    _, failure = asked_through_proxy(monkeypatch, SPECS["compatible"])
    assert isinstance(failure, FatalError)
    assert "The proxy replied 403" in str(failure)
    assert "HTTPS_PROXY" in str(failure)


def test_proxy_may_be_named_without_a_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken for an HTTP proxy, as curl does."""
    read, _ = asked_through_proxy(monkeypatch, SPECS["compatible"], scheme="")
    assert read.startswith(b"CONNECT ")


def test_proxy_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A SOCKS proxy is named as the reason, rather than waited for as if the server were down."""
    monkeypatch.setenv("https_proxy", "socks5://me:hunter2@127.0.0.1:1080")
    with pytest.raises(ConfigError, match="speaks 'socks5', which is not supported; set HTTPS_PROXY") as refused:
        connect(SPECS["compatible"])
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("name", ["fd00::1", "[fd00::1]", "[fd00::1]:8000"])
def test_no_proxy_may_name_an_ipv6_address(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without the brackets that it has in a URL."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", name)
    assert proxy_for("http://[fd00::1]:8000/v1") is None
    assert proxy_for("http://[fd00::2]:8000/v1") == "http://127.0.0.1:9"


def test_no_proxy_may_name_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that is excepted with its port is reached directly."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.2:8")
    with pytest.raises(TransientError, match=r"Cannot connect to '127\.0\.0\.2:8'"):
        one_call_to("http://127.0.0.2:8/v1")
    with pytest.raises(TransientError, match=r"Cannot connect to the proxy on the way to '127\.0\.0\.2:9'"):
        one_call_to("http://127.0.0.2:9/v1")


@pytest.mark.parametrize("key", [f"{KEY}\n{KEY}", f"{KEY}\r\nX-Evil: 1", f"{KEY}\0", f"{KEY}\u2028x", f"k\u00e9{KEY}"])
@pytest.mark.parametrize(
    "spec",
    [
        lambda key: ModelSpec("openai_compatible/m", api_key=key, base_url="http://127.0.0.1:9/v1"),
        lambda key: ModelSpec("azure/m", api_key=key, base_url="http://127.0.0.1:9"),
        lambda key: ModelSpec("azure/m", base_url="http://127.0.0.1:9", settings={"ad_token": key}),
        lambda key: ModelSpec("anthropic/claude-3-5-haiku-latest", api_key=key),
    ],
    ids=["openai", "azure key", "azure token", "litellm"],
)
def test_key_invalid_in_a_header_is_refused_without_being_shown(key: str, spec: Any) -> None:
    """A line end or a non-ASCII character is an error before any call, which gives its position only."""
    with pytest.raises(ConfigError, match="at position") as refused:
        connect(spec(key))
    assert KEY not in str(refused.value)
    assert KEY[:8] not in str(refused.value)


def test_cookies_of_the_provider_are_not_sent_back() -> None:
    """Calls have only the key in common."""
    heads: list[bytes] = []

    def script(connection: Connection) -> None:
        while (head := connection.read_head()) is not None:
            heads.append(head)
            connection.read_body(head)
            connection.send(b"HTTP/1.1 500 Oops\r\nSet-Cookie: id=1; Path=/\r\nContent-Length: 0\r\n\r\n")

    with RawServer(script) as server:
        for _ in range(2):
            with pytest.raises(TransientError):
                one_call_to(server.base_url)
    assert len(heads) == 2
    assert not any(b"cookie" in head.lower() for head in heads)


def test_hanging_look_up_ends_with_the_time_out() -> None:
    """And its thread does not keep the process alive."""
    from ondine_core.providers.http import HttpModel
    from ondine_core.providers.http_client import Endpoint
    from ondine_core.providers.openai_http import chat_reply

    asked, never = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> list[Any]:
        asked.set()
        never.wait()
        return []

    model = HttpModel(Endpoint("http://models.invalid/v1", 0.2, resolve=hang), lambda _: b"{}", chat_reply)
    with pytest.raises(TransientError) as caught:
        one_call(model)
    assert asked.is_set()
    assert not caught.value.cost_unknown
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "ondine-resolver")
    never.set()


def test_no_dataclass_of_a_provider_shows_a_key_in_its_repr() -> None:
    """A field that is named after a key or a token is left out of the repr, also that of the server in this process."""
    names = [module.name for module in pkgutil.walk_packages(providers.__path__, f"{providers.__name__}.")]
    modules = [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    classes = {kind for module in modules for kind in vars(module).values() if isinstance(kind, type)}
    fields = [(kind, field) for kind in classes if is_dataclass(kind) for field in dataclass_fields(kind)]
    secret = [(kind.__name__, field.repr) for kind, field in fields if field.name in ("api_key", "token", "secrets")]
    assert len(secret) >= 5
    assert {shown for _, shown in secret} == {False}, secret
