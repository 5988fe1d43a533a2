"""Large objects of the local engine: they are files, and never in memory as a whole.

MiniStack keeps objects in files if ``S3_PERSIST`` is set. But it receives, joins and sends every
body whole, keeps those of versions, and reads a whole file for each range of it. Here a large body
is a file from the moment it arrives, and a range of it is sent piece by piece.
"""

import contextlib
import functools
import mmap
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from gradshard.local_engine.access_gate import OperatingSystemError

LARGE_BYTES: Final = 1024 * 1024
"""From this size on, bodies are files."""

_PIECE_BYTES: Final = 256 * 1024

_CHANGES: Final = {
    "_put_object": 1,
    "_complete_multipart_upload": 1,
    "_record_delete_marker": 1,
    "_delete_object_version": 2,
}
"""Functions of MiniStack that change a key, and at which position they get it, after its bucket."""


class _File:
    """An open file; it is deleted with its last reference if it has a path of its own."""

    def __init__(self, fd: int, path: Path | None = None) -> None:
        self.fd, self.path = fd, path

    def __del__(self) -> None:
        os.close(self.fd)
        if self.path is not None:
            self.path.unlink(missing_ok=True)


@functools.cache
def _open_files() -> int:
    """Return a descriptor of the folder in which each open file has its number as its name."""
    return os.open("/proc/self/fd", os.O_RDONLY)


class StoredBody:
    """Bytes [start, end) of a file; MiniStack takes it for ``bytes``, and slices are no copies."""

    def __init__(self, file: _File, start: int, end: int) -> None:
        self._file, self._start, self._end = file, start, end

    def __len__(self) -> int:
        return self._end - self._start

    def __getitem__(self, span: slice) -> "StoredBody":
        start, stop, step = span.indices(len(self))
        if step != 1:
            raise ValueError("a body has no steps")
        return StoredBody(self._file, self._start + start, self._start + max(start, stop))

    def __buffer__(self, _flags: int, /) -> memoryview:
        """Give the bytes to a hash, by pages that the kernel may take back at any time."""
        if not len(self):
            return memoryview(b"")
        mapped = mmap.mmap(self._file.fd, 0, access=mmap.ACCESS_READ)
        return memoryview(mapped)[self._start : self._end]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredBody | bytes) and bytes(self) == bytes(other)

    __hash__ = None  # type: ignore[assignment]

    def decode(self, *how: str) -> str:
        """Return the text."""
        return bytes(self).decode(*how)

    def link_to(self, name: Path) -> bool:
        """Give the body's file another name; False if that cannot be done."""
        if (self._start, self._end) != (0, os.fstat(self._file.fd).st_size):
            return False
        # By the open file: its path may name another one by now. Files are replaced and never
        # changed, so two names of one file are as two files.
        with contextlib.suppress(OSError):
            os.link(str(self._file.fd), name, src_dir_fd=_open_files())
            return True
        return False

    def piece(self, start: int) -> bytes:
        """Read some bytes from a position on; none at the end."""
        count = min(_PIECE_BYTES, len(self) - start)
        data = os.pread(self._file.fd, count, self._start + start)
        if count and not data:
            raise OSError(f"an object's file ends after {start} of {len(self)} bytes")
        return data

    def copy_to(self, fd: int) -> None:
        """Append the bytes to an open file."""
        done = 0
        while done < len(self):
            sent = os.sendfile(fd, self._file.fd, self._start + done, len(self) - done)
            if not sent:
                raise OSError(f"an object's file ends after {done} of {len(self)} bytes")
            done += sent


