"""A file on its way from S3: whole under its name, and what has arrived is not fetched again."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from gradshard.updates import downloads
from gradshard.updates.downloads import download_bytes, download_file
from gradshard_core.errors import ChangedObjectError, DigestError, StoreError
from gradshard_core.formats.object_keys import ObjectVersion
from gradshard_core.s3 import client_transfers
from tests.unit.fakes import MemoryStore

KEY = "rounds/r/update.safetensors"
DATA = bytes(range(256)) * 20


class Counting(MemoryStore):
    """Remembers which ranges were asked for; reading past ``broken_at`` breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, int]] = []
        self.broken_at = len(DATA)

    def get_body(self, source: ObjectVersion, start: int, end: int) -> Any:
        self.asked.append((start, end))
        if end > self.broken_at:
            raise StoreError("the line is cut")
        return super().get_body(source, start, end)


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_transfers, "DOWNLOAD_RANGE_BYTES", 1000)
    monkeypatch.setattr(client_transfers, "DOWNLOAD_RANGES", 1000)
    monkeypatch.setattr(downloads, "SLICE_BYTES", 100)
    # One after the other: what is there when a test interrupts is no matter of chance.
    monkeypatch.setattr(downloads, "THREADS", 1)


@pytest.fixture
def store() -> Counting:
    store = Counting()
    store.put_bytes(KEY, DATA)
    return store


def source_of(store: MemoryStore) -> ObjectVersion:
    source = store.head(KEY)
    assert source is not None
    return source


def interrupted_at(position: int) -> Any:
    def tell(done: int, _total: int) -> None:
        if done >= position:
            raise KeyboardInterrupt

    return tell


