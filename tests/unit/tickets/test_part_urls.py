"""What a ticket signs for an upload in parts."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradshard.aws.client_store import ClientStore
from gradshard.tickets.part_urls import (
    FIRST_PART_STEPS,
    MAX_UPDATE_BYTES,
    PartUrls,
    issue_part_urls,
    parse_part_list,
)
from gradshard.tickets.round_ticket import Ticket
from gradshard_core.errors import TicketError
from gradshard_core.formats.headers import MAX_HEADER_BYTES
from gradshard_core.limits.aws_limits import LISTED_ENTRIES, MAX_PART_BYTES, MIN_PART_BYTES
from gradshard_core.s3.multipart_requests import Part
from gradshard_core.units import MIB
from tests.unit.tickets.signed import KEYS, Make, verdict

LARGE = 6_000_000_000


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
        # The header of the update holds the padding.
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
