"""Product reviews, classified by a language model inside Dagster."""
