"""Uploads of updates and models: in one PUT, or in parts.

Most updates are sent in one PUT, because each request costs money. The largest ones are sent in
parts, and so are large ones whose connection broke, or is the limit. If that is interrupted, too,
the parts that arrived stay, and the next upload of the same bytes in parts sends only the others.

Stored bytes are recognised by their CRC-64/NVME, which S3 checks and keeps; under a KMS key an ETag
says nothing of the bytes. So every byte is read once more than it is sent,
and in parts twice more.
"""

import hashlib
import io
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import IO, Any, Final

from gradshard.aws.client_store import ClientStore
from gradshard.updates.upload_source import Content
from gradshard.utils.crc64 import Crc64
from gradshard.utils.parallel import run_parallel
from gradshard_core.errors import StoreError, UpdateError
from gradshard_core.s3.client_transfers import SINGLE_PUT_BYTES, client_ranges
from gradshard_core.s3.multipart_requests import Part
from gradshard_core.units import MIB

THREADS: Final = 4
"""Parts under way at once."""

CHUNK_BYTES: Final = MIB
"""Bytes of each part that are in memory."""

CONTENT_TYPE: Final = "application/octet-stream"

Progress = Callable[[int, int], None]
"""Called with the bytes done and the total; from several threads, but never from two at once."""

Ranges = Sequence[tuple[int, int]]
"""Start and end of each part, in the order of their numbers."""

SendPart = Callable[[int, IO[bytes], int], Part]
"""Sends a part, given its number, its bytes as a file, and its length."""


class _Range(io.RawIOBase):
    """Bytes [start, end) of a content as a file, read as they are sent.

    ``failure`` is the error of reading the content, which botocore replaces by one of its own.
    """

    def __init__(self, content: Content, start: int, end: int) -> None:
        self._content, self._start, self._end = content, start, end
        self._position = start
        self.failure: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if self.failure:  # sending it again would fail again
            raise io.UnsupportedOperation("the content cannot be read")
        origins = {io.SEEK_SET: self._start, io.SEEK_CUR: self._position, io.SEEK_END: self._end}
        self._position = origins[whence] + offset
        return self.tell()

    def tell(self) -> int:
        return self._position - self._start

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._end - self._position))
        try:
            buffer[:count] = self._content.read(self._position, self._position + count)
        except (UpdateError, OSError) as error:
            self.failure = error
            raise
        self._position += count
        return count


class _Parts:
    """The progress of parts that are sent in parallel."""

    def __init__(self, done: int, total: int, progress: Progress) -> None:
        self._done, self._total, self._progress = done, total, progress
        self._reached: dict[int, int] = {}
        self._lock = threading.Lock()
        self.stop = threading.Event()

    def reach(self, number: int, nbytes: int) -> None:
        """Record how many bytes of a part are sent: fewer than before if it is sent again."""
        with self._lock:
            self._done += nbytes - self._reached.get(number, 0)
            self._reached[number] = nbytes
            self._progress(self._done, self._total)


class _PartBody(_Range):
    """Bytes [start, end) of a content as one part, which reports progress and can be stopped."""

    def __init__(self, content: Content, number: int, span: tuple[int, int], parts: _Parts) -> None:
        super().__init__(content, *span)
        self._number, self._parts = number, parts

    def readinto(self, buffer: Any) -> int:
        if self._parts.stop.is_set():
            self.failure = InterruptedError("the upload was stopped")
            raise self.failure
        count = super().readinto(buffer)
        self._parts.reach(self._number, self.tell())
        return count


class _Whole(_Range):
    """All bytes of a content; reports progress and cannot be rewound once it was read from."""

    def __init__(self, content: Content, progress: Progress) -> None:
        super().__init__(content, 0, content.nbytes)
        self._progress = progress
        self._begun = False

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if self._begun:
            raise io.UnsupportedOperation("sent once")
        return super().seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        self._begun = True
        if count:
            self._progress(self._position, self._end)
        return count


class UnseekableBody(io.BufferedReader):
    """A content as a file that is read while it is sent, and cannot be rewound.

    botocore would send it up to six times from the beginning, each time with the same chance of
    failure.
    """

    def __init__(self, content: Content, progress: Progress) -> None:
        self._source = _Whole(content, progress)
        super().__init__(self._source, CHUNK_BYTES)

    def raise_failure(self) -> None:
        """Raise the error of reading the content, if there was one."""
        if self._source.failure:
            raise self._source.failure


def upload(
    store: ClientStore,
    key: str,
    content: Content,
    progress: Progress | None = None,
    *,
    parallel: bool = False,
) -> None:
    """Upload an update to ``key``: in one request, or in parts if that breaks or it is too large.

    It is read while it is sent, so it takes a few MB of memory. After a failure the parts that
    were stored stay, and the next upload of the same content in parts resumes from them.

    Parameters
    ----------
    store
        The bucket.
    key
        The key of the object, which appears when all bytes have arrived.
    content
        The content to store.
    progress
        Called while bytes are sent; the number falls when parts take over or are sent again.
    parallel
        Send it in parts from the start, over :data:`THREADS` connections, if it has more than one.

    Raises
    ------
    StoreError
        S3 kept failing, or another upload of the same client interfered.
    UpdateError
        The content changed meanwhile.
    """
    report, checksum = progress or ignore_progress, checksum_of(content)
    if len(client_ranges(content.nbytes)) == 1:
        # Small enough to be held in memory, so that botocore can send it again.
        body = content.read(0, content.nbytes)
        store.put_bytes(key, body, content_type=CONTENT_TYPE, crc64nvme=checksum)
        report(content.nbytes, content.nbytes)
        return
    is_whole = content.nbytes <= SINGLE_PUT_BYTES and not parallel
    if is_whole and _put(store, key, content, checksum, report):
        return
    upload_id, held = _resumable(store, key, content)
    ranges = client_ranges(content.nbytes)

    def send(number: int, body: IO[bytes], nbytes: int) -> Part:
        part = crc_of(content, ranges[number - 1])
        return store.upload_part(key, upload_id, number, body, nbytes, part)

    parts = send_parts(content, ranges, held, send, report)
    store.complete_upload(key, upload_id, parts)
    if store.checksum(key) != checksum:
        raise StoreError(f"{key}: another upload replaced this one while it was sent; submit again")


