"""The deployed application, as its users have it."""

from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from gradshard import Federation
from gradshard.local_engine.lifecycle import Engine
from tests.e2e.deployed import Deployed


@pytest.fixture(scope="session")
def federation(engine: Engine) -> Federation:
    """The client library, which finds the engine in the environment."""
    return Federation()


@pytest.fixture(scope="session")
def deployed(engine: Engine) -> Deployed:
    """The application's bucket, functions and state machine, past the client library."""
    return Deployed.of_stack("gradshard")


@pytest.fixture
def no_events(engine: Engine, deployed: Deployed) -> Iterator[None]:
    """Updates wake nobody."""
    notified = boto3.client("s3").get_bucket_notification_configuration(Bucket=deployed.bucket)
    topics = notified["TopicConfigurations"]
    assert topics

    def notify(configurations: list[Any]) -> None:
        boto3.client("s3").put_bucket_notification_configuration(
            Bucket=deployed.bucket,
            NotificationConfiguration={"TopicConfigurations": configurations},
        )

    notify([])
    yield
    notify(topics)
