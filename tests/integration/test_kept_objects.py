"""The local engine's objects on disk: what is read is what was sent, and memory stays small."""

import contextlib
import errno
import hashlib
import io
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from ministack.services import s3 as ministack_s3

from gradshard.local_engine import large_objects
from gradshard.local_engine.large_objects import (
    LARGE_BYTES,
    Spool,
    StoredBody,
    _open,
    _patch_writing,
)
from gradshard.local_engine.lifecycle import Engine
from gradshard_core.s3.range_streams import RangeStream
from gradshard_core.s3.store import S3Store
from gradshard_core.s3.task_client import TaskS3Client
from gradshard_core.units import MIB
from tests.integration.conftest import as_clients_do

BUCKET = "kept"
PART = os.urandom(32 * MIB)


@pytest.fixture(scope="module")
def s3(engine: Engine) -> Iterator[Any]:
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    yield client
    for page in client.get_paginator("list_object_versions").paginate(Bucket=BUCKET):
        for found in [*page.get("Versions", []), *page.get("DeleteMarkers", [])]:
            client.delete_object(Bucket=BUCKET, Key=found["Key"], VersionId=found["VersionId"])
    client.close()


@pytest.fixture(scope="module")
def once(s3: Any) -> Iterator[Any]:
    """Give a client that tries everything once."""
    client = boto3.client("s3", config=Config(retries={"total_max_attempts": 1}))
    yield client
    client.close()


def put(s3: Any, key: str, body: bytes) -> str:
    version: str = s3.put_object(Bucket=BUCKET, Key=key, Body=body)["VersionId"]
    return version


def get(s3: Any, key: str, **more: Any) -> bytes:
    body: bytes = s3.get_object(Bucket=BUCKET, Key=key, **more)["Body"].read()
    return body


@pytest.mark.parametrize("nbytes", [0, 10, LARGE_BYTES - 1, LARGE_BYTES, 3 * LARGE_BYTES + 1])
def test_every_version_is_read_as_it_was_sent(s3: Any, nbytes: int) -> None:
    key, bodies = f"v/{nbytes}", [os.urandom(nbytes) for _ in range(3)]
    versions = [put(s3, key, body) for body in bodies]
    s3.delete_object(Bucket=BUCKET, Key=key)
    versions.append(put(s3, key, b"now"))
    for version, body in zip(versions, [*bodies, b"now"], strict=True):
        assert get(s3, key, VersionId=version) == body
        if nbytes and body != b"now":
            low, high = nbytes // 3, nbytes // 2
            ranged = get(s3, key, VersionId=version, Range=f"bytes={low}-{high}")
            assert ranged == body[low : high + 1]
    # Of the one that is uncovered, too.
    s3.delete_object(Bucket=BUCKET, Key=key, VersionId=versions[-1])
    [marker] = s3.list_object_versions(Bucket=BUCKET, Prefix=key)["DeleteMarkers"]
    s3.delete_object(Bucket=BUCKET, Key=key, VersionId=marker["VersionId"])
    assert get(s3, key) == bodies[-1]


def test_etags_and_checksums_are_those_of_the_bytes(s3: Any) -> None:
    answer = s3.put_object(Bucket=BUCKET, Key="e", Body=PART, ChecksumAlgorithm="SHA256")
    assert answer["ETag"] == f'"{hashlib.md5(PART, usedforsecurity=False).hexdigest()}"'
    with pytest.raises(s3.exceptions.ClientError, match=r"BadDigest|InvalidDigest"):
        s3.put_object(Bucket=BUCKET, Key="e", Body=PART, ContentMD5="A" * 22 + "==")
    assert get(s3, "e") == PART


def test_an_upload_in_parts_is_joined(s3: Any, store: S3Store) -> None:
    sender = as_clients_do(store)
    pieces = [PART[: 6 * MIB], PART[: 5 * MIB], b"end"]
    upload = store.create_upload("k/joined")
    parts = [
        sender.upload_part("k/joined", upload, number, io.BytesIO(piece), len(piece))
        for number, piece in enumerate(pieces, 1)
    ]
    store.complete_upload("k/joined", upload, parts)
    whole = b"".join(pieces)
    assert store.get_bytes("k/joined") == whole
    found = store.head("k/joined")
    assert found is not None
    digests = b"".join(hashlib.md5(piece, usedforsecurity=False).digest() for piece in pieces)
    expected = hashlib.md5(digests, usedforsecurity=False).hexdigest()
    assert (found.nbytes, found.etag) == (len(whole), f'"{expected}-3"')
    sender.close()


