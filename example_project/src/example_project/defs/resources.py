"""The model: a small one inside this process, or whichever ONDINE_MODEL names, such as openai/gpt-4o-mini.

ONDINE_TIER=batch asks by the provider's batch jobs, at half the price.
"""

import os

import dagster as dg

from ondine_dagster import LLMResource


@dg.definitions
def resources() -> dg.Definitions:
    """The resource `llm` that every `llm_asset` asks."""
    model = os.environ.get("ONDINE_MODEL", "llama_cpp/gemma-3-270m")
    tier = os.environ.get("ONDINE_TIER", "standard")
    base_url = os.environ.get("ONDINE_BASE_URL")
    # A tier that there is not is an error when this is loaded.
    llm = LLMResource(model=model, tier=tier, base_url=base_url, progress_every_s=5)  # type: ignore[arg-type]
    return dg.Definitions(resources={"llm": llm})