class Spool:
    """A folder of files that are the bodies of requests and of unfinished uploads."""

    def __init__(self, folder: Path) -> None:
        # Those of an engine that was killed.
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, mode=0o700)
        self._folder = folder

    def new(self) -> StoredBody:
        """Make an empty body."""
        fd, path = tempfile.mkstemp(dir=self._folder)
        return StoredBody(_File(fd, Path(path)), 0, 0)

    def append(self, body: StoredBody, data: bytes) -> StoredBody:
        """Return the body with more bytes; the one that was given must not be used any more."""
        _write_all(body._file.fd, data)
        return StoredBody(body._file, 0, body._end + len(data))

    def join(self, bodies: list[StoredBody | bytes]) -> StoredBody:
        """Make one body of several."""
        file = self.new()._file
        for body in bodies:
            if isinstance(body, StoredBody):
                body.copy_to(file.fd)
            else:
                _write_all(file.fd, body)
        return StoredBody(file, 0, sum(map(len, bodies)))


def _write_all(fd: int, data: bytes) -> None:
    """Append bytes to a file. Of the last ones that a disk takes, ``os.write`` writes a part."""
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def patch(folder: Path) -> None:
    """Have MiniStack keep large bodies in files under a folder, and no body of a version."""
    spool = Spool(folder / "arriving")
    _patch_arriving(spool)
    _patch_sending()
    _patch_reading()
    _patch_writing()
    _patch_versions()
    _patch_joining(spool)
    _patch_errors()


def _patch_errors() -> None:
    """Answer with what the operating system says, as the gate does where a body arrives."""
    from ministack.services import s3

    handle_request = s3.handle_request

    async def handle(method: str, path: str, *given: Any, **named: Any) -> Any:
        try:
            return await handle_request(method, path, *given, **named)
        except OSError as error:
            failure = OperatingSystemError.of(error)
            s3.logger.exception(failure)
            return s3._error(failure.code, str(failure), 500, path)

    s3.handle_request = handle


