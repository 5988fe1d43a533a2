"""Tickets at the engine, which checks presigned URLs: signature, time and signed headers."""

import contextlib
import http.client
import io
import itertools
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from safetensors.numpy import load, load_file, save_file

from gradshard.aws.boto_client import make_client, make_session
from gradshard.aws.client_store import ClientStore
from gradshard.client.round_by_ticket import TicketRound
from gradshard.tickets import part_urls, ticket_upload
from gradshard.tickets.issuer import issue_download_ticket, issue_ticket
from gradshard.tickets.part_urls import PartUrls, encode_completion
from gradshard.tickets.round_ticket import Ticket
from gradshard.updates.compression import Compression
from gradshard.updates.residual import Residual
from gradshard.updates.upload_source import PaddedContent, TensorContent
from gradshard.utils import polling
from gradshard_core.errors import (
    RoundFailed,
    RoundStateError,
    StoreError,
    TicketError,
    UpdateError,
    WaitTimeoutError,
)
from gradshard_core.formats.codecs.registry import CODECS
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.formats.tensor_layout import Layout
from gradshard_core.planning.plan_parts import Rejection
from gradshard_core.records.ticket_urls import signed_lengths
from gradshard_core.rounds.arrivals import Update, check_update
from gradshard_core.rounds.rejections import reject
from gradshard_core.s3 import retries
from gradshard_core.s3.sigv4 import Credentials
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.round_spec_checks import parse_spec
from gradshard_core.units import MIB
from tests import compressed, reference
from tests.integration.conftest import as_clients_do
from tests.integration.proxy import Answer, Fault, Proxy, Spoil

COUNTER = itertools.count()
TENSORS = {"w": np.arange(1000, dtype="f4")}
OTHER = {"w": np.arange(1000, dtype="f4") + 1}
MAX_BYTES = 100_000


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(retries, "sleep_backoff", lambda _: None)


@pytest.fixture(params=["store", "encrypted"])
def store(request: pytest.FixtureRequest) -> ClientStore:
    """A bucket whose ETags are MD5s, and one under a KMS key."""
    return as_clients_do(request.getfixturevalue(request.param))


@pytest.fixture
def keys(store: ClientStore) -> RoundKeys:
    """Give a round of its own."""
    return RoundKeys(f"ticketed-{next(COUNTER)}")


@pytest.fixture
def ticket(store: ClientStore, keys: RoundKeys, monkeypatch: pytest.MonkeyPatch) -> Ticket:
    """Give a ticket, and take the credentials away."""
    ticket = issue_ticket(store, keys, "a", expires=600, max_bytes=MAX_BYTES)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    return ticket


@pytest.fixture
def proxied(
    proxy: Proxy, store: ClientStore, keys: RoundKeys, monkeypatch: pytest.MonkeyPatch
) -> Ticket:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    behind = ClientStore(store.bucket, make_client())
    return issue_ticket(behind, keys, "a", expires=600, max_bytes=50 * MIB)


