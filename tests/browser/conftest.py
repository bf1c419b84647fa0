"""The distributions are built once for all tests of them."""

from tests.support.distributions import distributions

__all__ = ["distributions"]
