"""Asset checks: what a check is, the kinds there are, and their results."""
