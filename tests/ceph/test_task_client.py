"""The tasks' client, which signs headers and streams parts, on Ceph."""

from tests.integration.test_task_client import *  # noqa: F403
