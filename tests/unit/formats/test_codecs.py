"""Codecs decode every code with every kind of scale to the value of its definition."""

import ml_dtypes
import numpy as np
import pytest

from gradshard_core.formats.codecs.registry import CODECS
from gradshard_core.formats.codecs.scaled_block import BlockCodec
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


LARGEST = {"int8": 127.0, "int4": 7.0, "fp8": 448.0}


def stated_scale(codec: str, block: list[float]) -> float:
    """Return the largest magnitude divided by the largest value, rounded up to BF16."""
    with np.errstate(all="ignore"):
        ratio = np.float32(max(map(abs, block))) / np.float32(LARGEST[codec])
        highest = np.finfo(np.float32).max / np.float32(LARGEST[codec])
    bits = min(-(-int(ratio.view("<u4")) // 2**16), int(highest.view("<u4")) // 2**16)
    return float(np.uint32(bits * 2**16).view(np.float32))


@pytest.mark.parametrize("codec", UNIT_BYTES)
def test_elements_of_any_size_are_encoded_by_the_definition(codec: str) -> None:
    encoder = CODECS[codec]
    assert isinstance(encoder, BlockCodec)
    rng = np.random.default_rng(4)
    largest = np.finfo(np.float32).max
    spread = rng.standard_normal((300, 32)) * 2.0 ** rng.integers(-149, 126, (300, 1))
    subnormal = rng.integers(0, 2**23, (100, 32), np.uint32).view(np.float32)
    enormous = largest * (1 - 2.0 ** -rng.integers(1, 24, (100, 32)))
    enormous[::3, 5] = largest
    blocks = np.concatenate([spread, subnormal, -subnormal, enormous, -enormous]).astype("f4")
    units = encoder.encode(blocks.reshape(-1))
    for block, unit in zip(blocks, units, strict=True):
        scale = np.float32(stated_scale(codec, block.tolist()))
        quotients = block / (scale or np.float32(1))
        if codec == "fp8":
            values = np.clip(quotients, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype("f4")
        else:
            values = np.clip(np.rint(quotients), -LARGEST[codec], LARGEST[codec])
        with np.errstate(all="ignore"):
            expected = values * scale
        assert np.array_equal(decode_unit(codec, unit.tobytes()), expected)
