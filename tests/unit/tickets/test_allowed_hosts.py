"""Which hosts a ticket may go to."""

import json
from typing import Any

import pytest

from gradshard.local_engine import running_engines
from gradshard.tickets.allowed_hosts import check_origin, is_url, origin_of
from gradshard.tickets.issuer import issue_ticket
from gradshard.tickets.round_ticket import Ticket
from gradshard_core.errors import TicketError
from gradshard_core.formats.object_keys import RoundKeys
from tests.unit.fakes import MemoryStore


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "origin",
    [
        "https://bucket.s3.eu-central-1.amazonaws.com",
        "https://bucket.s3.amazonaws.com",
        "https://a.b_c.s3.us-gov-west-1.amazonaws.com",
        "https://bucket.s3.dualstack.us-east-1.amazonaws.com",
        "https://bucket.s3-fips.us-east-1.amazonaws.com",
        "https://bucket.s3-accelerate.amazonaws.com",
        "https://bucket.s3.cn-north-1.amazonaws.com.cn",
        "https://bucket.vpce-0a1b-c2.s3.us-east-1.vpce.amazonaws.com",
        "https://s3.us-east-1.amazonaws.com",
    ],
)
def test_s3_may_be_contacted(origin: str) -> None:
    check_origin(origin)


@pytest.mark.parametrize(
    "origin",
    [
        "http://bucket.s3.eu-central-1.amazonaws.com",
        "https://bucket.s3.eu-central-1.amazonaws.com:8443",
        "https://amazonaws.com",
        "https://s3-1234.us-east-1.elb.amazonaws.com",
        "https://ec2-10-0-0-1.compute-1.amazonaws.com",
        "https://bucket.s3.amazonaws.com.example.org",
        "https://examples3.amazonaws.com",
        "https://127.0.0.1",
        "http://127.0.0.1:1",
        "http://localhost:1",
        "http://[::1]:1",
        "http://169.254.169.254",
        "http://10.0.0.1:4566",
        "https://example.org",
    ],
)
def test_other_hosts_may_not(origin: str) -> None:
    with pytest.raises(TicketError, match="which is neither S3 on AWS nor a local engine"):
        check_origin(origin)


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_a_host_that_the_user_names_is_allowed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "https://s3.example.org:443/")
    check_origin(origin_of("https://s3.example.org/bucket/key"))
    check_origin(origin_of("https://s3.example.org:443/bucket/key"))
    with pytest.raises(TicketError):
        check_origin("http://s3.example.org")


def test_a_local_engine_that_runs_may(monkeypatch: pytest.MonkeyPatch) -> None:
    status = running_engines.status

    def running(port: int) -> Any:
        found = status(port)
        return (
            running_engines.Engine(port, 1, found.folder, deployed=True) if port == 4567 else found
        )

    monkeypatch.setattr(running_engines, "status", running)
    check_origin("http://127.0.0.1:4567")
    for other in ("http://127.0.0.1:4568", "https://127.0.0.1:4567", "http://127.0.0.2:4567"):
        with pytest.raises(TicketError):
            check_origin(other)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org\\@bucket.s3.amazonaws.com/k",
        "https://bucket.s3.amazonaws.com@example.org/k",
        "https://bucket.s3.amazonaws.com",
        "https://bucket.s3.amazonaws.com\n.example.org/k",
        "file:///etc/passwd",
        "https://[::1/k",
        7,
    ],
)
def test_rejects_urls_in_another_form_than_s3s(url: object) -> None:
    assert not is_url(url)


def test_a_ticket_of_two_hosts_is_none() -> None:
    made = issue_ticket(MemoryStore(), RoundKeys("r"), "a", expires=60, max_bytes=100)
    record = json.loads(made.dumps())
    assert Ticket.loads(json.dumps(record)).host == "https://memory"
    record["rejection_url"] = record["rejection_url"].replace("memory", "other")
    with pytest.raises(TicketError, match="is not a ticket"):
        Ticket.loads(json.dumps(record))
