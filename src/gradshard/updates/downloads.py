"""Downloads of an average or a model, into memory or into a file.

A file gets its name when it is complete and has the CRC-64/NVME that S3 keeps of the object, if it
keeps one. That detects damage on the way or on the disk, and no attacker who may write to the
bucket. If the connection is lost, or the user interrupts, the
bytes that have arrived stay in a hidden file beside it, followed by the position that each range
has reached. The next download of the same object to the same path resumes there.
"""

import contextlib
import hashlib
import json
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Final, Protocol, overload

from gradshard.updates.tensors import Array, unpack
from gradshard.updates.uploads import Progress
from gradshard.utils.atomic_file import (
    add_path_to_errors,
    check_disk_space,
    hidden_path,
    open_private,
    open_unfinished,
    take_name,
    target_of,
)
from gradshard.utils.crc64 import Crc64
from gradshard.utils.parallel import run_parallel
from gradshard_core.errors import DigestError, StoreError
from gradshard_core.formats.object_keys import ObjectVersion
from gradshard_core.s3.client_transfers import DOWNLOAD_RANGES, download_ranges
from gradshard_core.s3.range_streams import Opener, RangeStream
from gradshard_core.units import MIB

THREADS: Final = DOWNLOAD_RANGES
SLICE_BYTES: Final = 256 * 1024
"""Bytes of each thread that are in memory at a time.

With 1 MiB, Linux often takes three times the processor time to write them to a new file.
"""

_NAME_DIGITS: Final = 16


class Checking(Opener, Protocol):
    """A store that opens ranges of an object, and asks for its checksum."""

    def checksum(self, key: str, *, etag: str | None = None) -> str | None:
        """Return the CRC-64/NVME that S3 keeps of the object of that ETag, in base64.

        Returns
        -------
        str or None
            Empty if S3 keeps none, and None if there is no such object.
        """


@overload
def fetch_tensors(
    opener: Checking,
    source: ObjectVersion,
    checksum: str,
    path: None,
    progress: Progress | None,
) -> dict[str, Array]: ...


@overload
def fetch_tensors(
    opener: Checking,
    source: ObjectVersion,
    checksum: str,
    path: str | Path | None,
    progress: Progress | None,
) -> dict[str, Array] | Path: ...


def fetch_tensors(
    opener: Checking,
    source: ObjectVersion,
    checksum: str,
    path: str | Path | None,
    progress: Progress | None,
) -> dict[str, Array] | Path:
    """Fetch a safetensors object into arrays, which share one buffer, or into a file.

    The object is identified by its ETag alone: to name its version, a client would need the
    permission s3:GetObjectVersion. Without ``checksum``, its CRC-64/NVME, S3 is asked for that.
    """
    source = source._replace(version="")
    if path is None:
        return unpack(download_bytes(opener, source, progress, checksum=checksum))
    download_file(opener, source, Path(path), progress, checksum=checksum)
    return Path(path)


def download_bytes(
    opener: Checking,
    source: ObjectVersion,
    progress: Progress | None = None,
    *,
    checksum: str = "",
) -> bytearray:
    """Read an object version into memory, once.

    Raises
    ------
    StoreError
        The connection was lost, or the object does not fit in memory.
    DigestError
        The bytes that arrived do not have the checksum that S3 keeps.
    """
    try:
        data = bytearray(source.nbytes)
    except (MemoryError, OverflowError):
        raise StoreError(
            f"{source.key}: {source.nbytes} bytes do not fit in memory; fetch it into a file"
        ) from None

    def write(position: int, chunk: memoryview) -> None:
        data[position : position + len(chunk)] = chunk

    kept = checksum or opener.checksum(source.key, etag=source.etag)
    _download(opener, source, write, _starts(source), progress)
    _check([data], source, kept)
    return data