def break_off(client: TaskS3Client) -> None:
    with client.object("k/cut", 4 * LARGE_BYTES) as writer:
        writer.write(bytes(2 * LARGE_BYTES))
        raise ValueError("the line is cut")


def test_a_body_that_breaks_off_is_no_object(s3: Any, store: S3Store, engine: Engine) -> None:
    arriving = engine.kept / "arriving"
    # Senders of other tests may have broken off and left their connections open.
    before = set(arriving.iterdir())
    with (
        contextlib.closing(TaskS3Client(store.bucket)) as client,
        pytest.raises(ValueError, match="the line is cut"),
    ):
        break_off(client)
    assert store.head("k/cut") is None
    give_up = time.monotonic() + 20
    while set(arriving.iterdir()) - before and time.monotonic() < give_up:
        time.sleep(0.1)
    assert not set(arriving.iterdir()) - before


@pytest.mark.parametrize("nbytes", [10, 2 * LARGE_BYTES])
def test_an_object_whose_file_is_gone_is_an_error_with_the_reason_until_it_is_written_again(
    once: Any, engine: Engine, nbytes: int
) -> None:
    put(once, "k/gone", bytes(nbytes))
    [file] = (engine.kept / "objects").glob(f"*/{BUCKET}/k/gone")
    file.unlink()
    with pytest.raises(once.exceptions.ClientError, match=r"NoSuchFileOrDirectory.*k/gone"):
        get(once, "k/gone")
    put(once, "k/gone", b"new")
    assert get(once, "k/gone") == b"new"


def test_a_marker_that_cannot_be_written_is_an_error_and_hides_nothing(
    s3: Any, once: Any, engine: Engine
) -> None:
    put(s3, "k/unmarked", b"there")
    before = versions(s3, "k/unmarked")
    with obstacle(engine, "k/unmarked"):
        with pytest.raises(s3.exceptions.ClientError, match=r"IsADirectory.*k/unmarked"):
            once.delete_object(Bucket=BUCKET, Key="k/unmarked")
        assert get(s3, "k/unmarked") == b"there"
        assert versions(s3, "k/unmarked") == before
    s3.delete_object(Bucket=BUCKET, Key="k/unmarked")
    with pytest.raises(s3.exceptions.NoSuchKey):
        get(s3, "k/unmarked")


@contextlib.contextmanager
def obstacle(engine: Engine, key: str) -> Iterator[None]:
    """Let no record of a key be written, as on a disk that a body has filled."""
    [folder] = (engine.kept / "objects").glob(f"*/{BUCKET}")
    record = folder / f"{key}.meta.json.tmp"
    record.mkdir(parents=True)
    yield
    record.rmdir()


def versions(s3: Any, key: str) -> list[tuple[str, bool]]:
    """Return the versions and markers of a key, and which is the latest."""
    listed = s3.list_object_versions(Bucket=BUCKET, Prefix=key)
    found = [*listed.get("Versions", []), *listed.get("DeleteMarkers", [])]
    return [(entry["VersionId"], entry["IsLatest"]) for entry in found]


@pytest.mark.parametrize("nbytes", [10, 2 * LARGE_BYTES])
@pytest.mark.parametrize("before", [None, "object", "marker"])
def test_a_put_that_cannot_be_written_changes_nothing(
    s3: Any, once: Any, engine: Engine, nbytes: int, before: str | None
) -> None:
    key, condition = f"k/unwritten-{nbytes}-{before}", {}
    if before:
        put(s3, key, b"o" * nbytes)
    if before == "marker":
        s3.delete_object(Bucket=BUCKET, Key=key)
    if before != "object":
        # A second attempt must not find what the first one has not stored.
        condition = {"IfNoneMatch": "*"}
    listed, arriving = versions(s3, key), sorted((engine.kept / "arriving").iterdir())
    with obstacle(engine, key):
        for _ in range(2):
            with pytest.raises(s3.exceptions.ClientError, match="IsADirectory"):
                once.put_object(Bucket=BUCKET, Key=key, Body=b"n" * nbytes, **condition)
        assert versions(s3, key) == listed
        if before == "object":
            assert get(s3, key) == b"o" * nbytes
        else:
            with pytest.raises(s3.exceptions.NoSuchKey):
                get(s3, key)
        # Nor does it take any more space.
        assert sorted((engine.kept / "arriving").iterdir()) == arriving
    s3.put_object(Bucket=BUCKET, Key=key, Body=b"n" * nbytes, **condition)
    assert get(s3, key) == b"n" * nbytes
    if before:
        assert get(s3, key, VersionId=listed[0][0]) == b"o" * nbytes


