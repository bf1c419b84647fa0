"""Azure OpenAI on the loopback: a `Provider` that checks credentials, deployment and api version."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from aiohttp import web

from ondine_core import Call, ChatModel, ModelSpec, Reply
from ondine_core.types.values import Message
from tests.support.provider import Provider

API_VERSION = "2024-10-21"
KEY = "0123456789abcdef"
CALL = Call((Message("user", "Repeat: hello"),))


class AzureProvider(Provider):
    """An Azure OpenAI resource with one deployment.

    Args:
        accepts: Whether a value of `Authorization` or `api-key` is valid now.
        deployment: The name of the deployment.
        versions: The api versions that it supports.
        **provider: As for `Provider`.
    """

    path: ClassVar[str] = "/openai/deployments/{deployment}/chat/completions"

    def __init__(
        self,
        accepts: Callable[[str], bool] = lambda _: True,
        *,
        deployment: str = "small",
        versions: tuple[str, ...] = (API_VERSION,),
        **provider: Any,
    ) -> None:
        super().__init__(**provider)
        self._accepts, self._deployment, self._versions = accepts, deployment, versions
        self.refused: list[int] = []

    @property
    def address(self) -> str:
        """The endpoint."""
        return self.base_url.removesuffix("/v1")

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        shown = request.headers.get("api-key") or request.headers.get("Authorization", "")
        if not self._accepts(shown):
            return self._refuse(401, "401", "Access denied due to invalid subscription key or wrong API endpoint.")
        if request.match_info["deployment"] != self._deployment:
            return self._refuse(404, "DeploymentNotFound", "The API deployment for this resource does not exist.")
        if request.query.get("api-version") not in self._versions:
            return self._refuse(404, "404", "Resource not found")
        return await super()._handle(request)

    def _refuse(self, status: int, code: str, message: str) -> web.Response:
        self.refused.append(status)
        return web.json_response({"error": {"code": code, "message": message}}, status=status)


@dataclass(frozen=True)
class Token:
    """An access token with the fields of azure-core's `AccessToken`."""

    token: str
    expires_on: float


@dataclass
class Credential:
    """Issues tokens that are valid for `lifetime_s`, after raising each of `failures` once."""

    lifetime_s: float = 3600.0
    delay_s: float = 0.0
    secret: str = "token"  # noqa: S105
    failures: list[Exception] = field(default_factory=list)
    now: Callable[[], float] = time.time
    given: list[Token] = field(default_factory=list)
    scopes: set[str] = field(default_factory=set)

    def get_token(self, *scopes: str) -> Token:
        """The next token."""
        self.scopes |= set(scopes)
        time.sleep(self.delay_s)
        if self.failures:
            raise self.failures.pop(0)
        number = f"-{len(self.given) + 1}" if self.given else ""
        self.given.append(Token(f"{self.secret}{number}", self.now() + self.lifetime_s))
        return self.given[-1]

    def accepts(self, shown: str) -> bool:
        """Whether `shown` is a bearer token of ours that has not expired."""
        now = self.now()
        return any(shown == f"Bearer {token.token}" and now < token.expires_on for token in self.given)


def spec(provider: AzureProvider | None = None, **fields: Any) -> ModelSpec:
    """The model spec of the deployment `small` of `provider`."""
    given = {"base_url": provider.address if provider else "http://127.0.0.1:9", "timeout_s": 10.0, **fields}
    return ModelSpec("azure/small", **given)


def calls(model: ChatModel, count: int, pause_s: float = 0.0) -> list[Reply]:
    """The replies to `count` sequential calls."""

    async def main() -> list[Reply]:
        replies = []
        for _ in range(count):
            replies.append(await model(CALL))
            await asyncio.sleep(pause_s)
        await model.aclose()
        return replies

    return asyncio.run(main())
