"""The sum in a ring: how masked updates are added, and their masks subtracted.

Elements are unsigned integers, whose sums wrap around at 2³² or 2⁶⁴, as numpy's do. Such sums are
exact in any order, so the result's bits depend on no order, topology or number of shards.

The first input is added; the others are, too, or are subtracted if their weight says so. Inputs,
like partial sums, consist of elements of the ring (:func:`gradshard_core.formats.dtypes.in_ring`),
whatever the type of the layout's elements.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from gradshard_core.aggregation import arithmetic, block_sizes
from gradshard_core.aggregation.fixed_point import RingEncoding
from gradshard_core.aggregation.kernel import Block, Piece, Source
from gradshard_core.formats.dtypes import in_ring, unmasked
from gradshard_core.formats.tensor_layout import Span

ADDED: Final = 1.0
SUBTRACTED: Final = -1.0
"""Weights of inputs: masked updates and sums of them, and the sum of the masks."""

Combine = Callable[..., Any]
"""Combines sums and elements into sums, as numpy's ufuncs do."""


def _begin(_sums: arithmetic.Array, elements: arithmetic.Array, out: arithmetic.Array) -> None:
    np.copyto(out, elements)


def ring_spans(spans: Sequence[Span], ring_bits: int) -> tuple[Span, ...]:
    """Return a layout's spans with the types of its masked elements."""
    return tuple(span._replace(dtype=in_ring(span.dtype, ring_bits)) for span in spans)


@dataclass(frozen=True)
class Decoding:
    """The encoding, and the sum of the clients' counts: together they make an average of a sum."""

    fixed: RingEncoding
    total: int


@dataclass(frozen=True)
class RingSum:
    """The sum in a ring.

    Parameters
    ----------
    decoding
        The way to decode the output; None to write the sum as it is, which is a partial sum.
    """

    decoding: Decoding | None = None

    of_sums: ClassVar[bool] = True
    """Updates are elements of the ring already, as partial sums are."""

    accumulator: ClassVar[None] = None

    def rows(self, _inputs: int) -> int:
        """Return the number of accumulators."""
        return 1

    def block_bytes(self, inputs: int) -> int:
        """Return the size of a block in bytes of the layout."""
        return block_sizes.block_bytes(inputs)

    def take(
        self, sources: Sequence[Source], weights: Sequence[float | None], block: Block
    ) -> None:
        """Add or subtract a block of every input."""
        combine: Combine = _begin
        for source, weight in zip(sources, weights, strict=True):
            if weight == SUBTRACTED:
                combine = np.subtract
            for slice_ in block:
                source.read_into(slice_.raw)
                for piece in slice_.pieces:
                    combine(piece.rows[0], piece.elements, out=piece.rows[0])
            combine = np.add

    def finish(self, piece: Piece, _position: int) -> memoryview:
        """Return the bytes of a finished piece: elements of the ring, or of the average."""
        sums = piece.rows[0]
        if self.decoding is None:
            return arithmetic.bytes_of(sums)
        dtype = unmasked(piece.dtype)
        average = self.decoding.fixed.decode(sums, self.decoding.total).astype(dtype.accumulator)
        return arithmetic.finish(dtype, average, np.empty_like(average))