def _put(store: ClientStore, key: str, content: Content, checksum: str, progress: Progress) -> bool:
    """Send a content in one request; False if that broke on the way."""
    progress(0, content.nbytes)
    body = UnseekableBody(content, progress)
    if store.put_stream(key, body, content.nbytes, content_type=CONTENT_TYPE, crc64nvme=checksum):
        return True
    body.raise_failure()
    # Only the answer may have been lost. A second upload could come too late for the plan.
    return store.checksum(key) == checksum


def ignore_progress(_done: int, _total: int) -> None:
    """Do nothing: the progress function if none is given."""


def checksum_of(content: Content) -> str:
    """Return a content's CRC-64/NVME in base64, as S3 has it."""
    return crc_of(content, (0, content.nbytes))


def _resumable(store: ClientStore, key: str, content: Content) -> tuple[str, list[Part]]:
    """Find an interrupted upload of the same content with the parts it has, or begin one."""
    ranges = client_ranges(content.nbytes)
    for upload_id in store.open_uploads(key):
        held = store.list_parts(key, upload_id)
        if not held:
            # Nothing to go on from: it is gone, or a ticket's, which takes no checksums.
            continue
        if all(_holds(content, part, ranges) for part in held):
            return upload_id, held
        # An upload of other content by the same client, which this one replaces.
        store.abort_upload(key, upload_id)
    return store.create_upload(key, checked=True), []


def _holds(content: Content, part: Part, ranges: Ranges) -> bool:
    """Return whether a part that S3 has is the content's part of that number."""
    return _is_one_of(part, ranges) and part.crc64nvme == crc_of(content, ranges[part.number - 1])


def holds_by_etag(content: Content, part: Part, ranges: Ranges) -> bool:
    """Return whether a part without a CRC is the content's part of that number.

    S3's ETag of a part is its MD5. Under a KMS key it is not, so no part is recognised.
    """
    if not _is_one_of(part, ranges):
        return False
    return part.etag.strip('"') == _md5(content, *ranges[part.number - 1]).hex()


def _is_one_of(part: Part, ranges: Ranges) -> bool:
    if part.number > len(ranges):
        return False
    start, end = ranges[part.number - 1]
    return part.nbytes == end - start


def has_etag(content: Content, etag: str, ranges: Ranges | None) -> bool:
    """Return whether an upload in these parts, or in one PUT, makes an object of that ETag.

    Under a KMS key it is not of the bytes.
    """
    digest, _, parts = etag.strip('"').partition("-")
    if parts != (str(len(ranges)) if ranges else ""):
        return False
    if not ranges:
        return digest == _md5(content, 0, content.nbytes).hex()
    digests = b"".join(_md5(content, *range_) for range_ in ranges)
    return digest == hashlib.md5(digests, usedforsecurity=False).hexdigest()


def _md5(content: Content, start: int, end: int) -> bytes:
    digest = hashlib.md5(usedforsecurity=False)
    for chunk in _chunks(content, start, end):
        digest.update(chunk)
    return digest.digest()


def crc_of(content: Content, range_: tuple[int, int]) -> str:
    """Return the CRC-64/NVME of bytes [start, end) of a content."""
    crc = Crc64()
    for chunk in _chunks(content, *range_):
        crc.update(chunk)
    return crc.text


def _chunks(content: Content, start: int, end: int) -> Iterator[bytes]:
    for position in range(start, end, CHUNK_BYTES):
        yield content.read(position, min(position + CHUNK_BYTES, end))


def send_parts(
    content: Content, ranges: Ranges, held: Sequence[Part], send: SendPart, progress: Progress
) -> list[Part]:
    """Send the parts that are not held yet, some at a time; return all, by number.

    After a failure no further part is begun. After the user's interruption no further byte is sent.
    """
    parts = {part.number: part for part in held}
    done = sum(part.nbytes for part in held)
    progress(done, content.nbytes)
    under_way = _Parts(done, content.nbytes, progress)

    def send_one(number: int, start: int, end: int) -> Part:
        source = _PartBody(content, number, (start, end), under_way)
        try:
            return send(number, io.BufferedReader(source, CHUNK_BYTES), end - start)
        except Exception:
            if source.failure:
                raise source.failure from None
            raise

    jobs = [
        partial(send_one, number, start, end)
        for number, (start, end) in enumerate(ranges, 1)
        if number not in parts
    ]
    for part in run_parallel(jobs, THREADS, under_way.stop):
        parts[part.number] = part
    return [parts[number] for number in sorted(parts)]
