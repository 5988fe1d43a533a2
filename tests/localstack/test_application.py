"""Rounds of the application, run by LocalStack."""

from tests.e2e.test_application import *  # noqa: F403
