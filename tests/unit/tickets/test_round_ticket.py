"""What a ticket opens and what it does not, as far as that is in what is signed."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradshard.aws.client_store import ClientStore
from gradshard.client.round_by_ticket import TicketRound
from gradshard.tickets.lifetime import MAX_SECONDS
from gradshard.tickets.part_urls import MAX_UPDATE_BYTES
from gradshard.tickets.round_ticket import Ticket
from gradshard.tickets.ticket_file import TicketFile
from gradshard.tickets.training_ticket import TrainingTicket
from gradshard.updates.upload_source import TensorContent
from gradshard.verification.verification_ticket import VerificationTicket
from gradshard_core.errors import TicketError
from gradshard_core.formats.tensor_layout import Layout
from gradshard_core.limits.aws_limits import MAX_PART_BYTES
from gradshard_core.records.ticket_urls import MAX_LENGTHS, signed_lengths
from gradshard_core.s3.http_transport import CHECKSUM_MODE
from tests.unit.tickets.signed import KEYS, MAX_BYTES, Make, verdict

UPLOAD_HEADERS = {"Content-Length": str(MAX_BYTES), "If-None-Match": "*"}


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
