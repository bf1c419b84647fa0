"""Every day's reviews are classified the morning after; departments follow by a condition of their own, in YAML."""

import dagster as dg

classify_reviews = dg.define_asset_job("classify_reviews", ["reviews", "review_sentiment", "sentiment_report"])
every_morning = dg.build_schedule_from_partitioned_job(classify_reviews, hour_of_day=6)
