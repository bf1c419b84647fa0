"""Asks by a provider's batch jobs: they are another way for the answer of a row to reach the store.

`building` puts requests into a job, `submitting` hands it in and finds one whose fate is not known, `reading` keeps
what came of it, and `job_run` does all that until every row has an outcome or the time to wait is over.
"""