def download_file(
    opener: Checking,
    source: ObjectVersion,
    path: Path,
    progress: Progress | None = None,
    *,
    checksum: str = "",
) -> None:
    """Write an object version to a file, which appears when it is complete.

    Until then the bytes are in a hidden file beside it, with a few MB in memory. The hidden file
    is kept when the connection is lost or the user interrupts, and deleted after other failures. If
    another download uses it, or somebody else may have written to it, a new one is used, which is
    never kept.

    Raises
    ------
    StoreError
        The connection was lost.
    DigestError
        The bytes that were written do not have the checksum that S3 keeps.
    OSError
        The file cannot be written.
    """
    target = target_of(path)
    # Another version of the object is another file.
    version = hashlib.sha256("\n".join(map(str, source)).encode()).hexdigest()[:_NAME_DIGITS]
    lock = threading.Lock()
    with add_path_to_errors(path), _unfinished(target, version) as (unfinished, file):
        positions = _load_positions(file, source)
        check_disk_space(target, source.nbytes - _bytes_done(positions, source))

        def write(position: int, chunk: memoryview) -> None:
            with lock:
                file.seek(position)
                file.write(chunk)

        try:
            kept = checksum or opener.checksum(source.key, etag=source.etag)
            _download(opener, source, write, positions, progress)
        except (KeyboardInterrupt, StoreError):
            # A thread that waits for a dead connection may still wake up and write.
            with lock:
                _save_positions(file, source, positions)
            raise
        file.seek(0)
        _check(iter(lambda: file.read(MIB), b""), source, kept)
        take_name(file, unfinished, target)


@contextlib.contextmanager
def _unfinished(target: Path, version: str) -> Iterator[tuple[Path, IO[bytes]]]:
    """Open the hidden file from which a download resumes, or a new one if that cannot be used."""
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
    """Open a hidden file and lock it; None if another process has it, or it cannot be locked.

    Only the process that has the lock renames or deletes the file.
    """
    try:
        import fcntl
    except ImportError:  # on Windows, where downloads do not resume
        return None
    try:
        file = open_private(path)
    except OSError:
        return None  # a link, or of another user; if the folder is the cause, a new file fails, too
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
    """Return whether nobody but this user can have written to a file."""
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_uid == os.geteuid()
        and status.st_nlink == 1
        and not status.st_mode & 0o022
    )


def _check(
    chunks: Iterable[bytes | bytearray], source: ObjectVersion, checksum: str | None
) -> None:
    """Check what arrived; S3 has no checksum of an object that is gone, or has none at all."""
    if not checksum:
        return
    crc = Crc64()
    for chunk in chunks:
        crc.update(chunk)
    if crc.text != checksum:
        raise DigestError(
            f"{source.key}: the {source.nbytes} bytes that arrived have the CRC-64/NVME "
            f"{crc.text}, and S3 keeps {checksum} of the object: they were damaged on the way or "
            "on this disk; fetch it again"
        )


def _bytes_done(positions: Sequence[int], source: ObjectVersion) -> int:
    return sum(positions) - sum(_starts(source))


def _starts(source: ObjectVersion) -> list[int]:
    return [start for start, _ in download_ranges(source.nbytes)]


def _load_positions(file: IO[bytes], source: ObjectVersion) -> list[int]:
    """Read the position of each range from the end of a file, and cut it off there."""
    file.seek(source.nbytes)
    text = file.read()
    file.truncate(source.nbytes)
    ranges = download_ranges(source.nbytes)
    try:
        positions: list[int] = json.loads(text)
        known = all(
            start <= position <= end
            for (start, end), position in zip(ranges, positions, strict=True)
        )
    except (ValueError, TypeError):
        # A new file, or one whose writer was killed.
        known = False
    if not known:
        return _starts(source)
    return positions


def _save_positions(file: IO[bytes], source: ObjectVersion, positions: Sequence[int]) -> None:
    file.seek(source.nbytes)
    file.write(json.dumps(positions).encode())


def _download(
    opener: Checking,
    source: ObjectVersion,
    write: Callable[[int, memoryview], None],
    positions: list[int],
    progress: Progress | None,
) -> None:
    """Read ranges in parallel, from their positions; each resumes where its connection broke."""
    stop = threading.Event()
    lock_of_count = threading.Lock()
    ranges = download_ranges(source.nbytes)
    done = _bytes_done(positions, source)
    if progress:
        progress(done, source.nbytes)

    def count(nbytes: int) -> None:
        nonlocal done
        with lock_of_count:
            done += nbytes
            if progress:
                progress(done, source.nbytes)

    def read(number: int, end: int) -> None:
        stream = RangeStream(opener, source, [(positions[number], end)])
        buffer = memoryview(bytearray(SLICE_BYTES))
        try:
            while positions[number] < end and not stop.is_set():
                chunk = buffer[: min(SLICE_BYTES, end - positions[number])]
                stream.read_into(chunk)
                write(positions[number], chunk)
                positions[number] += len(chunk)
                count(len(chunk))
        finally:
            stream.close()

    jobs = [partial(read, number, end) for number, (_, end) in enumerate(ranges)]
    try:
        for _ in run_parallel(jobs, THREADS, stop):
            pass
    finally:
        stop.set()
