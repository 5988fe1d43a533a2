"""A bucket of the tests' own, whose events wake none of the deployed functions."""

from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest

from gradshard.aws.boto_client import make_client
from gradshard.aws.client_store import ClientStore
from gradshard.local_engine.lifecycle import Engine
from gradshard_core.s3.http_transport import HttpTransport
from gradshard_core.s3.store import S3Store
from tests.integration.by_hand import Round
from tests.integration.proxy import Proxy, spoiling

BUCKETS: list[S3Store] = []
"""The buckets that fixtures here made."""


def bucket(name: str) -> S3Store:
    """Return a bucket as the functions reach it, which is emptied after each module."""
    BUCKETS.append(S3Store(name, HttpTransport(name, "")))
    return BUCKETS[-1]


def as_clients_do(store: S3Store) -> ClientStore:
    """Return the same bucket as clients reach it."""
    return ClientStore(store.bucket, make_client(80))


@pytest.fixture(scope="module", autouse=True)
def _emptied() -> Iterator[None]:
    """Empty the buckets after each module, or the disk fills."""
    yield
    for bucket in BUCKETS:
        bucket.delete_versions("")


@pytest.fixture(scope="session")
def store(engine: Engine) -> S3Store:
    """An empty bucket with versions."""
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="integration")
    s3.put_bucket_versioning(Bucket="integration", VersioningConfiguration={"Status": "Enabled"})
    return bucket("integration")


@pytest.fixture(scope="session")
def encrypted(engine: Engine) -> S3Store:
    """A bucket under a KMS key: its ETags say nothing of the bytes."""
    s3, name = boto3.client("s3"), "integration-kms"
    key = boto3.client("kms").create_key()["KeyMetadata"]["Arn"]
    s3.create_bucket(Bucket=name)
    s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    default: Any = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}
    rules: Any = {"Rules": [{"ApplyServerSideEncryptionByDefault": default}]}
    s3.put_bucket_encryption(Bucket=name, ServerSideEncryptionConfiguration=rules)
    return bucket(name)


@pytest.fixture
def proxy(engine: Engine) -> Iterator[Proxy]:
    """Give a proxy in front of the engine, with no faults yet."""
    with spoiling(engine.port) as running:
        yield running


@pytest.fixture
def proxied(proxy: Proxy, store: S3Store, monkeypatch: pytest.MonkeyPatch) -> ClientStore:
    """The bucket, as clients reach it, through the proxy."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    return ClientStore(store.bucket, make_client())


@pytest.fixture
def open_round(store: S3Store) -> Callable[..., Round]:
    """Open a round by hand, in these terms."""
    return lambda **spec: Round(store, **spec)


@pytest.fixture(scope="module")
def function_environment(store: S3Store) -> Iterator[None]:
    """What the functions find in their environment, when they work on this bucket."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "GRADSHARD_BUCKET": store.bucket,
            "GRADSHARD_BUCKET_HOST": "",
            "GRADSHARD_URL_SUFFIX": "amazonaws.com",
            "GRADSHARD_AGGREGATOR_MEMORY": "512",
            "GRADSHARD_ARCHITECTURE": "arm64",
            "GRADSHARD_MAP_CONCURRENCY": "0",
            "GRADSHARD_SCHEDULE_GROUP": "gradshard-deadlines",
            "GRADSHARD_SCHEDULE_ROLE_ARN": "arn:aws:iam::000000000000:role/nobody",
            "GRADSHARD_UNDELIVERED_ARN": "arn:aws:sqs:us-east-1:000000000000:nowhere",
            "GRADSHARD_COLLECT_FUNCTION_ARN": "arn:aws:lambda:us-east-1:000000000000:function:none",
        }.items():
            patch.setenv(name, value)
        yield
