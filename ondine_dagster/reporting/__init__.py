"""What a run shows in Dagster: metadata, tables, plots."""
