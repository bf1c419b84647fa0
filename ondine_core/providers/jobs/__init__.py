"""Connects the batch API of a model by the model's name.

The providers here are exactly those for which `providers.tiers` has the tier `"batch"`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from ondine_core.errors import ConfigError
from ondine_core.providers.job_api import JobApi
from ondine_core.providers.pricing import find_sent_name
from ondine_core.providers.settings import check_params
from ondine_core.providers.tiers import JOB_PROVIDERS
from ondine_core.providers.wire_text import check_text
from ondine_core.types.values import ModelSpec

__all__ = ["connect_jobs"]


def connect_jobs(spec: ModelSpec) -> JobApi:
    """Connect the batch API for the model that `spec` names.

    Raises:
        ConfigError: The provider has no batch API here, or a field is not valid.
    """
    provider, _, name = spec.model.partition("/")
    if provider not in _DIALECTS or not name:
        raise ConfigError(
            f"tier='batch': {spec.model!r} has no batch API that is known here; those that have one are "
            f"{', '.join(JOB_PROVIDERS)}."
        )
    check_text((spec.model, spec.base_url or ""), "model")
    check_params(spec)
    module, _, function = _DIALECTS[provider].partition(":")
    api: JobApi = getattr(import_module(f"{__name__}.{module}"), function)(spec, find_sent_name(spec))
    return api


_DIALECTS: Mapping[str, str] = {
    **dict.fromkeys(("openai", "groq", "mistral", "together_ai"), "openai_jobs:connect_openai_jobs"),
    "anthropic": "anthropic_jobs:AnthropicJobs",
    "azure": "openai_jobs:AzureJobs",
    "gemini": "gemini_jobs:GeminiJobs",
}
"""The module and function of each provider's adapter; a module is imported when it is needed."""
