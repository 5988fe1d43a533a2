"""Tickets at the engine, which checks presigned URLs: signature, time and signed headers."""

import contextlib
import http.client
import itertools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import numpy as np
import pytest
from safetensors.numpy import load, load_file, save_file

from gradshard import looking, streams, tickets
from gradshard.errors import (
    RoundFailed,
    RoundStateError,
    StoreError,
    TicketError,
    UpdateError,
    WaitTimeoutError,
)
from gradshard.keys import RoundKeys
from gradshard.limits import MIB
from gradshard.local import Engine
from gradshard.plan import Refusal
from gradshard.rounds.arrivals import check_update, refuse
from gradshard.store import Store, make_client
from gradshard.tickets import Ticket
from tests import reference
from tests.integration.proxy import Answer, Proxy, spoiling

COUNTER = itertools.count()
TENSORS = {"w": np.arange(1000, dtype="f4")}
OTHER = {"w": np.arange(1000, dtype="f4") + 1}
MAX_BYTES = 100_000


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(tickets, "pause", lambda _: None)
    monkeypatch.setattr(streams, "pause", lambda _: None)


@pytest.fixture(params=["store", "encrypted"])
def store(request: pytest.FixtureRequest) -> Store:
    """A bucket whose ETags are MD5s, and one under a KMS key."""
    found: Store = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def keys(store: Store) -> RoundKeys:
    """Give a round of its own."""
    return RoundKeys(f"ticketed-{next(COUNTER)}")


@pytest.fixture
def ticket(store: Store, keys: RoundKeys, monkeypatch: pytest.MonkeyPatch) -> Ticket:
    """Give a ticket, and take the credentials away."""
    ticket = Ticket.make(store, keys, "a", expires=600, max_bytes=MAX_BYTES)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    return ticket


@pytest.fixture
def proxy(engine: Engine) -> Iterator[Proxy]:
    with spoiling(engine.port) as running:
        yield running


@pytest.fixture
def proxied(proxy: Proxy, store: Store, keys: RoundKeys, monkeypatch: pytest.MonkeyPatch) -> Ticket:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    behind = Store(store.bucket, client=make_client())
    return Ticket.make(behind, keys, "a", expires=600, max_bytes=50 * MIB)


