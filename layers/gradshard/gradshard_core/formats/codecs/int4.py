"""The codec ``int4``: whole numbers from -7 to 7, 18 bytes for 32 elements."""

import numpy as np

from gradshard_core.formats.codecs.scaled_block import (
    BLOCK,
    SCALE_BYTES,
    Array,
    BlockCodec,
    in_one_piece,
    round_to_integers,
)


class Int4(BlockCodec):
    """Values are whole numbers in two's complement, two in a byte, the first in the low bits."""

    name = "int4"
    unit_bytes = SCALE_BYTES + BLOCK // 2
    largest = 7.0
    factor = 1 / 16

    def _values(self, stored: Array, out: Array) -> None:
        # Each half of a byte moves to the high bits of a byte of its own, where it is 16 times its
        # value. The two bytes of a little-endian integer are in their order.
        pairs = in_one_piece(stored).astype("<u2")
        high = np.left_shift(pairs, 8)
        np.left_shift(pairs, 4, out=pairs)
        np.bitwise_or(pairs, high, out=pairs)
        np.bitwise_and(pairs, 0xF0F0, out=pairs)
        np.copyto(out, pairs.view(np.int8))

    def _store(self, scaled: Array, dither: Array | None, stored: Array) -> None:
        round_to_integers(scaled, dither, self.largest)
        nibbles = scaled.astype(np.int8).view(np.uint8) & 15
        np.bitwise_or(nibbles[:, ::2], nibbles[:, 1::2] << 4, out=stored)
