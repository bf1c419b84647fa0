"""Runs a task over a table: workers, calls, outcomes, report."""
