"""An update on its way to S3: how it gets there whole.

Most updates are one PUT, since each request is paid for. Where the connection breaks in the middle
of a large one, and from the start for the largest, they go up in parts. When that is interrupted
too, the parts that arrived stay; the next upload in parts of the same bytes finds them and sends
only the others.

What is there already is known by its SHA-256, which S3 checks and keeps; an ETag does not tell it
under a KMS key. So every byte is read once more than it is sent.
"""

import base64
import hashlib
import io
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import IO, Any, Final

from gradshard.client.upload_source import Content
from gradshard.utils.parallel import run_parallel
from gradshard_core.errors import StoreError, UpdateError
from gradshard_core.formats.digests import encode_parts
from gradshard_core.planning.transfers import SINGLE_PUT_BYTES, client_ranges
from gradshard_core.s3.multipart import Part
from gradshard_core.s3.store import S3Store
from gradshard_core.units import MIB

THREADS: Final = 4
"""Parts under way at once."""

CHUNK_BYTES: Final = MIB
"""Bytes of each part that are in memory."""

CONTENT_TYPE: Final = "application/octet-stream"

Progress = Callable[[int, int], None]
"""Told the bytes done and the total; by several threads, but never by two at once."""

Ranges = Sequence[tuple[int, int]]
"""Where parts begin and end, by number."""

SendPart = Callable[[int, IO[bytes], int], Part]
"""Stores a part, given its number, its bytes as a file, and how many those are."""


class _Range(io.RawIOBase):
    """Bytes [start, end) of a content as a file, read as they are sent.

    ``failure`` is why the content could not be read; botocore hides it in an error of its own.
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
    """How far the parts of a content are that are sent side by side."""

    def __init__(self, done: int, total: int, tell: Progress) -> None:
        self._done, self._total, self._tell = done, total, tell
        self._reached: dict[int, int] = {}
        self._lock = threading.Lock()
        self.stop = threading.Event()

    def reach(self, number: int, nbytes: int) -> None:
        """Note how many bytes of a part are sent: fewer than before where it is begun again."""
        with self._lock:
            self._done += nbytes - self._reached.get(number, 0)
            self._reached[number] = nbytes
            self._tell(self._done, self._total)


class _PartBody(_Range):
    """Bytes [start, end) of a content as one part, which counts itself, and can be stopped."""

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
    """All bytes of a content; tells of its progress, and cannot go back once it has begun."""

    def __init__(self, content: Content, tell: Progress) -> None:
        super().__init__(content, 0, content.nbytes)
        self._tell = tell
        self._begun = False

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if self._begun:
            raise io.UnsupportedOperation("sent once")
        return super().seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        self._begun = True
        if count:
            self._tell(self._position, self._end)
        return count


class UnseekableBody(io.BufferedReader):
    """A content as a file that is read as it is sent, and sent once.

    It cannot be rewound: botocore would send it from the beginning up to six times, each time with
    the same chance to break.
    """

    def __init__(self, content: Content, tell: Progress) -> None:
        self._source = _Whole(content, tell)
        super().__init__(self._source, CHUNK_BYTES)

    def raise_failure(self) -> None:
        """Raise why the content could not be read, if it could not."""
        if self._source.failure:
            raise self._source.failure


def upload(store: S3Store, key: str, content: Content, progress: Progress | None = None) -> None:
    """S3Store an update under ``key``: in one request, or in parts if that breaks or is too large.

    It is read as it is sent, so memory is a few MB. After a failure the parts that were stored
    stay, and the next upload of the same content in parts goes on from them.

    Parameters
    ----------
    store
        The bucket; it retries each request.
    key
        Of the object that appears when all bytes are there.
    content
        What to store.
    progress
        Called as bytes are sent; with fewer than before when parts take over, or are sent again.

    Raises
    ------
    StoreError
        S3 went on failing, or another upload of the same client got in the way.
    UpdateError
        The content changed meanwhile.
    """
    tell = progress or ignore_progress
    if len(client_ranges(content.nbytes)) == 1:
        # Little enough to be sent again.
        body = content.read(0, content.nbytes)
        store.put_bytes(key, body, content_type=CONTENT_TYPE, sha256=checksum_of(content))
        tell(content.nbytes, content.nbytes)
        return
    if content.nbytes <= SINGLE_PUT_BYTES and _put(store, key, content, tell):
        return
    upload_id, held = _resumable(store, key, content)
    ranges = client_ranges(content.nbytes)

    def send(number: int, body: IO[bytes], nbytes: int) -> Part:
        checksum = _checksum(content, ranges[number - 1])
        return store.upload_part(key, upload_id, number, body, nbytes, checksum)

    parts = send_parts(content, ranges, held, send, tell)
    store.complete_upload(key, upload_id, parts)
    if store.checksum(key) != _joined(base64.b64decode(part.sha256) for part in parts):
        raise StoreError(f"{key}: another upload got in the way; submit again")


def _put(store: S3Store, key: str, content: Content, tell: Progress) -> bool:
    """Send a content in one request; False if that broke on the way."""
    tell(0, content.nbytes)
    checksum = checksum_of(content)
    body = UnseekableBody(content, tell)
    if store.put_stream(key, body, content.nbytes, content_type=CONTENT_TYPE, sha256=checksum):
        return True
    body.raise_failure()
    # All of it may have arrived but the answer: a second time, it could come after the planning.
    return store.checksum(key) == checksum


def ignore_progress(_done: int, _total: int) -> None:
    """Be the progress that nobody asked for."""


def checksum_of(content: Content) -> str:
    """Return a content's SHA-256, in base64 as S3 has it."""
    return _checksum(content, (0, content.nbytes))


