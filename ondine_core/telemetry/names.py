"""What OpenTelemetry's conventions for generative AI call a provider, and what we ask of it."""

from __future__ import annotations

__all__ = ["IN_PROCESS", "OPERATION", "provider_name"]

OPERATION = "chat"
"""The value of `gen_ai.operation.name` for every call."""

IN_PROCESS = frozenset({"llama_cpp", "mlx", "scripted"})
"""Providers that are no other process."""

_NAMES = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "moonshot": "moonshot_ai",
    "vertex_ai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}


def provider_name(provider: str) -> str:
    """The value of `gen_ai.provider.name`; where the conventions have none, our own word is as good."""
    return _NAMES.get(provider, provider)
