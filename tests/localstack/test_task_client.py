"""The tasks' client, on LocalStack's S3."""

from tests.integration.test_task_client import *  # noqa: F403
