"""Every day's reviews are classified the morning after; departments follow by a condition of their own, in YAML.

With ONDINE_TIER=batch, and a model whose provider has batch jobs, a run hands its rows in and ends; the sensor requests
the run that reads the answers.
"""

import dagster as dg

from ondine_dagster import batch_sensor

classify_reviews = dg.define_asset_job("classify_reviews", ["reviews", "review_sentiment", "sentiment_report"])
every_morning = dg.build_schedule_from_partitioned_job(classify_reviews, hour_of_day=6)
read_batch_jobs = batch_sensor(name="read_batch_jobs")
