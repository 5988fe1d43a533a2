"""LocalStack with the application, in place of the local engine: `make test-second`.

Modules here that have the name of one elsewhere run its tests.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest

from gradshard.aws.boto_client import default_session
from tests.e2e.conftest import deployed, federation, no_events
from tests.integration.conftest import (
    encrypted,
    function_environment,
    open_round,
    proxied,
    proxy,
    store,
)
from tests.integration.proxy import Proxy, spoiling
from tests.localstack.deployed import clock, deploy
from tests.localstack.engine import REGION, localstack
from tests.localstack.gaps import GAPS, HANGS
from tests.second_engines import mark_gaps

__all__ = [
    "deployed",
    "encrypted",
    "federation",
    "function_environment",
    "no_events",
    "open_round",
    "proxied",
    "proxy",
    "store",
]
PYTHON = "LOCALSTACK_PYTHON"
"""The variable that names the interpreter that has LocalStack."""
HERE = Path(__file__).parent


@dataclass(frozen=True)
class LocalStack:
    """LocalStack, running.

    Attributes
    ----------
    port
        Where it listens.
    functions_proxy
        What is between it and the functions; its faults are the tests'.
    faults
        The folder of the faults of functions (`worker.py`).
    """

    port: int
    functions_proxy: Proxy
    faults: Path


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """LocalStack with the application; boto3 talks to it."""
    if PYTHON not in os.environ:
        pytest.skip("`make test-second` has LocalStack")
    folder, faults = tmp_path_factory.mktemp("localstack"), tmp_path_factory.mktemp("faults")
    with (
        pytest.MonkeyPatch.context() as patch,
        localstack(Path(os.environ[PYTHON]), folder) as port,
        spoiling(port) as proxy,
    ):
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in _environment(port).items():
            patch.setenv(name, value)
        # The default sessions keep the credentials that they found first.
        patch.setattr(boto3, "DEFAULT_SESSION", None)
        default_session.cache_clear()
        deploy(proxy.url, faults)
        with clock():
            yield LocalStack(port, proxy, faults)


def _environment(port: int) -> dict[str, str]:
    return {
        # The only key whose secret LocalStack takes for known.
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_REGION": REGION,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Expect the tests that LocalStack cannot pass to fail, with the reason."""
    mark_gaps(items, HERE, "LocalStack", GAPS, HANGS)
