"""The model: a small one inside this process, or the one in ONDINE_MODEL, such as openai/gpt-6-luna.

ONDINE_TIER=batch uses the provider's batch jobs, at half the price.
"""

import os

import dagster as dg

from ondine_dagster import LLMResource


@dg.definitions
def resources() -> dg.Definitions:
    """The resource `llm` of every `llm_asset`."""
    model = os.environ.get("ONDINE_MODEL", "llama_cpp/gemma-3-270m")
    tier = os.environ.get("ONDINE_TIER", "standard")
    base_url = os.environ.get("ONDINE_BASE_URL")
    # An invalid tier is an error when the definitions load.
    llm = LLMResource(model=model, tier=tier, base_url=base_url, progress_every_s=5)  # type: ignore[arg-type]
    return dg.Definitions(resources={"llm": llm})
