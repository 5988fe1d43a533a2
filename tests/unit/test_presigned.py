"""Which hosts a ticket may go to, and which answers are believed."""

import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gradshard import local, presigned, tickets
from gradshard.errors import TicketError
from gradshard.keys import RoundKeys
from gradshard.presigned import check_origin, is_url
from gradshard.tickets import Ticket
from tests.unit.fakes import MemoryStore


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tickets, "pause", lambda _: None)


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
def test_what_the_user_names_may(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "https://s3.example.org/")
    check_origin("https://s3.example.org")
    with pytest.raises(TicketError):
        check_origin("http://s3.example.org")


def test_a_local_engine_that_runs_may(monkeypatch: pytest.MonkeyPatch) -> None:
    status = local.status

    def running(port: int) -> Any:
        found = status(port)
        return local.Engine(port, 1, found.folder, deployed=True) if port == 4567 else found

    monkeypatch.setattr(local, "status", running)
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
def test_what_is_no_url_of_s3s(url: object) -> None:
    assert not is_url(url)


def test_a_ticket_of_two_hosts_is_none() -> None:
    made = Ticket.make(MemoryStore(), RoundKeys("r"), "a", expires=60, max_bytes=100)
    record = json.loads(made.dumps())
    assert Ticket.loads(json.dumps(record)).host == "https://memory"
    record["rejection_url"] = record["rejection_url"].replace("memory", "other")
    with pytest.raises(TicketError, match="is not a ticket"):
        Ticket.loads(json.dumps(record))


# ----------------------------------------------------------------------------- answers


class Host:
    """A server that gives one answer to everything, and remembers what was asked."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body: Callable[[], Iterator[bytes]] = lambda: iter([b""])
        self.asked: list[str] = []


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    host = Host()

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            host.asked.append(f"{self.command} {self.path.partition('?')[0]}")
            self.send_response(host.status)
            for name, value in host.headers.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                for chunk in host.body() if self.command != "HEAD" else ():
                    self.wfile.write(chunk)

        do_GET = do_HEAD = do_PUT = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield host
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def ticket(host: Host) -> Ticket:
    import os

    made = Ticket.make(MemoryStore(), RoundKeys("r"), "a", expires=60, max_bytes=100_000)
    return Ticket.loads(made.dumps().replace("https://memory", os.environ["AWS_ENDPOINT_URL"]))


OF_S3 = {"x-amz-request-id": "1"}


def test_the_page_of_a_network_that_asks_for_a_login(host: Host, ticket: Ticket) -> None:
    host.body = lambda: iter([b"<html>Welcome"])
    for ask in (ticket.has_ended, ticket.rejection, ticket.status, ticket.wait, ticket.fetch):
        with pytest.raises(TicketError, match=r"does not answer as S3 does .*open a web page"):
            ask()
    with pytest.raises(TicketError, match="does not answer as S3 does"):
        ticket.submit({"w": 1.0}, 1)


@pytest.mark.parametrize("status", [301, 302, 307, 401, 404, 407, 511 - 100])
def test_other_answers_that_are_not_s3s(host: Host, ticket: Ticket, status: int) -> None:
    host.status = status
    host.headers = {"Location": "http://127.0.0.1:1/elsewhere"}
    with pytest.raises(TicketError, match=f"does not answer as S3 does .{status}"):
        ticket.rejection()
    assert host.asked == ["GET /rounds/r/rejected/a.json"]


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": '"x"'},
        {"ETag": '"x"', "Content-Range": "bytes 0-0/*"},
        {"ETag": '"x"', "Content-Range": "bytes 0-0/many"},
        {"Content-Range": "bytes 0-0/7"},
    ],
)
def test_an_answer_without_what_s3s_have(
    host: Host, ticket: Ticket, headers: dict[str, str]
) -> None:
    host.headers = OF_S3 | headers
    for ask in (ticket.wait, ticket.fetch, ticket.status):
        with pytest.raises(TicketError, match="does not answer as S3 does"):
            ask()


@pytest.mark.parametrize("body", [b"", b"no", b"[]", b"7", b"{}", b"[" * 100_000, b"\xff"])
def test_a_reason_that_is_none(host: Host, ticket: Ticket, body: bytes) -> None:
    host.headers, host.body = OF_S3, lambda: iter([body])
    with pytest.raises(TicketError, match=f"{len(body)} bytes that give no reason"):
        ticket.rejection()


def test_an_endless_reason_is_not_read(host: Host, ticket: Ticket) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while True:
            sent += 2**16
            yield bytes(2**16)

    for status in (200, 403):
        host.status, host.headers, host.body = status, OF_S3, endless
        with pytest.raises(TicketError, match="answers with more than 2097152 bytes"):
            ticket.rejection()
    assert sent < 64 * 2**20


def test_a_slow_reason_is_not_waited_for(
    host: Host, ticket: Ticket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presigned, "ANSWER_SECONDS", -1.0)
    host.headers, host.body = OF_S3, lambda: iter([b"{", b"}"])
    with pytest.raises(TicketError, match=r"for more than -1 s"):
        ticket.rejection()
