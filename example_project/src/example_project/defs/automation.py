"""Every day's reviews are classified the morning after."""

import dagster as dg

classify_reviews = dg.define_asset_job("classify_reviews", selection=dg.AssetSelection.groups("shop"))
every_morning = dg.build_schedule_from_partitioned_job(classify_reviews, hour_of_day=6)
