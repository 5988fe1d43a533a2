"""An averaged update or a model on its way from S3, into memory or a file.

A file takes its name when it is whole and has the digest that S3 tells, where S3 tells one
(:mod:`gradshard_core.formats.digests`). Where the connection is lost, or the user interrupts, what
has arrived stays in a hidden file beside it, behind which stands how far each range has come; the
next download of the same object to the same place goes on from there.
"""

import contextlib
import hashlib
import io
import json
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Final, overload

from gradshard.client.tensors import Array, unpack
from gradshard.client.uploads import Progress
from gradshard.utils.atomic_file import (
    add_path_to_errors,
    check_disk_space,
    hidden_path,
    open_private,
    open_unfinished,
    take_name,
    target_of,
)
from gradshard.utils.parallel import run_parallel
from gradshard_core.errors import DigestError, StoreError
from gradshard_core.formats.digests import has_digest
from gradshard_core.formats.keys import ObjectVersion
from gradshard_core.planning.transfers import client_ranges
from gradshard_core.s3.streams import Body, Opener, RangeStream
from gradshard_core.units import MIB

THREADS: Final = 4
SLICE_BYTES: Final = MIB
"""Bytes of each thread that are in memory at a time."""

_NAME_DIGITS: Final = 16


@overload
def fetch_tensors(
    opener: Opener, source: ObjectVersion, path: None, progress: Progress | None
) -> dict[str, Array]: ...


@overload
def fetch_tensors(
    opener: Opener, source: ObjectVersion, path: str | Path | None, progress: Progress | None
) -> dict[str, Array] | Path: ...


def fetch_tensors(
    opener: Opener, source: ObjectVersion, path: str | Path | None, progress: Progress | None
) -> dict[str, Array] | Path:
    """Fetch a safetensors object into arrays, which share one buffer, or into a file.

    By its ETag alone: to name its version, a client would need s3:GetObjectVersion.
    """
    source = source._replace(version="")
    if path is None:
        return unpack(download_bytes(opener, source, progress))
    download_file(opener, source, Path(path), progress)
    return Path(path)


def download_bytes(
    opener: Opener, source: ObjectVersion, progress: Progress | None = None
) -> bytearray:
    """Read an object version into memory, once.

    Raises
    ------
    StoreError
        The connection was lost, or there is not so much memory.
    DigestError
        What arrived does not have the digest that S3 tells.
    """
    try:
        data = bytearray(source.nbytes)
    except (MemoryError, OverflowError):
        raise StoreError(
            f"{source.key}: {source.nbytes} bytes do not fit in memory; fetch it into a file"
        ) from None

    def write(position: int, chunk: memoryview) -> None:
        data[position : position + len(chunk)] = chunk

    noting = _Noting(opener)
    _download(noting, source, write, _nothing(source), progress)
    # Of a view, since a file of the bytes themselves would copy them.
    _check_digest(io.BufferedReader(_View(data)), source, noting.parts)
    return data


def download_file(
    opener: Opener, source: ObjectVersion, path: Path, progress: Progress | None = None
) -> None:
    """Write an object version to a file, which appears when it is whole.

    Until then the bytes are in a hidden file beside it; memory is a few MB. That file stays when
    the connection is lost or the user interrupts, and goes when anything else fails. Where another
    download has it, or somebody else may have written to it, a new one is begun, which never stays.

    Raises
    ------
    StoreError
        The connection was lost.
    DigestError
        What was written does not have the digest that S3 tells.
    OSError
        The file cannot be written.
    """
    target = target_of(path)
    # Another version of the object is another file.
    version = hashlib.sha256("\n".join(map(str, source)).encode()).hexdigest()[:_NAME_DIGITS]
    lock = threading.Lock()
    with add_path_to_errors(path), _unfinished(target, version) as (unfinished, file):
        reached = _take_reached(file, source)
        check_disk_space(target, source.nbytes - _done(reached, source))

        def write(position: int, chunk: memoryview) -> None:
            with lock:
                file.seek(position)
                file.write(chunk)

        noting = _Noting(opener)
        try:
            _download(noting, source, write, reached, progress)
        except (KeyboardInterrupt, StoreError):
            # A thread that waits for a dead line may yet wake up.
            with lock:
                _leave_reached(file, source, reached)
            raise
        file.seek(0)
        _check_digest(file, source, noting.parts)
        take_name(file, unfinished, target)


