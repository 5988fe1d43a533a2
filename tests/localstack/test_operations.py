"""Operations, on LocalStack."""

from tests.e2e.test_operations import *  # noqa: F403