def test_parts_that_cannot_be_joined_can_be_later(s3: Any, once: Any, engine: Engine) -> None:
    upload = {"Bucket": BUCKET, "Key": "k/unjoined"}
    upload["UploadId"] = s3.create_multipart_upload(**upload)["UploadId"]
    etag = s3.upload_part(**upload, PartNumber=1, Body=PART)["ETag"]
    parts = {"Parts": [{"PartNumber": 1, "ETag": etag}]}
    with (
        obstacle(engine, "k/unjoined"),
        pytest.raises(s3.exceptions.ClientError, match="IsADirectory"),
    ):
        once.complete_multipart_upload(**upload, MultipartUpload=parts, IfNoneMatch="*")
    with pytest.raises(s3.exceptions.NoSuchKey):
        get(s3, "k/unjoined")
    s3.complete_multipart_upload(**upload, MultipartUpload=parts, IfNoneMatch="*")
    assert get(s3, "k/unjoined") == PART


def anonymous_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text().split()
    return int(status[status.index("RssAnon:") + 1]) / 1024


@contextlib.contextmanager
def watched(pid: int, peaks: list[float]) -> Iterator[None]:
    """Note the peak of a process's own memory; pages of files the kernel takes back."""
    ended = threading.Event()
    peaks.append(anonymous_mib(pid))

    def look() -> None:
        while not ended.wait(0.02):
            peaks[0] = max(peaks[0], anonymous_mib(pid))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_memory_does_not_grow_with_the_objects(s3: Any, store: S3Store, engine: Engine) -> None:
    """Half a GiB is stored, and all of it is read at once by readers that wait for each other."""
    assert engine.pid is not None
    sender, peaks = as_clients_do(store), list[float]()
    before = anonymous_mib(engine.pid)
    with watched(engine.pid, peaks):
        for name in "abcd":
            key = f"k/large-{name}"
            upload = store.create_upload(key)
            parts = [
                sender.upload_part(key, upload, number, io.BytesIO(PART), len(PART))
                for number in range(1, 5)
            ]
            store.complete_upload(key, upload, parts)
        sources = [store.head(f"k/large-{name}") for name in "abcd"]
        found = [source for source in sources if source is not None]
        streams = [RangeStream(store, source, [(0, source.nbytes)]) for source in found]
        for stream in streams:
            stream.open()
        piece = memoryview(bytearray(MIB))
        for start in range(0, 128 * MIB, MIB):
            for stream in streams:
                stream.read_into(piece)
                assert piece == PART[start % len(PART) : start % len(PART) + MIB]
        for stream in streams:
            stream.close()
    sender.close()
    assert max(peaks) - before < 64


def test_slices_of_a_body_are_its_bytes(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    data = os.urandom(LARGE_BYTES + 7)
    body = spool.append(spool.append(spool.new(), data[:100]), data[100:])
    assert (len(body), bytes(body)) == (len(data), data)
    assert bytes(body[10:]) == data[10:]
    assert bytes(body[10:-5][3:]) == data[13:-5]
    assert bytes(body[5:2]) == b""
    assert b"".join([body[:4], body[4:]]) == data
    joined = spool.join([body[1:5], b"xy", body])
    assert bytes(joined) == data[1:5] + b"xy" + data
    assert hashlib.sha256(joined).digest() == hashlib.sha256(data[1:5] + b"xy" + data).digest()
    assert isinstance(body[1:2], StoredBody)
    del body, joined
    assert not any((tmp_path / "spool").iterdir())


def test_a_whole_body_is_linked_and_outlives_its_first_name(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    data = os.urandom(LARGE_BYTES)
    body = spool.append(spool.new(), data)
    assert body.link_to(tmp_path / "object")
    assert not body[1:].link_to(tmp_path / "piece")
    del body
    opened = _open(str(tmp_path / "object"))
    assert isinstance(opened, StoredBody)
    # Another object takes the name between opening and linking.
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "other").replace(tmp_path / "object")
    assert not opened.link_to(tmp_path / "version")
    with (tmp_path / "version").open("xb", buffering=0) as copy:
        opened.copy_to(copy.fileno())
    assert (tmp_path / "version").read_bytes() == data
    kept = _open(str(tmp_path / "version"))
    assert isinstance(kept, StoredBody)
    assert kept.link_to(tmp_path / "second")
    assert (tmp_path / "second").samefile(tmp_path / "version")


def test_bodies_are_whole_if_the_disk_takes_them_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:1000]))
    spool, data = Spool(tmp_path / "arriving"), os.urandom(4096)
    assert bytes(spool.append(spool.new(), data)) == data
    assert bytes(spool.join([data, data])) == 2 * data


