"""Asset checks: base class, types and results."""