@contextlib.contextmanager
def _unfinished(target: Path, version: str) -> Iterator[tuple[Path, IO[bytes]]]:
    """Open the hidden file from which a download goes on, or a new one where that is not ours."""
    path = hidden_path(target, version)
    file = _locked(path)
    stays = file is not None
    if file is None:
        path, file = open_unfinished(target)
    with file:
        try:
            yield path, file
        except (KeyboardInterrupt, StoreError):
            if not stays:
                path.unlink(missing_ok=True)
            raise
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _locked(path: Path) -> IO[bytes] | None:
    """Open a hidden file for this process alone; None if it is another's, or nobody can lock it.

    Only the process that has the lock renames it or deletes it.
    """
    try:
        import fcntl
    except ImportError:  # on Windows, where each download is begun anew
        return None
    try:
        file = open_private(path)
    except OSError:
        return None  # a link, or of another user; if it is the folder, a new one fails too
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours = _is_ours(os.fstat(file.fileno())) and path.stat(follow_symlinks=False).st_ino == (
            os.fstat(file.fileno()).st_ino
        )
    except OSError:
        ours = False
    if ours:
        return file
    file.close()
    return None


def _is_ours(status: os.stat_result) -> bool:
    """Whether nobody but this user can have written to a file."""
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_uid == os.geteuid()
        and status.st_nlink == 1
        and not status.st_mode & 0o022
    )


class _Noting:
    """An opener, and the sizes of an object's parts as its answers tell them."""

    def __init__(self, opener: Opener) -> None:
        self.meter = opener.meter
        self.parts: tuple[int, ...] | None = None
        self._opener = opener

    def get_body(self, source: ObjectVersion, start: int, end: int) -> Body:
        body = self._opener.get_body(source, start, end)
        self.parts = getattr(body, "parts", None)
        return body


class _View(io.RawIOBase):
    """Bytes in memory as a file."""

    def __init__(self, data: bytearray) -> None:
        self._data, self._position = memoryview(data), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        chunk = self._data[self._position : self._position + len(buffer)]
        buffer[: len(chunk)] = chunk
        self._position += len(chunk)
        return len(chunk)


def _check_digest(
    file: IO[bytes] | io.BufferedReader, source: ObjectVersion, parts: tuple[int, ...] | None
) -> None:
    if parts is not None and not has_digest(file, source.etag, parts):
        raise DigestError(
            f"{source.key}: the {source.nbytes} bytes that arrived do not have the digest that S3 "
            f"tells ({source.etag}): they were damaged on the way or on this disk; fetch it again"
        )


def _done(reached: Sequence[int], source: ObjectVersion) -> int:
    return sum(reached) - sum(_nothing(source))


def _nothing(source: ObjectVersion) -> list[int]:
    return [start for start, _ in client_ranges(source.nbytes)]


def _take_reached(file: IO[bytes], source: ObjectVersion) -> list[int]:
    """Return how far each range has come in a file, and leave the bytes alone in it."""
    file.seek(source.nbytes)
    text = file.read()
    file.truncate(source.nbytes)
    ranges = client_ranges(source.nbytes)
    try:
        reached: list[int] = json.loads(text)
        known = all(
            start <= position <= end for (start, end), position in zip(ranges, reached, strict=True)
        )
    except (ValueError, TypeError):
        # A new file, or one whose writer was killed.
        known = False
    if not known:
        return _nothing(source)
    if reached == [end for _, end in ranges]:
        # What the answer to one request tells is needed to check them.
        reached[-1] = ranges[-1][0]
    return reached


def _leave_reached(file: IO[bytes], source: ObjectVersion, reached: Sequence[int]) -> None:
    file.seek(source.nbytes)
    file.write(json.dumps(reached).encode())


def _download(
    opener: Opener,
    source: ObjectVersion,
    write: Callable[[int, memoryview], None],
    reached: list[int],
    progress: Progress | None,
) -> None:
    """Read ranges side by side from where they are; each is opened again from where it broke."""
    stop = threading.Event()
    counting = threading.Lock()
    ranges = client_ranges(source.nbytes)
    done = _done(reached, source)
    if progress:
        progress(done, source.nbytes)

    def count(nbytes: int) -> None:
        nonlocal done
        with counting:
            done += nbytes
            if progress:
                progress(done, source.nbytes)

    def read(number: int, end: int) -> None:
        stream = RangeStream(opener, source, [(reached[number], end)])
        buffer = memoryview(bytearray(SLICE_BYTES))
        try:
            while reached[number] < end and not stop.is_set():
                chunk = buffer[: min(SLICE_BYTES, end - reached[number])]
                stream.read_into(chunk)
                write(reached[number], chunk)
                reached[number] += len(chunk)
                count(len(chunk))
        finally:
            stream.close()

    jobs = [partial(read, number, end) for number, (_, end) in enumerate(ranges)]
    try:
        for _ in run_parallel(jobs, THREADS, stop):
            pass
    finally:
        stop.set()
