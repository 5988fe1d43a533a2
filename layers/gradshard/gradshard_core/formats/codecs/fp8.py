"""The codec ``fp8``: floating-point numbers of eight bits, 34 bytes for 32 elements.

They are E4M3 of the OCP 8-bit Floating Point Specification (OFP8, 2023,
https://www.opencompute.org/documents/ocp-8-bit-floating-point-specification-ofp8-revision-1-0-2023-12-01-pdf-1):
a sign, four bits of exponent with bias 7, three of mantissa; no infinities; 0x7F and 0xFF are NaN.
"""

from functools import cached_property
from typing import Final

import numpy as np

from gradshard_core.formats.codecs.block import BLOCK, SCALE_BYTES, Array, BlockCodec

_MANTISSA: Final = 3
_DROPPED: Final = 23 - _MANTISSA
"""Bits of float32's mantissa that E4M3 lacks."""

_REBIAS: Final = (127 - 7) << _MANTISSA
_SMALLEST_NORMAL: Final = np.float32(2.0**-6)
_SUBNORMAL_UNIT: Final = np.float32(2.0**-9)


class Fp8(BlockCodec):
    """Values are E4M3, up to 448."""

    name = "fp8"
    unit_bytes = SCALE_BYTES + BLOCK
    largest = 448.0

    @cached_property
    def _pairs(self) -> Array:
        """The two values of each two bytes, side by side in eight bytes; half a MiB."""
        codes = np.arange(256)
        exponent, mantissa = codes >> _MANTISSA & 15, codes & 7
        normal = np.ldexp(1 + mantissa / 8, exponent - 7)
        values = np.where(exponent == 0, mantissa * _SUBNORMAL_UNIT, normal)
        values[codes & 127 == 127] = np.nan
        values = np.where(codes & 128, -values, values).astype(np.float32)
        pairs = np.empty((256, 256, 2), np.float32)
        pairs[..., 0], pairs[..., 1] = values[None, :], values[:, None]
        return pairs.reshape(-1).view(np.uint64)

    def _values(self, stored: Array, out: Array) -> None:
        np.take(self._pairs, stored.view("<u2"), out=out.view(np.uint64), mode="wrap")

    def _store(self, scaled: Array, dither: Array | None, stored: Array) -> None:
        magnitude = np.abs(scaled)
        bits = magnitude.view(np.uint32)
        kept = bits >> _DROPPED
        if dither is None:
            # Ties to even: half a unit in the last place, less one if the kept bits are even.
            rounded = bits + np.uint32((1 << (_DROPPED - 1)) - 1) + (kept & np.uint32(1))
            subnormal = np.rint(magnitude / _SUBNORMAL_UNIT)
        else:
            rounded = bits + (dither * np.float32(1 << _DROPPED)).astype(np.uint32)
            subnormal = np.floor(magnitude / _SUBNORMAL_UNIT + dither)
        codes = (rounded >> _DROPPED) - np.uint32(_REBIAS)
        small = magnitude < _SMALLEST_NORMAL
        codes[small] = subnormal[small].astype(np.uint32)
        np.copyto(stored, codes | np.signbit(scaled).astype(np.uint32) << 7, casting="unsafe")
