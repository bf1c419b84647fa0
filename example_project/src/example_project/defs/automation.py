"""A schedule that classifies every day's reviews the next morning; departments have an automation condition in YAML.

With ONDINE_TIER=batch, and a model whose provider has batch jobs, a run submits its rows and ends; the sensor requests
the run that reads the answers.
"""

import dagster as dg

from ondine_dagster import batch_sensor

classify_reviews = dg.define_asset_job("classify_reviews", ["reviews", "review_sentiment", "sentiment_report"])
every_morning = dg.build_schedule_from_partitioned_job(classify_reviews, hour_of_day=6)
read_batch_jobs = batch_sensor(name="read_batch_jobs")
