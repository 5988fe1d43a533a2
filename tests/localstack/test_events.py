"""Events that are lost, late or come twice, on LocalStack."""

from tests.e2e.test_faults import *  # noqa: F403
