"""Rounds by hand, on LocalStack's S3."""

from tests.integration.test_rounds import *  # noqa: F403
