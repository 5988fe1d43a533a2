"""Tickets on LocalStack's S3, which verifies presigned URLs."""

import pytest

from tests.integration.test_tickets import *  # noqa: F403
from tests.presigned import trust_engines


@pytest.fixture(autouse=True)
def _trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    trust_engines(monkeypatch)
