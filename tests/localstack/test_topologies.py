"""Topologies of the application, run by LocalStack."""

from tests.e2e.test_topologies import *  # noqa: F403
