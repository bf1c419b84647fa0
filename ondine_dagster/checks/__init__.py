"""Asset checks: their types, validation, evaluation."""
