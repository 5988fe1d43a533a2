"""A bucket in memory that fails when told to."""

import contextlib
import hashlib
import io
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import IO, Any

from gradshard.aws.client_store import ClientStore
from gradshard.client.executions import Execution
from gradshard.client.stack import Stack
from gradshard.utils.crc64 import crc64_text
from gradshard_core.errors import ChangedObjectError, ReplacedPartError, StoreError, UpdateError
from gradshard_core.formats.object_keys import ObjectVersion
from gradshard_core.s3.multipart_requests import Part
from gradshard_core.s3.store import ANYTHING, ListedObject
from gradshard_core.s3.traffic import Meter


def md5(data: bytes | bytearray) -> "hashlib._Hash":
    return hashlib.md5(data, usedforsecurity=False)


def etag_of(data: bytes | bytearray) -> str:
    return f'"{md5(data).hexdigest()}"'


class MemoryStore(ClientStore):
    """Objects and open uploads in dicts, with S3's checksums, and its ETags, random under KMS.

    ``parts_until_failure`` is how many more parts are taken before the line is cut, and
    ``cut_stream_after`` at how many bytes a streamed object breaks.
    """

    def __init__(self, *, kms: bool = False) -> None:
        self.bucket = "memory"
        self._etag_of = (lambda _: f'"{secrets.token_hex(16)}"') if kms else etag_of
        self.meter = Meter()
        self.objects: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}
        self.modified: dict[str, datetime] = {}
        self.clock: Callable[[], datetime] = lambda: datetime.now(UTC)
        self.checksums: dict[str, str] = {}
        self.uploads: dict[str, tuple[str, dict[int, bytes]]] = {}
        self.parts: dict[tuple[str, int], Part] = {}
        self.aborted: list[str] = []
        self.sent: list[int] = []
        self.parts_until_failure = 10_000
        self.cut_stream_after: int | None = None
        self._lock = threading.Lock()

    def get_bytes(self, key: str) -> bytes | None:
        return self.objects.get(key)

    def get_body(self, source: ObjectVersion, start: int, end: int) -> Any:
        if source.etag not in {"", self.etags.get(source.key)} or source.key not in self.objects:
            raise ChangedObjectError(source.key)
        return io.BytesIO(self.objects[source.key][start:end])

    def head(self, key: str) -> ObjectVersion | None:
        if key not in self.objects:
            return None
        return ObjectVersion(key, "", self.etags[key], len(self.objects[key]))

    def get_head(self, key: str, nbytes: int) -> tuple[bytes, ObjectVersion] | None:
        found = self.head(key)
        return None if found is None else (self.objects[key][:nbytes], found)

    def put_bytes(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str = "application/json",
        replaces: str | None = ANYTHING,
        crc64nvme: str = "",
    ) -> bool:
        if replaces not in {ANYTHING, self.etags.get(key)}:
            # As the store: it may be of this very write.
            return self.objects.get(key) == body
        self.objects[key] = body
        self.modified[key] = self.clock()
        self.etags[key] = self._etag_of(body)
        self.checksums[key] = crc64_text(body)
        assert crc64nvme in {"", self.checksums[key]}
        return True

    def describe(self, key: str) -> tuple[ObjectVersion, str] | None:
        if key not in self.objects:
            return None
        source = ObjectVersion(key, "", self.etags[key], len(self.objects[key]))
        return source, self.checksums[key]

    def checksum(self, key: str, *, etag: str | None = None) -> str | None:
        if key not in self.objects or etag not in {None, self.etags[key]}:
            return None
        return self.checksums[key]

    def delete(self, key: str, *, only: str | None = None) -> None:
        if only in {None, self.etags.get(key)}:
            self.objects.pop(key, None)
            self.etags.pop(key, None)

    def delete_versions(self, prefix: str) -> None:
        for key in [key for key in self.objects if key.startswith(prefix)]:
            self.delete(key)

    def put_stream(
        self, key: str, body: IO[bytes], nbytes: int, *, content_type: str, crc64nvme: str
    ) -> bool:
        try:
            if self.cut_stream_after is not None:
                body.read(self.cut_stream_after)
                return False
            data = b"".join(iter(lambda: body.read(512), b""))
        except (UpdateError, OSError):  # as botocore does
            return False
        assert len(data) == nbytes
        return self.put_bytes(key, data, content_type=content_type, crc64nvme=crc64nvme)

    def presign_new(self, key: str, nbytes: int, seconds: int) -> str:
        return f"https://memory/{key}?X-Amz-Expires={seconds}&X-Amz-Signature=put{nbytes}"

    def presign_read(self, key: str, seconds: int, *, head: bool = False) -> str:
        return f"https://memory/{key}?X-Amz-Expires={seconds}&X-Amz-Signature=get{head}"

    def presign_checksum(self, key: str, seconds: int) -> str:
        return f"https://memory/{key}?X-Amz-Expires={seconds}&X-Amz-Signature=checksum"

    def list_objects(self, prefix: str, *, after: str = "") -> Iterator[ListedObject]:
        now = datetime.now(UTC)
        for key in sorted(self.objects):
            if key.startswith(prefix) and key > after:
                modified = self.modified.get(key, now)
                yield ListedObject(key, self.etags[key], len(self.objects[key]), modified)

    def list_newest(self, prefix: str) -> Iterator[ObjectVersion]:
        for entry in self.list_objects(prefix):
            yield ObjectVersion(entry.key, "", entry.etag, entry.nbytes)

    def list_folders(self, prefix: str) -> Iterator[str]:
        keys = [key.removeprefix(prefix) for key in sorted(self.objects) if key.startswith(prefix)]
        yield from dict.fromkeys(key.partition("/")[0] for key in keys if "/" in key)

    def create_upload(
        self, key: str, metadata: dict[str, str] | None = None, *, checked: bool = False
    ) -> str:
        upload_id = f"upload-{len(self.uploads) + len(self.aborted)}"
        self.uploads[upload_id] = (key, {})
        return upload_id

    def upload_part(
        self,
        key: str,
        upload_id: str,
        number: int,
        body: IO[bytes],
        nbytes: int,
        crc64nvme: str = "",
    ) -> Part:
        data = body.read()
        assert len(data) == nbytes
        assert crc64nvme in {"", crc64_text(data)}
        part = Part(number, self._etag_of(data), nbytes, crc64nvme)
        with self._lock:
            if self.parts_until_failure == 0:
                raise StoreError(f"{key}: the line is cut")
            self.parts_until_failure -= 1
            if upload_id not in self.uploads:
                raise StoreError(f"{key}: NoSuchUpload")
            self.sent.append(number)
            self.uploads[upload_id][1][number] = bytes(data)
            self.parts[upload_id, number] = part
        return part

    def list_parts(self, key: str, upload_id: str) -> list[Part] | None:
        if upload_id not in self.uploads or self.uploads[upload_id][0] != key:
            return None
        return [self.parts[upload_id, number] for number in sorted(self.uploads[upload_id][1])]

    def complete_upload(self, key: str, upload_id: str, parts: Sequence[Part]) -> None:
        if upload_id not in self.uploads:
            return
        held = self.uploads[upload_id][1]
        if list(parts) != [self.parts[upload_id, number] for number in sorted(held)]:
            raise ReplacedPartError(f"{key}: InvalidPart")
        del self.uploads[upload_id]
        self.objects[key] = b"".join(held[part.number] for part in parts)
        digests = b"".join(md5(held[part.number]).digest() for part in parts)
        self.etags[key] = f'{self._etag_of(digests)[:-1]}-{len(parts)}"'
        self.checksums[key] = crc64_text(self.objects[key])

    def abort_upload(self, key: str, upload_id: str) -> None:
        self.uploads.pop(upload_id, None)
        self.aborted.append(upload_id)

    def open_uploads(self, key: str) -> list[str]:
        return [upload_id for upload_id, (k, _) in reversed(self.uploads.items()) if k == key]


