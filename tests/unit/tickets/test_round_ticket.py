"""What a ticket opens and what it does not, as far as that is in what is signed."""

import json
import math
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradshard.aws.boto_client import make_client, make_session
from gradshard.aws.client_store import ClientStore
from gradshard.client.round_by_ticket import TicketRound
from gradshard.tickets import ticket_file
from gradshard.tickets.issuer import issue_ticket
from gradshard.tickets.lifetime import MAX_SECONDS
from gradshard.tickets.round_ticket import Ticket
from gradshard.tickets.ticket_file import TicketFile
from gradshard.tickets.training_ticket import TrainingTicket
from gradshard.tickets.upload_parts import (
    FIRST_PART_STEPS,
    MAX_UPDATE_BYTES,
    PartUrls,
    issue_part_urls,
    parse_part_list,
)
from gradshard.updates.upload_source import TensorContent
from gradshard.verification.verification_ticket import VerificationTicket
from gradshard_core.errors import TicketError
from gradshard_core.formats.headers import MAX_HEADER_BYTES
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.formats.tensor_layout import Layout, encode_header
from gradshard_core.limits.aws_limits import LISTED_ENTRIES, MAX_PART_BYTES, MIN_PART_BYTES
from gradshard_core.records.ticket_urls import MAX_LENGTHS, signed_lengths
from gradshard_core.s3.http_transport import CHECKSUM_MODE
from gradshard_core.s3.multipart_requests import Part
from gradshard_core.s3.sigv4 import Credentials
from gradshard_core.units import MIB
from tests.presigned import rejection

SECRET = "a secret"
KEYS = RoundKeys("r1")
MAX_BYTES = 200_000
Make = Callable[..., Ticket]


@cache
def store_in(region: str, token: str) -> ClientStore:
    session = make_session(region=region, credentials=Credentials("AKID", SECRET, token))
    return ClientStore("bucket", make_client(session=session))


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Give what makes tickets for AWS, where nobody is asked."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)

    def make(*, token: str = "", region: str = "eu-central-1", **terms: int) -> Ticket:
        given: dict[str, Any] = {"expires": 600, "max_bytes": MAX_BYTES, **terms}
        return issue_ticket(store_in(region, token), KEYS, "a", **given)

    monkeypatch.setattr(ClientStore, "create_upload", lambda *_: "an/upload+id=")
    return make


UPLOAD_HEADERS = {"Content-Length": str(MAX_BYTES), "If-None-Match": "*"}


def verdict(
    method: str, url: str, headers: dict[str, str] | None = None, *, later: float = 0
) -> str | None:
    now = datetime.now(UTC) + timedelta(seconds=later)
    return rejection(method, url, headers or {}, SECRET, now=now)


