"""Compare Ondine with other model clients, each in an environment of its own, against the benchmark's provider."""