def raw(
    method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> int:
    """Make a request as someone would who does not keep to the ticket; return its status."""
    parts = urlsplit(url)
    with contextlib.closing(http.client.HTTPConnection(parts.netloc)) as connection:
        connection.request(method, f"{parts.path}?{parts.query}", body, dict(headers or {}))
        return connection.getresponse().status


def assert_holds(
    store: ClientStore, keys: RoundKeys, tensors: Mapping[str, reference.Array]
) -> None:
    update = check_update(store, keys, "a", parse_spec({"clients": ["a"]}))
    assert isinstance(update, tuple), update
    assert not isinstance(update, Rejection)
    body = store.get_bytes(keys.update("a"))
    assert body is not None
    np.testing.assert_array_equal(load(body)["w"], tensors["w"])


def without_checksum(answer: Answer) -> Answer:
    headers = answer.headers.items()
    kept = {name: value for name, value in headers if not name.startswith("x-amz-checksum-")}
    return answer._replace(headers=kept)


def with_empty_checksum(answer: Answer) -> Answer:
    headers = answer.headers.items()
    emptied = {n: "" if n.startswith("x-amz-checksum-") else value for n, value in headers}
    return answer._replace(headers=emptied)


def unchanged(answer: Answer) -> Answer:
    return answer


class TestUploading:
    def test_tensors(self, ticket: Ticket, store: ClientStore, keys: RoundKeys) -> None:
        told: list[tuple[int, int]] = []
        TicketRound(ticket).submit(TENSORS, 5, progress=lambda *step: told.append(step))
        assert_holds(store, keys, TENSORS)
        update = check_update(store, keys, "a", parse_spec({"clients": ["a"]}))
        assert update is not None
        assert not isinstance(update, Rejection)
        assert update.samples == 5
        assert update.source.nbytes in signed_lengths(MAX_BYTES)
        assert told[0][0] == 0
        assert told[-1] == (update.source.nbytes, update.source.nbytes)

    def test_a_file_by_a_ticket_in_a_file(
        self, ticket: Ticket, store: ClientStore, keys: RoundKeys, tmp_path: Path
    ) -> None:
        save_file(TENSORS, tmp_path / "u", {"num_samples": "7"})
        ticket.save(tmp_path / "t")
        TicketRound(Ticket.load(tmp_path / "t")).submit(tmp_path / "u")
        assert_holds(store, keys, TENSORS)

    @pytest.mark.parametrize("codec", CODECS)
    def test_a_compressed_update(self, store: ClientStore, keys: RoundKeys, codec: str) -> None:
        tensors = {"w": np.random.default_rng(0).standard_normal(70_000).astype("f4")}
        codecs = tuple(CODECS)
        ticket = issue_ticket(store, keys, "a", expires=600, max_bytes=100_000, codecs=codecs)
        residual = Residual()
        TicketRound(ticket).submit(tensors, 5, codec=Compression(codec, residual=residual))
        body = store.get_bytes(keys.update("a"))
        assert body is not None
        lost = tensors["w"] - compressed.read(body)["w"]
        assert residual.norm == pytest.approx(np.linalg.norm(lost), rel=1e-4)
        spec = parse_spec({"clients": ["a"], "codecs": [*CODECS]})
        update = check_update(store, keys, "a", spec)
        assert isinstance(update, Update)

    def test_a_codec_that_the_round_does_not_take_is_not_sent(
        self, ticket: Ticket, store: ClientStore, keys: RoundKeys
    ) -> None:
        with pytest.raises(UpdateError, match="takes the codecs none, not 'int8'"):
            TicketRound(ticket).submit(TENSORS, 5, codec="int8")
        assert store.head(keys.update("a")) is None

    def test_the_same_update_again_is_no_error(self, ticket: Ticket, store: ClientStore) -> None:
        TicketRound(ticket).submit(TENSORS, 5)
        TicketRound(ticket).submit(TENSORS, 5)

    def test_a_residual_is_kept_by_a_repetition_if_the_program_died_before(
        self, store: ClientStore, keys: RoundKeys
    ) -> None:
        ticket = issue_ticket(store, keys, "a", expires=600, max_bytes=MAX_BYTES, codecs=("int8",))
        update = {"w": np.linspace(-1, 1, 1000, dtype="f4")}
        # It died when S3 had the update, and its residual was as before.
        TicketRound(ticket).submit(update, 5, codec=Compression("int8", residual=Residual()))
        residual = Residual()
        norms = []
        for _ in range(2):
            TicketRound(ticket).submit(update, 5, codec=Compression("int8", residual=residual))
            norms.append(residual.norm)
        assert norms[0] == norms[1] > 0

    def test_another_update_is_rejected(
        self, ticket: Ticket, store: ClientStore, keys: RoundKeys
    ) -> None:
        TicketRound(ticket).submit(TENSORS, 5)
        with pytest.raises(TicketError, match="of client 'a' was used already"):
            TicketRound(ticket).submit(OTHER, 5)
        assert_holds(store, keys, TENSORS)

    def test_a_larger_update_is_not_sent(
        self, ticket: Ticket, store: ClientStore, keys: RoundKeys
    ) -> None:
        with pytest.raises(UpdateError, match="bytes, over the 100000 of the ticket"):
            TicketRound(ticket).submit({"w": np.zeros(MAX_BYTES, "u1")}, 5)
        assert store.head(keys.update("a")) is None

    def test_of_another_layout_does_not_use_the_ticket_up(
        self, store: ClientStore, keys: RoundKeys
    ) -> None:
        layout = Layout.pack([("w", "F32", (1000,))])
        made = issue_ticket(store, keys, "a", expires=600, max_bytes=MAX_BYTES, layout=layout)
        ticket = Ticket.loads(made.dumps())
        with pytest.raises(UpdateError, match=r"tensor 'w' is F64 \[1000\], not F32 \[1000\]"):
            TicketRound(ticket).submit({"w": np.zeros(1000)}, 5)
        assert store.head(keys.update("a")) is None
        TicketRound(ticket).submit(TENSORS, 5)
        assert_holds(store, keys, TENSORS)

    def test_again_once_the_operator_deleted_the_update(
        self, ticket: Ticket, store: ClientStore, keys: RoundKeys
    ) -> None:
        TicketRound(ticket).submit(TENSORS, 5)
        store.delete(keys.update("a"))
        TicketRound(ticket).submit(OTHER, 5)
        assert_holds(store, keys, OTHER)

    def test_not_after_the_round_has_ended(
        self, ticket: Ticket, store: ClientStore, keys: RoundKeys
    ) -> None:
        store.put_json(keys.manifest, {})
        with pytest.raises(RoundStateError, match="has ended"):
            TicketRound(ticket).submit(TENSORS, 5)


class TestWhatS3Rejects:
    """The engine does as S3 would, whoever sends what."""

    def put(self, ticket: Ticket, nbytes: int, url: str = "", **headers: str) -> int:
        sent = {"If-None-Match": "*", "Content-Length": str(nbytes)}
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return raw("PUT", url or ticket.upload_url(MAX_BYTES), sent | given, bytes(nbytes))

    def test_a_second_time(self, ticket: Ticket) -> None:
        assert self.put(ticket, MAX_BYTES) == 200
        assert self.put(ticket, MAX_BYTES) == 412

    def test_a_second_time_without_saying_so(self, ticket: Ticket) -> None:
        url = ticket.upload_url(MAX_BYTES)
        assert self.put(ticket, MAX_BYTES) == 200
        for headers in ({}, {"If-None-Match": '"x"'}, {"If-Match": "*"}):
            length = {"Content-Length": str(MAX_BYTES)}
            assert raw("PUT", url, length | headers, bytes(MAX_BYTES)) == 403

    def test_another_length(self, ticket: Ticket, store: ClientStore, keys: RoundKeys) -> None:
        for nbytes in (MAX_BYTES + 1, MAX_BYTES - 1, 2 * MAX_BYTES):
            assert self.put(ticket, nbytes) == 403
        assert store.head(keys.update("a")) is None

    def test_another_key(self, ticket: Ticket, store: ClientStore, keys: RoundKeys) -> None:
        url = ticket.upload_url(MAX_BYTES)
        for key in (keys.update("b"), keys.manifest, "rounds/other/updates/a.safetensors"):
            other = url.replace(keys.update("a"), key)
            assert other != url
            assert self.put(ticket, MAX_BYTES, other) == 403
        store.put_json(keys.manifest, {"contributors": ["b"]})
        store.put_json(keys.rejection("b"), {"reason": "b's own"})
        assert raw("GET", ticket.result_url.replace(keys.result, keys.manifest)) == 403
        other = ticket.rejection_url.replace(keys.rejection("a"), keys.rejection("b"))
        assert raw("GET", other) == 403

    def test_another_method(self, ticket: Ticket, store: ClientStore, keys: RoundKeys) -> None:
        store.put_json(keys.manifest, {"contributors": ["b"]})
        store.put_json(keys.update("a"), "my update")
        store.put_json(keys.result, "the average")
        urls = (ticket.uploaded_url, ticket.ended_url, ticket.upload_url(MAX_BYTES))
        headers = {"If-None-Match": "*", "Content-Length": str(MAX_BYTES)}
        for url, method in itertools.product(urls, ("GET", "DELETE", "POST")):
            body = bytes(MAX_BYTES) if method == "POST" else None
            sent = headers if body else {}
            assert raw(method, url, sent, body) == 403, (method, url)
        for method in ("PUT", "DELETE"):
            assert raw(method, ticket.result_url) == 403
        assert store.get_json(keys.update("a")) == "my update"

    def test_a_later_time(self, store: ClientStore, keys: RoundKeys) -> None:
        ticket = issue_ticket(store, keys, "a", expires=1, max_bytes=MAX_BYTES)
        time.sleep(2.1)
        assert self.put(ticket, MAX_BYTES) == 403
        held = TicketRound(ticket)
        for ask in (held.has_ended, held.rejection, held.fetch, held.wait):
            with pytest.raises(TicketError, match=r"it expired at 20.* ask its operator"):
                ask()
        with pytest.raises(TicketError, match="it expired at"):
            TicketRound(ticket).submit(TENSORS, 5)

    @pytest.mark.parametrize(
        ("key", "code"), [("", "SignatureDoesNotMatch"), ("test", "InvalidAccessKeyId")]
    )
    def test_credentials_that_are_not_valid(
        self, store: ClientStore, keys: RoundKeys, key: str, code: str
    ) -> None:
        session = make_session(
            credentials=Credentials(key or os.environ["AWS_ACCESS_KEY_ID"], "another")
        )
        stranger = ClientStore(store.bucket, make_client(session=session))
        ticket = issue_ticket(stranger, keys, "a", expires=600, max_bytes=MAX_BYTES)
        with pytest.raises(TicketError, match=code) as rejected:
            TicketRound(ticket).rejection()
        assert "http" not in str(rejected.value)
        with pytest.raises(TicketError, match="credentials"):
            TicketRound(ticket).submit(TENSORS, 5)


class TestLines:
    """What becomes of connections that break."""

    @pytest.fixture
    def large(self) -> dict[str, reference.Array]:
        return {"w": np.arange(5 * MIB, dtype="f4")}

    def test_an_upload_that_breaks_is_sent_again(
        self,
        proxied: Ticket,
        proxy: Proxy,
        store: ClientStore,
        keys: RoundKeys,
        large: dict[str, reference.Array],
    ) -> None:
        proxy.cuts = [10 * MIB]
        TicketRound(proxied).submit(large, 5)
        assert proxy.requests == ["HEAD", "HEAD", "PUT", "PUT"]
        assert_holds(store, keys, large)

    def test_an_upload_that_keeps_breaking_is_given_up(
        self, proxied: Ticket, proxy: Proxy, large: dict[str, reference.Array]
    ) -> None:
        proxy.cuts = [MIB] * 9
        with pytest.raises(TicketError, match="broke 3 times; submit it again") as failed:
            TicketRound(proxied).submit(large, 5)
        assert "http" not in str(failed.value)

    def test_an_answer_that_was_lost_is_looked_up(
        self, proxied: Ticket, proxy: Proxy, store: ClientStore, keys: RoundKeys
    ) -> None:
        proxy.spoils = [unchanged, unchanged, lambda _: None]
        TicketRound(proxied).submit(TENSORS, 5)
        assert proxy.requests == ["HEAD", "HEAD", "PUT", "PUT", "HEAD"]
        assert_holds(store, keys, TENSORS)

    def test_an_update_that_was_damaged_on_the_way_is_told_every_time(
        self, proxied: Ticket, proxy: Proxy, store: ClientStore, keys: RoundKeys
    ) -> None:
        proxy.faults = [Fault("damaged", "PUT")]
        with pytest.raises(TicketError, match=r"other bytes .* have its operator delete that"):
            TicketRound(proxied).submit(TENSORS, 5)
        with pytest.raises(TicketError, match="of client 'a' was used already"):
            TicketRound(proxied).submit(TENSORS, 5)
        store.delete(keys.update("a"))
        TicketRound(proxied).submit(TENSORS, 5)
        assert_holds(store, keys, TENSORS)

    def test_a_damaged_update_whose_answer_was_lost_is_told(
        self, proxied: Ticket, proxy: Proxy
    ) -> None:
        proxy.faults = [Fault("damaged", "PUT")]
        proxy.spoils = [unchanged, unchanged, lambda _: None]
        with pytest.raises(TicketError, match=r"another update.* or this one was damaged on the"):
            TicketRound(proxied).submit(TENSORS, 5)

    @pytest.mark.parametrize("spoil", [without_checksum, with_empty_checksum])
    def test_a_store_that_keeps_no_checksum(
        self,
        proxied: Ticket,
        proxy: Proxy,
        store: ClientStore,
        encrypted: S3Store,
        keys: RoundKeys,
        spoil: Spoil,
    ) -> None:
        proxy.spoils = [spoil] * 9
        TicketRound(proxied).submit(TENSORS, 5)
        assert proxy.requests == ["HEAD", "HEAD", "PUT", "HEAD"]
        assert_holds(store, keys, TENSORS)
        # Then ETags tell updates apart, but under a KMS key they say nothing of the bytes.
        if store.bucket == encrypted.bucket:
            with pytest.raises(TicketError, match="whether it is this one cannot be told"):
                TicketRound(proxied).submit(TENSORS, 5)
        else:
            TicketRound(proxied).submit(TENSORS, 5)
        with pytest.raises(TicketError, match="was used already"):
            TicketRound(proxied).submit(OTHER, 5)

    def test_damage_is_told_by_the_etag_if_there_is_no_checksum(
        self, proxied: Ticket, proxy: Proxy, store: ClientStore, encrypted: S3Store
    ) -> None:
        if store.bucket == encrypted.bucket:
            pytest.skip("an ETag under a KMS key says nothing of the bytes")
        proxy.faults = [Fault("damaged", "PUT")]
        proxy.spoils = [without_checksum] * 4
        with pytest.raises(TicketError, match=r"other bytes .* have its operator delete that"):
            TicketRound(proxied).submit(TENSORS, 5)

    def test_an_update_that_is_deleted_before_it_is_compared(
        self, proxied: Ticket, proxy: Proxy, store: ClientStore, keys: RoundKeys
    ) -> None:
        def delete(answer: Answer) -> Answer:
            store.delete(keys.update("a"))
            return without_checksum(answer)

        proxy.spoils = [unchanged, unchanged, delete]
        with pytest.raises(TicketError, match="was taken away meanwhile"):
            TicketRound(proxied).submit(TENSORS, 5)

    def test_tensors_that_change_on_the_way(
        self, proxied: Ticket, large: dict[str, reference.Array]
    ) -> None:
        def change(done: int, _: int) -> None:
            large["w"][0] += done > 10 * MIB

        with pytest.raises(TicketError, match=r"damaged on the way, or the update changed while"):
            TicketRound(proxied).submit(large, 5, progress=change)

    def test_a_file_that_changes_on_the_way(self, proxied: Ticket, tmp_path: Path) -> None:
        path = tmp_path / "u"
        save_file({"w": np.zeros(5 * MIB, "f4")}, path, {"num_samples": "7"})
        with pytest.raises(UpdateError, match="was changed while"):
            TicketRound(proxied).submit(path, progress=lambda done, _: path.touch())

    def test_a_download_that_breaks_goes_on(
        self, proxied: Ticket, proxy: Proxy, store: ClientStore, keys: RoundKeys, tmp_path: Path
    ) -> None:
        average = {"w": np.arange(5 * MIB, dtype="f4")}
        store.put_bytes(keys.result, reference.encode(average, {}))
        store.put_json(keys.manifest, {})

        def whole(answer: Answer) -> Answer:
            return answer

        def short(answer: Answer) -> Answer:
            return answer._replace(body=answer.body[: 1000 * 1000])

        proxy.spoils = [whole, whole, short, short]
        np.testing.assert_array_equal(TicketRound(proxied).fetch()["w"], average["w"])
        assert len(proxy.requests) > 4
        TicketRound(proxied).fetch(tmp_path / "average")
        np.testing.assert_array_equal(load_file(tmp_path / "average")["w"], average["w"])

    def test_a_download_that_keeps_breaking_tells_no_url(
        self, proxied: Ticket, proxy: Proxy, store: ClientStore, keys: RoundKeys
    ) -> None:
        store.put_bytes(keys.result, reference.encode(TENSORS, {}))
        store.put_json(keys.manifest, {})

        def whole(answer: Answer) -> Answer:
            return answer

        proxy.spoils = [whole, whole, *[lambda answer: answer._replace(body=b"")] * 9]
        with pytest.raises(StoreError, match=r"update\.safetensors: reading broke") as failed:
            TicketRound(proxied).fetch()
        assert "Signature" not in str(failed.value)
        assert "Signature" not in str(failed.value.__cause__)

    def test_nobody_answers(self, proxied: Ticket, proxy: Proxy) -> None:
        proxy.spoils = [lambda _: None] * 9
        with pytest.raises(TicketError, match="S3 does not answer for round") as failed:
            TicketRound(proxied).rejection()
        assert "http" not in str(failed.value)


class TestInParts:
    """Updates that may be too large for one PUT."""

    MAX_BYTES = 22 * MIB

    @pytest.fixture(autouse=True)
    def _parts_as_small_as_s3_takes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(part_urls, "MIN_PART_BYTES", 5 * MIB)

    @pytest.fixture
    def large(self) -> dict[str, reference.Array]:
        return {"w": np.arange(19 * MIB // 4, dtype="f4")}

    @pytest.fixture
    def parted(self, proxied: Ticket, proxy: Proxy, store: ClientStore, keys: RoundKeys) -> Ticket:
        """Give a ticket for parts of 5.5 MiB, the first of up to 11, through the proxy."""
        behind = ClientStore(store.bucket, make_client(endpoint_url=proxy.url))
        made = issue_ticket(
            behind, keys, "a", expires=600, max_bytes=self.MAX_BYTES, single_put_bytes=MIB
        )
        proxy.requests.clear()
        return Ticket.loads(made.dumps())

    @pytest.fixture
    def urls(self, parted: Ticket) -> PartUrls:
        assert parted.parts
        return parted.parts

    @pytest.mark.parametrize("nbytes", [4, MIB, 10 * MIB, 12 * MIB, 19 * MIB, 21 * MIB])
    def test_an_update_of_any_size(
        self, parted: Ticket, store: ClientStore, keys: RoundKeys, nbytes: int
    ) -> None:
        tensors = {"w": np.arange(nbytes // 4, dtype="f4")}
        told: list[tuple[int, int]] = []
        TicketRound(parted).submit(tensors, 5, progress=lambda *step: told.append(step))
        assert_holds(store, keys, tensors)
        assert told == sorted(told)
        assert told[0][0] == 0
        assert told[-1][0] == told[-1][1] <= self.MAX_BYTES
        assert len(told) > nbytes // (2 * MIB)
        assert store.open_uploads(keys.update("a")) == []

    def test_the_same_update_again_is_no_error_and_another_is(
        self,
        parted: Ticket,
        proxy: Proxy,
        store: ClientStore,
        encrypted: S3Store,
        large: dict[str, reference.Array],
    ) -> None:
        TicketRound(parted).submit(large, 5)
        # Under a KMS key the answer to the completion has no checksum.
        looks = ["HEAD"] if store.bucket == encrypted.bucket else []
        assert proxy.requests == ["HEAD", "HEAD", "GET", "PUT", "PUT", "PUT", "POST", *looks]
        proxy.requests.clear()
        TicketRound(parted).submit(large, 5)
        assert proxy.requests == ["HEAD"]
        # By its ETag if S3 keeps no checksum of it. Under a KMS key that says nothing.
        proxy.spoils = [without_checksum]
        if store.bucket == encrypted.bucket:
            with pytest.raises(TicketError, match="whether it is this one cannot be told"):
                TicketRound(parted).submit(large, 5)
        else:
            TicketRound(parted).submit(large, 5)
        for other, samples in ((large, 6), ({"w": large["w"] + 1}, 5)):
            with pytest.raises(TicketError, match=r"another update, .*; ask its operator for"):
                TicketRound(parted).submit(other, samples)

    def test_a_larger_update_is_not_sent(self, parted: Ticket, proxy: Proxy) -> None:
        with pytest.raises(UpdateError, match=f"over the {self.MAX_BYTES} of the ticket"):
            TicketRound(parted).submit({"w": np.zeros(self.MAX_BYTES, "u1")}, 5)
        assert proxy.requests == []

    def test_an_interrupted_upload_goes_on(
        self,
        parted: Ticket,
        proxy: Proxy,
        store: ClientStore,
        encrypted: S3Store,
        keys: RoundKeys,
        large: dict[str, reference.Array],
        urls: PartUrls,
    ) -> None:
        def interrupt(done: int, _total: int) -> None:
            if done:
                raise KeyboardInterrupt

        [upload_id] = store.open_uploads(keys.update("a"))
        with pytest.raises(KeyboardInterrupt):
            TicketRound(parted).submit(large, 5, progress=interrupt)
        # Whichever parts came through, this one is among them.
        content = TensorContent(large, 5)
        padded = PaddedContent(content, urls.padded_length(content.nbytes))
        start, end = urls.ranges(padded.nbytes)[1]
        body = io.BytesIO(padded.read(start, end))
        store.upload_part(keys.update("a"), upload_id, 2, body, end - start)
        held = store.list_parts(keys.update("a"), upload_id) or []
        # Under a KMS key none is known again, and all are sent anew.
        known = [] if store.bucket == encrypted.bucket else held
        proxy.requests.clear()
        told: list[int] = []
        TicketRound(parted).submit(large, 5, progress=lambda done, _: told.append(done))
        assert proxy.requests.count("PUT") == 3 - len(known)
        assert told[0] == sum(part.nbytes for part in known)
        assert_holds(store, keys, large)

    def test_parts_of_another_update_are_sent_anew(
        self,
        parted: Ticket,
        proxy: Proxy,
        store: ClientStore,
        keys: RoundKeys,
        large: dict[str, reference.Array],
    ) -> None:
        proxy.faults = [Fault("500", "POST")] * retries.MAX_ATTEMPTS
        with pytest.raises(TicketError, match="did not finish the upload"):
            TicketRound(parted).submit({"w": large["w"] + 1}, 5)
        TicketRound(parted).submit(large, 5)
        assert_holds(store, keys, large)

    @pytest.mark.parametrize(
        "faults",
        [
            pytest.param([Fault("half sent", "PUT")] * 4, id="broken lines"),
            pytest.param([Fault("unseen", "PUT"), Fault("unseen", "POST")], id="lost answers"),
            pytest.param([Fault("200", "POST"), Fault("503", "POST")], id="failing completions"),
            pytest.param([Fault("503", "PUT"), Fault("reset", "GET")], id="failures"),
            pytest.param([Fault("damaged", "PUT")] * 2, id="damage"),
        ],
    )
    def test_a_broken_request_is_tried_again(
        self,
        parted: Ticket,
        proxy: Proxy,
        store: ClientStore,
        keys: RoundKeys,
        large: dict[str, reference.Array],
        faults: list[Fault],
    ) -> None:
        proxy.faults = [*faults]
        TicketRound(parted).submit(large, 5)
        assert proxy.faults == []
        assert_holds(store, keys, large)

    def test_an_update_of_damaged_parts_is_told(
        self,
        parted: Ticket,
        proxy: Proxy,
        large: dict[str, reference.Array],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Where S3 has said nothing of the part itself."""
        monkeypatch.setattr(ticket_upload.TicketUpload, "_is_intact", lambda *_: True)
        proxy.faults = [Fault("damaged", "PUT")]
        with pytest.raises(TicketError, match=r"other bytes .* ask its operator for another"):
            TicketRound(parted).submit(large, 5)
        with pytest.raises(TicketError, match=r"was used already.* damaged on the way"):
            TicketRound(parted).submit(large, 5)

    def test_damaged_parts_are_told_by_the_etag_if_there_is_no_checksum(
        self,
        parted: Ticket,
        proxy: Proxy,
        store: ClientStore,
        encrypted: S3Store,
        large: dict[str, reference.Array],
    ) -> None:
        if store.bucket == encrypted.bucket:
            pytest.skip("an ETag under a KMS key says nothing of the bytes")

        def spoil(answer: Answer) -> Answer:
            body = re.sub(rb"<(ChecksumCRC64NVME)>.*</\1>", b"", answer.body)
            headers = without_checksum(answer).headers
            return Answer(answer.status, headers, body.ljust(len(answer.body)))

        proxy.faults, proxy.spoils = [Fault("damaged", "PUT")], [spoil] * 99
        with pytest.raises(TicketError, match=r"other bytes .* ask its operator for another"):
            TicketRound(parted).submit(large, 5)

    def test_a_part_that_keeps_breaking_is_given_up(
        self, parted: Ticket, proxy: Proxy, large: dict[str, reference.Array]
    ) -> None:
        proxy.faults = [Fault("reset", "PUT", "partNumber=2")] * retries.MAX_ATTEMPTS
        with pytest.raises(TicketError, match=r"part 2 .* broke 6 times; submit again") as failed:
            TicketRound(parted).submit(large, 5)
        assert "http" not in str(failed.value)

    def test_a_file_that_changes_on_the_way(self, parted: Ticket, tmp_path: Path) -> None:
        path = tmp_path / "u"
        save_file({"w": np.zeros(4 * MIB, "f4")}, path, {"num_samples": "7"})
        with pytest.raises(UpdateError, match="was changed while"):
            TicketRound(parted).submit(path, progress=lambda done, _: path.touch())

    def test_parts_another_program_has_overwritten(
        self, parted: Ticket, urls: PartUrls, large: dict[str, reference.Array]
    ) -> None:
        ranges = urls.ranges(urls.padded_length(large["w"].nbytes + 200))
        nbytes = ranges[1][1] - ranges[1][0]

        def overwrite(done: int, total: int) -> None:
            if done == total:
                for _ in range(20):
                    time.sleep(0.05)
                    raw(
                        "PUT",
                        urls.part_url(2, nbytes),
                        {"Content-Length": str(nbytes)},
                        bytes(nbytes),
                    )

        with pytest.raises(TicketError, match=r"\(InvalidPart\): another program"):
            TicketRound(parted).submit(large, 5, progress=overwrite)
        TicketRound(parted).submit(large, 5)

    def test_a_ticket_of_a_deleted_upload_says_so(
        self, parted: Ticket, store: ClientStore, keys: RoundKeys, large: dict[str, reference.Array]
    ) -> None:
        store.abort_open_uploads(keys.update("a"))
        with pytest.raises(TicketError, match=r"is gone.* another ticket"):
            TicketRound(parted).submit(large, 5)

    def put(self, url: str, nbytes: int, **headers: str) -> int:
        return raw("PUT", url, {"Content-Length": str(nbytes), **headers}, bytes(nbytes))

    def test_s3_rejects_another_length(self, urls: PartUrls) -> None:
        for number, nbytes in ((1, 6 * MIB), (2, urls.nbytes)):
            length = next(n for n in map(int, _signed(urls)) if n >= nbytes)
            length = length if number == 1 else nbytes
            url = urls.part_url(number, length)
            assert self.put(url, length) == 200
            for other in (length - 1, length + 1):
                assert self.put(url, other) == 403

    def test_s3_rejects_another_place(
        self, parted: Ticket, urls: PartUrls, store: ClientStore, keys: RoundKeys
    ) -> None:
        other_id = store.create_upload(keys.update("b"))
        url = urls.part_url(2, urls.nbytes)
        [upload_id] = store.open_uploads(keys.update("a"))
        for old, new in (
            (keys.update("a"), keys.update("b")),
            (f"rounds/{keys.round_id}/", "rounds/other/"),
            ("partNumber=2", "partNumber=3"),
            ("partNumber=2", "partNumber=9"),
            (upload_id, other_id),
        ):
            changed = url.replace(old, new)
            assert changed != url
            assert self.put(changed, urls.nbytes) == 403
        for old, new in ((keys.update("a"), keys.update("b")), (upload_id, other_id)):
            assert raw("GET", urls.listing.replace(old, new)) == 403
            body = encode_completion([])
            headers = {"If-None-Match": "*"}
            assert raw("POST", urls.completion.replace(old, new), headers, body) == 403

    def test_s3_rejects_another_method(
        self, urls: PartUrls, store: ClientStore, keys: RoundKeys
    ) -> None:
        part = urls.part_url(2, urls.nbytes)
        for url, right in ((part, "PUT"), (urls.listing, "GET"), (urls.completion, "POST")):
            for method in {"GET", "HEAD", "POST", "PUT", "DELETE"} - {right}:
                headers = {"If-None-Match": "*", "Content-Length": "0"}
                assert raw(method, url, headers) == 403, (method, url)
        assert store.open_uploads(keys.update("a"))

    def test_s3_makes_an_update_once(
        self,
        parted: Ticket,
        urls: PartUrls,
        store: ClientStore,
        keys: RoundKeys,
        large: dict[str, reference.Array],
    ) -> None:
        """Not where there is one, nor without asking, nor a second one by the same upload."""
        nbytes = min(map(int, _signed(urls)))
        assert self.put(urls.part_url(1, nbytes), nbytes) == 200
        body = encode_completion(store.list_parts(keys.update("a"), _only(store, keys)) or [])
        store.put_json(keys.update("a"), "there already")
        assert raw("POST", urls.completion, {"If-None-Match": "*"}, body) == 412
        for headers in ({}, {"If-None-Match": '"x"'}, {"If-Match": "*"}):
            assert raw("POST", urls.completion, headers, body) == 403
        assert store.get_json(keys.update("a")) == "there already"
        with pytest.raises(TicketError, match="was used already"):
            TicketRound(parted).submit(large, 5)
        store.delete(keys.update("a"))
        TicketRound(parted).submit(large, 5)
        assert self.put(urls.part_url(1, nbytes), nbytes) == 404

    def test_s3_rejects_a_later_time(self, store: ClientStore, keys: RoundKeys) -> None:
        ticket = issue_ticket(store, keys, "a", expires=1, max_bytes=20 * MIB, single_put_bytes=1)
        assert ticket.parts
        time.sleep(2.1)
        nbytes = min(map(int, _signed(ticket.parts)))
        assert self.put(ticket.parts.part_url(1, nbytes), nbytes) == 403
        assert raw("GET", ticket.parts.listing) == 403
        headers = {"If-None-Match": "*"}
        assert raw("POST", ticket.parts.completion, headers, encode_completion([])) == 403
        with pytest.raises(TicketError, match="it expired at"):
            TicketRound(ticket).submit(TENSORS, 5)

    def test_two_tickets_of_one_client_upload_once(
        self, parted: Ticket, store: ClientStore, keys: RoundKeys, large: dict[str, reference.Array]
    ) -> None:
        other = issue_ticket(
            store, keys, "a", expires=600, max_bytes=self.MAX_BYTES, single_put_bytes=MIB
        )
        TicketRound(parted).submit(large, 5)
        with pytest.raises(TicketError, match="was used already"):
            TicketRound(other).submit(large, 6)
        assert_holds(store, keys, large)


def _signed(urls: PartUrls) -> list[str]:
    return sorted((length for ends in urls.first.values() for length in ends), key=int)


def _only(store: ClientStore, keys: RoundKeys) -> str:
    [upload_id] = store.open_uploads(keys.update("a"))
    return upload_id


class TestTheRoundsEnd:
    def test_a_rejection_is_read(self, ticket: Ticket, store: ClientStore, keys: RoundKeys) -> None:
        assert TicketRound(ticket).rejection() is None
        reject(store, keys, Rejection("a", "it holds NaN", "etag"))
        assert TicketRound(ticket).rejection() == "it holds NaN"

    def test_an_open_round(self, ticket: Ticket) -> None:
        assert not TicketRound(ticket).has_ended()
        with pytest.raises(RoundStateError, match="has not ended"):
            TicketRound(ticket).fetch()
        with pytest.raises(WaitTimeoutError, match=r"within 0\.05 s"):
            TicketRound(ticket).wait(0.05)
        assert TicketRound(ticket).status()["state"] == "open"
        assert TicketRound(ticket).status()["uploaded"] is None

    def test_a_completed_one(self, ticket: Ticket, store: ClientStore, keys: RoundKeys) -> None:
        TicketRound(ticket).submit(TENSORS, 5)
        store.put_bytes(keys.result, reference.encode(TENSORS, {}))
        store.put_json(keys.manifest, {})
        TicketRound(ticket).wait(5)
        np.testing.assert_array_equal(TicketRound(ticket).fetch()["w"], TENSORS["w"])
        status = TicketRound(ticket).status()
        assert (status["state"], status["reason"]) == ("completed", None)
        assert status["uploaded"] in signed_lengths(MAX_BYTES)

    def test_a_failed_one(self, ticket: Ticket, store: ClientStore, keys: RoundKeys) -> None:
        store.put_json(keys.manifest, {"status": "failed", "cause": "b was bad"})
        held = TicketRound(ticket)
        for ask in (held.wait, held.fetch):
            with pytest.raises(RoundFailed, match="failed; its operator can see why"):
                ask()
        assert TicketRound(ticket).status()["state"] == "failed"


class TestReading:
    @pytest.fixture
    def reading(
        self, store: ClientStore, keys: RoundKeys, monkeypatch: pytest.MonkeyPatch
    ) -> Ticket:
        """Give a ticket for one object, through a message, and take the credentials away."""
        made = issue_download_ticket(store, keys, "reader", f"{keys.root}model", expires=600)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
            monkeypatch.delenv(name, raising=False)
        return Ticket.loads(made.dumps())

    def test_fetches_the_object(self, reading: Ticket, store: ClientStore, keys: RoundKeys) -> None:
        with pytest.raises(RoundStateError, match="has not ended"):
            TicketRound(reading).fetch()
        store.put_bytes(f"{keys.root}model", reference.encode(TENSORS, {}))
        np.testing.assert_array_equal(TicketRound(reading).fetch()["w"], TENSORS["w"])

    def test_uploads_nothing(self, reading: Ticket) -> None:
        with pytest.raises(UpdateError, match="over the 0 of the ticket"):
            TicketRound(reading).submit(TENSORS, 5)
