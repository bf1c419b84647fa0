"""Other model clients beside Ondine: each in an environment of its own, all against the benchmark's provider."""
