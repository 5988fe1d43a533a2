"""An update on its way to S3: what is sent, and how it gets there whole.

Most updates are one PUT, since each request is paid for. Where the connection breaks in the middle
of a large one, and from the start for the largest, they go up in parts. When that is interrupted
too, the parts that arrived stay; the next upload in parts of the same bytes finds them and sends
only the others.

What is there already is known by its SHA-256, which S3 checks and keeps; an ETag does not tell it
under a KMS key. So every byte is read once more than it is sent.
"""

import base64
import contextlib
import hashlib
import io
import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, Final, Protocol, Self

from gradshard.assignments import report_metadata
from gradshard.crew import side_by_side
from gradshard.errors import StoreError, UpdateError
from gradshard.layout import (
    MAX_HEADER_BYTES,
    PREFIX_BYTES,
    SAMPLES_KEY,
    Header,
    Layout,
    encode_header,
    header_length,
    parse_header,
    parse_samples,
)
from gradshard.limits import MIB
from gradshard.planning import SINGLE_PUT_BYTES, client_ranges
from gradshard.store import Part, Store
from gradshard.tensors import pack

THREADS: Final = 4
"""Parts under way at once."""

CHUNK_BYTES: Final = MIB
"""Bytes of each part that are in memory."""

ZIP_MAGIC: Final = b"PK\x03\x04"
"""As eight bytes of length this would be a header of petabytes."""

CONTENT_TYPE: Final = "application/octet-stream"

Progress = Callable[[int, int], None]
"""Told the bytes done and the total; by several threads, but never by two at once."""

Ranges = Sequence[tuple[int, int]]
"""Where parts begin and end, by number."""

SendPart = Callable[[int, IO[bytes], int], Part]
"""Stores a part, given its number, its bytes as a file, and how many those are."""


class Content(Protocol):
    """The bytes of an update, of which any range can be read."""

    @property
    def layout(self) -> Layout:
        """The update's tensors."""

    @property
    def nbytes(self) -> int:
        """How many there are."""

    def read(self, start: int, end: int) -> bytes:
        """Return bytes [start, end); several threads may read at once."""


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


class SentOnce(io.BufferedReader):
    """A content as a file that is read as it is sent, and sent once.

    It cannot be rewound: botocore would send it from the beginning up to six times, each time with
    the same chance to break.
    """

    def __init__(self, content: Content, tell: Progress) -> None:
        self._source = _Whole(content, tell)
        super().__init__(self._source, CHUNK_BYTES)

    def check(self) -> None:
        """Raise why the content could not be read, if it could not."""
        if self._source.failure:
            raise self._source.failure


