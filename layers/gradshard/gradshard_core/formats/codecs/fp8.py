"""The codec ``fp8``: floating-point numbers of eight bits, 34 bytes for 32 elements.

They are E4M3 of the OCP 8-bit Floating Point Specification (OFP8, 2023,
https://www.opencompute.org/documents/ocp-8-bit-floating-point-specification-ofp8-revision-1-0-2023-12-01-pdf-1):
a sign, four bits of exponent with bias 7, three of mantissa; no infinities; 0x7F and 0xFF are NaN.
"""

from typing import Final

import numpy as np

from gradshard_core.formats.codecs.scaled_block import (
    BLOCK,
    SCALE_BYTES,
    Array,
    BlockCodec,
    in_one_piece,
)

_MANTISSA: Final = 3
_DROPPED: Final = 23 - _MANTISSA
"""Bits of float32's mantissa that E4M3 lacks."""

_REBIAS: Final = (127 - 7) << _MANTISSA
_PLACES: Final = np.array(0x87F00000, np.uint32).view(np.int32)[()]
"""The bits of sign, exponent and mantissa in a float32."""

_NAN: Final = 0x7F
_SMALLEST_NORMAL: Final = np.float32(2.0**-6)
_SUBNORMAL_UNIT: Final = np.float32(2.0**-9)


class Fp8(BlockCodec):
    """Values are E4M3, up to 448."""

    name = "fp8"
    unit_bytes = SCALE_BYTES + BLOCK
    largest = 448.0
    factor = 2.0 ** (127 - 7)

    def _values(self, stored: Array, out: Array) -> None:
        # Sign, exponent and mantissa move to their places in float32, whose exponent has another
        # bias: that is the factor. Widened with its sign, a byte has the sign in all bits above.
        codes = in_one_piece(stored)
        signed, bits = codes.view(np.int8), out.view(np.int32)
        np.copyto(bits, signed)
        np.left_shift(bits, _DROPPED, out=bits)
        np.bitwise_and(bits, _PLACES, out=bits)
        # The codes of NaN are the largest of all, with and without a sign.
        if signed.max(initial=0) == _NAN or codes.max(initial=0) == _NAN | 0x80:
            out[(codes & _NAN) == _NAN] = np.nan

    def _store(self, scaled: Array, dither: Array | None, stored: Array) -> None:
        # In as few arrays as will do: the system clears the pages of those that are new.
        magnitude = np.abs(scaled)
        subnormal = magnitude / _SUBNORMAL_UNIT
        if dither is None:
            # Ties to even: half a unit in the last place, less one if the kept bits are even.
            codes = magnitude.view(np.uint32) >> _DROPPED
            codes &= np.uint32(1)
            codes += np.uint32((1 << (_DROPPED - 1)) - 1)
            np.rint(subnormal, out=subnormal)
        else:
            codes = (dither * np.float32(1 << _DROPPED)).astype(np.uint32)
            subnormal += dither
            np.floor(subnormal, out=subnormal)
        codes += magnitude.view(np.uint32)
        codes >>= _DROPPED
        codes -= np.uint32(_REBIAS)
        np.copyto(codes, subnormal, where=magnitude < _SMALLEST_NORMAL, casting="unsafe")
        codes |= scaled.view(np.uint32) >> 24 & np.uint32(0x80)
        np.copyto(stored, codes, casting="unsafe")
