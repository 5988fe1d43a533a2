"""An averaged update or a model on its way from S3, into memory or a file.

A file takes its name when it is whole. Where the connection is lost, or the user interrupts, what
has arrived stays in a hidden file beside it, behind which stands how far each range has come; the
next download of the same object to the same place goes on from there.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Final, overload

from gradshard.client.uploads import Progress
from gradshard.errors import StoreError
from gradshard.formats.keys import ObjectVersion
from gradshard.formats.tensors import Array, unpack
from gradshard.planning.transfers import client_ranges
from gradshard.s3.streams import Opener, RangeStream
from gradshard.utils.atomic_file import add_path_to_errors, check_disk_space, check_output_path
from gradshard.utils.parallel import run_parallel
from gradshard.utils.units import MIB

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
    """Read an object version into memory, once."""
    data = bytearray(source.nbytes)

    def write(position: int, chunk: memoryview) -> None:
        data[position : position + len(chunk)] = chunk

    _download(opener, source, write, _nothing(source), progress)
    return data


def download_file(
    opener: Opener, source: ObjectVersion, path: Path, progress: Progress | None = None
) -> None:
    """Write an object version to a file, which appears when it is whole.

    Until then the bytes are in a hidden file beside it; memory is a few MB. That file stays when
    the connection is lost or the user interrupts, and goes when anything else fails.
    """
    check_output_path(path)
    # Another version of the object is another file.
    version = hashlib.sha256("\n".join(map(str, source)).encode()).hexdigest()[:_NAME_DIGITS]
    unfinished = path.with_name(f".{path.name}.{version}.part")
    lock = threading.Lock()
    unfinished.touch()
    try:
        with add_path_to_errors(path), unfinished.open("r+b") as file:
            reached = _take_reached(file, source)
            check_disk_space(path, source.nbytes - _done(reached, source))

            def write(position: int, chunk: memoryview) -> None:
                with lock:
                    file.seek(position)
                    file.write(chunk)

            try:
                _download(opener, source, write, reached, progress)
            except (KeyboardInterrupt, StoreError):
                # A thread that waits for a dead line may yet wake up.
                with lock:
                    _leave_reached(file, source, reached)
                raise
        unfinished.replace(path)
    except (KeyboardInterrupt, StoreError):
        raise
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


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
        reached = json.loads(text)
        known = all(
            start <= position <= end for (start, end), position in zip(ranges, reached, strict=True)
        )
    except (ValueError, TypeError):
        # A new file, or one whose writer was killed.
        known = False
    return reached if known else _nothing(source)


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
