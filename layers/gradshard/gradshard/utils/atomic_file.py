"""Files that take their name when they are whole."""

import contextlib
import errno
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from gradshard.utils.text import format_size


def check_output_path(path: Path) -> None:
    """Check that a file can be written.

    Raises
    ------
    OSError
        It is a directory, or in none.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; name a file to write to")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")


def check_disk_space(path: Path, nbytes: int) -> None:
    """Check that the disk has room for so many bytes more, before the first is fetched or made.

    Raises
    ------
    OSError
        It has not.
    """
    free = shutil.disk_usage(path.parent).free
    if free < nbytes:
        what = f"{format_size(nbytes)} are needed on this disk, and {format_size(free)} are free"
        raise OSError(errno.ENOSPC, what, str(path))


@contextlib.contextmanager
def add_path_to_errors(path: Path) -> Iterator[None]:
    """Name the file in what the system says of writing to it, such as that the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_file(path: Path, nbytes: int) -> Iterator[IO[bytes]]:
    """Open a file that takes its name when it is whole, and leaves nothing when it fails."""
    check_output_path(path)
    check_disk_space(path, nbytes)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with add_path_to_errors(path), unfinished.open("xb") as file:
            yield file
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
