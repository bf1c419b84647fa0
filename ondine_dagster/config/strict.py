"""Configs that refuse unknown names, unlike Dagster's own, which would ignore a misspelt cap."""

# No `from __future__ import annotations` here: Dagster reads the annotations of config classes.
from collections.abc import Mapping
from typing import Any

import dagster as dg
from pydantic import ConfigDict, model_validator

from ondine_core.errors import ConfigError
from ondine_core.types.suggestion import did_you_mean


class StrictConfig(dg.Config):
    """A config that accepts known names only: a misspelt cap is an error, not a missing cap."""

    model_config = ConfigDict(hide_input_in_errors=True)  # it may carry a key

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and cls.model_config.get("extra") != "allow":
            known = set(cls.model_fields) | {field.alias for field in cls.model_fields.values() if field.alias}
            for name in given:
                if name not in known:
                    equivalent = EQUIVALENTS.get(name)
                    hint = f" Did you mean {equivalent!r}?" if equivalent in known else did_you_mean(name, known)
                    raise ConfigError(
                        f"{cls.__name__} has no field {name!r}.{hint} Valid are {', '.join(sorted(known))}."
                    )
        return given


def plain_texts(given: Any) -> dict[str, str]:
    """The fields with a text, but not with an `EnvVar`, which is also a text; empty if `given` is not a mapping."""
    if not isinstance(given, Mapping):
        return {}  # Pydantic refuses it
    return {name: value for name, value in given.items() if type(value) is str}


EQUIVALENTS = {
    "callbacks": "observers",
    "concurrency": "max_concurrency",
    "model_name": "model",
    "rpm": "requests_per_minute",
    "service_tier": "tier",
    "tpm": "tokens_per_minute",
    **dict.fromkeys(("api_base", "azure_endpoint", "endpoint", "openai_api_base"), "base_url"),
    **dict.fromkeys(("api_version", "default_headers", "extra_headers", "headers"), "settings"),
    **dict.fromkeys(("organization", "project"), "settings"),
    **dict.fromkeys(("extra_body", "metadata", "model_kwargs", "seed", "stop", "top_p", "user"), "params"),
    **dict.fromkeys(("max_budget", "max_cost_usd"), "budgets"),
    **dict.fromkeys(("max_completion_tokens", "max_tokens"), "max_output_tokens"),
    **dict.fromkeys(("max_parallel_requests", "max_workers"), "max_concurrency"),
    **dict.fromkeys(("request_timeout", "timeout"), "timeout_s"),
}
"""Names in other libraries, and the equivalent field of the resource."""
