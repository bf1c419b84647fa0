"""Makes a Dagster asset from the arguments of `llm_asset`."""
