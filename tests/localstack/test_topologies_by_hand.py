"""Topologies by hand, on LocalStack's S3."""

from tests.integration.test_topologies import *  # noqa: F403
