"""Asks by a provider's batch jobs: another way for the answer of a row to reach the store.

`building` puts requests into a job, `submitting` submits it and finds one whose id was not received, `reading` stores
its results, and `job_run` repeats that until every row has an outcome or the time to wait is over.
"""
