"""LocalStack with the application, for all tests here: `make test-second`."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from gradshard import Federation
from gradshard_core.s3.store import S3Store
from tests.integration.proxy import Proxy, spoiling
from tests.second.deployed import Application, clock, deploy
from tests.second.engine import REGION, localstack

PYTHON = "SECOND_ENGINE"
"""The variable that names the interpreter that has LocalStack."""


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """LocalStack's URL; boto3 talks to it."""
    if PYTHON not in os.environ:
        pytest.skip("`make test-second` has LocalStack")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        folder = tmp_path_factory.mktemp("localstack")
        with localstack(Path(os.environ[PYTHON]), folder) as port:
            url = f"http://127.0.0.1:{port}"
            variables = {
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_ENDPOINT_URL": url,
                "AWS_DEFAULT_REGION": REGION,
                "AWS_REGION": REGION,
                "AWS_CONFIG_FILE": os.devnull,
                "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
                "AWS_EC2_METADATA_DISABLED": "true",
                "NO_PROXY": "127.0.0.1",
            }
            for name, value in variables.items():
                patch.setenv(name, value)
            patch.setattr(boto3, "DEFAULT_SESSION", None)
            yield url


@pytest.fixture(scope="session")
def faulty(endpoint: str) -> Iterator[Proxy]:
    """What functions talk to: the engine behind a proxy, whose faults are the tests'."""
    with spoiling(int(endpoint.rpartition(":")[2])) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def application(
    faulty: Proxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Application]:
    """The application, with a clock for its deadlines."""
    deployed = deploy(faulty.url, tmp_path_factory.mktemp("faults"))
    with clock():
        yield deployed


@pytest.fixture(scope="session")
def federation(application: Application) -> Federation:
    """The client library, past the proxy."""
    return Federation(bucket=application.bucket, state_machine=application.machine)


@pytest.fixture(scope="session")
def store(application: Application) -> S3Store:
    """The application's bucket."""
    return S3Store(application.bucket)


@pytest.fixture(autouse=True)
def _no_fault_is_left(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Every injected fault must have struck."""
    yield
    if "application" in request.fixturenames:
        application = request.getfixturevalue("application")
        assert [path for path in application.faults.iterdir() if path.name[:5] != "taken"] == []
        assert request.getfixturevalue("faulty").faults == []
