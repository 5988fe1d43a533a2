"""An object's digest, by its ETag and the sizes of its parts."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradshard_core.formats.digests import MAX_TEXT, PARTS, encode_parts, has_digest, parts_of
from tests.unit.fakes import etag_of, md5

DATA = bytes(range(256)) * 3


def joined(*sizes: int) -> str:
    file = io.BytesIO(DATA)
    whole = md5(b"".join(md5(file.read(size)).digest() for size in sizes)).hexdigest()
    return f'"{whole}-{len(sizes)}"'


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=30))
def test_sizes_are_read_as_they_were_written(sizes: list[int]) -> None:
    metadata = encode_parts(sizes)
    etag = f'"{"0" * 32}-{len(sizes)}"'
    if metadata:
        assert len(metadata[PARTS]) <= MAX_TEXT
        assert parts_of(etag, sum(sizes), metadata, "AES256") == tuple(sizes)


def test_many_equal_parts_fit_the_metadata() -> None:
    assert encode_parts([5, *[10] * 9998, 7]) == {PARTS: "1x5,9998x10,1x7"}
    assert encode_parts(range(1, 10_000)) == {}


@pytest.mark.parametrize(
    ("etag", "metadata", "encryption"),
    [
        (joined(768), {}, "AES256"),
        (joined(700, 68), {PARTS: "1x700"}, "AES256"),
        (joined(700, 68), {PARTS: "2x700"}, "AES256"),
        (joined(700, 68), {PARTS: "1x700,1x68,"}, "AES256"),
        (joined(700, 68), {PARTS: "99999x1" + ",99999x1" * 100}, "AES256"),
        (joined(700, 68), {PARTS: "1x700,1x68"}, "aws:kms"),
        (joined(700, 68), {PARTS: "1x700,1x68"}, "aws:kms:dsse"),
        (etag_of(DATA), {}, "aws:kms"),
        ('"other"', {}, "AES256"),
        ("", {}, ""),
    ],
)
def test_an_etag_that_is_no_md5_is_not_checked(
    etag: str, metadata: dict[str, str], encryption: str
) -> None:
    assert parts_of(etag, len(DATA), metadata, encryption) is None


@pytest.mark.parametrize("sizes", [(768,), (700, 68), (256, 256, 256)])
def test_one_bit_more_is_found(sizes: tuple[int, ...]) -> None:
    etag = joined(*sizes)
    assert has_digest(io.BytesIO(DATA), etag, sizes)
    for position in (0, 699, 767):
        damaged = bytearray(DATA)
        damaged[position] ^= 1
        assert not has_digest(io.BytesIO(damaged), etag, sizes)
    assert not has_digest(io.BytesIO(DATA[:-1]), etag, sizes)
    assert has_digest(io.BytesIO(DATA), etag_of(DATA), (768,))
