"""What is said when AWS cannot be asked."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from gradshard.aws.boto_client import is_loopback, proxies_for
from gradshard.aws.boto_errors import unreachable
from gradshard.client.stack import Stack
from gradshard.deployment import user_config
from gradshard_core.errors import ServiceError


def stack() -> Stack:
    return Stack("s", bucket=None, state_machine=None, endpoint_url=None, port=None)


def test_an_endpoint_that_is_no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "garbage")
    for name in ("AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "us-east-1")
    with pytest.raises(ServiceError, match="Invalid endpoint: garbage; AWS_ENDPOINT_URL is to be"):
        stack().start("r", "{}")
    with pytest.raises(ServiceError, match="Invalid endpoint: garbage; AWS_ENDPOINT_URL is to be"):
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


class Elsewhere:
    """A session in a region where there is no such stack."""

    meta = SimpleNamespace(endpoint_url="https://cloudformation.us-west-2.amazonaws.com")

    def get_config_variable(self, _: str) -> str:
        return "us-west-2"

    def create_client(self, *_: object, **__: object) -> "Elsewhere":
        return self

    def describe_stacks(self, **_: object) -> None:
        said = {"Error": {"Code": "ValidationError", "Message": "Stack s does not exist"}}
        raise ClientError(said, "DescribeStacks")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("remembered", "advice"),
    [
        (None, r"in us-west-2: deploy it \(gradshard deploy\)"),
        ("us-west-2", r"in us-west-2: deploy it \(gradshard deploy\)"),
        (
            "eu-west-1",
            "it was deployed to eu-west-1, so give --region eu-west-1, or set AWS_DEFAULT_REGION",
        ),
    ],
)
def test_a_stack_that_is_in_another_region(
    remembered: str | None, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    if remembered:
        user_config.remember_region("s", remembered)
    asked = stack()
    monkeypatch.setitem(vars(asked), "_session", Elsewhere())
    with pytest.raises(ServiceError, match=advice):
        asked.output("BucketName")


@pytest.mark.parametrize(
    ("url", "is_own"),
    [
        ("http://127.0.0.1:4566", True),
        ("http://127.8.9.1/b/k?x", True),
        ("http://localhost:1", True),
        ("http://bucket.localhost:1", True),
        ("http://[::1]:4566", True),
        ("http://172.17.0.1:4566", False),
        ("https://b.s3.us-east-1.amazonaws.com/k", False),
        ("http://127.0.0.1.example", False),
        ("http://localhost.example", False),
        ("garbage", False),
    ],
)
def test_this_machine_is_asked_through_no_proxy(
    monkeypatch: pytest.MonkeyPatch, url: str, is_own: bool
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://proxy.example:3128")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert is_loopback(url) is is_own
    assert (proxies_for(url) == {}) is is_own