class TestWhatIsSigned:
    @pytest.mark.parametrize("token", ["", "a session/token+="])
    @pytest.mark.parametrize(
        ("region", "host"),
        [
            ("eu-central-1", "bucket.s3.eu-central-1.amazonaws.com"),
            ("us-east-1", "bucket.s3.amazonaws.com"),
        ],
    )
    def test_opens_its_own_objects(self, make: Make, token: str, region: str, host: str) -> None:
        ticket = make(token=token, region=region)
        assert ticket.is_temporary == bool(token)
        for length in ticket.upload_lengths:
            url = ticket.upload_url(length)
            assert verdict("PUT", url, UPLOAD_HEADERS | {"Content-Length": str(length)}) is None
            assert urlsplit(url).path == f"/{KEYS.update('a')}"
        for method, url, key, headers in (
            ("HEAD", ticket.uploaded_url, KEYS.update("a"), CHECKSUM_MODE),
            ("GET", ticket.rejection_url, KEYS.rejection("a"), {}),
            ("HEAD", ticket.ended_url, KEYS.manifest, {}),
            ("GET", ticket.result_url, KEYS.result, {}),
            ("HEAD", ticket.result_head_url, KEYS.result, CHECKSUM_MODE),
        ):
            assert verdict(method, url, headers) is None
            assert urlsplit(url).path == f"/{key}"
            assert urlsplit(url).scheme == "https"
            # Of the region: from another one S3 would answer with a redirection.
            assert urlsplit(url).hostname == host

    def test_uploads_nothing_larger(self, make: Make) -> None:
        ticket = make()
        url = ticket.upload_url(MAX_BYTES)
        assert max(ticket.upload_lengths) == MAX_BYTES
        for wrong in (
            {"Content-Length": str(MAX_BYTES + 1), "If-None-Match": "*"},
            {"Transfer-Encoding": "chunked", "If-None-Match": "*"},
        ):
            assert verdict("PUT", url, wrong) is not None

    def test_uploads_only_where_there_is_nothing(self, make: Make) -> None:
        url = make().upload_url(MAX_BYTES)
        length = {"Content-Length": str(MAX_BYTES)}
        assert verdict("PUT", url, length) == "a signed header is missing"
        other = length | {"If-None-Match": '"x"'}
        assert verdict("PUT", url, other) == "the signature does not match"

    def test_opens_no_other_object(self, make: Make) -> None:
        ticket = make()
        for url, method in (
            (ticket.upload_url(MAX_BYTES), "PUT"),
            (ticket.rejection_url, "GET"),
            (ticket.result_url, "GET"),
        ):
            path = urlsplit(url).path
            for other in (
                KEYS.update("b"),
                KEYS.manifest,
                KEYS.plan,
                "rounds/r2/update.safetensors",
            ):
                assert verdict(method, url.replace(path, f"/{other}"), UPLOAD_HEADERS) is not None
            assert verdict(method, f"{url}&versionId=x", UPLOAD_HEADERS) is not None
            assert verdict(method, f"{url}&uploadId=x&partNumber=1", UPLOAD_HEADERS) is not None
            assert verdict(method, url.replace("//bucket", "//other"), UPLOAD_HEADERS) is not None
            assert (
                verdict(method, url, UPLOAD_HEADERS | {"x-amz-copy-source": "/bucket/k"})
                is not None
            )

    def test_opens_with_no_other_method(self, make: Make) -> None:
        ticket = make()
        for url, right, headers in (
            (ticket.upload_url(MAX_BYTES), "PUT", UPLOAD_HEADERS),
            (ticket.uploaded_url, "HEAD", CHECKSUM_MODE),
            (ticket.ended_url, "HEAD", {}),
            (ticket.rejection_url, "GET", {}),
            (ticket.result_url, "GET", {}),
        ):
            assert verdict(right, url, headers) is None
            for method in {"GET", "HEAD", "PUT", "POST", "DELETE"} - {right}:
                assert verdict(method, url, headers) is not None, (url, method)

    def test_opens_nothing_after_its_time(self, make: Make) -> None:
        ticket = make(expires=600)
        assert verdict("GET", ticket.result_url, later=590) is None
        for method, url, headers in (
            ("PUT", ticket.upload_url(MAX_BYTES), UPLOAD_HEADERS),
            ("HEAD", ticket.uploaded_url, CHECKSUM_MODE),
            ("HEAD", ticket.ended_url, {}),
            ("GET", ticket.rejection_url, {}),
            ("GET", ticket.result_url, {}),
        ):
            assert verdict(method, url, headers, later=601) == "expired"
            longer = url.replace("X-Amz-Expires=600", "X-Amz-Expires=6000")
            assert verdict(method, longer, headers, later=601) is not None
        assert abs(ticket.expires_at - datetime.now(UTC) - timedelta(seconds=600)).seconds < 5

    def test_of_two_seconds_is_whole(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        seconds = iter((1, 1, 1, 2))
        monkeypatch.setattr(
            ClientStore,
            "presign_new",
            lambda _, key, nbytes, __: f"https://s3/{key}?{next(seconds)}&X-Amz-Signature={nbytes}",
        )
        ticket = make()
        assert len(ticket.upload) == 2
        assert len(ticket.upload_lengths) == 4


class TestTerms:
    @pytest.mark.parametrize(
        ("terms", "text"),
        [
            ({"expires": 0}, "expires is 0, not a whole number from 1 to 604800"),
            ({"expires": MAX_SECONDS + 1}, "expires is 604801"),
            ({"expires": 1.5}, r"expires is 1\.5"),
            ({"expires": True}, "expires is True"),
            ({"max_bytes": 0}, "max_bytes is 0"),
            ({"max_bytes": MAX_UPDATE_BYTES + 1}, "max_bytes is 2684354560001"),
        ],
    )
    def test_terms_that_s3_does_not_take_are_rejected(
        self, make: Make, terms: dict[str, Any], text: str
    ) -> None:
        with pytest.raises(TicketError, match=text):
            make(**terms)

    @given(st.integers(1, MAX_PART_BYTES), st.data())
    def test_a_length_for_every_update(self, most: int, data: st.DataObject) -> None:
        found = signed_lengths(most)
        assert found[0] == most
        assert len(found) <= MAX_LENGTHS
        nbytes = data.draw(st.integers(1, most))
        fitting = min(n for n in found if n >= nbytes)
        assert fitting - nbytes < max(64 * 1024, most // MAX_LENGTHS + 1)


LARGE = 6_000_000_000


class TestParts:
    """What is signed for an upload in parts."""

    @pytest.fixture
    def urls(self, make: Make) -> PartUrls:
        ticket = Ticket.loads(make(max_bytes=LARGE, token="a session/token+=").dumps())
        assert ticket.parts
        assert ticket.upload == {}
        return ticket.parts

    def test_opens_its_own_upload(self, urls: PartUrls) -> None:
        sizes = {number: end - start for number, (start, end) in enumerate(urls.ranges(LARGE), 1)}
        assert sum(sizes.values()) == LARGE
        for number, nbytes in sizes.items():
            url = urls.part_url(number, nbytes)
            assert verdict("PUT", url, {"Content-Length": str(nbytes)}) is None
            assert urlsplit(url).path == f"/{KEYS.update('a')}"
            for wrong in (
                {"Content-Length": str(nbytes + 1)},
                {"Transfer-Encoding": "chunked"},
                # A part is not to be copied from another object.
                {"Content-Length": str(nbytes), "x-amz-copy-source": "/bucket/k"},
            ):
                assert verdict("PUT", url, wrong) is not None
            assert verdict("POST", url, {"Content-Length": str(nbytes)}) is not None
            assert verdict("PUT", url, {"Content-Length": str(nbytes)}, later=601) == "expired"
        assert verdict("GET", urls.listing) is None
        assert verdict("DELETE", urls.listing) is not None
        assert verdict("POST", urls.completion, {"If-None-Match": "*"}) is None
        assert verdict("POST", urls.completion) == "a signed header is missing"
        assert verdict("DELETE", urls.completion, {"If-None-Match": "*"}) is not None

    def test_is_begun_only_where_one_put_may_not_do(self, make: Make) -> None:
        assert make(max_bytes=1024 * MIB).parts is None
        assert make(max_bytes=1024 * MIB + 1).parts is not None

    @pytest.mark.parametrize("most", [LARGE, MAX_UPDATE_BYTES, 1024 * MIB + 1])
    def test_can_be_read_from_its_file(self, make: Make, tmp_path: Path, most: int) -> None:
        ticket = make(max_bytes=most, token="x" * 1500)
        ticket.save(tmp_path / "t")
        assert (tmp_path / "t").stat().st_size < 250_000
        assert Ticket.load(tmp_path / "t").parts == ticket.parts

    @given(st.integers(1, MAX_UPDATE_BYTES), st.data())
    def test_takes_every_update_up_to_its_size_and_no_byte_more(
        self, most: int, data: st.DataObject
    ) -> None:
        least = data.draw(st.integers(1, most))
        urls = issue_part_urls(Signing(), "k", expires=60, max_bytes=most, min_bytes=least)
        lengths = {int(length) for ends in urls.first.values() for length in ends}
        others = [number for ends in urls.others.values() for number in ends]
        assert max(lengths) + len(others) * urls.nbytes == most
        assert urls.is_for(most)
        assert not urls.is_for(most + 1)
        assert len(lengths) <= 2 * FIRST_PART_STEPS
        assert max(*lengths, urls.nbytes) <= MAX_PART_BYTES
        assert len(others) < LISTED_ENTRIES

        nbytes = data.draw(st.integers(least, most))
        fitting = urls.padded_length(nbytes)
        assert nbytes <= fitting <= most
        # What is filled up stands in the header.
        assert fitting - nbytes < MAX_HEADER_BYTES // 2
        ranges = urls.ranges(fitting)
        assert [start for start, _ in ranges] == [0, *(end for _, end in ranges[:-1])]
        assert ranges[-1][1] == fitting
        assert all(end - start >= MIN_PART_BYTES for start, end in ranges[:-1])
        for number, (start, end) in enumerate(ranges, 1):
            assert urls.part_url(number, end - start).startswith(f"part{number}")

    @pytest.mark.parametrize(
        "change",
        [
            {"nbytes": 0},
            {"nbytes": "17"},
            {"nbytes": 1},
            {"first": {}},
            {"others": {}},
            {"others": {"https://s3/": {"3": "x"}}},
            {"first": {"file:///etc/passwd": {"1": ""}}},
            {"listing": "file:///etc/passwd"},
            {"completion": None},
            {"more": 1},
        ],
    )
    def test_invalid_part_urls_are_rejected(self, make: Make, change: dict[str, Any]) -> None:
        record = json.loads(make(max_bytes=LARGE).dumps())
        with pytest.raises(TicketError, match="is not a ticket"):
            Ticket.loads(json.dumps(record | {"parts": record["parts"] | change}))

    def test_beside_one_put_are_rejected(self, make: Make) -> None:
        record = json.loads(make(max_bytes=LARGE).dumps())
        upload = {"https://s3/": {str(LARGE): "x"}}
        with pytest.raises(TicketError, match="is not a ticket"):
            Ticket.loads(json.dumps(record | {"upload": upload}))

    def test_a_list_of_them_is_read_as_s3_gives_it(self) -> None:
        listed = b"""<?xml version="1.0" encoding="UTF-8"?>
            <ListPartsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Bucket>b</Bucket>
            <Key>k</Key><UploadId>u</UploadId><IsTruncated>false</IsTruncated>
            <Part><PartNumber>1</PartNumber><LastModified>2026-11-10T20:48:34.000Z</LastModified>
            <ETag>&quot;7778aef83f66abc1fa1e8477f296d394&quot;</ETag><Size>10485760</Size></Part>
            <Part><ETag>"aaaa18db4cc2f85cedef654fccc4a4x8"</ETag><PartNumber>3</PartNumber>
            <Size>7</Size><ChecksumCRC32>x</ChecksumCRC32></Part></ListPartsResult>"""
        assert parse_part_list(listed) == [
            Part(1, '"7778aef83f66abc1fa1e8477f296d394"', 10485760),
            Part(3, '"aaaa18db4cc2f85cedef654fccc4a4x8"', 7),
        ]


class Signing(ClientStore):
    """Signs so that a test can read what was signed."""

    def __init__(self) -> None:
        pass

    def create_upload(
        self, key: str, metadata: dict[str, str] | None = None, *, checked: bool = False
    ) -> str:
        return "u"

    def presign_part(self, key: str, upload_id: str, number: int, nbytes: int, seconds: int) -> str:
        return f"part{number}?partNumber={number}&X-Amz-Signature={nbytes}"

    def presign_parts(self, key: str, upload_id: str, seconds: int) -> str:
        return "list"

    def presign_completion(self, key: str, upload_id: str, seconds: int) -> str:
        return "complete"


class TestFile:
    def test_is_read_as_it_was_written(self, make: Make, tmp_path: Path) -> None:
        ticket = make()
        ticket.save(tmp_path / "t")
        read = Ticket.load(tmp_path / "t")
        assert read.expires_at == ticket.expires_at.replace(microsecond=0)
        assert (read.round_id, read.client, read.max_bytes) == ("r1", "a", MAX_BYTES)
        assert read.upload == ticket.upload
        assert read.result_url == ticket.result_url

    def test_is_its_owners_only(self, make: Make, tmp_path: Path) -> None:
        make().save(tmp_path / "t")
        assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == 0o600

    def test_takes_no_other_files_place(self, make: Make, tmp_path: Path) -> None:
        (tmp_path / "t").write_text("mine")
        with pytest.raises(FileExistsError):
            make().save(tmp_path / "t")
        assert (tmp_path / "t").read_text() == "mine"

    def test_of_the_largest_updates_can_be_read_too(self, make: Make, tmp_path: Path) -> None:
        ticket = make(max_bytes=1024 * MIB, token="x" * 1500)
        ticket.save(tmp_path / "t")
        assert (tmp_path / "t").stat().st_size < 150_000
        assert len(Ticket.load(tmp_path / "t").upload_lengths) == MAX_LENGTHS

    @pytest.mark.parametrize(
        "change",
        [
            {"ticket": 2},
            {"round_id": "../r"},
            {"client": "a\x1b"},
            {"client": None},
            {"expires_at": "soon"},
            {"expires_at": "2026-01-01T00:00:00"},
            {"max_bytes": 7},
            {"layout": {"w": {"dtype": "F31", "shape": []}}},
            {"layout": ["w"]},
            {"layout": {"w": 3}},
            {"max_bytes": "many"},
            {"upload": {}},
            {"upload": {"file:///etc/passwd": {str(MAX_BYTES): ""}}},
            {"result_url": "file:///etc/passwd"},
            {"result_url": 3},
            {"more": 1},
        ],
    )
    def test_that_is_no_ticket_is_rejected(
        self, make: Make, tmp_path: Path, change: dict[str, Any]
    ) -> None:
        make().save(tmp_path / "t")
        record = json.loads((tmp_path / "t").read_text())
        (tmp_path / "t").write_text(json.dumps(record | change))
        with pytest.raises(TicketError, match="t is not a ticket"):
            Ticket.load(tmp_path / "t")

    @pytest.mark.parametrize("data", [b"", b"[]", b"3", b"{}", b"\xff\xfe", b"{" * 100_000])
    def test_of_anything_else_is_rejected(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "t").write_bytes(data)
        with pytest.raises(TicketError, match="not a ticket"):
            Ticket.load(tmp_path / "t")

    def test_a_file_too_large_for_a_ticket_is_not_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ticket_file, "MAX_FILE_BYTES", 100)
        layout = Layout.pack([("w", "U8", (1000,))])
        (tmp_path / "u").write_bytes(encode_header(layout, {}) + bytes(1000))
        with pytest.raises(TicketError, match="u is not a ticket"):
            Ticket.load(tmp_path / "u")


def test_a_tickets_secrets_are_not_shown(make: Make) -> None:
    ticket = make()
    assert "Signature" not in repr(ticket)
    assert "http" not in repr(ticket)
    assert "round_id='r1', client='a'" in repr(ticket)


class TestText:
    def test_is_read_as_it_was_given(self, make: Make) -> None:
        ticket = make()
        read = Ticket.loads(ticket.dumps())
        assert read.upload == ticket.upload
        assert (read.client, read.result_url) == ("a", ticket.result_url)

    def test_that_is_no_ticket_is_rejected(self) -> None:
        with pytest.raises(TicketError, match="the text is not a ticket"):
            Ticket.loads("{}")


def test_an_update_is_sent_in_the_order_of_the_rounds_layout(make: Make) -> None:
    layout = Layout.pack([("b", "F32", (2,)), ("a", "F32", (3,))])
    ticket = replace(make(), layout=layout.to_json())
    content = TensorContent({"a": np.ones(3, "f4"), "b": np.zeros(2, "f4")}, 5)
    fitted = TicketRound(ticket)._fit(content, ticket.required_layout(), allow_nonfinite=True)
    assert fitted.layout == layout


def test_lengths_no_update_can_have_are_not_signed(make: Make) -> None:
    signed = make(max_bytes=MAX_BYTES, min_bytes=MAX_BYTES - 100).upload_lengths
    assert [*signed] == [MAX_BYTES]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in some JSON."""
    yield path
    if isinstance(value, dict | list):
        for name in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[name], (*path, name))


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    """Return JSON with another value at a path."""
    if not path:
        return by
    changed = value.copy()
    changed[path[0]] = replaced(value[path[0]], path[1:], by)
    return changed


STRANGE: tuple[Any, ...] = (
    *(None, True, -1, 1.5, 10**400, -(10**400), 1e308, math.inf, math.nan, 2**63),
    *("", "\ud800", "2027-01-01T00:00:00", "9999-12-31T23:59:59-23:59", [], {}, [[]], {"a": {}}),
)


@pytest.mark.parametrize("kind", ["round", "masked", "training", "verification"])
def test_a_file_that_a_stranger_made_is_a_ticket_or_is_none(make: Make, kind: str) -> None:
    ticket = make()
    url, expires = ticket.result_url, "2027-01-01T00:00:00+00:00"
    record: Any = json.loads(ticket.dumps())
    cls: type[TicketFile] = Ticket
    # A few of the lengths, of which each is like the others.
    record["upload"] = {
        at: {str(MAX_BYTES): e[str(MAX_BYTES)]} for at, e in record["upload"].items()
    }
    if kind == "masked":
        terms = {"bound": 1.0, "bits": 16, "ring_bits": 32, "max_samples": 9, "keeper": "ab" * 32}
        layout = {"w": {"dtype": "F32", "shape": [10]}}
        agreed = {"terms": terms, "clients": 3, "roster": "0" * 64, "min_clients": 2}
        record |= {"masked": agreed, "layout": layout}
    elif kind == "training":
        cls, about = TrainingTicket, {"training": "t", "client": "a", "expires_at": expires}
        record = {"training_ticket": 1, **about, "urls": [{"notice": url, "renewal": url}]}
    elif kind == "verification":
        cls, about = VerificationTicket, {"round_id": "r", "client": "a", "expires_at": expires}
        record = {"verification_ticket": 1, **about, "objects": [["k", "", url]]}
    cls.loads(json.dumps(record))
    for path in places(record):
        for strange in STRANGE:
            try:
                found = cls.loads(json.dumps(replaced(record, path, strange)))
            except TicketError:
                continue
            assert datetime.now(UTC) < found.expires_at  # type: ignore[attr-defined]
            if isinstance(found, Ticket):
                found.agreement()
