"""From the arguments of `llm_asset` to a Dagster asset."""
