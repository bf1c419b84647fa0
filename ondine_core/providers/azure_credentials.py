"""Credentials of calls to Azure OpenAI: a managed identity, a token fetched beforehand, or a key.

A managed identity's token would expire during a long run, so it is renewed earlier, once for all calls. No call waits
for the new token while the old one is valid.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Protocol

from ondine_core.errors import ConfigError, FatalError, TransientError
from ondine_core.providers.http_client import SecretHeaders, constant
from ondine_core.providers.http_errors import ADVICE, quotable
from ondine_core.providers.settings import api_key_of, check_header, first_set
from ondine_core.types.values import Call, ModelSpec

KEY_HEADERS = ("api-key", "authorization")
_SCOPE = "https://cognitiveservices.azure.com/.default"
_TOKEN, _KEY = ("AZURE_OPENAI_AD_TOKEN", "AZURE_AD_TOKEN"), ("AZURE_OPENAI_API_KEY", "AZURE_API_KEY")
_ROLE = "'Cognitive Services OpenAI User'"
_NETWORK = "or the resource's network rules keep this host out"
_ADVICE_FOR_TOKEN: Mapping[int, str] = {
    **ADVICE,
    401: f"the AD token has expired (managed_identity renews its own), or its owner lacks the role {_ROLE}",
    403: f"the owner of the AD token lacks the role {_ROLE} on this resource, {_NETWORK}",
}
_ADVICE_FOR_KEY: Mapping[int, str] = {
    **ADVICE,
    401: f"the key was not accepted; check api_key or {_KEY[0]}, and that it belongs to this endpoint",
    403: f"the key may not be used here, {_NETWORK}",
}
_RENEW_S = 300.0
_RENEW_SHARE = 0.2


class Token(Protocol):
    """A token as a credential returns it."""

    @property
    def token(self) -> str:
        """The secret."""

    @property
    def expires_on(self) -> float:
        """The time of its expiry, in seconds since the epoch."""


class Credential(Protocol):
    """An object that fetches tokens, such as a credential of azure-identity."""

    def get_token(self, *scopes: str) -> Token:
        """A token for `scopes`; it may block."""


async def _close_nothing() -> None:
    """Nothing to close."""


@dataclass(frozen=True, slots=True)
class Access:
    """A way to identify the caller to Azure.

    `headers` returns the headers of the next call; `advice` says what to do about each status of a refusal.
    """

    headers: SecretHeaders
    advice: Mapping[int, str]
    aclose: Callable[[], Awaitable[None]] = _close_nothing
    api_key: str | None = field(default=None, repr=False)


def choose_access(spec: ModelSpec, credential: Credential | None, now: Callable[[], float]) -> Access:
    """The first configured way: a managed identity, a token, or a key; those of the environment come last.

    Raises:
        ConfigError: None is configured, or a setting is not valid.
    """
    settings, identity = spec.settings, spec.settings.get("managed_identity", False)
    if not isinstance(identity, bool):
        raise ConfigError(f"settings: managed_identity={identity!r} is neither true nor false.")
    if identity or credential is not None:
        return _by_identity(spec, credential, now)
    if "client_id" in settings:
        raise ConfigError("settings: client_id names a managed identity; set managed_identity to true as well.")
    own_key = api_key_of(spec)
    token = str(settings.get("ad_token") or "").strip() or (None if own_key else first_set(_TOKEN))
    if token:
        check_header("ad_token", token)
        return Access(constant({"Authorization": f"Bearer {token}"}), _ADVICE_FOR_TOKEN)
    key = own_key or first_set(_KEY)
    if key:
        check_header("api_key", key)
        return Access(constant({"api-key": key}), _ADVICE_FOR_KEY, api_key=key)
    if settings.get("extra_headers"):  # a gateway's key
        return Access(constant({}), _ADVICE_FOR_KEY)
    raise ConfigError(
        f"model={spec.model!r} has no access to Azure OpenAI; configure one of three ways: settings "
        "managed_identity=true (with client_id if it is user-assigned); settings ad_token or the variable "
        f"{_TOKEN[0]}; api_key or the variable {_KEY[0]}."
    )


# -- managed identity ----------------------------------------------------------------------------------------------


def _by_identity(spec: ModelSpec, credential: Credential | None, now: Callable[[], float]) -> Access:
    if credential is None and (find_spec("azure") is None or find_spec("azure.identity") is None):
        raise ConfigError(
            f"model={spec.model!r} with managed_identity needs the package azure-identity: "
            "pip install 'ondine-dagster[azure]'"
        )
    tokens = _Tokens(credential, spec.settings.get("client_id"), spec.max_call_s, now)
    missing = f"the identity lacks the role {_ROLE} on this resource (a new assignment takes minutes to hold)"
    return Access(tokens.headers, {**ADVICE, 401: missing, 403: f"{missing}, {_NETWORK}"}, tokens.aclose)


class _Tokens:
    """Fetches and renews one token for all calls."""

    def __init__(
        self, credential: Credential | None, client_id: str | None, timeout_s: float, now: Callable[[], float]
    ) -> None:
        self._credential = credential
        self._client_id = client_id
        self._timeout_s = timeout_s
        self._now = now
        self._is_callers = credential is not None
        self._token = ""
        self._expires_at = 0.0
        self._renew_at = 0.0
        self._fetching: asyncio.Task[None] | None = None

    async def headers(self) -> Mapping[str, str]:
        """The headers of the next call, with a valid token."""
        is_elsewhere = self._fetching is not None and self._fetching.get_loop() is not asyncio.get_running_loop()
        if self._now() >= self._renew_at and (self._fetching is None or is_elsewhere):
            self._fetching = asyncio.create_task(self._fetch())
            self._fetching.add_done_callback(self._fetched)
        if self._fetching is not None and self._now() >= self._expires_at:
            await self._wait(self._fetching)
        return {"Authorization": f"Bearer {self._token}"}

    async def _wait(self, fetching: asyncio.Task[None]) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await asyncio.shield(fetching)
        except TimeoutError:
            raise TransientError(f"Azure gave no token within {self._timeout_s:g} s.", kind="overloaded") from None
        except (FatalError, TransientError) as error:
            raise type(error)(str(error)) from None  # the retry loop needs an error object of its own for each call

    def _fetched(self, task: asyncio.Task[None]) -> None:
        if self._fetching is task:
            self._fetching = None
        if not task.cancelled():
            task.exception()  # mark it as retrieved: nothing waits for the task while the old token is valid

    async def _fetch(self) -> None:
        asked_at = self._now()
        try:
            token = await asyncio.to_thread(self._get_token)
        except Exception as error:  # noqa: BLE001  (credentials raise any error)
            failure: FatalError | TransientError = _no_token(error)
        else:
            check_header("The token that Azure gave", token.token)
            self._token, self._expires_at = token.token, float(token.expires_on)
            left_s = self._expires_at - asked_at
            self._renew_at = self._expires_at - min(_RENEW_S, left_s * _RENEW_SHARE)
            return
        raise failure

    def _get_token(self) -> Token:
        if self._credential is None:
            from azure.identity import DefaultAzureCredential

            self._credential = DefaultAzureCredential(managed_identity_client_id=self._client_id)
        return self._credential.get_token(_SCOPE)

    async def aclose(self) -> None:
        """Stop fetching, and close the credential unless it was passed by the caller."""
        if self._fetching is not None:
            self._fetching.cancel()
        close: Any = getattr(self._credential, "close", None)
        if close is not None and not self._is_callers:
            await asyncio.to_thread(close)


def _no_token(error: Exception) -> FatalError | TransientError:
    quoted, kinds = quotable(str(error), Call(()), ()), {kind.__name__ for kind in type(error).__mro__}
    what = f"Azure gave no token for the managed identity ({type(error).__name__}){quoted}"
    # By name, since azure-core need not be installed for a credential of the user's own.
    if kinds & {"ClientAuthenticationError", "ImportError"}:
        return FatalError(
            f"{what}: give this host an identity, name a user-assigned one by settings client_id, or run az login."
        )
    return TransientError(f"{what}.")
