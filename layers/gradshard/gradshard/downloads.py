"""An averaged update or a model on its way from S3, into memory or a file."""

import contextlib
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Final, overload

from gradshard.keys import ObjectVersion
from gradshard.limits import MIB
from gradshard.planning import client_ranges
from gradshard.streams import Opener, RangeStream
from gradshard.tensors import Array, unpack
from gradshard.uploads import Progress

THREADS: Final = 4
SLICE_BYTES: Final = MIB
"""Bytes of each thread that are in memory at a time."""


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
    """Fetch a safetensors object into arrays, which share one buffer, or into a file."""
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

    _download(opener, source, write, progress)
    return data


def download_file(
    opener: Opener, source: ObjectVersion, path: Path, progress: Progress | None = None
) -> None:
    """Write an object version to a file, which appears when it is whole.

    Until then the bytes are in a hidden file beside it; memory is a few MB.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; name a file to write to")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    lock = threading.Lock()
    try:
        with partial.open("xb") as file:

            def write(position: int, chunk: memoryview) -> None:
                with lock:
                    file.seek(position)
                    file.write(chunk)

            _download(opener, source, write, progress)
        partial.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


def _download(
    opener: Opener,
    source: ObjectVersion,
    write: Callable[[int, memoryview], None],
    progress: Progress | None,
) -> None:
    """Read ranges side by side; each is opened again from where it broke."""
    stop = threading.Event()
    counting = threading.Lock()
    done = 0

    def count(nbytes: int) -> None:
        nonlocal done
        with counting:
            done += nbytes
            if progress:
                progress(done, source.nbytes)

    def read(start: int, end: int) -> None:
        stream = RangeStream(opener, source, [(start, end)])
        buffer = memoryview(bytearray(SLICE_BYTES))
        try:
            for position in range(start, end, SLICE_BYTES):
                if stop.is_set():
                    break
                chunk = buffer[: min(SLICE_BYTES, end - position)]
                stream.read_into(chunk)
                write(position, chunk)
                count(len(chunk))
        finally:
            stream.close()

    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(read, start, end) for start, end in client_ranges(source.nbytes)]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