def _patch_arriving(spool: Spool) -> None:
    """Write the large body of a PUT to S3 to a file as it arrives."""
    from ministack import app

    read_request_body = app._read_request_body

    async def read(receive: Any, method: str, headers: dict[str, str]) -> Any:
        if method != "PUT" or not _is_large_object(headers):
            return await read_request_body(receive, method, headers)
        body, more = spool.new(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise app._RequestBodyDisconnected
            body = spool.append(body, message.get("body", b""))
            more = message.get("more_body", False)
        app.pin_signed_body(body)
        if len(body) != int(headers["content-length"]):
            error = app._IncompleteRequestBody("Content-Length does not match request body")
            error.body = body
            raise error
        return body

    app._read_request_body = read


def _is_large_object(headers: dict[str, str]) -> bool:
    """Whether a request's body is a large object, as it is."""
    length = headers.get("content-length", "")
    is_s3 = "/s3/aws4_request" in headers.get("authorization", "/s3/aws4_request")
    is_chunked = "aws-chunked" in headers.get("content-encoding", "") or headers.get(
        "x-amz-content-sha256", ""
    ).startswith("STREAMING-")
    return is_s3 and not is_chunked and length.isdecimal() and int(length) >= LARGE_BYTES


def _patch_sending() -> None:
    """Send a stored body piece by piece, as fast as it is received."""
    from ministack import app

    send_response = app._send_response

    async def respond(
        send: Any, status: int, headers: Any, body: Any, *, head: bool = False
    ) -> None:
        if not isinstance(body, StoredBody) or head:
            await send_response(send, status, headers, body, head=head)
            return
        headers = {**headers, "Content-Length": str(len(body))}
        fields = app._asgi_header_list(headers)
        await send({"type": "http.response.start", "status": status, "headers": fields})
        done = 0
        while done < len(body):
            piece = body.piece(done)
            done += len(piece)
            more = done < len(body)
            await send({"type": "http.response.body", "body": piece, "more_body": more})

    app._send_response = respond


def _patch_reading() -> None:
    """Open large files instead of reading them, and fail if a file cannot be read.

    MiniStack logs that, and sends an object without its bytes.
    """
    from ministack.services import s3

    version_body, get_data = s3._version_body, s3._get_object_data

    def read(bucket: str, key: str, found: dict[str, Any]) -> Any:
        body = found.get("body")
        return _open(s3._object_disk_path(bucket, key)) if body is None else body

    def version(holder: Any, bucket: str, key: str, entry: dict[str, Any]) -> Any:
        path = s3._version_disk_path(bucket, key, entry["version_id"])
        if entry.get("data") is None and Path(path).is_file():
            return _open(path)
        return version_body(holder, bucket, key, entry)

    def data_of(*given: Any, **named: Any) -> Any:
        # Of templates and code, whose readers want bytes.
        data = get_data(*given, **named)
        return bytes(data) if isinstance(data, StoredBody) else data

    s3._read_body, s3._version_body, s3._get_object_data = read, version, data_of


def _open(path: str) -> StoredBody | bytes:
    """Return the body in a file; the bytes of a small one."""
    file = _File(os.open(path, os.O_RDONLY))
    size = os.fstat(file.fd).st_size
    body = StoredBody(file, 0, size)
    return body if size >= LARGE_BYTES else bytes(body)


def _patch_writing() -> None:
    """Link the file of a large body instead of writing it again, and fail if a disk is full."""
    from ministack.services import s3

    atomic_write = s3._atomic_write

    def write(path: str, data: Any, *, text: bool = False) -> None:
        if isinstance(data, StoredBody):
            _link_or_copy(data, Path(path))
        else:
            atomic_write(path, data, text=text)

    s3._atomic_write = write
    _patch_swallowed_failures()
    _patch_undoing()


def _patch_swallowed_failures() -> None:
    """Fail if a file cannot be written, read or deleted.

    MiniStack logs a warning then, and goes on with what it has in memory. The warning is raised
    instead: it is the one place that all these failures pass.
    """
    from ministack.services import s3

    warn, persist_displaced = s3.logger.warning, s3._persist_displaced_version

    def warning(message: str, *given: Any) -> None:
        if given and isinstance(given[-1], OSError):
            try:
                raise given[-1]
            finally:
                # Else the error would refer to itself by this frame, and a body stay on the disk.
                del given
        warn(message, *given)

    def displaced(*given: Any) -> None:
        # Bytes that are lost already cannot be kept, and their key can be written again.
        with contextlib.suppress(FileNotFoundError):
            persist_displaced(*given)

    s3.logger.warning, s3._persist_displaced_version = warning, displaced


def _patch_undoing() -> None:
    """Leave a key in memory as it is on disk if a change of it fails.

    Else a failed PUT would be found until the engine ends, by its sender's next attempt, too, and a
    version whose DELETE failed would be gone, which its sender's next attempt takes for a success.
    """
    from ministack.services import s3

    def undoing(change: Callable[..., Any], key_at: int) -> Any:
        @functools.wraps(change)
        def changed(*given: Any, **named: Any) -> Any:
            before = _Key(*given[key_at - 1 : key_at + 1])
            try:
                return change(*given, **named)
            except OSError:
                before.restore()
                raise

        return changed

    for name, key_at in _CHANGES.items():
        setattr(s3, name, undoing(getattr(s3, name), key_at))


class _Key:
    """MiniStack's records of a key, as they were before a change."""

    def __init__(self, bucket: str, key: str) -> None:
        from ministack.services import s3

        self._name = bucket, key
        self._objects = (s3._buckets.get(bucket) or {"objects": {}})["objects"]
        self._current = dict(self._objects[key]) if key in self._objects else None
        self._versions = [dict(v) for v in s3._object_versions.get(self._name) or ()]
        self._file = _identity_of(s3._object_disk_path(*self._name))

    def restore(self) -> None:
        """Go back to it, unless the bytes of the current version cannot be had any more."""
        from ministack.services import s3

        if self._versions:
            s3._object_versions[self._name] = self._versions
        else:
            s3._object_versions.pop(self._name, None)
        if not self._restore_file(s3):
            return
        key = self._name[1]
        self._objects.pop(key, None)
        if self._current is not None:
            self._objects[key] = self._current

    def _restore_file(self, s3: Any) -> bool:
        path = s3._object_disk_path(*self._name)
        if _identity_of(path) == self._file:
            return True
        if self._current is None:
            # Its name may be a marker's, whose record is another file.
            Path(path).unlink()
            return True
        kept = s3._version_disk_path(*self._name, self._current.get("version_id") or "null")
        if Path(kept).is_file():
            Path(kept).replace(path)
            return True
        return False


def _identity_of(path: str) -> int | None:
    """Tell a file from others of its name, which replace it and never change it; None: no file."""
    with contextlib.suppress(FileNotFoundError):
        return Path(path).stat().st_ino
    return None


def _link_or_copy(data: StoredBody, path: Path) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    if not data.link_to(temporary):
        try:
            with temporary.open("xb", buffering=0) as copy:
                temporary.chmod(0o600)
                data.copy_to(copy.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    temporary.replace(path)


def _patch_versions() -> None:
    """Keep no body of a version in memory: it is in the object's file, or in one of its own."""
    from ministack.services import s3

    record_version = s3._record_object_version

    def record(bucket: str, key: str, prior: Any, made: dict[str, Any], data: Any) -> Any:
        version_id = record_version(bucket, key, prior, made, data)
        for entry in s3._object_versions.get((bucket, key)) or ():
            if entry["version_id"] == made.get("version_id"):
                entry["data"] = None
        return version_id

    s3._record_object_version = record


def _patch_joining(spool: Spool) -> None:
    """Complete an upload without its parts in memory.

    MiniStack joins the parts' bytes and takes their MD5s anew. While it does so, parts are given
    that have their length, their MD5 and no bytes; the object's file is put in the place of what
    MiniStack joins before anybody can see it.
    """
    from ministack.services import s3

    complete_upload, record_version = s3._complete_multipart_upload, s3._record_object_version
    library = s3.hashlib
    joining: ContextVar[StoredBody | None] = ContextVar("joining_parts", default=None)

    def complete(bucket: str, key: str, body: bytes, query: Any, *rest: Any) -> Any:
        upload_id = s3._qp(query, "uploadId")
        upload = s3._multipart_uploads.get(upload_id)
        numbers = _part_numbers(body)
        if upload is None or not all(number in upload["parts"] for number in numbers):
            return complete_upload(bucket, key, body, query, *rest)
        parts = upload["parts"]
        kept = {number: parts[number]["body"] for number in numbers}
        outer = joining.set(spool.join([kept[number] for number in numbers]))
        try:
            for number, data in kept.items():
                parts[number]["body"] = _PartOfLength(len(data), parts[number]["etag"])
            return complete_upload(bucket, key, body, query, *rest)
        except OSError:
            # So that it can be completed when the disk takes the object.
            s3._multipart_uploads[upload_id] = upload
            raise
        finally:
            joining.reset(outer)
            for number, data in kept.items():
                parts[number]["body"] = data

    def record(bucket: str, key: str, prior: Any, made: dict[str, Any], data: Any) -> Any:
        if (joined := joining.get()) is not None:
            made["body"], made["size"], data = joined, len(joined), joined
        return record_version(bucket, key, prior, made, data)

    def md5(data: Any = b"") -> Any:
        if isinstance(data, _PartOfLength):
            return SimpleNamespace(digest=data.md5)
        return library.md5(data)

    s3._complete_multipart_upload, s3._record_object_version = complete, record
    s3.hashlib = SimpleNamespace(**{**vars(library), "md5": md5})


class _PartOfLength:
    """A part without its bytes."""

    def __init__(self, length: int, etag: str) -> None:
        self._length, self._etag = length, etag

    def __len__(self) -> int:
        return self._length

    def __buffer__(self, _flags: int, /) -> memoryview:
        return memoryview(b"")

    def md5(self) -> bytes:
        """Return the digest that its ETag is of."""
        return bytes.fromhex(self._etag.strip('"'))


def _part_numbers(body: bytes) -> list[int]:
    """Return the numbers of the parts that a completion names, in their order."""
    return sorted(int(number) for number in re.findall(rb"<PartNumber>\s*(\d+)\s*<", body))
