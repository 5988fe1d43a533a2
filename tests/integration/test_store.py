"""The store over real HTTP."""

import io
import os
import time

import boto3
import pytest

from gradshard_core.errors import ChangedObjectError, StoreError
from gradshard_core.formats.object_keys import ObjectVersion
from gradshard_core.s3.range_streams import RangeStream
from gradshard_core.s3.store import S3Store
from gradshard_core.s3.traffic import Traffic
from tests.integration.conftest import as_clients_do
from tests.integration.proxy import Fault, Proxy


def read(stream: RangeStream, count: int) -> bytes:
    buffer = bytearray(count)
    stream.read_into(memoryview(buffer))
    return bytes(buffer)


def test_a_conditional_write_replaces_only_the_named_version(store: S3Store) -> None:
    assert store.put_json("t/conditional", 1, replaces=None)
    assert not store.put_json("t/conditional", 2, replaces=None)
    head = store.head("t/conditional")
    assert head is not None
    assert store.put_json("t/conditional", 3, replaces=head.etag)
    assert not store.put_json("t/conditional", 4, replaces=head.etag)
    assert store.get_json("t/conditional") == 3


def test_a_missing_object(store: S3Store) -> None:
    assert store.get_json("t/none") is None
    assert store.head("t/none") is None
    assert store.get_head("t/none", 8) is None
    assert list(store.list_objects("t/none")) == []
    assert store.list_parts("t/none", "nothing") is None
    store.abort_upload("t/none", "nothing")
    store.complete_upload("t/none", "nothing", [])


def test_an_object_of_no_bytes(store: S3Store) -> None:
    store.put_bytes("t/empty", b"")
    head = store.get_head("t/empty", 64)
    assert head is not None
    assert head[0] == b""
    assert head[1].nbytes == 0


def test_an_object_of_no_bytes_that_is_replaced_while_it_is_looked_at(store: S3Store) -> None:
    class Replacing(S3Store):
        def head(self, key: str) -> ObjectVersion | None:
            self.put_bytes(key, b"something")
            return super().head(key)

    store.put_bytes("s/replaced", b"")
    found = Replacing(store.bucket, store.transport).get_head("s/replaced", 4)
    assert found is not None
    assert (found[0], found[1].nbytes) == (b"some", 9)


def test_a_frozen_version_outlives_later_versions(store: S3Store) -> None:
    store.put_bytes("t/frozen", b"first version")
    frozen = store.head("t/frozen")
    assert frozen is not None
    store.put_bytes("t/frozen", b"second")
    store.delete("t/frozen")
    assert store.head("t/frozen") is None
    assert read(RangeStream(store, frozen, [(6, 13), (0, 5)]), 12) == b"versionfirst"


def test_a_version_that_is_gone_or_changed(store: S3Store) -> None:
    store.put_bytes("t/gone", b"0123456789")
    frozen = store.head("t/gone")
    assert frozen is not None
    with pytest.raises(ChangedObjectError, match="t/gone"):
        RangeStream(store, frozen._replace(etag='"other"'), [(0, 4)]).open()
    boto3.client("s3").delete_object(Bucket=store.bucket, Key="t/gone", VersionId=frozen.version)
    with pytest.raises(ChangedObjectError, match="t/gone"):
        RangeStream(store, frozen, [(0, 4)]).open()


def test_a_conditional_write_that_meets_another_is_tried_again(
    store: S3Store, proxied: S3Store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one may fail, and then there is nothing."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    proxy.faults = [Fault("conflict")] * 5
    assert proxied.put_json("t/met", 1, replaces=None)
    proxy.faults = [Fault("conflict")] * 5
    assert not proxied.put_json("t/met", 2, replaces=None)
    assert store.get_json("t/met") == 1
    proxy.faults = [Fault("conflict")] * 6
    with pytest.raises(StoreError, match=r"t/never: S3 answered 6 times: .*RequestConflict"):
        proxied.put_json("t/never", 1, replaces=None)


def test_a_conditional_write_of_a_deleted_object_writes_nothing(store: S3Store) -> None:
    store.put_json("t/was", 1)
    head = store.head("t/was")
    assert head is not None
    store.delete("t/was")
    assert not store.put_json("t/was", 2, replaces=head.etag)
    assert store.head("t/was") is None


def test_no_reading_past_the_ranges(store: S3Store) -> None:
    store.put_bytes("t/short", b"0123456789")
    frozen = store.head("t/short")
    assert frozen is not None
    with pytest.raises(StoreError, match="past its ranges"):
        read(RangeStream(store, frozen, [(2, 6)]), 5)


def test_a_broken_stream_goes_on_from_the_byte_it_reached(
    store: S3Store, proxied: S3Store, proxy: Proxy
) -> None:
    data = os.urandom(1_000_000)
    store.put_bytes("t/broken", data)
    frozen = store.head("t/broken")
    assert frozen is not None
    proxy.spoils = [
        lambda answer: answer._replace(body=answer.body[:300_001]),  # cut short
        lambda answer: answer._replace(body=b""),
        lambda answer: answer._replace(headers=answer.headers | {"Content-Range": "bytes 0-9/10"}),
        lambda answer: answer._replace(body=answer.body[:1]),
    ]
    assert read(RangeStream(proxied, frozen, [(0, 1_000_000)]), 1_000_000) == data
    assert proxy.spoils == []
    traffic = proxied.meter.take()
    assert (traffic.gets, traffic.retries, traffic.bytes_read) == (5, 4, 1_000_000)


def test_a_stream_that_stays_broken_is_given_up(
    store: S3Store, proxied: S3Store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    store.put_bytes("t/stubborn", b"x" * 100)
    frozen = store.head("t/stubborn")
    assert frozen is not None
    proxy.spoils = [lambda answer: answer._replace(body=b"")] * 50
    said = r"t/stubborn: reading broke 6 times in a row at byte 0: 6 × .*IncompleteRead"
    with pytest.raises(StoreError, match=said):
        read(RangeStream(proxied, frozen, [(0, 100)]), 100)


def test_parts_overwrite_themselves_and_appear_at_once(store: S3Store) -> None:
    sender = as_clients_do(store)
    key, five = "t/parts", 5 * 1024 * 1024
    upload = store.create_upload(key, {"k": "v"})
    last = sender.upload_part(key, upload, 2, io.BytesIO(b"end"), 3)
    sender.upload_part(key, upload, 1, io.BytesIO(b"a" * five), five)
    first = sender.upload_part(key, upload, 1, io.BytesIO(b"b" * five), five)
    store.meter.take()
    assert store.list_parts(key, upload) == [first, last]
    # A LIST is priced as a PUT.
    assert store.meter.take() == Traffic(puts=1)
    assert store.open_uploads(key) == [upload]
    assert store.head(key) is None
    store.complete_upload(key, upload, [first, last])
    store.complete_upload(key, upload, [first, last])
    assert store.open_uploads(key) == []
    head = store.head(key)
    assert head is not None
    assert store.get_range(head, five - 1, five + 3) == b"bend"


def test_the_newest_versions_are_listed(store: S3Store) -> None:
    for key, body in (("new/b", b"1"), ("new/a", b"2"), ("new/b", b"345"), ("new/c", b"6")):
        store.put_bytes(key, body)
    store.delete("new/c")
    assert list(store.list_newest("new/")) == [store.head("new/a"), store.head("new/b")]
