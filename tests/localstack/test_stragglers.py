"""Partial rounds of the application, run by LocalStack."""

from tests.e2e.test_stragglers import *  # noqa: F403
