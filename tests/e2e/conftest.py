"""The deployed application, as its users have it."""

import pytest

from gradshard import Federation
from gradshard.deployment.local_engine import Engine
from tests.e2e.deployed import Deployed


@pytest.fixture(scope="session")
def federation(engine: Engine) -> Federation:
    """The client library, which finds the engine in the environment."""
    return Federation()


@pytest.fixture(scope="session")
def deployed(engine: Engine) -> Deployed:
    """The application's bucket, functions and state machine, past the client library."""
    return Deployed.of_stack("gradshard")