def test_a_file_that_was_cut_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "cut"
    file.write_bytes(bytes(LARGE_BYTES))
    body = _open(str(file))
    assert isinstance(body, StoredBody)
    os.truncate(file, 1000)
    with pytest.raises(OSError, match=rf"ends after 1000 of {LARGE_BYTES} bytes"):
        body.piece(1000)
    with (tmp_path / "copy").open("wb") as copy, pytest.raises(OSError, match="ends after 1000 of"):
        body.copy_to(copy.fileno())


def unpatched(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Have MiniStack keep objects in a folder, and take its patches away after the test."""
    monkeypatch.setattr(ministack_s3, "S3_PERSIST", True)
    monkeypatch.setattr(ministack_s3, "DATA_DIR", str(folder))
    for patched in (*large_objects._CHANGES, "_atomic_write", "_persist_displaced_version"):
        monkeypatch.setattr(ministack_s3, patched, getattr(ministack_s3, patched))
    monkeypatch.setattr(ministack_s3.logger, "warning", ministack_s3.logger.warning)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("_persist_object", ("bucket", "k", {"body": b"x"})),
        ("_persist_delete_marker", ("bucket", "k", {})),
        ("_persist_displaced_version", ("bucket", "k", {"body": b"x"}, "Enabled")),
        ("_delete_persisted_object", ("bucket", "k")),
        ("_delete_persisted_bucket", ("bucket",)),
    ],
)
def test_what_the_disk_does_not_take_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, given: tuple[Any, ...]
) -> None:
    def full(*_: Any, **_named: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    unpatched(monkeypatch, tmp_path)
    for failing in ("_atomic_write", "_remove_key_files"):
        monkeypatch.setattr(ministack_s3, failing, full)
    monkeypatch.setattr(shutil, "rmtree", full)
    (tmp_path / ministack_s3.get_account_id() / "bucket").mkdir(parents=True)
    _patch_writing()
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            getattr(ministack_s3, name)(*given)


def test_a_version_whose_file_cannot_be_deleted_is_an_error_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often: a version that is not there is deleted without an error."""

    def read_only(path: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    unpatched(monkeypatch, tmp_path)
    _patch_writing()
    file = Path(ministack_s3._version_disk_path("bucket", "k", "first"))
    file.parent.mkdir(parents=True)
    file.touch()
    other = {"data": b"x", "etag": "e", "last_modified": "", "size": 1}
    versions = [{"version_id": name, **other} for name in ("first", "second")]
    monkeypatch.setitem(ministack_s3._object_versions, ("bucket", "k"), versions)
    delete = ("bucket", "k", "first")
    with monkeypatch.context() as disk:
        disk.setattr(os, "remove", read_only)
        for _ in range(2):
            with pytest.raises(OSError, match="Read-only file system"):
                ministack_s3._delete_object_version({"objects": {}}, *delete)
    assert ministack_s3._delete_object_version({"objects": {}}, *delete) == (True, False)
    assert [v["version_id"] for v in ministack_s3._object_versions["bucket", "k"]] == ["second"]
    assert not file.exists()


def test_an_object_whose_only_version_cannot_be_deleted_is_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    unpatched(monkeypatch, tmp_path)
    _patch_writing()
    version = {"version_id": "v", "is_latest": True, "etag": "e", "last_modified": "", "size": 1}
    monkeypatch.setitem(ministack_s3._object_versions, ("bucket", "k"), [version])
    bucket = {"objects": {"k": {"version_id": "v", "etag": "e", "body": None}}}
    monkeypatch.setitem(ministack_s3._buckets, "bucket", bucket)
    monkeypatch.setattr(ministack_s3, "_remove_key_files", read_only)
    with pytest.raises(OSError, match="Read-only file system"):
        ministack_s3._delete_object_version(bucket, "bucket", "k", "v")
    assert bucket["objects"]["k"]["version_id"] == "v"
    assert ministack_s3._object_versions["bucket", "k"] == [version]


def test_a_folder_that_cannot_be_emptied_is_an_error_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(folder: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder))

    Spool(tmp_path / "arriving")
    monkeypatch.setattr(shutil, "rmtree", read_only)
    with pytest.raises(OSError, match=r"Read-only file system: .*arriving"):
        Spool(tmp_path / "arriving")