class _PartBody(io.BytesIO):
    etag = ""


class MemoryWire:
    """What tasks ask of the bucket in memory."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.meter = Meter()
        self.receive_buffer_bytes = 0
        self.get_body = store.get_body
        self.get_bytes = store.get_bytes
        self.get_json = store.get_json
        self.get_range = store.get_range
        self.put_json = store.put_json

    @contextlib.contextmanager
    def part(
        self, key: str, upload_id: str, number: int, nbytes: int, start: bytes = b""
    ) -> Iterator["_PartBody"]:
        body = _PartBody()
        body.write(start)
        yield body
        body.seek(0)
        body.etag = self._store.upload_part(key, upload_id, number, body, nbytes).etag

    @contextlib.contextmanager
    def object(self, key: str, nbytes: int) -> Iterator[io.BytesIO]:
        body = io.BytesIO()
        yield body
        assert len(body.getvalue()) == nbytes
        self._store.put_bytes(key, body.getvalue())


class MemoryStack(Stack):
    """A stack whose bucket is in memory and whose executions are what the test says."""

    def __init__(self, store: MemoryStore, executions: dict[str, Execution] | None = None) -> None:
        super().__init__("memory", bucket=None, state_machine=None, endpoint_url=None, port=None)
        self.store: MemoryStore = store
        self.executions = executions or {}
        self.started: list[str] = []

    @property
    def state_machine(self) -> str | None:
        return "arn:aws:states:us-east-1:0:stateMachine:memory"

    @cached_property
    def trainings(self) -> "MemoryStack":
        return MemoryStack(self.store)

    def output(self, name: str) -> str:
        return {"AggregatorMemory": "512", "Architecture": "x86_64"}[name]

    def start(self, round_id: str, payload: str) -> bool:
        self.started.append(payload)
        return round_id not in self.executions

    def execution(self, round_id: str) -> Execution | None:
        return self.executions.get(round_id)

    def stop(self, round_id: str, error: str, cause: str) -> None:
        self.executions[round_id] = self.executions[round_id]._replace(
            status="ABORTED", error=error, cause=cause
        )
