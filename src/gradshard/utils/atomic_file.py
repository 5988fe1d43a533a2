"""Files that appear under their name only when they are complete.

Every file that a command or a function is told to write is written by this module, so one rule
holds for all: a regular file is replaced and keeps its mode, a symbolic link is followed and stays,
and everything else (a device, a FIFO, a socket, a directory) is rejected.
"""

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from gradshard.utils.text import format_size

PRIVATE: Final = 0o600
"""The mode of an unfinished file."""

_KINDS: Final = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO or a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)

_NAME_BYTES: Final = 255
"""The longest name of a file, on the file systems in use."""

_FOR_US_ALONE: Final = (
    os.O_CREAT
    | os.O_RDWR
    | getattr(os, "O_CLOEXEC", 0)  # Windows has none of the three
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
)


def kind_of(mode: int) -> str | None:
    """Return what a file is, by its ``st_mode``, in words; None if it is a regular file."""
    if stat.S_ISREG(mode):
        return None
    return next((words for is_kind, words in _KINDS if is_kind(mode)), "not a regular file")


def target_of(path: Path) -> Path:
    """Return the file that writing to ``path`` makes or replaces: symbolic links are followed.

    Raises
    ------
    OSError
        The path is not a regular file, or in no folder.
    """
    # Before Python 3.13, Path.resolve raises RuntimeError at a link to itself; stat reports it.
    target = Path(os.path.realpath(path))
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        # Not of the resolved path: that of /dev/stdout, where it is a pipe, leads nowhere.
        kind = kind_of(path.stat().st_mode)
        if kind is not None:
            failure = IsADirectoryError if kind == "a directory" else OSError
            raise failure(f"{path} is {kind}; name a file to write to")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent} to write {path.name} to")
    return target


def check_disk_space(path: Path, nbytes: int) -> None:
    """Check, before writing a file, that its disk has this number of free bytes.

    Raises
    ------
    OSError
        The disk does not have them.
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
    target = target_of(path)
    check_disk_space(target, nbytes)
    with add_path_to_errors(path):
        unfinished, file = open_unfinished(target)
    try:
        with add_path_to_errors(path), file:
            yield file
            take_name(file, unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def open_unfinished(target: Path) -> tuple[Path, IO[bytes]]:
    """Make a new hidden file beside ``target``, which nobody else has or can open."""
    unfinished = hidden_path(target, secrets.token_hex(8))
    return unfinished, open_private(unfinished, os.O_EXCL)


def hidden_path(target: Path, suffix: str) -> Path:
    """Return the path of an unfinished file beside ``target``; a long name is cut to fit."""
    ending = f".{suffix}.part"
    room = _NAME_BYTES - len(ending) - 1
    beginning = os.fsencode(target.name)[:room].decode(errors="ignore")
    return target.with_name(f".{beginning}{ending}")


def open_private(path: Path, flags: int = 0) -> IO[bytes]:
    """Open a file to read and write, not through a link, and make it with mode 0600."""
    return os.fdopen(os.open(path, _FOR_US_ALONE | flags, PRIVATE), "r+b")


def take_name(file: IO[bytes], unfinished: Path, target: Path) -> None:
    """Give an unfinished file, whose bytes are all there, the mode and the name it is to have.

    The mode is that of the file it replaces, without set-id bits, or what the umask leaves of 0666.
    """
    file.flush()
    try:
        before = target.stat()
    except FileNotFoundError:
        mode = 0o666 & ~_umask()
    else:
        mode = before.st_mode & 0o777
        if hasattr(os, "fchown"):
            # Only root may give a file away.
            with contextlib.suppress(PermissionError):
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
    if hasattr(os, "fchmod"):
        os.fchmod(file.fileno(), mode)
    if os.name == "nt":
        file.close()  # there an open file keeps its name
    unfinished.replace(target)


def _umask() -> int:
    # There is no way to ask alone. Files made meanwhile by other threads get less, never more.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
