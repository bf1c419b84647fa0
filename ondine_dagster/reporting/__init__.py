"""The metadata, tables and plots of a run in Dagster."""
