"""A file on its way from S3: whole under its name, and what has arrived is not fetched again."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from gradshard.client import downloads
from gradshard.client.downloads import download_bytes, download_file
from gradshard.errors import ChangedObjectError, StoreError
from gradshard.formats.keys import ObjectVersion
from gradshard.planning import transfers
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
    monkeypatch.setattr(transfers, "CLIENT_RANGE_BYTES", 1000)
    monkeypatch.setattr(transfers, "CLIENT_RANGES", 1000)
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


def test_one_whose_line_broke_goes_on(store: Counting, tmp_path: Path) -> None:
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
def test_what_a_killed_process_left_is_fetched_anew(
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
