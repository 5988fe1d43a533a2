"""The store, on LocalStack's S3."""

from tests.integration.test_store import *  # noqa: F403
