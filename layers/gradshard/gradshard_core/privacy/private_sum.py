"""The sum of a private round: clipped updates in fixed point, with discrete Gaussian noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gradshard_core.aggregation import arithmetic
from gradshard_core.aggregation.block_sizes import block_bytes
from gradshard_core.aggregation.kernel import Block, Piece, Source, pieces_of
from gradshard_core.aggregation.sharding import count_elements
from gradshard_core.formats.tensor_layout import Span


@dataclass(frozen=True)
class PrivateSum:
    """The reduction of a private round; the last source of a whole sum is the noise, of int64.

    Parameters
    ----------
    step
        g of the grid.
    divisor
        n, by which the sum is divided.
    of_sums
        Whether inputs are partial sums, which are whole numbers in float64.
    to_sums
        Whether the output is a partial sum, to which no noise is added.
    is_disordered
        Whether some inputs have their tensors in another order.
    """

    step: float
    divisor: int
    of_sums: bool = False
    to_sums: bool = False
    is_disordered: bool = False
    accumulator: ClassVar[np.dtype[Any]] = np.dtype(np.float64)

    def rows(self, _inputs: int) -> int:
        """Return the number of arrays: the sum."""
        return 1

    def block_bytes(self, inputs: int) -> int:
        """Return the size of a block in bytes of the layout."""
        return block_bytes(inputs, is_disordered=self.is_disordered)

    def take(
        self, sources: Sequence[Source], weights: Sequence[float | None], block: Block
    ) -> None:
        """Add a block of every input, an update with its factor sᵢ as weight; and the noise."""
        updates = sources if self.to_sums else sources[:-1]
        for piece in pieces_of(block):
            piece.rows[0].fill(0)
        for source, weight in zip(updates, weights, strict=True):
            steps = (weight or 0.0) / self.step
            for slice_ in block:
                source.read_into(slice_.raw)
                for piece in slice_.pieces:
                    if self.of_sums:
                        np.add(piece.rows[0], piece.elements, out=piece.rows[0])
                    else:
                        _add_truncated(piece, steps)
        for noises in sources[len(updates) :]:
            for _, _, [total], scratch in pieces_of(block):
                noises.read_into(arithmetic.bytes_of(scratch))
                np.add(total, scratch.view(np.int64), out=total)

    def finish(self, piece: Piece, _position: int) -> memoryview:
        """Return the bytes of a piece of the average; what is too large becomes the largest."""
        dtype, [total], narrow = piece.dtype, piece.rows, piece.scratch
        if self.to_sums:
            return arithmetic.bytes_of(total)
        np.multiply(total, self.step, out=total)
        np.divide(total, self.divisor, out=total)
        # Noise must not make an infinity, nor have a client rejected. A client's choice of numbers
        # has no part in what is done with the sum, so this costs no privacy.
        kind = dtype.accumulator.type
        largest = float(np.nextafter(kind(dtype.overflow), kind(0)))
        np.clip(total, -largest, largest, out=total)
        wide = narrow.view(dtype.accumulator)[: len(total)]
        np.copyto(wide, total, casting="same_kind")
        return arithmetic.finish(dtype, wide, total.view(dtype.accumulator)[: len(total)])


def private_sums_bytes(spans: Sequence[Span], start: int, end: int) -> int:
    """Return the size of a partial sum of [start, end) of a private round."""
    return PrivateSum.accumulator.itemsize * count_elements(spans, start, end)


def _add_truncated(piece: Piece, steps: float) -> None:
    """Add trunc(x · steps) of each element x to the sum."""
    dtype, elements, [total], scratch = piece
    if dtype.name == "BF16":
        elements = arithmetic.widened(dtype, arithmetic.bytes_of(elements))
    np.multiply(elements, steps, out=scratch, dtype=np.float64)
    np.trunc(scratch, out=scratch)
    np.add(total, scratch, out=total)
