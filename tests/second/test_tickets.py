"""Tickets, on LocalStack's S3, which verifies presigned URLs."""

from tests.integration.test_tickets import *  # noqa: F403
