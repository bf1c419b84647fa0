"""Azure OpenAI: OpenAI's dialect at the user's own addresses, with a key, a token or an identity.

`azure/<deployment>` names a deployment. With several regions, a call that one region refused at no cost (too many
calls, overload, no connection) goes to the next one at once, and the first is not asked again for as long as it
demands. A call that may have been billed is not repeated in another region. Calls return to the preferred region as
soon as it takes them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import quote, urlsplit

from ondine_core.errors import ConfigError, FatalError, TransientError
from ondine_core.providers.azure_credentials import KEY_HEADERS, Access, Credential, choose_access
from ondine_core.providers.http_client import Endpoint
from ondine_core.providers.openai_http import OpenAIModel
from ondine_core.providers.openai_servers import check_offered
from ondine_core.providers.request_form import RequestForm, check_temperature, limit_field_of
from ondine_core.providers.settings import check_address, check_settings, extra_headers, first_set
from ondine_core.providers.strict_schema import SchemaSubset
from ondine_core.types.protocols import ChatModel
from ondine_core.types.values import Call, ModelSpec, Reply

_API_VERSION = "2024-10-21"
"""The last dated version that is not a preview; it has structured output."""
_UNDATED = ("v1", "preview")
_OWN_HOSTS = (".azure.com", ".azure.us", ".azure.cn")
"""Hosts of Azure OpenAI itself; any other may be a gateway that translates chat completions."""
_SETTINGS = (
    "ad_token",
    "api_version",
    "base_model",
    "client_id",
    "extra_headers",
    "managed_identity",
    "token_limit_field",
    "region",
    "regions",
)
# The variables of OpenAI's package first, then those of litellm.
_ENDPOINT = ("AZURE_OPENAI_ENDPOINT", "AZURE_API_BASE")
_VERSION = ("AZURE_OPENAI_API_VERSION", "OPENAI_API_VERSION", "AZURE_API_VERSION")
_REGION = ("AZURE_OPENAI_REGION",)
# These models refuse max_tokens, the old name of max_completion_tokens; older ones know only the old name.
_REASONING = re.compile(r"(?:^|[^a-z0-9])(?:o[1-9]|gpt-?[5-9])")
_SET_ASIDE_S = 10.0


def connect_azure(
    spec: ModelSpec,
    name: str,
    *,
    credential: Credential | None = None,
    now: Callable[[], float] = time.time,
) -> ChatModel:
    """Connect the deployment `name`.

    Its `settings`, which are all optional:

    - `api_version`: by default the variable AZURE_OPENAI_API_VERSION or OPENAI_API_VERSION, else the latest that is
      not a preview.
    - `managed_identity`: `True` to call as the identity of this host; `client_id` names a user-assigned one.
    - `ad_token`: a token fetched beforehand; by default the variable AZURE_OPENAI_AD_TOKEN.
    - `regions`: endpoint by name of region; `region` (or AZURE_OPENAI_REGION) is asked first, by default the first.
    - `extra_headers`: further headers, such as `Ocp-Apim-Subscription-Key` of a gateway.
    - `base_model`: what is deployed, as in `gpt-4o-mini`; from it come price, context window and parameter names.
    - `token_limit_field`: what `max_output_tokens` is sent as, `"max_tokens"` or `"max_completion_tokens"`.

    `credential` fetches tokens for the managed identity, by default azure-identity's `DefaultAzureCredential`; `now` is
    the wall clock for their expiry. The endpoint is `base_url` or AZURE_OPENAI_ENDPOINT, the key `api_key` or
    AZURE_OPENAI_API_KEY.
    """
    deployment = find_deployment(spec, name, credential=credential, now=now)
    access, version = deployment.access, deployment.version
    path = "v1" if deployment.is_versionless else f"deployments/{quote(name, safe='')}"
    fixed = {"model": name} if deployment.is_versionless else {}

    def model_at(root: str) -> OpenAIModel:
        url = f"{root}/{path}/chat/completions?api-version={quote(version)}"
        endpoint = Endpoint(url, spec.max_call_s, access.headers, deployment.headers, access.advice)
        return OpenAIModel(endpoint, spec, fixed, deployment.form)

    models = {region: model_at(root) for region, root in deployment.roots.items()}
    return _Azure(name, models, access)


@dataclass(frozen=True, slots=True)
class Deployment:
    """How to reach a deployment.

    `roots` are the addresses of the API, up to `/openai`, by region; the first one is preferred.
    """

    access: Access
    headers: Mapping[str, str] = field(repr=False)
    version: str
    form: RequestForm
    roots: Mapping[str, str]

    @property
    def is_versionless(self) -> bool:
        """Whether addresses of this version of the API have no deployment in them."""
        return self.version in _UNDATED


def find_deployment(
    spec: ModelSpec,
    name: str,
    *,
    credential: Credential | None = None,
    now: Callable[[], float] = time.time,
) -> Deployment:
    """How to reach the deployment `name`; the arguments are those of `connect_azure`."""
    check_settings(spec, _SETTINGS)
    access = choose_access(spec, credential, now)
    version = str(spec.settings.get("api_version") or first_set(_VERSION) or _API_VERSION)
    missing = f"there is no deployment {name!r} at this endpoint, or no api version {version!r}"
    access = replace(
        access, advice={**access.advice, 404: f"{missing}; check model, base_url and settings api_version"}
    )
    endpoints = _endpoints(spec)
    if any((urlsplit(endpoint).hostname or "").endswith(_OWN_HOSTS) for endpoint in endpoints.values()):
        check_offered(spec, "Azure")
    roots = {region: _root(endpoint) for region, endpoint in endpoints.items()}
    headers = extra_headers(spec, KEY_HEADERS)
    return Deployment(access, headers, version, _form(spec, name, version), roots)


def _form(spec: ModelSpec, name: str, version: str) -> RequestForm:
    base = str(spec.settings.get("base_model") or name)
    check_temperature(spec, base)
    is_renamed = version in _UNDATED or _REASONING.search(base.lower()) is not None
    limit_field = limit_field_of(spec, base, is_renamed=is_renamed)
    return RequestForm(subset=SchemaSubset(constraints=False), limit_field=limit_field)


def _root(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    path = parts.path.rstrip("/").removesuffix("/openai/v1").removesuffix("/openai")
    return f"{parts.scheme}://{parts.netloc}{path}/openai"


def _endpoints(spec: ModelSpec) -> dict[str, str]:
    """The endpoints by region, the preferred one first; without regions the only endpoint has the name `""`."""
    regions, chosen = spec.settings.get("regions"), spec.settings.get("region")
    if regions is None:
        if chosen is not None:
            raise ConfigError(f"settings: region={chosen!r} chooses among regions; give those, too.")
        endpoint = spec.base_url or first_set(_ENDPOINT)
        if endpoint is None:
            raise ConfigError(
                f"model={spec.model!r} needs base_url, or the variable {_ENDPOINT[0]}, "
                "for instance 'https://my-resource.openai.azure.com'."
            )
        regions = {"": endpoint}
    elif not isinstance(regions, Mapping) or not regions or spec.base_url is not None:
        raise ConfigError(
            "settings: regions maps names to endpoints, as in {'eastus': 'https://...'}; not with base_url."
        )
    for region, endpoint in regions.items():
        check_address(str(endpoint), f"regions[{region!r}]" if region else "base_url")
    preferred = chosen or first_set(_REGION)
    if preferred and "" not in regions:
        if preferred not in regions:
            raise ConfigError(f"region={preferred!r} is not one of the regions: {', '.join(map(repr, regions))}.")
        regions = {preferred: regions[preferred], **regions}
    return {str(region): str(endpoint) for region, endpoint in regions.items()}


class _Azure:
    """A deployment in one region or in several."""

    max_batch_size: int | None = None

    def __init__(self, name: str, models: Mapping[str, OpenAIModel], access: Access) -> None:
        self.max_concurrency = next(iter(models.values())).max_concurrency
        self._name = name
        self._models = models
        self._access = access
        self._free_at = dict.fromkeys(models, 0.0)

    def __repr__(self) -> str:
        return f"AzureOpenAI({self._name!r})"

    async def __call__(self, call: Call) -> Reply:
        """Ask once, in the first region that takes the call; see `ChatModel`."""
        failures: list[TransientError] = []
        for region in self._order():
            try:
                reply = await self._models[region](call)
            except TransientError as error:
                self._suspend(region, _SET_ASIDE_S if error.retry_after_s is None else error.retry_after_s)
                failures.append(error)
                if error.cost_unknown:
                    break
            except FatalError as error:
                where = f"Region {region!r}: " if region else ""
                raise FatalError(
                    f"{where}{error}",
                    fault=error.fault,
                    refusal=f"{where}{error.refusal}",
                    is_certain=error.is_certain,
                ) from None
            else:
                self._suspend(region, reply.hold_off_s)
                others = any(free_at <= time.monotonic() for free_at in self._free_at.values())
                return replace(reply, hold_off_s=0.0) if others else reply
        if failures[-1].cost_unknown:
            raise failures[-1]
        raise min(failures, key=lambda error: error.retry_after_s or 0.0)

    def _order(self) -> list[str]:
        """The regions that take calls, the preferred one first; if none does, the one that will be the first to."""
        now = time.monotonic()
        free = [region for region, free_at in self._free_at.items() if free_at <= now]
        return free or [min(self._free_at, key=self._free_at.__getitem__)]

    def _suspend(self, region: str, seconds: float) -> None:
        if seconds > 0:
            self._free_at[region] = time.monotonic() + seconds

    async def aclose(self) -> None:
        """Close the connections and the access."""
        for model in self._models.values():
            await model.aclose()
        await self._access.aclose()
