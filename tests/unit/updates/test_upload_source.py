"""The bytes of an update, before they are sent."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gradshard.updates.upload_source import FileContent, PaddedContent, TensorContent, check_samples
from gradshard_core.errors import UpdateError
from gradshard_core.formats.headers import MAX_HEADER_BYTES, header_length, parse_header
from gradshard_core.formats.tensor_layout import PREFIX_BYTES

TENSORS: dict[str, Any] = {
    "w": np.arange(1000, dtype="f4"),
    "e": np.empty(0, "f4"),
    "n": np.int64(3),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "update.safetensors"
    save_file({"w": TENSORS["w"]}, path, metadata={"epoch": "3", "num_samples": "7"})
    return path


def test_any_range_can_be_read() -> None:
    content = TensorContent(TENSORS, 5)
    whole = content.read(0, content.nbytes)
    assert len(whole) == content.nbytes
    for start in range(0, content.nbytes, 97):
        for end in (start + 1, start + 300, content.nbytes):
            assert content.read(start, min(end, content.nbytes)) == whole[start:end]


@pytest.mark.parametrize("samples", [0, -1, 2**53 + 1, 1.5, "3", True, float("nan")])
def test_samples_are_a_whole_number_above_zero(samples: Any) -> None:
    with pytest.raises(UpdateError, match="samples is"):
        TensorContent(TENSORS, samples)


def test_samples_of_numpy_are_numbers_too() -> None:
    assert check_samples(np.int64(12)) == "12"


def test_a_file_without_samples_is_rejected(tmp_path: Path) -> None:
    save_file({"w": np.ones(3)}, tmp_path / "f")
    with pytest.raises(UpdateError, match=r"num_samples is missing .* \(--samples\)"):
        FileContent(tmp_path / "f", None)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes"),
        (b"\xff" * 20, "not a safetensors object"),
        (b"PK\x03\x04" + b"x" * 20, "zip file, such as .* `gradshard convert`"),
        (b"\x02\0\0\0\0\0\0\0[]", "not a JSON object"),
        (b"\x40\0\0\0\0\0\0\0{}", "longer than the object"),
    ],
)
def test_a_bad_file_is_rejected_by_name(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(UpdateError, match=rf"bad\.safetensors: .*{reason}"):
        FileContent(path, 3)


class TestPadded:
    @pytest.mark.parametrize("more", [0, 1, 7, 8, 1000])
    def test_is_the_same_update(self, more: int) -> None:
        content = TensorContent(TENSORS, 5)
        padded = PaddedContent(content, content.nbytes + more)
        whole = padded.read(0, padded.nbytes)
        assert len(whole) == content.nbytes + more
        end = PREFIX_BYTES + header_length(whole[:PREFIX_BYTES], len(whole))
        header = parse_header(whole[PREFIX_BYTES:end], len(whole))
        assert (header.layout, header.metadata) == (content.layout, {"num_samples": "5"})
        assert whole[end:] == content.read(content.nbytes - content.layout.nbytes, content.nbytes)

    def test_any_range_can_be_read(self) -> None:
        content = TensorContent(TENSORS, 5)
        padded = PaddedContent(content, content.nbytes + 333)
        whole = padded.read(0, padded.nbytes)
        for start in range(0, padded.nbytes, 61):
            for end in (start + 1, start + 300, padded.nbytes):
                assert padded.read(start, min(end, padded.nbytes)) == whole[start:end]

    def test_rejects_a_length_that_needs_a_header_over_the_limit(self) -> None:
        content = TensorContent(TENSORS, 5)
        with pytest.raises(UpdateError, match="leaves no room for the 16777216"):
            PaddedContent(content, content.nbytes + MAX_HEADER_BYTES)
