"""Models of other dialects than OpenAI's and Anthropic's, through litellm: Bedrock, Vertex AI, Cohere and many more.

litellm is imported at the first call, since that takes seconds. It tries once, logs nothing and sends no telemetry. It
renames errors and would send some calls twice, so its HTTP goes through a client of ours that observes requests and
responses (`http_hooks`). Failures are classified by the response itself, as for all other providers. For a few
providers, such as Cohere, litellm uses a client of its own: a lost call to them may be sent twice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any

import orjson

from ondine_core.errors import ConfigError, FatalError, ProviderError
from ondine_core.providers.finish_reasons import finish_kind, native_finish_reason
from ondine_core.providers.http_errors import (
    Address,
    Response,
    no_answer_error,
    quotable,
    response_error,
    transport_error,
)
from ondine_core.providers.http_hooks import Watch, cause_of, make_client, request_id, response_behind, watch
from ondine_core.providers.loading import LoadedOnce
from ondine_core.providers.model_data import installed_litellm
from ondine_core.providers.openai_http import chat_body, chat_reply
from ondine_core.providers.rate_limit_headers import hold_off_s
from ondine_core.providers.reply_body import SUCCESSES
from ondine_core.providers.request_form import RequestForm
from ondine_core.providers.settings import (
    api_key_of,
    check_address,
    check_settings,
    extra_headers,
    first_set,
    setting_of,
)
from ondine_core.providers.tiers import find_vertex_location, tier_fields
from ondine_core.providers.usage import stated_usd_in, stated_usd_of
from ondine_core.types.protocols import ChatModel
from ondine_core.types.values import Call, ModelSpec, Reply

_COMPROMISED = frozenset({"1.82.7", "1.82.8", "1.107.0"})

_AWS = (
    "aws_access_key_id aws_secret_access_key aws_session_token aws_region_name aws_profile_name aws_role_name "
    "aws_session_name aws_web_identity_token aws_sts_endpoint aws_bedrock_runtime_endpoint aws_external_id"
)
_GOOGLE = "vertex_project vertex_location vertex_credentials"
_OWN_SETTINGS: Mapping[str, str] = {
    "bedrock": _AWS,
    "sagemaker": _AWS,
    "sagemaker_chat": _AWS,
    "vertex_ai": _GOOGLE,
    "watsonx": "project_id space_id region_name token zen_api_key",
    "oci": "oci_region oci_user oci_fingerprint oci_tenancy oci_key oci_key_file oci_compartment_id",
    "snowflake": "account_id",
}
_SETTINGS = ("api_version", "drop_params", "extra_headers", "structured_output")
"""Settings that every provider has; `connect_litellm` explains them."""
_STRUCTURES = ("json_schema", "words")

_RESERVED_PARAMS = ("fallbacks", "context_window_fallback_dict", "client", "custom_llm_provider", "mock_response")
_KEYS: Mapping[str, tuple[str, ...]] = {
    "cohere": ("COHERE_API_KEY", "CO_API_KEY"),
    "cohere_chat": ("COHERE_API_KEY", "CO_API_KEY"),
}
"""The variables in which litellm looks for keys of these providers; checking them here needs no import of litellm."""
_TAGS = {"bedrock/": "requestMetadata", "vertex_ai/gemini": "labels"}
"""The request fields for tags on the bill, where litellm leaves `metadata` out."""
_AWS_REGION = ("AWS_REGION_NAME", "AWS_REGION", "AWS_DEFAULT_REGION")
_BY_IDENTITY = ("bedrock", "sagemaker", "vertex_ai")
"""Providers that take signed calls or short-lived tokens of an identity instead of a key."""


def check_release(installed: str) -> None:
    """Refuse the releases of litellm that were published with malicious code."""
    if installed in _COMPROMISED:
        raise ConfigError(
            f"litellm {installed!r} is a compromised release: pip install 'litellm!={installed}', and replace every "
            "key that was on this machine."
        )


def connect_litellm(spec: ModelSpec, name: str) -> ChatModel:
    """Connect the model that litellm calls `spec.model`.

    The `settings` of every provider:

    - `structured_output`: `"json_schema"` or `"words"`; by default a schema is sent as such wherever litellm can.
    - `drop_params`: `True` to leave out parameters that the model does not take; by default they are an error.
    - `api_version`, `extra_headers`: passed on, as are those for credentials (`aws_...`, `vertex_...`).
    """
    if installed_litellm() is None:
        raise ConfigError(f"model={spec.model!r} is called through litellm: pip install 'ondine-dagster[litellm]'.")
    check_release(version("litellm"))
    check_settings(spec, (*_SETTINGS, *_OWN_SETTINGS.get(spec.dialect, "").split()))
    setting_of(spec, "structured_output", _STRUCTURES)
    reserved = sorted(spec.params.keys() & set(_RESERVED_PARAMS))
    if reserved:
        name = reserved[0]
        raise ConfigError(f"params: {name!r} of {spec.model!r} is not yours to set; use the fields of ModelSpec.")
    extra_headers(spec, ())
    for prefix, field in _TAGS.items():
        if "metadata" in spec.params and spec.model.startswith(prefix):
            raise ConfigError(
                f"params: litellm does not send 'metadata' to {spec.model!r}; set the API's field {field!r}."
            )
    given = {**spec.params, **spec.settings}
    if given.get("aws_profile_name") and not given.get("aws_region_name") and first_set(_AWS_REGION) is None:
        raise ConfigError(
            "settings: aws_profile_name needs aws_region_name: litellm does not read the region of a profile, "
            "and would call another one."
        )
    if spec.base_url is not None:
        check_address(spec.base_url)
    return _LiteLLM(spec, _key(spec), name)


def _key(spec: ModelSpec) -> str | None:
    own_key = api_key_of(spec)
    if own_key:
        return own_key
    if spec.base_url is not None and not spec.dialect.startswith(_BY_IDENTITY):
        return "none"  # otherwise litellm would send the environment's key for the provider to `base_url`
    variables = _KEYS.get(spec.dialect)
    if variables and first_set(variables) is None:
        raise ConfigError(f"model={spec.model!r} needs a key: set api_key, or the variable {variables[0]}.")
    return None


@dataclass(frozen=True, slots=True)
class _Library:
    """litellm, our HTTP client for it, and the form of requests."""

    litellm: Any
    client: Any
    form: RequestForm


class _LiteLLM:
    """A model that is called through litellm, which is imported at the first call."""

    max_concurrency: int | None = None
    max_batch_size: int | None = None

    def __init__(self, spec: ModelSpec, key: str | None, name: str) -> None:
        self._spec = spec
        self._key = key
        self._name = name
        fixed = {"temperature": spec.temperature, "max_tokens": spec.max_output_tokens}
        self._fixed = {name: value for name, value in fixed.items() if value is not None} | dict(spec.request_params)
        settings = {name: value for name, value in spec.settings.items() if name != "structured_output"}
        self._location = find_vertex_location(spec) if spec.dialect == "vertex_ai" else None
        if self._location is not None:
            settings["vertex_location"] = self._location
        self._options = {**settings, "api_base": spec.base_url, "api_key": key, "num_retries": 0, "max_retries": 0}
        self._library = LoadedOnce(self._load, lambda library: library.client.close())

    def __repr__(self) -> str:
        return f"LiteLLM({self._spec.model!r})"

    async def __call__(self, call: Call) -> Reply:
        loaded = await self._library.get()
        fixed = {**self._fixed, **tier_fields(self._spec, call.tier)}
        write = partial(chat_body, fixed, call, loaded.form)
        # Writing the body of a call with images reads them from disk.
        request = orjson.loads(await asyncio.to_thread(write) if call.media else write())
        started = time.perf_counter()
        with watch() as seen:
            try:
                async with asyncio.timeout(self._spec.max_call_s):
                    answer = await loaded.litellm.acompletion(
                        **{**request, **self._options},
                        model=self._spec.model,
                        timeout=self._spec.max_call_s,
                        client=loaded.client,
                    )
                    data = answer.model_dump()
            except Exception as error:  # noqa: BLE001  (whatever it is, it is classified)
                failure = self._failure(error, seen, call)
            else:
                return self._reply(data, seen, time.perf_counter() - started)
        raise failure  # outside of `except`, without a context that may contain the prompt or the key

    async def aclose(self) -> None:
        """Close the connections; litellm itself stays loaded."""
        await self._library.aclose()

    def _load(self) -> _Library:
        # Importing must neither fetch prices nor read `.env` files into the environment.
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        os.environ.setdefault("LITELLM_MODE", "PRODUCTION")
        litellm: Any = import_module("litellm")
        # They log prompts, at levels that a user may have turned on for all loggers.
        for logger in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "openai"):
            logging.getLogger(logger).setLevel(logging.CRITICAL + 1)
        litellm.suppress_debug_info, litellm.telemetry = True, False
        try:
            model, provider, key, address = litellm.get_llm_provider(
                self._spec.model, api_base=self._spec.base_url, api_key=self._key
            )
        except litellm.exceptions.BadRequestError as error:
            raise FatalError(
                f"litellm {version('litellm')} does not know the provider of {self._spec.model!r}."
            ) from error
        regions = litellm.model_cost.get(self._spec.model, {}).get("supported_regions")
        if self._location is not None and regions and self._location not in regions:
            raise FatalError(
                f"vertex_location={self._location!r}: litellm would call {self._spec.model!r} in {regions[0]!r} "
                f"instead, since it knows the model in {', '.join(map(repr, regions))} only; set one of these, or take "
                "another model."
            )
        supported = litellm.get_supported_openai_params(model, custom_llm_provider=provider) or ()
        chosen = self._spec.settings.get("structured_output")
        sends_schemas = chosen == "json_schema" if chosen else "response_format" in supported
        client = make_client(key or self._key, address)
        # Otherwise the first call would import these on the event loop.
        _ = litellm.encoding, litellm.acompletion
        if provider == "openai" or provider in litellm.openai_compatible_providers:
            _ = client.openai.chat.completions
        return _Library(litellm, client, RequestForm("json_schema" if sends_schemas else "words"))

    # -- replies ---------------------------------------------------------------------------------------------------

    def _reply(self, data: dict[str, Any], seen: Watch, latency_s: float) -> Reply:
        message = data["choices"][0]["message"]
        message.setdefault("refusal", (message.get("provider_specific_fields") or {}).get("refusal"))
        # litellm says "stop" for reasons that it does not know, and always where it sends the schema as a tool.
        native, choice = native_finish_reason(seen.data()), data["choices"][0]
        if native and choice.get("finish_reason") == "stop" and finish_kind(native) not in ("whole", "tool"):
            choice["finish_reason"] = "length" if finish_kind(native) == "cut" else native
        reply = chat_reply(data)
        headers, tokens = seen.headers, reply.usage.input_tokens + reply.usage.output_tokens
        wait_s = hold_off_s(headers, tokens, reply.usage.output_tokens, time.time())
        stated_usd = stated_usd_of(seen.data())
        if stated_usd is None:
            stated_usd = stated_usd_in(headers)
        return replace(
            reply, request_id=request_id(seen), latency_s=latency_s, hold_off_s=wait_s, stated_usd=stated_usd
        )

    def _failure(self, error: Exception, seen: Watch, call: Call) -> ProviderError:
        to = Address(seen.host or self._name, self._spec.max_call_s)
        secrets = (self._key or "", *seen.secrets)
        if isinstance(error, ProviderError):
            return error
        response = seen.response() or response_behind(error)
        if response is not None:
            make_error = no_answer_error if response.status in SUCCESSES else response_error
            return make_error(response, call, secrets, to)
        if seen.sent:
            return transport_error(cause_of(error), to)
        return self._failure_of_litellm(error, call, secrets, to)

    def _failure_of_litellm(self, error: Exception, call: Call, secrets: tuple[str, ...], to: Address) -> ProviderError:
        """The error of a call that our client did not send: litellm refused it, or sent it by another client."""
        status, kind = getattr(error, "status_code", None), type(error).__name__
        message = str(getattr(error, "message", "") or error).partition("Traceback (")[0]
        what = f"litellm failed ({kind}){quotable(message, call, secrets)}."
        if kind == "UnsupportedParamsError":
            return FatalError(f"{what} Remove the parameter, or leave out all such by settings drop_params=true.")
        cause = cause_of(error)
        if isinstance(cause, ImportError):
            return FatalError(f"{what} It lacks a package for {self._spec.model!r}.")
        if isinstance(status, int) and 400 <= status < 500 and status != 408:  # noqa: PLR2004
            failure = response_error(Response(status, {}, message.encode(), time.time()), call, secrets, to)
        else:
            failure = transport_error(cause, to)
        failure.args = (what,)  # the class and the fault stay
        return failure
