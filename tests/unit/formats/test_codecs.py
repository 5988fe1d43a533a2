"""Codecs decode every code with every kind of scale to the value of its definition."""

import numpy as np
import pytest

from gradshard_core.formats.codecs.block import BlockCodec
from gradshard_core.formats.codecs.registry import CODECS
from tests.compressed import UNIT_BYTES, decode_unit

SCALES = [
    *(0, 1, 0x40, 0x7F, 0x80),  # zero, subnormal, the smallest normal one
    *range(0x3D70, 0x3D80),
    # Around 2^7 and 2^8, from where the bias of E4M3 makes scales infinite, and the largest.
    *(0x42FF, 0x4300, 0x4301, 0x437F, 0x4380, 0x4381, 0x7F00, 0x7F7F),
]
NOT_FINITE = [0x7F80, 0x7FC0]


@pytest.mark.parametrize("codec", UNIT_BYTES)
@pytest.mark.parametrize("extra", [[], SCALES[-4:], NOT_FINITE])
def test_every_code_with_every_kind_of_scale(codec: str, extra: list[int]) -> None:
    # Scales that overflow change how all units of a call are decoded, so each kind has its own.
    scales = [bits for bits in SCALES if bits < 0x4300 or extra] + extra
    decoder = CODECS[codec]
    assert isinstance(decoder, BlockCodec)
    width = UNIT_BYTES[codec] - 2
    codes = np.arange(256, dtype=np.uint8).reshape(-1, width)
    units = np.empty((2 * len(scales), len(codes), UNIT_BYTES[codec]), np.uint8)
    signed = np.array([*scales, *(bits | 0x8000 for bits in scales)], "<u2")
    units[..., :2] = signed.view(np.uint8).reshape(-1, 1, 2)
    units[..., 2:] = codes
    decoded = np.empty(units.shape[0] * len(codes) * 32, np.float32)
    with np.errstate(all="ignore"):
        decoder.decode(units.reshape(-1), decoded)
    rows = units.reshape(-1, UNIT_BYTES[codec])
    expected = np.concatenate([decode_unit(codec, unit.tobytes()) for unit in rows])
    is_nan = np.isnan(expected)
    assert np.array_equal(np.isnan(decoded), is_nan)
    assert np.array_equal(decoded.view("<u4")[~is_nan], expected.view("<u4")[~is_nan])