def has_checksum(content: Content, checksum: str) -> bool:
    """Whether :func:`upload` of the content, in either way, makes an object of that checksum."""
    ranges = client_ranges(content.nbytes)
    if "-" not in checksum:
        return checksum == checksum_of(content)
    if not checksum.endswith(f"-{len(ranges)}"):
        return False
    return checksum == _joined(_digest(content, *range_) for range_ in ranges)


def _resumable(store: S3Store, key: str, content: Content) -> tuple[str, list[Part]]:
    """Find an interrupted upload of the same content with the parts it has, or begin one."""
    ranges = client_ranges(content.nbytes)
    for upload_id in store.open_uploads(key):
        held = store.list_parts(key, upload_id)
        if not held:
            # Nothing to go on from: it is gone, or a ticket's, which takes no checksums.
            continue
        if all(_holds(content, part, ranges) for part in held):
            return upload_id, held
        # Other content of the same client, which this one replaces.
        store.abort_upload(key, upload_id)
    sizes = encode_parts(end - start for start, end in ranges)
    return store.create_upload(key, sizes, checked=True), []


def _holds(content: Content, part: Part, ranges: Ranges) -> bool:
    """Whether a part that S3 has is one of the content's, cut so."""
    return _is_one_of(part, ranges) and part.sha256 == _checksum(content, ranges[part.number - 1])


def holds_by_etag(content: Content, part: Part, ranges: Ranges) -> bool:
    """Whether a part that came without a SHA-256 is one of the content's, cut so.

    The ETag of a part is its MD5: not for security, S3's choice. Under a KMS key it is not, and no
    part is known again.
    """
    if not _is_one_of(part, ranges):
        return False
    return part.etag.strip('"') == _digest(content, *ranges[part.number - 1], "md5").hex()


def _is_one_of(part: Part, ranges: Ranges) -> bool:
    if part.number > len(ranges):
        return False
    start, end = ranges[part.number - 1]
    return part.nbytes == end - start


def has_etag(content: Content, etag: str, ranges: Ranges) -> bool:
    """Whether an upload in such parts makes an object of that ETag, unless under a KMS key."""
    digest, _, parts = etag.strip('"').partition("-")
    if parts != str(len(ranges)):
        return False
    digests = b"".join(_digest(content, *range_, "md5") for range_ in ranges)
    return digest == hashlib.md5(digests, usedforsecurity=False).hexdigest()


def _digest(content: Content, start: int, end: int, algorithm: str = "sha256") -> bytes:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    for position in range(start, end, CHUNK_BYTES):
        digest.update(content.read(position, min(position + CHUNK_BYTES, end)))
    return digest.digest()


def _checksum(content: Content, range_: tuple[int, int]) -> str:
    return _base64(_digest(content, *range_))


def _joined(digests: Iterable[bytes]) -> str:
    """Return the checksum that S3 gives an object of parts that have these."""
    parts = list(digests)
    return f"{_base64(hashlib.sha256(b''.join(parts)).digest())}-{len(parts)}"


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def send_parts(
    content: Content, ranges: Ranges, held: Sequence[Part], send: SendPart, tell: Progress
) -> list[Part]:
    """Send the parts that are not held yet, some at a time; return all, by number.

    After a failure nothing more is begun; after the user's interruption nothing more is sent.
    """
    parts = {part.number: part for part in held}
    done = sum(part.nbytes for part in held)
    tell(done, content.nbytes)
    under_way = _Parts(done, content.nbytes, tell)

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
