"""Updates on their way to S3, over real HTTP."""

import itertools
import threading
from pathlib import Path
from typing import Any

import pytest

from gradshard.aws.client_store import ClientStore
from gradshard.updates import uploads
from gradshard.updates.upload_source import FileContent
from gradshard.updates.uploads import CHUNK_BYTES, checksum_of, upload
from gradshard_core.errors import StoreError, UpdateError
from gradshard_core.formats.tensor_layout import Layout, encode_header
from gradshard_core.s3.multipart_requests import Part
from gradshard_core.units import MIB
from tests.integration.conftest import as_clients_do
from tests.integration.proxy import Answer, Fault, Proxy

LARGE = 40 * MIB


class Counted:
    """An update of many bytes that are made as they are read, and counted."""

    def __init__(self, data_bytes: int) -> None:
        self.layout = Layout.pack([("w", "U8", (data_bytes,))])
        self._header = encode_header(self.layout, {"num_samples": "3"})
        self.nbytes = len(self._header) + data_bytes
        self.reads: list[int] = []
        self._lock = threading.Lock()

    def read(self, start: int, end: int) -> bytes:
        with self._lock:
            self.reads.append(end - start)
        pattern = b"0123456789abcdef"
        body = pattern * ((end - start) // 16 + 2)
        data = body[start % 16 : start % 16 + end - start]
        return self._header[start:end] + data[max(0, len(self._header) - start) :]


@pytest.fixture(params=["store", "encrypted"])
def store(request: pytest.FixtureRequest) -> ClientStore:
    """A bucket whose ETags are MD5s, and one under a KMS key."""
    return as_clients_do(request.getfixturevalue(request.param))


def assert_whole(store: ClientStore, key: str, content: Counted) -> None:
    assert store.get_bytes(key) == content.read(0, content.nbytes)
    assert store.checksum(key) == checksum_of(content)
    assert store.open_uploads(key) == []


def test_a_large_update_is_one_put_that_reads_it_once_more_than_it_sends_it(
    store: ClientStore, proxied: ClientStore, proxy: Proxy
) -> None:
    content = Counted(LARGE)
    told: list[int] = []
    upload(proxied, "u/once", content, lambda done, _: told.append(done))
    assert proxy.requests == ["PUT"]
    assert sum(content.reads) == 2 * content.nbytes
    assert max(content.reads) <= CHUNK_BYTES
    assert len(told) > 40
    assert told == sorted(told)
    assert_whole(store, "u/once", content)


def test_a_connection_that_breaks_in_the_middle(
    store: ClientStore, proxied: ClientStore, proxy: Proxy
) -> None:
    proxy.cuts = [LARGE // 2]
    content = Counted(LARGE)
    told: list[int] = []
    upload(proxied, "u/broken", content, lambda done, _: told.append(done))
    # The PUT, a look whether it arrived after all, then the listing, the parts, a look again.
    assert proxy.requests[:4] == ["PUT", "HEAD", "GET", "POST"]
    assert proxy.requests[4:] == ["PUT", "PUT", "PUT", "POST", "HEAD"]
    assert told.count(0) == 2
    assert told[-1] == content.nbytes
    assert_whole(store, "u/broken", content)


def test_parts_that_break_too_are_sent_again(
    store: ClientStore, proxied: ClientStore, proxy: Proxy
) -> None:
    proxy.cuts = [5 * MIB, 3 * MIB, 2 * MIB]
    content = Counted(LARGE)
    upload(proxied, "u/broken-parts", content)
    assert_whole(store, "u/broken-parts", content)


def test_an_answer_that_says_s3_failed(
    store: ClientStore, proxied: ClientStore, proxy: Proxy
) -> None:
    def failed(answer: Answer) -> Answer:
        body = b"<Error><Code>InternalError</Code></Error>"
        return Answer(500, {"Content-Length": str(len(body))}, body)

    proxy.spoils = [failed]
    content = Counted(LARGE)
    upload(proxied, "u/failed", content)
    # The engine had taken it, whatever it said.
    assert proxy.requests == ["PUT", "HEAD"]
    assert_whole(store, "u/failed", content)


def test_a_lost_answer_is_looked_up(store: ClientStore, proxied: ClientStore, proxy: Proxy) -> None:
    proxy.spoils = [lambda _: None]
    content = Counted(LARGE)
    upload(proxied, "u/lost", content)
    assert proxy.requests == ["PUT", "HEAD"]
    assert_whole(store, "u/lost", content)


@pytest.mark.parametrize("nbytes", [MIB, LARGE])
@pytest.mark.parametrize("parallel", [False, True])
def test_s3_rejects_bytes_that_were_damaged_on_the_way(
    store: ClientStore, proxied: ClientStore, proxy: Proxy, nbytes: int, *, parallel: bool
) -> None:
    key = f"u/damaged-{nbytes}-{parallel}"
    proxy.faults = [Fault("damaged", "PUT")]
    rejected = r"S3 answered (BadDigest|XAmzContentSHA256Mismatch).* damaged on the way.*try again"
    with pytest.raises(StoreError, match=rejected):
        upload(proxied, key, Counted(nbytes), parallel=parallel)
    assert store.head(key) is None


@pytest.mark.parametrize("parts", [1, 3])
def test_an_upload_that_another_gives_up_is_no_success(
    store: ClientStore, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    monkeypatch.setattr(uploads, "SINGLE_PUT_BYTES", 0)
    key, content = f"u/given-up-{parts}", Counted(LARGE)
    store.put_bytes(key, b"an earlier update")
    taken = store.upload_part
    one_at_a_time = threading.Lock()
    sent = itertools.count(1)

    def upload_part(key: str, upload_id: str, number: int, *rest: Any) -> Part:
        with one_at_a_time:
            part = taken(key, upload_id, number, *rest)
            if next(sent) == parts:
                store.abort_upload(key, upload_id)
            return part

    monkeypatch.setattr(store, "upload_part", upload_part)
    with pytest.raises(StoreError, match=f"{key}: .*another.*submit again"):
        upload(store, key, content)
    assert store.get_bytes(key) == b"an earlier update"


def test_a_rejection_is_not_sent_in_parts(proxied: ClientStore, proxy: Proxy) -> None:
    def rejected(_: Answer) -> Answer:
        body = b"<Error><Code>AccessDenied</Code></Error>"
        return Answer(403, {"Content-Length": str(len(body))}, body)

    proxy.spoils = [rejected]
    with pytest.raises(StoreError, match="u/rejected: S3 answered AccessDenied"):
        upload(proxied, "u/rejected", Counted(LARGE))
    assert proxy.requests == ["PUT"]


def test_a_file_that_changes_on_the_way_is_told_at_once(
    proxied: ClientStore, proxy: Proxy, tmp_path: Path
) -> None:
    path = tmp_path / "update.safetensors"
    path.write_bytes(Counted(LARGE).read(0, Counted(LARGE).nbytes))

    def change(done: int, _: int) -> None:
        if done > LARGE // 2:
            path.touch()

    with FileContent(path, None) as content, pytest.raises(UpdateError, match="was changed while"):
        upload(proxied, "u/changed", content, change)
    assert proxy.requests == ["PUT"]
