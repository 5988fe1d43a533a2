"""Partial updates, on LocalStack's S3."""

from tests.integration.test_partial import *  # noqa: F403
