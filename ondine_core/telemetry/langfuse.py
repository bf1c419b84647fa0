"""Sends spans to Langfuse through its OTLP endpoint, with a few more attributes, without Langfuse's package.

Keys and host come from Langfuse's own variables. `OTEL_EXPORTER_OTLP_HEADERS`, which has keys for other collectors, is
not sent there.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson

from ondine_core.errors import ConfigError
from ondine_core.providers.settings import first_set
from ondine_core.telemetry.attributes import Attributes
from ondine_core.telemetry.events import Observer
from ondine_core.telemetry.otel import SCOPE, OpenTelemetryObserver, find_caller, make_provider, require
from ondine_core.telemetry.spans import Kind, Spans

if TYPE_CHECKING:
    import requests

_CLOUD = "https://cloud.langfuse.com"
_KEYS = ("LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY")
_HOSTS = ("LANGFUSE_BASE_URL", "LANGFUSE_HOST")


def open_langfuse(*, host: str | None = None, content: bool = False, calls_per_second: float | None = 10.0) -> Observer:
    """Open an observer that sends traces to Langfuse.

    Args:
        host: Its address; by default `LANGFUSE_BASE_URL` or `LANGFUSE_HOST`, else Langfuse's cloud in Europe.
        content: Whether generations have prompts and replies, unchanged.
        calls_per_second: Ordinary calls a second with a generation of their own, and a hundred more at the start;
            `None`: all.
    """
    require("opentelemetry.sdk", "langfuse", "otel")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    keys = [os.environ.get(name, "").strip() for name in _KEYS]
    missing = [name for name, key in zip(_KEYS, keys, strict=True) if not key]
    if missing:
        raise ConfigError(f"The observer 'langfuse' needs the variable {' and '.join(missing)}.")
    root = (host or first_set(_HOSTS) or _CLOUD).rstrip("/")
    session = _session(base64.b64encode(":".join(keys).encode()))
    exporter = OTLPSpanExporter(f"{root}/api/public/otel/v1/traces", session=session)
    provider = make_provider(exporter, ALWAYS_ON)
    spans = Spans(provider.get_tracer(SCOPE), find_caller(), _describe)
    return OpenTelemetryObserver(spans, provider, owned=True, content=content, calls_per_second=calls_per_second)


def _session(credentials: bytes) -> requests.Session:
    """A session that sends these credentials, and not the headers in the variables of OTLP."""
    import requests
    from opentelemetry.util.re import parse_env_headers

    def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
        for variable in ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"):
            for name in parse_env_headers(os.environ.get(variable, ""), liberal=True):
                request.headers.pop(name, None)
        request.headers["Authorization"] = f"Basic {credentials.decode()}"
        request.headers["x-langfuse-ingestion-version"] = "4"
        return request

    session = requests.Session()
    session.auth = sign
    return session


def _describe(kind: Kind, attributes: Attributes) -> Mapping[str, Any]:
    """The attributes that Langfuse expects: name, session and tags of the trace on each span, costs as an object."""
    asset, partition = attributes.get("ondine.asset"), attributes.get("ondine.partition")
    described = {
        "langfuse.trace.name": asset or "enrich",
        "langfuse.trace.tags": tuple(filter(None, (asset, partition))),
        "langfuse.session.id": attributes["ondine.run.id"],
        "langfuse.observation.type": "generation" if kind == "call" else "span",
    }
    usd = attributes.get("ondine.cost.usd")
    if kind == "call" and usd is not None:
        described["langfuse.observation.cost_details"] = orjson.dumps({"total": usd}).decode()
    return described
