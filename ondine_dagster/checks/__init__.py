"""Asset checks: their base class, their kinds, and their results."""
