"""What is sent, and that it gets there whole."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load, save_file

from gradshard.updates import uploads
from gradshard.updates.upload_source import FileContent, TensorContent
from gradshard.updates.uploads import checksum_of, upload
from gradshard.utils.crc64 import crc64_text
from gradshard_core.errors import StoreError, UpdateError
from gradshard_core.s3 import client_transfers
from tests.unit.fakes import MemoryStore

KEY = "rounds/r/updates/a.safetensors"
TENSORS: dict[str, Any] = {
    "w": np.arange(1000, dtype="f4"),
    "e": np.empty(0, "f4"),
    "n": np.int64(3),
}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_transfers, "CLIENT_RANGE_BYTES", 512)
    monkeypatch.setattr(client_transfers, "CLIENT_RANGES", 1000)
    monkeypatch.setattr(uploads, "CHUNK_BYTES", 512)


@pytest.fixture
def in_parts(store: MemoryStore) -> None:
    """Break whatever is sent in one request in its middle."""
    store.cut_stream_after = 2000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "update.safetensors"
    save_file({"w": TENSORS["w"]}, path, metadata={"epoch": "3", "num_samples": "7"})
    return path


def test_tensors_arrive_with_their_samples(store: MemoryStore, tmp_path: Path) -> None:
    upload(store, KEY, TensorContent(TENSORS, 5))
    back = load(store.objects[KEY])
    np.testing.assert_array_equal(back["w"], TENSORS["w"])
    copy = tmp_path / "copy"
    copy.write_bytes(store.objects[KEY])
    with safe_open(copy, "np") as file:
        assert file.metadata() == {"num_samples": "5"}


@pytest.mark.parametrize(("samples", "expected"), [(None, "7"), (512, "512")])
def test_a_file_keeps_its_metadata(
    store: MemoryStore, path: Path, tmp_path: Path, samples: int | None, expected: str
) -> None:
    with FileContent(path, samples) as content:
        upload(store, KEY, content)
    np.testing.assert_array_equal(load(store.objects[KEY])["w"], TENSORS["w"])
    copy = tmp_path / "copy"
    copy.write_bytes(store.objects[KEY])
    with safe_open(copy, "np") as file:
        assert file.metadata() == {"num_samples": expected, "epoch": "3"}


def test_a_small_update_is_one_request(store: MemoryStore) -> None:
    told: list[tuple[int, int]] = []
    content = TensorContent({"w": np.ones(4)}, 1)
    upload(store, KEY, content, lambda done, total: told.append((done, total)))
    assert store.uploads == {}
    assert store.sent == []
    assert told == [(content.nbytes, content.nbytes)]


def test_a_large_update_is_one_request_too(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_other(*_: Any) -> Any:
        raise AssertionError("one request is enough")

    for name in ("open_uploads", "create_upload", "head", "checksum"):
        monkeypatch.setattr(store, name, none_other)
    content = TensorContent(TENSORS, 5)
    upload(store, KEY, content)
    assert store.objects[KEY] == content.read(0, content.nbytes)


def test_progress_grows_to_the_whole(store: MemoryStore) -> None:
    told: list[tuple[int, int]] = []
    content = TensorContent(TENSORS, 5)
    upload(store, KEY, content, lambda done, total: told.append((done, total)))
    assert told[0] == (0, content.nbytes)
    assert told[-1] == (content.nbytes, content.nbytes)
    assert told == sorted(told)
    assert len(told) >= content.nbytes // 512


@pytest.mark.usefixtures("in_parts")
def test_where_the_line_breaks_the_update_goes_up_in_parts(store: MemoryStore) -> None:
    told: list[int] = []
    content = TensorContent(TENSORS, 5)
    upload(store, KEY, content, lambda done, _: told.append(done))
    assert store.objects[KEY] == content.read(0, content.nbytes)
    assert store.etags[KEY].endswith('-9"')
    assert store.uploads == {}
    # Begun again, in parts, and told as it is.
    assert told.count(0) == 2
    assert told[-1] == content.nbytes


def test_the_largest_go_up_in_parts_from_the_start(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = TensorContent(TENSORS, 5)
    monkeypatch.setattr(uploads, "SINGLE_PUT_BYTES", content.nbytes - 1)
    upload(store, KEY, content)
    assert len(store.sent) == 9
    assert store.objects[KEY] == content.read(0, content.nbytes)


def test_an_update_goes_up_over_several_connections_if_wanted(store: MemoryStore) -> None:
    content = TensorContent(TENSORS, 5)
    upload(store, KEY, content, parallel=True)
    assert store.objects[KEY] == content.read(0, content.nbytes)
    assert len(store.sent) == 9


def test_an_update_whose_answer_was_lost_is_not_sent_again(store: MemoryStore) -> None:
    taken = store.put_stream

    def lose_the_answer(*arguments: Any, **options: Any) -> bool:
        taken(*arguments, **options)
        return False

    store.put_stream = lose_the_answer  # type: ignore[method-assign]
    upload(store, KEY, TensorContent(TENSORS, 5))
    assert store.sent == []


@pytest.mark.usefixtures("in_parts")
def test_an_earlier_update_of_the_same_size_is_replaced(store: MemoryStore) -> None:
    earlier = TensorContent({**TENSORS, "w": TENSORS["w"] + 1}, 5)
    store.put_bytes(KEY, earlier.read(0, earlier.nbytes))
    content = TensorContent(TENSORS, 5)
    assert content.nbytes == earlier.nbytes
    upload(store, KEY, content)
    assert store.objects[KEY] == content.read(0, content.nbytes)


@pytest.mark.usefixtures("in_parts")
def test_an_interrupted_upload_is_resumed(store: MemoryStore) -> None:
    store.parts_until_failure = 3
    with pytest.raises(StoreError, match="cut"):
        upload(store, KEY, TensorContent(TENSORS, 5))
    assert KEY not in store.objects
    there = set(store.sent)
    assert len(there) == 3

    store.parts_until_failure, store.sent = 100, []
    told: list[int] = []
    content = TensorContent(TENSORS, 5)
    upload(store, KEY, content, lambda done, _: told.append(done))
    assert not there & set(store.sent)
    assert 3 * 512 in told
    assert store.objects[KEY] == content.read(0, content.nbytes)
    assert store.uploads == {}
    assert store.aborted == []


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize(
    "other",
    [
        pytest.param({**TENSORS, "w": TENSORS["w"] + 1}, id="other values"),
        pytest.param({"w": np.arange(200, dtype="f4")}, id="fewer parts"),
    ],
)
def test_an_upload_of_other_content_is_thrown_away(
    store: MemoryStore, other: dict[str, Any]
) -> None:
    store.parts_until_failure = 5
    with pytest.raises(StoreError):
        upload(store, KEY, TensorContent(TENSORS, 5))
    store.parts_until_failure = 100
    content = TensorContent(other, 5)
    upload(store, KEY, content)
    assert store.aborted == ["upload-0"]
    assert store.uploads == {}
    assert store.objects[KEY] == content.read(0, content.nbytes)


@pytest.mark.usefixtures("in_parts")
def test_a_part_of_another_length_is_not_taken_over(store: MemoryStore) -> None:
    content = TensorContent(TENSORS, 5)
    upload_id = store.create_upload(KEY, checked=True)
    head = content.read(0, 100)
    store.upload_part(KEY, upload_id, 1, io.BytesIO(head), 100, crc64_text(head))
    upload(store, KEY, content)
    assert store.aborted == [upload_id]


@pytest.mark.usefixtures("in_parts")
def test_the_upload_of_a_ticket_that_waits_is_left_alone(store: MemoryStore) -> None:
    # It was begun for parts without a checksum: S3 takes none with one.
    waiting = store.create_upload(KEY)
    content = TensorContent(TENSORS, 5)
    upload(store, KEY, content)
    assert store.objects[KEY] == content.read(0, content.nbytes)
    assert store.list_parts(KEY, waiting) == []
    assert store.aborted == []


@pytest.mark.usefixtures("in_parts")
def test_a_part_beyond_the_contents_last_is_not_taken_over(store: MemoryStore) -> None:
    content = TensorContent(TENSORS, 5)
    upload_id = store.create_upload(KEY, checked=True)
    beyond = len(client_transfers.client_ranges(content.nbytes)) + 1
    store.upload_part(KEY, upload_id, beyond, io.BytesIO(b"x"), 1, crc64_text(b"x"))
    upload(store, KEY, content)
    assert store.aborted == [upload_id]
    assert store.objects[KEY] == content.read(0, content.nbytes)


@pytest.mark.usefixtures("in_parts")
def test_an_upload_given_up_by_another_says_so(store: MemoryStore) -> None:
    store.complete_upload = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="submit again"):
        upload(store, KEY, TensorContent(TENSORS, 5))


@pytest.mark.parametrize("tensors", [TENSORS, {"w": np.ones(2)}])
@pytest.mark.parametrize("cut", [None, 2000])
def test_an_update_that_is_there_already_is_recognised(
    store: MemoryStore, tensors: dict[str, Any], cut: int | None
) -> None:
    store.cut_stream_after = cut
    content = TensorContent(tensors, 5)
    upload(store, KEY, content)
    assert store.checksum(KEY) == checksum_of(content)
    assert store.checksum(KEY) != checksum_of(TensorContent(tensors, 6))


@pytest.mark.usefixtures("in_parts")
def test_parts_that_came_without_a_checksum_are_not_taken_over(store: MemoryStore) -> None:
    content = TensorContent(TENSORS, 5)
    upload_id = store.create_upload(KEY)
    store.upload_part(KEY, upload_id, 1, io.BytesIO(content.read(0, 512)), 512)
    upload(store, KEY, content)
    assert store.aborted == [upload_id]


@pytest.mark.parametrize("cut", [None, 2000])
def test_a_file_that_changes_meanwhile_is_not_sent(
    store: MemoryStore, path: Path, cut: int | None
) -> None:
    store.cut_stream_after = cut
    with FileContent(path, 3) as content:
        os.truncate(path, 1000)
        with pytest.raises(UpdateError, match="changed while"):
            upload(store, KEY, content)
    assert KEY not in store.objects
