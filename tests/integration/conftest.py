"""A bucket of the tests' own, whose events wake none of the deployed functions."""

from collections.abc import Callable

import boto3
import pytest

from gradshard.local import Engine
from gradshard.store import Store
from tests.integration.by_hand import Round


@pytest.fixture(scope="session")
def store(engine: Engine) -> Store:
    """An empty bucket with versions."""
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="integration")
    s3.put_bucket_versioning(Bucket="integration", VersioningConfiguration={"Status": "Enabled"})
    return Store("integration", connections=80)


@pytest.fixture
def open_round(store: Store) -> Callable[..., Round]:
    """Open a round by hand, in these terms."""
    return lambda **spec: Round(store, **spec)
