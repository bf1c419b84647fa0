"""Fixtures: the distributions, built once."""

from tests.support.distributions import distributions

__all__ = ["distributions"]
