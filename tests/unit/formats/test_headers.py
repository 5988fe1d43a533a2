"""Headers as clients write them, good and bad."""

import contextlib
import json
import struct
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from gradshard_core.errors import UpdateError
from gradshard_core.formats import headers
from gradshard_core.formats.headers import Header, header_length, parse_header, parse_samples
from gradshard_core.formats.tensor_layout import PREFIX_BYTES, Layout, encode_header
from tests import reference


def parse(blob: bytes) -> Header:
    length = header_length(blob, len(blob))
    return parse_header(blob[PREFIX_BYTES : PREFIX_BYTES + length], len(blob))


def blob_of(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: Any, shape: Any, start: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_reads_files_of_the_safetensors_library() -> None:
    tensors: dict[str, npt.NDArray[Any]] = {
        "fc.weight": np.ones((3, 4), np.float32),
        "fc.half": np.zeros((5,), np.float16),
        "fc.brain": np.zeros((2, 2), ml_dtypes.bfloat16),
        "bn.count": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float32),
    }
    header = parse(safetensors.numpy.save(tensors, {"num_samples": "12"}))
    assert header.metadata == {"num_samples": "12"}
    assert header.layout.shapes == {
        "fc.weight": ("F32", (3, 4)),
        "fc.half": ("F16", (5,)),
        "fc.brain": ("BF16", (2, 2)),
        "bn.count": ("I64", ()),
        "empty": ("F32", (0, 3)),
    }


def test_the_safetensors_library_reads_our_files() -> None:
    packed = Layout.pack([("a", "F32", (2, 3)), ("é\n", "I8", (3,)), ("none", "F16", (0,))])
    header = encode_header(packed, {"k": "v"})
    assert len(header) % 8 == 0
    read = safetensors.numpy.load(header + bytes(range(27)))
    assert read["é\n"].tobytes() == bytes([24, 25, 26])
    assert read["none"].shape == (0,)


BAD: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not a safetensors object: 0 bytes"),
    "too short": (b"abc", "3 bytes"),
    "random bytes": (b"\xff" * 64, "over the format's 100000000"),
    "header beyond the object": (struct.pack("<Q", 900) + b"{}", "900 bytes is longer than"),
    "not a JSON object": (blob_of(b"hello"), "not a JSON object"),
    "not UTF-8": (blob_of(b'{"\xff":1}'), "not a JSON object"),
    "UTF-16": (blob_of('{"a": 1}'.encode("utf-16")), "not a JSON object"),
    "NaN in the header": (blob_of(b'{"a": NaN}'), "not a JSON object"),
    "deeply nested": (blob_of(b"[" * 200_000), "not a JSON object"),
    "a huge number": (blob_of(b'{"a":' + b"9" * 10_000 + b"}"), "not a JSON object"),
    "a lone surrogate": (blob_of(b'{"\\ud800": 1}'), "not a JSON object"),
    "a lone surrogate in metadata": (
        blob_of(b'{"__metadata__": {"k": "\\udc00"}, "a": 1}'),
        "half a character",
    ),
    "a list": (blob_of([]), "not a JSON object but a list"),
    "a key twice": (blob_of(b'{"a": 1, "a": 2}'), "twice"),
    "metadata no map": (blob_of({"__metadata__": {"n": 1}}), "__metadata__"),
    "entry no object": (blob_of({"w": 3}), "'w' lacks"),
    "no shape": (blob_of({"w": {"dtype": "F32", "data_offsets": [0, 0]}}), "'w' lacks"),
    "unknown dtype": (blob_of({"w": entry("F8_E4M3", [4], 0, 4)}, b"1234"), "F8_E4M3"),
    "bool": (blob_of({"w": entry("BOOL", [4], 0, 4)}, b"1234"), "BOOL"),
    "dtype no text": (blob_of({"w": entry(["F32"], [1], 0, 4)}, b"1234"), "dtype is not text"),
    "negative size": (blob_of({"w": entry("F32", [-1], 0, 4)}, b"1234"), "shape"),
    "size no number": (blob_of({"w": entry("F32", [True], 0, 4)}, b"1234"), "shape"),
    "a hundred dimensions": (blob_of({"w": entry("F32", [1] * 100, 0, 4)}, b"1234"), "shape"),
    "offsets no numbers": (blob_of({"w": entry("F32", [1], "0", 4)}, b"1234"), "data_offsets"),
    "out of bounds": (blob_of({"w": entry("F32", [2], 0, 8)}, b"1234"), "out of the object's 4"),
    "backwards": (blob_of({"w": entry("F32", [1], 4, 0)}, b"1234"), "out of the object's"),
    "wrong length": (blob_of({"w": entry("F32", [2], 0, 4)}, b"1234"), "8 bytes.*span 4"),
    "overlap": (
        blob_of({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 2, 6)}, b"123456"),
        "'b' begins at byte 2, not 4: it overlaps",
    ),
    "hole": (
        blob_of({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)}, b"123"),
        "'b' begins at byte 2, not 1: it leaves a hole",
    ),
    "trailing bytes": (blob_of({"a": entry("U8", [1], 0, 1)}, b"123"), "end at byte 1.*holds 3"),
    "no tensors": (blob_of({}), "empty"),
    "no elements": (blob_of({"a": entry("F32", [0, 5], 0, 0)}), "empty"),
}


@pytest.mark.parametrize("what", BAD)
def test_rejects(what: str) -> None:
    blob, reason = BAD[what]
    with pytest.raises(UpdateError, match=reason):
        parse(blob)


def test_rejects_a_header_longer_than_we_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "MAX_HEADER_BYTES", 10)
    with pytest.raises(UpdateError, match="over the 10 that gradshard reads"):
        parse(blob_of({"w": entry("U8", [1], 0, 1)}, b"1"))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_rejected(data: bytes) -> None:
    for blob in (data, blob_of(data)):
        with contextlib.suppress(UpdateError):
            assert parse(blob).layout.nbytes > 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.just("F32"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["dtype", "shape", "data_offsets", "w"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@pytest.mark.slow
@given(st.dictionaries(st.text(max_size=3), JSON, max_size=3))
def test_any_json_is_read_or_rejected(header: dict[str, Any]) -> None:
    with contextlib.suppress(UpdateError):
        assert parse(blob_of(header, b"1234")).layout.nbytes == 4


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "num_samples is missing"),
        ("0", "is 0"),
        ("-3", "'-3'"),
        ("1.5", "'1.5'"),
        ("many", "'many'"),
        ("nan", "'nan'"),
        ("", "''"),
        ("٣", "not a whole number"),
        ("9" * 40, "not a whole number"),
        (str(2**53 + 1), "2\\*\\*53"),
    ],
)
def test_rejects_samples(text: str | None, reason: str) -> None:
    with pytest.raises(UpdateError, match=reason):
        parse_samples({} if text is None else {"num_samples": text})


def test_accepts_samples() -> None:
    assert parse_samples({"num_samples": "512"}) == 512
    assert parse_samples({"num_samples": str(2**53)}) == 2**53


def test_reference_writer_is_read_by_both() -> None:
    blob = reference.encode({"w": np.arange(3, dtype="f4")}, {"num_samples": "1"})
    assert parse(blob).layout.nbytes == 12
    assert safetensors.numpy.load(blob)["w"].tolist() == [0, 1, 2]
