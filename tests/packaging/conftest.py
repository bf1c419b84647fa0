"""What is published is built once for all tests of it."""

from tests.support.distributions import distributions

__all__ = ["distributions"]
