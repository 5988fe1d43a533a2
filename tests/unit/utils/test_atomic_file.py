"""What may be written to, and what becomes of what was there."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradshard.utils.atomic_file import atomic_file


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def write(path: Path, data: bytes = b"new") -> None:
    with atomic_file(path, len(data)) as file:
        file.write(data)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_has_the_mode_of_the_umask(tmp_path: Path) -> None:
    write(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"new"
    assert mode_of(tmp_path / "f") == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_nobody_else_can_read_an_unfinished_file(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "f", 3):
        [unfinished] = tmp_path.iterdir()
        assert mode_of(unfinished) == 0o600


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666, 0o755])
def test_a_replaced_file_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    (tmp_path / "f").write_bytes(b"old")
    (tmp_path / "f").chmod(mode)
    write(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"new"
    assert mode_of(tmp_path / "f") == mode


@pytest.mark.parametrize("bits", [stat.S_ISUID, stat.S_ISGID, stat.S_ISVTX])
def test_a_replaced_file_loses_its_set_id_bits(tmp_path: Path, bits: int) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "f").chmod(0o755 | bits)
    write(tmp_path / "f")
    assert mode_of(tmp_path / "f") == 0o755


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/f")
    for data in (b"first", b"second"):
        write(tmp_path / "link", data)
        assert (tmp_path / "link").readlink() == Path("there/f")
        assert (tmp_path / "there/f").read_bytes() == data
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["f"]


def test_a_link_that_leads_to_itself_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(OSError, match="link"):
        write(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


@pytest.mark.parametrize("through_link", [False, True])
def test_a_fifo_is_rejected_and_stays(tmp_path: Path, *, through_link: bool) -> None:
    os.mkfifo(tmp_path / "fifo")
    path = tmp_path / "fifo"
    if through_link:
        path = tmp_path / "link"
        path.symlink_to("fifo")
    with pytest.raises(OSError, match=f"{path} is a FIFO or a pipe; name a file to write to"):
        write(path)
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)


def test_a_device_is_rejected_and_stays(tmp_path: Path) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        device = Path("/dev/null")
    with pytest.raises(OSError, match="null is a device; name a file to write to"):
        write(device)
    assert stat.S_ISCHR(device.stat().st_mode)


def test_a_pipe_by_the_name_of_an_open_file_is_rejected() -> None:
    """/dev/stdout and /dev/fd lead to a name that is not there, and the file behind it is."""
    reading, writing = os.pipe()
    try:
        with pytest.raises(OSError, match=f"/dev/fd/{writing} is a FIFO or a pipe; name a file"):
            write(Path(f"/dev/fd/{writing}"))
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("name", ["x" * 255, "\N{GREEK SMALL LETTER ALPHA}" * 127])
def test_a_name_may_be_as_long_as_the_system_takes(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_directory_and_a_file_in_no_folder_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a directory; name a file"):
        write(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*none to write f to"):
        write(tmp_path / "none" / "f")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")

    def fail() -> None:
        with atomic_file(tmp_path / "f", 3) as file:
            file.write(b"ne")
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        fail()
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
