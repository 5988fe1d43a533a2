"""Models, on LocalStack's S3."""

from tests.integration.test_models import *  # noqa: F403