class TensorContent:
    """An update, or a model, of tensors in memory, which are not copied.

    Parameters
    ----------
    tensors
        As :func:`gradshard.tensors.pack` takes them.
    samples
        The number of samples the client trained on; None for a model.
    metadata
        What else stands in the header.
    """

    def __init__(
        self,
        tensors: Mapping[str, Any],
        samples: int | None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.layout, views = pack(tensors)
        said = {} if samples is None else {SAMPLES_KEY: check_samples(samples)}
        header = encode_header(self.layout, {**(metadata or {}), **said})
        self._pieces = [memoryview(header), *views]
        *self._starts, self.nbytes = accumulate(map(len, self._pieces), initial=0)

    def read(self, start: int, end: int) -> bytes:
        """Return bytes [start, end)."""
        first = bisect_right(self._starts, start) - 1
        chunks = []
        for piece_start, piece in zip(self._starts[first:], self._pieces[first:], strict=True):
            if piece_start >= end:
                break
            chunks.append(piece[max(start - piece_start, 0) : end - piece_start])
        return b"".join(chunks)


class FileContent:
    """An update, or a model, in a .safetensors file, read as it is sent.

    An update's header is written anew with the number of samples in it.

    Parameters
    ----------
    path
        The file.
    samples
        The number of samples; None if the file's metadata has ``num_samples``.
    metadata
        What is to stand in the header besides what does.
    is_model
        It is a model, which has no samples.
    """

    def __init__(
        self,
        path: Path,
        samples: int | None,
        metadata: Mapping[str, str] | None = None,
        *,
        is_model: bool = False,
    ) -> None:
        self._path = path
        self._file = path.open("rb")
        self._lock = threading.Lock()
        try:
            self._version = self._stat()
            header = self._read_header()
            written = {**header.metadata, **(metadata or {})}
            if samples is not None:
                written[SAMPLES_KEY] = check_samples(samples)
            if not is_model:
                _check_said(written)
        except UpdateError as error:
            self._file.close()
            raise UpdateError(f"{path}: {error}") from None
        self.layout = header.layout
        self._header = encode_header(header.layout, written)
        # From a position in the update to the one in the file, beyond the header.
        self._shift = header.data_offset - len(self._header)
        self.nbytes = len(self._header) + header.layout.nbytes

    def __enter__(self) -> Self:
        """Return the content itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.close()

    def read(self, start: int, end: int) -> bytes:
        """Return bytes [start, end).

        Raises
        ------
        UpdateError
            The file was changed since it was opened.
        """
        head = self._header[start:end]
        begin = max(start, len(self._header))
        body = self._read_file(begin + self._shift, end + self._shift) if begin < end else b""
        if len(head) + len(body) != end - start or self._stat() != self._version:
            raise UpdateError(f"{self._path} was changed while it was uploaded; submit it again")
        return head + body if head else body

    def _read_file(self, start: int, end: int) -> bytes:
        with self._lock:
            self._file.seek(start)
            return self._file.read(end - start)

    def _read_header(self) -> Header:
        nbytes = self._version[0]
        prefix = self._read_file(0, PREFIX_BYTES)
        if prefix.startswith(ZIP_MAGIC):
            raise UpdateError(
                "not a safetensors object but a zip file, such as an .npz or a torch checkpoint: "
                "`gradshard convert` makes a .safetensors file of it"
            )
        end = PREFIX_BYTES + header_length(prefix, nbytes)
        return parse_header(self._read_file(PREFIX_BYTES, end), nbytes)

    def _stat(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns


def layout_of(path: Path) -> Layout:
    """Read the layout of a .safetensors file.

    Raises
    ------
    UpdateError
        It is none.
    """
    with FileContent(path, None, is_model=True) as content:
        return content.layout


class Padded:
    """A content made longer by spaces at the end of its header, which mean nothing there.

    Parameters
    ----------
    content
        What to send.
    nbytes
        How long it shall be, at least what it is.
    """

    def __init__(self, content: Content, nbytes: int) -> None:
        self.layout, self.nbytes = content.layout, nbytes
        self._content = content
        self._shift = nbytes - content.nbytes
        end = content.nbytes - content.layout.nbytes
        header = content.read(PREFIX_BYTES, end) + b" " * self._shift
        if len(header) > MAX_HEADER_BYTES:
            raise UpdateError(
                f"its header of {end - PREFIX_BYTES} bytes leaves no room for the {self._shift} to "
                "fill it up with; shorten its metadata"
            )
        self._header = len(header).to_bytes(PREFIX_BYTES, "little") + header

    def read(self, start: int, end: int) -> bytes:
        """Return bytes [start, end)."""
        head = self._header[start:end]
        begin = max(start, len(self._header))
        if begin >= end:
            return head
        return head + self._content.read(begin - self._shift, end - self._shift)


def check_samples(samples: object) -> str:
    """Return a number of samples as the metadata holds it.

    Raises
    ------
    UpdateError
        It is not a whole number from 1 to 2**53.
    """
    if isinstance(samples, bool) or not hasattr(samples, "__index__"):
        raise UpdateError(f"samples is {samples!r}, not a whole number above zero")
    text = str(samples.__index__())
    try:
        parse_samples({SAMPLES_KEY: text})
    except UpdateError:
        raise UpdateError(f"samples is {text}, not from 1 to 2**53") from None
    return text


def _check_said(metadata: Mapping[str, str]) -> None:
    if SAMPLES_KEY not in metadata:
        raise UpdateError(
            f"{SAMPLES_KEY} is missing from its metadata: give samples (--samples), on how many "
            "the client trained"
        )
    parse_samples(metadata)


@contextlib.contextmanager
def content_of(
    update: Mapping[str, Any] | str | Path,
    samples: int | None,
    training: Mapping[str, float] | None = None,
) -> Iterator[Content]:
    """Open what a client submits: tensors by name, or the path of a .safetensors file.

    Parameters
    ----------
    update, samples
        The update.
    training
        What the client says of its training (:func:`gradshard.assignments.report_metadata`).

    Raises
    ------
    UpdateError
        It could not be averaged.
    """
    metadata = report_metadata(training or {})
    if isinstance(update, str | Path):
        with FileContent(Path(update), samples, metadata) as content:
            yield content
    elif samples is None:
        raise UpdateError("samples is missing: the number of samples the client trained on")
    else:
        yield TensorContent(update, samples, metadata)


@contextlib.contextmanager
def model_content_of(model: Mapping[str, Any] | str | Path) -> Iterator[Content]:
    """Open a model: tensors by name, or the path of a .safetensors file.

    Raises
    ------
    UpdateError
        It could not be averaged.
    """
    if isinstance(model, str | Path):
        with FileContent(Path(model), None, is_model=True) as content:
            yield content
    else:
        yield TensorContent(model, None)


def upload(store: Store, key: str, content: Content, progress: Progress | None = None) -> None:
    """Store an update under ``key``: in one request, or in parts if that breaks or is too large.

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
    tell = progress or tell_nobody
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


def _put(store: Store, key: str, content: Content, tell: Progress) -> bool:
    """Send a content in one request; False if that broke on the way."""
    tell(0, content.nbytes)
    checksum = checksum_of(content)
    body = SentOnce(content, tell)
    if store.put_stream(key, body, content.nbytes, content_type=CONTENT_TYPE, sha256=checksum):
        return True
    body.check()
    # All of it may have arrived but the answer: a second time, it could come after the planning.
    return store.checksum(key) == checksum


def tell_nobody(_done: int, _total: int) -> None:
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


def _resumable(store: Store, key: str, content: Content) -> tuple[str, list[Part]]:
    """Find an interrupted upload of the same content with the parts it has, or begin one."""
    ranges = client_ranges(content.nbytes)
    for upload_id in store.open_uploads(key):
        held = store.list_parts(key, upload_id)
        if held is None:
            continue
        if all(_holds(content, part, ranges) for part in held):
            return upload_id, held
        # Other content of the same client, which this one replaces.
        store.abort_upload(key, upload_id)
    return store.create_upload(key, checked=True), []


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
    for part in side_by_side(jobs, THREADS, under_way.stop):
        parts[part.number] = part
    return [parts[number] for number in sorted(parts)]
