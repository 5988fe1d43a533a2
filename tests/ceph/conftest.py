"""Ceph's gateway in place of the local engine's S3: `make test-ceph`.

Modules here that have the name of one elsewhere run its tests.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest

from gradshard.aws.boto_client import default_session
from tests.ceph.gaps import GAPS, HANGS
from tests.ceph.gateway import ACCESS_KEY, PROGRAMS, SECRET_KEY, gateway
from tests.integration.conftest import proxied, proxy, store
from tests.second_engines import mark_gaps

__all__ = ["proxied", "proxy", "store"]
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Gateway:
    """A running gateway, and where it listens."""

    port: int


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The gateway; boto3 talks to it."""
    if "CEPH_GATEWAY" not in os.environ:
        pytest.skip("`make test-ceph` has Ceph's gateway")
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    assert not missing, f"no {missing}: apt-get install radosgw ceph-mon ceph-osd"
    with (
        pytest.MonkeyPatch.context() as patch,
        gateway(tmp_path_factory.mktemp("ceph")) as port,
    ):
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }.items():
            patch.setenv(name, value)
        patch.setattr(boto3, "DEFAULT_SESSION", None)
        default_session.cache_clear()
        yield Gateway(port)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Expect the tests that Ceph cannot pass to fail, with the reason."""
    mark_gaps(items, HERE, "Ceph", GAPS, HANGS)
