"""CRC-64/NVME against its definition."""

import base64
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradshard.utils.crc64 import LIBRARY, Crc64, crc64_text

POLYNOMIAL = 0xAD93D23594C93659
"""NVM Command Set Specification 1.0c, 5.2.1.3.4, https://nvmexpress.org; without x^64."""


def defined(data: bytes) -> int:
    """Divide bit by bit, as the definition says: bits are reflected, and both ends are inverted."""
    rest = 2**64 - 1
    for byte in data:
        for place in range(8):
            top = (rest >> 63) ^ (byte >> place & 1)
            rest = (rest << 1) % 2**64 ^ (POLYNOMIAL if top else 0)
    return int(f"{rest:064b}"[::-1], 2) ^ (2**64 - 1)


def test_the_check_value_of_the_standard() -> None:
    assert defined(b"123456789") == 0xAE8B14860A799888
    assert base64.b64decode(crc64_text(b"123456789")).hex() == "ae8b14860a799888"


@given(st.binary(max_size=80), st.lists(st.integers(0, 80), max_size=3))
def test_any_pieces_have_the_crc_of_the_definition(data: bytes, cuts: list[int]) -> None:
    crc = Crc64()
    for start, end in pairwise([0, *sorted(cuts), len(data)] if data else [0, 0]):
        crc.update(memoryview(data)[start : max(start, end)])
    assert crc.text == base64.b64encode(defined(data).to_bytes(8, "big")).decode()


def test_the_library_is_found_where_it_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == LIBRARY]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, LIBRARY, None)
    assert crc64_text(b"") == "AAAAAAAAAAA="
