"""A bucket of the tests' own, whose events wake none of the deployed functions."""

import boto3
import pytest

from gradshard.local import Engine
from gradshard.store import Store


@pytest.fixture(scope="session")
def store(engine: Engine) -> Store:
    """An empty bucket with versions."""
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="integration")
    s3.put_bucket_versioning(Bucket="integration", VersioningConfiguration={"Status": "Enabled"})
    return Store("integration", connections=80)
