"""What is said when AWS cannot be asked."""

import pytest
from botocore.exceptions import EndpointConnectionError

from gradshard.client.stack import Stack
from gradshard.errors import ServiceError
from gradshard.s3.store import unreachable


def stack() -> Stack:
    return Stack("s", bucket=None, state_machine=None, endpoint_url=None, port=None)


def test_an_endpoint_that_is_no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "garbage")
    for name in ("AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "us-east-1")
    with pytest.raises(ServiceError, match="Invalid endpoint: garbage; AWS_ENDPOINT_URL is not"):
        stack().start("r", "{}")
    with pytest.raises(ServiceError, match="Invalid endpoint: garbage; AWS_ENDPOINT_URL is not"):
        stack().output("BucketName")


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("https://cloudformation.mars-1.amazonaws.com/", "is the region right"),
        ("http://127.0.0.1:4566/", "is the local engine running"),
    ],
)
def test_nobody_answers(url: str, hint: str) -> None:
    assert hint in unreachable(EndpointConnectionError(endpoint_url=url))
