"""Every HTTP client with its loopback provider, for tests that run with each of them."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from gc import collect
from typing import Any
from warnings import catch_warnings, simplefilter

from ondine_core import Call, ChatModel, FatalError, ModelSpec, ProviderError, RefusedError, Reply, TransientError
from ondine_core.prompts.output_schema import compile_schema
from ondine_core.providers import connect
from ondine_core.providers.azure import connect_azure
from ondine_core.providers.litellm import connect_litellm
from ondine_core.types.values import Message
from tests.support.anthropic_provider import AnthropicProvider
from tests.support.asking import one_call
from tests.support.azure_provider import AzureProvider, Credential
from tests.support.openai_description import request_faults
from tests.support.provider import Fault, Provider, cut, cut_body, garbage, slow, slow_body

KEY = "sentinel4f1c.of/no+known-form"
WORDS = "the customer's confidential words"
SCHEMA = compile_schema({"answer": "string"}).json_schema
CALL = Call((Message("system", "Be brief."), Message("user", f"Repeat: {WORDS}")), SCHEMA)


@dataclass(frozen=True)
class Client:
    """A client and its provider.

    Args:
        name: Its name in tests.
        model: The user's name of the model.
        provider: Makes the server.
        address: The server's address, as this client expects it.
        link: Connects the model.
        priced_as: The model whose list price applies.
    """

    name: str
    model: str
    provider: Callable[..., Provider]
    address: Callable[[Any], str]
    link: Callable[[ModelSpec], ChatModel]
    priced_as: str

    def connect(self, address: str, **spec: Any) -> ChatModel:
        """The model behind `address`; litellm's imports are done."""
        if self.name.startswith("litellm"):
            import_litellm()
        return self.link(ModelSpec(self.model, **{"base_url": address, "api_key": KEY, "timeout_s": 20.0, **spec}))

    def ask(self, provider: Provider, call: Call = CALL, **spec: Any) -> Reply:
        """The reply to one call."""
        return one_call(self.connect(self.address(provider), **spec), call=call)


def _link_litellm(spec: ModelSpec) -> ChatModel:
    return connect_litellm(spec, spec.model.partition("/")[2])


def _link_identity(spec: ModelSpec) -> ChatModel:
    return connect_azure(spec, spec.model.partition("/")[2], credential=Credential(secret=KEY))


def _link_by_tool(spec: ModelSpec) -> ChatModel:
    return connect(replace(spec, settings={**spec.settings, "structured_output": "tool"}))


def _base_url(provider: Provider) -> str:
    return provider.base_url


def _address(provider: AnthropicProvider | AzureProvider) -> str:
    return provider.address


class OpenAIProvider(Provider):
    """A provider that at its end validates every request it received by OpenAI's description of its API."""

    def __exit__(self, kind: type[BaseException] | None = None, *raised: object) -> None:
        super().__exit__(kind, *raised)
        if kind is None:
            assert [fault for asked in self.ledger.requests for fault in request_faults(asked.body)] == []


WIRE = Client("openai_http", "openai/small", OpenAIProvider, _base_url, connect, "openai/gpt-4o-mini")
BY_LITELLM = (
    Client(
        "litellm by OpenAI's package", "openai/small", OpenAIProvider, _base_url, _link_litellm, "openai/gpt-4o-mini"
    ),
    Client("litellm by itself", "hosted_vllm/small", OpenAIProvider, _base_url, _link_litellm, "openai/gpt-4o-mini"),
)
_CLAUDE = "anthropic/claude-sonnet-4-5"
CLIENTS = (
    WIRE,
    *BY_LITELLM,
    Client("anthropic_http", _CLAUDE, AnthropicProvider, _address, connect, _CLAUDE),
    Client("anthropic_http by tool", _CLAUDE, AnthropicProvider, _address, _link_by_tool, _CLAUDE),
    Client("litellm to Anthropic", _CLAUDE, AnthropicProvider, _address, _link_litellm, _CLAUDE),
    Client("azure by key", "azure/small", AzureProvider, _address, connect, "azure/gpt-4o-mini"),
    Client("azure by identity", "azure/small", AzureProvider, _address, _link_identity, "azure/gpt-4o-mini"),
)


LOST: dict[str, Fault] = {
    "cut": cut,
    "cut body": cut_body,
    "slow headers": slow(30),
    "slow body": slow_body(30),
    "garbage": garbage,
}
STATUSES: dict[int, tuple[type[ProviderError], str | None]] = {
    307: (FatalError, None),
    400: (RefusedError, None),
    401: (FatalError, None),
    402: (FatalError, None),
    403: (FatalError, None),
    404: (FatalError, None),
    408: (TransientError, "overloaded"),
    409: (TransientError, "broken"),
    413: (RefusedError, None),
    422: (RefusedError, None),
    429: (TransientError, "limited"),
    500: (TransientError, "broken"),
    502: (TransientError, "broken"),
    503: (TransientError, "overloaded"),
    504: (TransientError, "overloaded"),
    529: (TransientError, "overloaded"),
}


@cache
def import_litellm() -> None:
    """Make a first call, which imports modules for seconds, so that time-outs of later calls measure only the call."""
    with Provider() as provider:
        for client in BY_LITELLM:
            spec = ModelSpec(client.model, base_url=provider.base_url, api_key="none", timeout_s=120.0)
            one_call(client.link(spec))


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all its causes and contexts, also those that a traceback does not show."""
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        if (link := waiting.pop()) is not None and link not in seen:
            seen.append(link)
            waiting += [link.__cause__, link.__context__]
            yield link


@contextmanager
def resetting(last_bytes: bytes = b"") -> Iterator[tuple[str, list[bytes]]]:
    """Run a server that reads each request and resets the connection; yields its address and the requests.

    Args:
        last_bytes: Sent after each request, if any; then the connection is closed normally.
    """
    requests: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    requests.append(_read_request(connection))
                    connection.sendall(last_bytes)
                    # A linger time of zero resets the connection.
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", not last_bytes, 0))

        thread = threading.Thread(target=serve, name="resetting")
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}", requests
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def _read_request(connection: socket.socket) -> bytes:
    request = b""
    while not request.endswith(b"}"):
        if not (part := connection.recv(65536)):
            break
        request += part
    return request


@contextmanager
def left_open() -> Iterator[None]:
    """Let connections be closed by the garbage collector, as those of an event loop that is closed before them."""
    with catch_warnings():
        simplefilter("ignore", ResourceWarning)
        yield
        collect()


def other_tasks() -> set[str]:
    """The names of other tasks that still run on this loop."""
    return {task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()}
