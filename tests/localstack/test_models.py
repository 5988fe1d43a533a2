"""Models of the application, run by LocalStack."""

from tests.e2e.test_models import *  # noqa: F403
