"""Key streams, against NIST's vector and a second implementation from the definition."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from gradshard_core.masking.key_stream import MAX_BYTES, KeyStream

SEED = bytes(range(32))


def stream(seed: bytes, start: int, end: int, step: int = 10**9) -> bytes:
    source, data = KeyStream(seed, start, end), bytearray(end - start)
    for at in range(0, len(data), step):
        source.read_into(memoryview(data)[at : at + step])
    return bytes(data)


def by_definition(seed: bytes, start: int, end: int) -> bytes:
    """Encrypt the numbers of blocks one by one."""
    block = Cipher(algorithms.AES(seed), modes.ECB()).encryptor()  # noqa: S305 - one block
    numbers = range(start // 16, -(-end // 16))
    blocks = b"".join(block.update(number.to_bytes(16, "big")) for number in numbers)
    return blocks[start % 16 :][: end - start]


def test_the_block_cipher_is_that_of_nist() -> None:
    # NIST SP 800-38A, F.1.5: AES-256, the first block.
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - one block
    plain = bytes.fromhex("6bc1bee22e409f96e93d7e117393172a")
    assert block.update(plain).hex() == "f3eed1bdb5d2a03c064b5a7e3db181f8"


@given(st.integers(0, 2**40), st.integers(0, 700), st.integers(1, 64))
@settings(max_examples=100, deadline=None)
def test_any_range_is_that_of_the_definition(start: int, nbytes: int, step: int) -> None:
    expected = by_definition(SEED, start, start + nbytes)
    assert stream(SEED, start, start + nbytes, step) == expected


def test_ranges_over_several_slices_and_at_the_end_of_a_stream() -> None:
    whole = stream(SEED, 0, 1_000_003)
    assert whole == by_definition(SEED, 0, 1_000_003)
    assert stream(SEED, 300_001, 999_999) == whole[300_001:999_999]
    assert len(stream(SEED, MAX_BYTES - 5, MAX_BYTES)) == 5


def test_other_seeds_have_other_streams() -> None:
    seeds = [number.to_bytes(32, "big") for number in range(100)]
    assert len({stream(seed, 0, 16) for seed in seeds}) == 100


def test_a_stream_looks_uniform() -> None:
    counts = np.bincount(np.frombuffer(stream(SEED, 0, 2**20), np.uint8), minlength=256)
    # Chi-square with 255 degrees of freedom: 330.5 is exceeded in one case of a thousand.
    assert ((counts - 4096.0) ** 2 / 4096).sum() < 330.5


def test_no_more_is_given_than_the_range_has() -> None:
    source = KeyStream(SEED, 10, 20)
    source.read_into(memoryview(bytearray(9)))
    with pytest.raises(ValueError, match="2 bytes were asked for, but 1 are left"):
        source.read_into(memoryview(bytearray(2)))


@pytest.mark.parametrize(
    ("seed", "start", "end"),
    [(b"short", 0, 1), (SEED, -1, 1), (SEED, 2, 1), (SEED, 0, MAX_BYTES + 1)],
)
def test_what_is_no_seed_or_range_is_rejected(seed: bytes, start: int, end: int) -> None:
    with pytest.raises(ValueError, match="bytes"):
        KeyStream(seed, start, end)
