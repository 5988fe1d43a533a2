"""A ticket's host that is not S3: what it answers is neither believed nor kept."""

import contextlib
import http.server
import os
import threading
from collections.abc import Callable, Iterator

import pytest

from gradshard.client.round_by_ticket import TicketRound
from gradshard.tickets import http_client
from gradshard.tickets.issuer import issue_ticket
from gradshard.tickets.round_ticket import Ticket
from gradshard_core.errors import TicketError
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.s3 import retries
from tests.unit.fakes import MemoryStore


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "sleep_backoff", lambda _: None)


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
    made = issue_ticket(MemoryStore(), RoundKeys("r"), "a", expires=60, max_bytes=100_000)
    return Ticket.loads(made.dumps().replace("https://memory", os.environ["AWS_ENDPOINT_URL"]))


OF_S3 = {"x-amz-request-id": "1"}


def test_the_page_of_a_network_that_asks_for_a_login(host: Host, ticket: Ticket) -> None:
    host.body = lambda: iter([b"<html>Welcome"])
    held = TicketRound(ticket)
    for ask in (held.has_ended, held.rejection, held.status, held.wait, held.fetch):
        with pytest.raises(TicketError, match=r"does not answer as S3 does .*open a web page"):
            ask()
    with pytest.raises(TicketError, match="does not answer as S3 does"):
        TicketRound(ticket).submit({"w": 1.0}, 1)


@pytest.mark.parametrize("status", [301, 302, 307, 401, 404, 407, 511 - 100])
def test_other_answers_that_are_not_s3s(host: Host, ticket: Ticket, status: int) -> None:
    host.status = status
    host.headers = {"Location": "http://127.0.0.1:1/elsewhere"}
    with pytest.raises(TicketError, match=f"does not answer as S3 does .{status}"):
        TicketRound(ticket).rejection()
    assert host.asked == ["GET /rounds/r/rejections/a.json"]


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": '"x"'},
        {"ETag": '"x"', "Content-Range": "bytes 0-0/*"},
        {"ETag": '"x"', "Content-Range": "bytes 0-0/many"},
        {"Content-Range": "bytes 0-0/7"},
    ],
)
def test_an_answer_without_the_headers_of_s3_is_rejected(
    host: Host, ticket: Ticket, headers: dict[str, str]
) -> None:
    host.headers = OF_S3 | headers
    held = TicketRound(ticket)
    for ask in (held.wait, held.fetch, held.status):
        with pytest.raises(TicketError, match="does not answer as S3 does"):
            ask()


@pytest.mark.parametrize("body", [b"", b"no", b"[]", b"7", b"{}", b"[" * 100_000, b"\xff"])
def test_a_reason_that_is_none(host: Host, ticket: Ticket, body: bytes) -> None:
    host.headers, host.body = OF_S3, lambda: iter([body])
    with pytest.raises(TicketError, match=f"{len(body)} bytes that give no reason"):
        TicketRound(ticket).rejection()


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
            TicketRound(ticket).rejection()
    assert sent < 64 * 2**20


def test_a_slow_reason_is_not_waited_for(
    host: Host, ticket: Ticket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "ANSWER_SECONDS", -1.0)
    host.headers, host.body = OF_S3, lambda: iter([b"{", b"}"])
    with pytest.raises(TicketError, match=r"for more than -1 s"):
        TicketRound(ticket).rejection()
