"""Batch APIs: from a model's name to where jobs of its calls can be handed in.

The tier `"batch"` of `providers.tiers` is offered for exactly the providers that are here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ondine_core.errors import ConfigError
from ondine_core.providers.job_api import JobApi
from ondine_core.providers.settings import check_params
from ondine_core.providers.tiers import JOB_PROVIDERS
from ondine_core.providers.wire_text import check_text
from ondine_core.types.values import ModelSpec

__all__ = ["connect_jobs"]


def connect_jobs(spec: ModelSpec) -> JobApi:
    """The batch API for the model that `spec` names.

    Raises:
        ConfigError: The provider has none, its key or address is missing, or a parameter or setting is wrong.
    """
    provider, _, name = spec.model.partition("/")
    if provider not in _DIALECTS or not name:
        raise ConfigError(
            f"tier='batch': {spec.model!r} has no batch API that is known here; those that have one are "
            f"{', '.join(JOB_PROVIDERS)}."
        )
    check_text((spec.model, spec.base_url or ""), "model")
    check_params(spec)
    return _DIALECTS[provider](spec, name)


def _openai(spec: ModelSpec, name: str) -> JobApi:
    from ondine_core.providers.jobs.openai_jobs import connect_openai_jobs

    return connect_openai_jobs(spec, name)


def _anthropic(spec: ModelSpec, name: str) -> JobApi:
    from ondine_core.providers.jobs.anthropic_jobs import connect_anthropic_jobs

    return connect_anthropic_jobs(spec, name)


def _azure(spec: ModelSpec, name: str) -> JobApi:
    from ondine_core.providers.jobs.openai_jobs import connect_azure_jobs

    return connect_azure_jobs(spec, name)


def _gemini(spec: ModelSpec, name: str) -> JobApi:
    from ondine_core.providers.jobs.gemini_jobs import connect_gemini_jobs

    return connect_gemini_jobs(spec, name)


_DIALECTS: Mapping[str, Callable[[ModelSpec, str], JobApi]] = {
    **dict.fromkeys(("openai", "groq", "mistral", "together_ai"), _openai),
    "anthropic": _anthropic,
    "azure": _azure,
    "gemini": _gemini,
}
