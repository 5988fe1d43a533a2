"""The codec ``int4``: whole numbers from -7 to 7, 18 bytes for 32 elements."""

from functools import cached_property

import numpy as np

from gradshard_core.formats.codecs.block import (
    BLOCK,
    SCALE_BYTES,
    Array,
    BlockCodec,
    round_to_integers,
)


class Int4(BlockCodec):
    """Values are whole numbers in two's complement, two in a byte, the first in the low bits."""

    name = "int4"
    unit_bytes = SCALE_BYTES + BLOCK // 2
    largest = 7.0

    @cached_property
    def _pairs(self) -> Array:
        """The two values of each byte, side by side in eight bytes."""
        nibbles = np.arange(256, dtype=np.uint8)[:, None] >> np.array([0, 4], np.uint8) & 15
        values = ((nibbles ^ 8).astype(np.int8) - 8).astype(np.float32)
        pairs: Array = values.view(np.uint64)[:, 0]
        return pairs

    def _values(self, stored: Array, out: Array) -> None:
        # With a mode other than the default, take writes into its output directly.
        np.take(self._pairs, stored, out=out.view(np.uint64), mode="wrap")

    def _store(self, scaled: Array, dither: Array | None, stored: Array) -> None:
        round_to_integers(scaled, dither)
        np.clip(scaled, -self.largest, self.largest, out=scaled)
        nibbles = scaled.astype(np.int8).view(np.uint8) & 15
        np.bitwise_or(nibbles[:, ::2], nibbles[:, 1::2] << 4, out=stored)