def raw(
    method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> int:
    """Make a request as someone would who does not keep to the ticket; return its status."""
    parts = urlsplit(url)
    with contextlib.closing(http.client.HTTPConnection(parts.netloc)) as connection:
        connection.request(method, f"{parts.path}?{parts.query}", body, dict(headers or {}))
        return connection.getresponse().status


def assert_holds(store: Store, keys: RoundKeys, tensors: Mapping[str, reference.Array]) -> None:
    update = check_update(store, keys, "a", partial=False)
    assert isinstance(update, tuple), update
    assert not isinstance(update, Refusal)
    body = store.get_bytes(keys.update("a"))
    assert body is not None
    np.testing.assert_array_equal(load(body)["w"], tensors["w"])


class TestUploading:
    def test_tensors(self, ticket: Ticket, store: Store, keys: RoundKeys) -> None:
        told: list[tuple[int, int]] = []
        ticket.submit(TENSORS, 5, progress=lambda *step: told.append(step))
        assert_holds(store, keys, TENSORS)
        update = check_update(store, keys, "a", partial=False)
        assert update is not None
        assert not isinstance(update, Refusal)
        assert update.samples == 5
        assert update.source.nbytes in tickets.lengths(MAX_BYTES)
        assert told[0][0] == 0
        assert told[-1] == (update.source.nbytes, update.source.nbytes)

    def test_a_file_by_a_ticket_in_a_file(
        self, ticket: Ticket, store: Store, keys: RoundKeys, tmp_path: Path
    ) -> None:
        save_file(TENSORS, tmp_path / "u", {"num_samples": "7"})
        ticket.save(tmp_path / "t")
        Ticket.load(tmp_path / "t").submit(tmp_path / "u")
        assert_holds(store, keys, TENSORS)

    def test_the_same_update_again_is_no_error(self, ticket: Ticket, store: Store) -> None:
        ticket.submit(TENSORS, 5)
        ticket.submit(TENSORS, 5)

    def test_another_update_is_refused(self, ticket: Ticket, store: Store, keys: RoundKeys) -> None:
        ticket.submit(TENSORS, 5)
        with pytest.raises(TicketError, match="of client 'a' was used already"):
            ticket.submit(OTHER, 5)
        assert_holds(store, keys, TENSORS)

    def test_a_larger_update_is_not_sent(
        self, ticket: Ticket, store: Store, keys: RoundKeys
    ) -> None:
        with pytest.raises(UpdateError, match="bytes, over the 100000 of the ticket"):
            ticket.submit({"w": np.zeros(MAX_BYTES, "u1")}, 5)
        assert store.head(keys.update("a")) is None

    def test_again_once_the_operator_deleted_the_update(
        self, ticket: Ticket, store: Store, keys: RoundKeys
    ) -> None:
        ticket.submit(TENSORS, 5)
        store.delete(keys.update("a"))
        ticket.submit(OTHER, 5)
        assert_holds(store, keys, OTHER)

    def test_not_after_the_round_has_ended(
        self, ticket: Ticket, store: Store, keys: RoundKeys
    ) -> None:
        store.put_json(keys.manifest, {})
        with pytest.raises(RoundStateError, match="has ended"):
            ticket.submit(TENSORS, 5)


class TestWhatS3Refuses:
    """The engine does as S3 would, whoever sends what."""

    def put(self, ticket: Ticket, nbytes: int, url: str = "", **headers: str) -> int:
        sent = {"If-None-Match": "*", "Content-Length": str(nbytes)}
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return raw("PUT", url or ticket._upload_urls[MAX_BYTES], sent | given, bytes(nbytes))

    def test_a_second_time(self, ticket: Ticket) -> None:
        assert self.put(ticket, MAX_BYTES) == 200
        assert self.put(ticket, MAX_BYTES) == 412

    def test_a_second_time_without_saying_so(self, ticket: Ticket) -> None:
        url = ticket._upload_urls[MAX_BYTES]
        assert self.put(ticket, MAX_BYTES) == 200
        for headers in ({}, {"If-None-Match": '"x"'}, {"If-Match": "*"}):
            length = {"Content-Length": str(MAX_BYTES)}
            assert raw("PUT", url, length | headers, bytes(MAX_BYTES)) == 403

    def test_another_length(self, ticket: Ticket, store: Store, keys: RoundKeys) -> None:
        for nbytes in (MAX_BYTES + 1, MAX_BYTES - 1, 2 * MAX_BYTES):
            assert self.put(ticket, nbytes) == 403
        assert store.head(keys.update("a")) is None

    def test_another_key(self, ticket: Ticket, store: Store, keys: RoundKeys) -> None:
        url = ticket._upload_urls[MAX_BYTES]
        for key in (keys.update("b"), keys.manifest, "rounds/other/updates/a.safetensors"):
            other = url.replace(keys.update("a"), key)
            assert other != url
            assert self.put(ticket, MAX_BYTES, other) == 403
        store.put_json(keys.manifest, {"contributors": ["b"]})
        store.put_json(keys.rejection("b"), {"reason": "b's own"})
        assert raw("GET", ticket.result_url.replace(keys.result, keys.manifest)) == 403
        other = ticket.rejection_url.replace(keys.rejection("a"), keys.rejection("b"))
        assert raw("GET", other) == 403

    def test_another_method(self, ticket: Ticket, store: Store, keys: RoundKeys) -> None:
        store.put_json(keys.manifest, {"contributors": ["b"]})
        store.put_json(keys.update("a"), "my update")
        store.put_json(keys.result, "the average")
        urls = (ticket.uploaded_url, ticket.ended_url, ticket._upload_urls[MAX_BYTES])
        headers = {"If-None-Match": "*", "Content-Length": str(MAX_BYTES)}
        for url, method in itertools.product(urls, ("GET", "DELETE", "POST")):
            body = bytes(MAX_BYTES) if method == "POST" else None
            sent = headers if body else {}
            assert raw(method, url, sent, body) == 403, (method, url)
        for method in ("PUT", "DELETE"):
            assert raw(method, ticket.result_url) == 403
        assert store.get_json(keys.update("a")) == "my update"

    def test_a_later_time(self, store: Store, keys: RoundKeys) -> None:
        ticket = Ticket.make(store, keys, "a", expires=1, max_bytes=MAX_BYTES)
        time.sleep(2.1)
        assert self.put(ticket, MAX_BYTES) == 403
        for ask in (ticket.has_ended, ticket.rejection, ticket.fetch, ticket.wait):
            with pytest.raises(TicketError, match=r"it expired at 20.* ask the round's operator"):
                ask()
        with pytest.raises(TicketError, match="it expired at"):
            ticket.submit(TENSORS, 5)

    def test_credentials_that_are_not_valid(self, store: Store, keys: RoundKeys) -> None:
        session = boto3.Session("test", "another")
        stranger = Store(store.bucket, client=make_client(session=session))
        ticket = Ticket.make(stranger, keys, "a", expires=600, max_bytes=MAX_BYTES)
        with pytest.raises(TicketError, match="SignatureDoesNotMatch") as refused:
            ticket.rejection()
        assert "http" not in str(refused.value)
        with pytest.raises(TicketError, match="credentials"):
            ticket.submit(TENSORS, 5)


class TestLines:
    """What becomes of connections that break."""

    @pytest.fixture
    def large(self) -> dict[str, reference.Array]:
        return {"w": np.arange(5 * MIB, dtype="f4")}

    def test_an_upload_that_breaks_is_sent_again(
        self,
        proxied: Ticket,
        proxy: Proxy,
        store: Store,
        keys: RoundKeys,
        large: dict[str, reference.Array],
    ) -> None:
        proxy.cuts = [10 * MIB]
        proxied.submit(large, 5)
        assert proxy.requests == ["HEAD", "HEAD", "PUT", "PUT"]
        assert_holds(store, keys, large)

    def test_an_upload_that_keeps_breaking_is_given_up(
        self, proxied: Ticket, proxy: Proxy, large: dict[str, reference.Array]
    ) -> None:
        proxy.cuts = [MIB] * 9
        with pytest.raises(TicketError, match="broke 3 times; submit it again") as failed:
            proxied.submit(large, 5)
        assert "http" not in str(failed.value)

    def test_an_answer_that_was_lost_is_looked_up(
        self, proxied: Ticket, proxy: Proxy, store: Store, keys: RoundKeys
    ) -> None:
        def passed(answer: Answer) -> Answer:
            return answer

        proxy.spoils = [passed, passed, lambda _: None]
        proxied.submit(TENSORS, 5)
        assert proxy.requests == ["HEAD", "HEAD", "PUT", "PUT", "HEAD"]
        assert_holds(store, keys, TENSORS)

    def test_a_file_that_changes_on_the_way(self, proxied: Ticket, tmp_path: Path) -> None:
        path = tmp_path / "u"
        save_file({"w": np.zeros(5 * MIB, "f4")}, path, {"num_samples": "7"})
        with pytest.raises(UpdateError, match="was changed while"):
            proxied.submit(path, progress=lambda done, _: path.touch())

    def test_a_download_that_breaks_goes_on(
        self, proxied: Ticket, proxy: Proxy, store: Store, keys: RoundKeys, tmp_path: Path
    ) -> None:
        average = {"w": np.arange(5 * MIB, dtype="f4")}
        store.put_bytes(keys.result, reference.encode(average, {}))
        store.put_json(keys.manifest, {})

        def whole(answer: Answer) -> Answer:
            return answer

        def short(answer: Answer) -> Answer:
            return answer._replace(body=answer.body[: 1000 * 1000])

        proxy.spoils = [whole, whole, short, short]
        np.testing.assert_array_equal(proxied.fetch()["w"], average["w"])
        assert len(proxy.requests) > 4
        proxied.fetch(tmp_path / "average")
        np.testing.assert_array_equal(load_file(tmp_path / "average")["w"], average["w"])

    def test_a_download_that_keeps_breaking_tells_no_url(
        self, proxied: Ticket, proxy: Proxy, store: Store, keys: RoundKeys
    ) -> None:
        store.put_bytes(keys.result, reference.encode(TENSORS, {}))
        store.put_json(keys.manifest, {})

        def whole(answer: Answer) -> Answer:
            return answer

        proxy.spoils = [whole, whole, *[lambda answer: answer._replace(body=b"")] * 9]
        with pytest.raises(StoreError, match=r"update\.safetensors: reading broke") as failed:
            proxied.fetch()
        assert "Signature" not in str(failed.value)
        assert "Signature" not in str(failed.value.__cause__)

    def test_nobody_answers(self, proxied: Ticket, proxy: Proxy) -> None:
        proxy.spoils = [lambda _: None] * 9
        with pytest.raises(TicketError, match="S3 does not answer for round") as failed:
            proxied.rejection()
        assert "http" not in str(failed.value)


class TestTheRoundsEnd:
    def test_a_refusal_is_read(self, ticket: Ticket, store: Store, keys: RoundKeys) -> None:
        assert ticket.rejection() is None
        refuse(store, keys, Refusal("a", "it holds NaN", "etag"))
        assert ticket.rejection() == "it holds NaN"

    def test_an_open_round(self, ticket: Ticket) -> None:
        assert not ticket.has_ended()
        with pytest.raises(RoundStateError, match="has not ended"):
            ticket.fetch()
        with pytest.raises(WaitTimeoutError, match=r"within 0\.05 s"):
            ticket.wait(0.05)
        assert ticket.status()["state"] == "open"
        assert ticket.status()["uploaded"] is None

    def test_a_completed_one(self, ticket: Ticket, store: Store, keys: RoundKeys) -> None:
        ticket.submit(TENSORS, 5)
        store.put_bytes(keys.result, reference.encode(TENSORS, {}))
        store.put_json(keys.manifest, {})
        ticket.wait(5)
        np.testing.assert_array_equal(ticket.fetch()["w"], TENSORS["w"])
        status = ticket.status()
        assert (status["state"], status["reason"]) == ("completed", None)
        assert status["uploaded"] in tickets.lengths(MAX_BYTES)

    def test_a_failed_one(self, ticket: Ticket, store: Store, keys: RoundKeys) -> None:
        store.put_json(keys.manifest, {"status": "failed", "cause": "b was bad"})
        for ask in (ticket.wait, ticket.fetch):
            with pytest.raises(RoundFailed, match="failed; its operator can see why"):
                ask()
        assert ticket.status()["state"] == "failed"


class TestReading:
    @pytest.fixture
    def reading(self, store: Store, keys: RoundKeys, monkeypatch: pytest.MonkeyPatch) -> Ticket:
        """Give a ticket for one object, through a message, and take the credentials away."""
        made = Ticket.reading(store, keys, "reader", f"{keys.root}model", expires=600)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
            monkeypatch.delenv(name, raising=False)
        return Ticket.loads(made.dumps())

    def test_fetches_the_object(self, reading: Ticket, store: Store, keys: RoundKeys) -> None:
        with pytest.raises(RoundStateError, match="has not ended"):
            reading.fetch()
        store.put_bytes(f"{keys.root}model", reference.encode(TENSORS, {}))
        np.testing.assert_array_equal(reading.fetch()["w"], TENSORS["w"])

    def test_uploads_nothing(self, reading: Ticket) -> None:
        with pytest.raises(UpdateError, match="over the 0 of the ticket"):
            reading.submit(TENSORS, 5)
