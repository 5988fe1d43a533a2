"""Tickets on Ceph, which verifies presigned URLs."""

import pytest

from gradshard.aws.client_store import ClientStore
from gradshard_core.s3.http_transport import HttpTransport
from gradshard_core.s3.store import S3Store
from tests.integration.conftest import as_clients_do
from tests.integration.test_tickets import *  # noqa: F403
from tests.presigned import trust_engines


@pytest.fixture(autouse=True)
def _trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    trust_engines(monkeypatch)


@pytest.fixture  # type: ignore[no-redef]
def store(store: S3Store) -> ClientStore:
    """The one bucket: here is no key service for another."""
    return as_clients_do(store)


@pytest.fixture
def encrypted() -> S3Store:
    """No bucket: tests only ask whether theirs is this one."""
    return S3Store("encrypted", HttpTransport("encrypted", ""))