def test_a_file_and_nothing_beside_it(store: Counting, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    download_file(store, source_of(store), tmp_path / "f", lambda *step: told.append(step))
    assert (tmp_path / "f").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert told == sorted(told)
    assert told[-1] == (len(DATA), len(DATA))


def test_into_memory(store: Counting) -> None:
    assert download_bytes(store, source_of(store)) == DATA


@pytest.mark.parametrize("position", [100, 1000, 2300, 5100])
def test_an_interrupted_one_goes_on(store: Counting, tmp_path: Path, position: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        download_file(store, source_of(store), tmp_path / "f", interrupted_at(position))
    assert not (tmp_path / "f").exists()
    store.asked.clear()
    told: list[int] = []
    download_file(store, source_of(store), tmp_path / "f", lambda done, _: told.append(done))
    # The thread that reads may come further before it is stopped.
    assert told[0] >= position
    assert sum(end - start for start, end in store.asked) == len(DATA) - told[0]
    assert (tmp_path / "f").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_broken_download_goes_on(store: Counting, tmp_path: Path) -> None:
    store.broken_at = 3000
    with pytest.raises(StoreError, match="cut"):
        download_file(store, source_of(store), tmp_path / "f")
    store.broken_at = len(DATA)
    store.asked.clear()
    download_file(store, source_of(store), tmp_path / "f")
    assert min(start for start, _ in store.asked) == 3000
    assert (tmp_path / "f").read_bytes() == DATA


def test_another_object_does_not_go_on_from_it(store: Counting, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        download_file(store, source_of(store), tmp_path / "f", interrupted_at(2000))
    store.put_bytes(KEY, DATA[::-1])
    download_file(store, source_of(store), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA[::-1]


@pytest.mark.parametrize("trailer", [b"", b"[", b"[1]", b"7", b'["x"]', b"[null]"])
def test_an_invalid_partial_file_is_fetched_anew(
    store: Counting, tmp_path: Path, trailer: bytes
) -> None:
    with pytest.raises(KeyboardInterrupt):
        download_file(store, source_of(store), tmp_path / "f", interrupted_at(2000))
    [partial] = tmp_path.iterdir()
    partial.write_bytes(b"x" * len(DATA) + trailer)
    download_file(store, source_of(store), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA


@pytest.mark.parametrize("first", [b"[1000, 3000", b"[-1, 2000", b"[1000, 999"])
def test_positions_out_of_their_ranges_are_not_believed(
    store: Counting, tmp_path: Path, first: bytes
) -> None:
    with pytest.raises(KeyboardInterrupt):
        download_file(store, source_of(store), tmp_path / "f", interrupted_at(2000))
    [partial] = tmp_path.iterdir()
    partial.write_bytes(b"x" * len(DATA) + first + b", 3000, 4000, 5000, 5120]")
    told: list[int] = []
    download_file(store, source_of(store), tmp_path / "f", lambda done, _: told.append(done))
    assert told[0] == 0
    assert (tmp_path / "f").read_bytes() == DATA


def test_nothing_stays_of_an_object_that_changed(store: Counting, tmp_path: Path) -> None:
    source = source_of(store)
    store.put_bytes(KEY, DATA[::-1])
    with pytest.raises(ChangedObjectError):
        download_file(store, source, tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


def test_nothing_stays_on_a_full_disk(
    store: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads, "_download", full)
    with pytest.raises(OSError, match="No space left") as failed:
        download_file(store, source_of(store), tmp_path / "f")
    assert failed.value.filename == str(tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_told_before_anything_is_fetched(
    store: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=3000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"5\.1 kB are needed on this disk, and 3\.0 kB are free"):
        download_file(store, source_of(store), tmp_path / "f")
    assert store.asked == []
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------- two at once, and other people's files


def test_two_downloads_to_one_path_do_not_share_a_file(store: Counting, tmp_path: Path) -> None:
    """The first is interrupted when the second has renamed its own file."""
    begun: list[int] = []

    def another(done: int, _total: int) -> None:
        if done >= 2000 and not begun:
            begun.append(done)
            download_file(store, source_of(store), tmp_path / "f")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download_file(store, source_of(store), tmp_path / "f", another)
    assert (tmp_path / "f").read_bytes() == DATA
    download_file(store, source_of(store), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_of_the_second_download_nothing_stays(store: Counting, tmp_path: Path) -> None:
    begun: list[int] = []

    def another(done: int, _total: int) -> None:
        if done >= 2000 and not begun:
            begun.append(done)
            with pytest.raises(KeyboardInterrupt):
                download_file(store, source_of(store), tmp_path / "f", interrupted_at(1000))
            assert len(list(tmp_path.iterdir())) == 1

    download_file(store, source_of(store), tmp_path / "f", another)
    assert (tmp_path / "f").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.fixture
def part(store: Counting, tmp_path: Path) -> Path:
    """Give the path of the hidden file from which a download would go on, which is not there."""
    with pytest.raises(KeyboardInterrupt):
        download_file(store, source_of(store), tmp_path / "f", interrupted_at(2000))
    [part] = tmp_path.iterdir()
    part.unlink()
    return part


@pytest.mark.parametrize("kind", ["link", "hard link", "fifo", "folder", "open to others"])
def test_a_hidden_file_that_is_not_ours_is_left_alone(
    store: Counting, tmp_path: Path, part: Path, kind: str
) -> None:
    other = tmp_path / "other"
    text = b"x" * len(DATA) + b"[1000, 2000, 3000, 4000, 5000, 5120]"
    other.write_bytes(text)
    if kind == "link":
        part.symlink_to(other)
    elif kind == "hard link":
        part.hardlink_to(other)
    elif kind == "fifo":
        os.mkfifo(part)
    elif kind == "folder":
        part.mkdir()
    else:
        other.rename(part)
        part.chmod(0o666)
    download_file(store, source_of(store), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA
    assert part.exists()
    if kind != "open to others":
        assert other.read_bytes() == text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_hidden_file_of_another_user_is_left_alone(
    store: Counting, tmp_path: Path, part: Path
) -> None:
    part.write_bytes(b"x" * len(DATA) + b"[1000, 2000, 3000, 4000, 5000, 5120]")
    part.chmod(0o600)
    os.chown(part, 12345, 12345)
    download_file(store, source_of(store), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA
    assert part.exists()


# ------------------------------------------------------------------------------ the checksum


@pytest.mark.parametrize("kms", [False, True])
@pytest.mark.parametrize("position", [0, 1000, 4321, len(DATA) - 1])
def test_bytes_without_the_checksum_are_not_taken(
    tmp_path: Path, position: int, *, kms: bool
) -> None:
    store = MemoryStore(kms=kms)
    store.put_bytes(KEY, DATA)
    damaged = bytearray(DATA)
    damaged[position] ^= 1
    store.objects[KEY] = bytes(damaged)
    with pytest.raises(DigestError, match="5120 bytes that arrived have the CRC-64/NVME"):
        download_file(store, source_of(store), tmp_path / "f")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DigestError, match="fetch it again"):
        download_bytes(store, source_of(store))


def test_an_object_of_which_s3_keeps_no_checksum_is_taken(store: Counting, tmp_path: Path) -> None:
    store.checksums[KEY] = ""
    download_file(store, source_of(store), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA


@pytest.mark.parametrize("end", [2000, len(DATA)])
def test_damage_between_two_tries_is_found(store: Counting, tmp_path: Path, end: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        download_file(store, source_of(store), tmp_path / "f", interrupted_at(end))
    [part] = tmp_path.iterdir()
    with part.open("r+b") as file:
        file.write(b"other")
    with pytest.raises(DigestError):
        download_file(store, source_of(store), tmp_path / "f")
    download_file(store, source_of(store), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA


def test_more_than_memory_has_is_told(store: Counting) -> None:
    with pytest.raises(StoreError, match="bytes do not fit in memory; fetch it into a file"):
        download_bytes(store, source_of(store)._replace(nbytes=2**62))
