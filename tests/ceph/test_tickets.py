"""Tickets on Ceph, which verifies presigned URLs."""

import pytest

from gradshard_core.s3.store import S3Store
from tests.integration.test_tickets import *  # noqa: F403
from tests.presigned import trust_engines


@pytest.fixture(autouse=True)
def _trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    trust_engines(monkeypatch)


@pytest.fixture  # type: ignore[no-redef]
def store(store: S3Store) -> S3Store:
    """The one bucket: here is no key service for another."""
    return store
