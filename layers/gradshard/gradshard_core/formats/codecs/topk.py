"""The codec ``topk``: some of the elements, with their indices; all others are zero.

A unit has up to 262,144 elements (1 MiB of F32), in chunks of 65,536 each. It holds

- for each chunk the number of its entries, u32;
- the entries' indices in their chunks, u16, strictly increasing within each chunk;
- the entries' values, F32 or BF16, in the same order.

All are little-endian. The sizes of a tensor's units stand in the header. They are the index by
which a shard finds its units, without a request of its own.
"""

import math
from typing import Final

import numpy as np

from gradshard_core.formats.codecs.scaled_block import Array

UNIT: Final = 262_144
"""Elements of a unit; a tensor's last unit may have fewer."""

CHUNK: Final = 65_536
"""Elements whose indices have 16 bits."""

MOST: Final = 8
"""A unit has at most one entry for this many elements: it stays in memory while it is decoded, and
beyond that the other codecs take fewer bytes."""

USUAL_FRACTION: Final = 0.01
"""Of the elements that a client keeps, if it is not told otherwise."""

COUNT_BYTES: Final = 4
INDEX_BYTES: Final = 2


class TopK:
    """Units of different sizes: indices and values."""

    name = "topk"
    unit = UNIT

    def unit_bytes(self, elements: int, entries: int, size: int) -> int:
        """Return the size of a unit with so many entries, whose values have ``size`` bytes."""
        return COUNT_BYTES * _chunks(elements) + entries * (INDEX_BYTES + size)

    def check_unit(self, nbytes: object, elements: int, size: int) -> str | None:
        """Say what is wrong with the stated size of a unit; None if it can be one."""
        least, most = (self.unit_bytes(elements, n, size) for n in (0, max(1, elements // MOST)))
        if type(nbytes) is not int or not least <= nbytes <= most:
            return f"not a whole number from {least} to {most}"
        if (nbytes - least) % (INDEX_BYTES + size):
            return f"not {least} and a multiple of {INDEX_BYTES + size}"
        return None

    def stored_bytes(self, elements: int) -> int:
        """Return the size of so many elements of F32 if the usual fraction is kept."""
        whole, rest = divmod(elements, UNIT)
        units = {UNIT: whole, rest: 1} if rest else {UNIT: whole}
        return sum(
            number * self.unit_bytes(length, entries_of(USUAL_FRACTION, length), 4)
            for length, number in units.items()
        )

    def decode(
        self, stored: bytes | bytearray, elements: int, size: int
    ) -> tuple[Array, Array] | None:
        """Return the indices in the unit, int64, and the values, as they are stored.

        None if the counts are not those of the entries, or the indices are not increasing or not
        within the unit.
        """
        chunks = _chunks(elements)
        entries = (len(stored) - COUNT_BYTES * chunks) // (INDEX_BYTES + size)
        counts = np.frombuffer(stored, "<u4", chunks).astype(np.int64)
        if counts.sum() != entries:
            return None
        offset = COUNT_BYTES * chunks
        indices = np.frombuffer(stored, "<u2", entries, offset).astype(np.int64)
        indices += np.repeat(np.arange(0, chunks * CHUNK, CHUNK), counts)
        values = np.frombuffer(
            stored, "<f4" if size == 4 else "<u2", entries, offset + INDEX_BYTES * entries
        )
        if entries and not ((np.diff(indices) > 0).all() and indices[-1] < elements):
            return None
        return indices, values

    def encode(self, magnitudes: Array, values: Array, entries: int) -> Array:
        """Return a unit with the elements that have the largest magnitudes.

        Parameters
        ----------
        magnitudes
            Those of the elements, float32; a NaN is the largest.
        values
            The elements as they are stored.
        entries
            The number of elements to keep.

        Returns
        -------
        numpy.ndarray
            uint8.
        """
        first = len(magnitudes) - entries
        indices = np.sort(np.argpartition(magnitudes, first)[first:])
        counts = np.bincount(indices // CHUNK, minlength=_chunks(len(magnitudes)))
        pieces = (counts.astype("<u4"), (indices % CHUNK).astype("<u2"), values[indices])
        return np.concatenate([np.ascontiguousarray(piece).view(np.uint8) for piece in pieces])


def entries_of(fraction: float, elements: int) -> int:
    """Return how many of so many elements a unit keeps: a fraction, rounded up."""
    return min(math.ceil(fraction * elements), max(1, elements // MOST))


def _chunks(elements: int) -> int:
    return -(-elements // CHUNK)
