"""Speed compared with hand-written code and other clients: `python -m tests.benchmarks`."""
