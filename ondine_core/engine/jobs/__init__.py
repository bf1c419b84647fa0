"""Asks rows by a provider's batch jobs, and stores their answers.

`building` puts requests into a job, `submitting` submits it and finds a job whose id was not received, `reading` stores
its results, and `job_run` repeats that until every row has an outcome or the time to wait is over.
"""
