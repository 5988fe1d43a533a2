"""The codec ``int8``: whole numbers from -127 to 127, 34 bytes for 32 elements."""

import numpy as np

from gradshard_core.formats.codecs.scaled_block import (
    BLOCK,
    SCALE_BYTES,
    Array,
    BlockCodec,
    round_to_integers,
)


class Int8(BlockCodec):
    """Values are whole numbers, in two's complement."""

    name = "int8"
    unit_bytes = SCALE_BYTES + BLOCK
    largest = 127.0

    def _values(self, stored: Array, out: Array) -> None:
        np.copyto(out, stored.view(np.int8))

    def _store(self, scaled: Array, dither: Array | None, stored: Array) -> None:
        round_to_integers(scaled, dither, self.largest)
        np.copyto(stored.view(np.int8), scaled, casting="unsafe")
