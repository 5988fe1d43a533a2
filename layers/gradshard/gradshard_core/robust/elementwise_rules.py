"""Element-wise rules: an element of the result follows from that element of all inputs.

``median`` and ``trimmed_mean`` are those of Yin et al. 2018 (https://arxiv.org/abs/1803.01498),
``bulyan`` is the second step of El Mhamdi et al. 2018 (https://arxiv.org/abs/1802.07927), and
``sign`` is the majority vote of Bernstein et al. 2019 (https://arxiv.org/abs/1810.05291). Every
input counts alike, whatever its number of samples.

================  =================================================================================
``median``        the middle one; of an even number (a + b) / 2, where a ≤ b are the middle two
``trimmed_mean``  the ⌊βN⌋ smallest and as many of the largest are left out; the others are added
                  in ascending order, and the sum is divided by their number
``bulyan``        of updates that were selected before: the β that are closest to the median are
                  added in ascending order, and the sum is divided by β; of two that are equally
                  close, the smaller one counts
``sign``          1, 0 or -1: the sign of the sum of all signs
================  =================================================================================

Of partial updates, N is the number of those that have the element's layer and count there: whose
weight is not zero. The layer is zero if there are none.

Operations are in the accumulator's type, each rounded once, and a zero is positive. The result is
rounded to the element's type as a sum is. So for F32, F64 and F16 without negative zeros, the
median has the bits of ``numpy.median``, and of Flower's ``FedMedian``.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from gradshard_core.aggregation import arithmetic
from gradshard_core.aggregation.arithmetic import Array
from gradshard_core.aggregation.block_sizes import ROW_BYTES, block_bytes
from gradshard_core.aggregation.kernel import (
    Block,
    NonFiniteSumError,
    Piece,
    Source,
    check_finite,
    pieces_of,
)


def take_rows(sources: Sequence[Source | None], block: Block) -> None:
    """Read a block of every input, each into a row of its own; for None, the row is zero."""
    for index, source in enumerate(sources):
        for slice_ in block:
            for dtype, elements, rows, scratch in slice_.pieces:
                row = rows[index]
                if source is None:
                    row.fill(0)
                elif elements.dtype == row.dtype:
                    source.read_into(arithmetic.bytes_of(row))
                else:
                    source.read_into(arithmetic.bytes_of(elements))
                    arithmetic.add(dtype, elements, 1.0, row, scratch, first=True)


def _covering(sources: Sequence[Source], weights: Sequence[float | None]) -> list[Source]:
    """Return the inputs that have a block; weights are None of those that lack it."""
    return [source for source, weight in zip(sources, weights, strict=True) if weight is not None]


class _WholeColumns:
    """The common part of element-wise rules: all inputs of a block are held at once."""

    of_sums: ClassVar[bool] = False
    accumulator: ClassVar[None] = None
    # Of the inputs that have the block that was taken last: whether they count.
    _counts: Sequence[bool] = ()

    def rows(self, inputs: int) -> int:
        """Return the number of inputs, since all are held at once."""
        return inputs

    def block_bytes(self, _inputs: int) -> int:
        """Return the size of a block in bytes of the layout."""
        return ROW_BYTES

    def take(
        self, sources: Sequence[Source], weights: Sequence[float | None], block: Block
    ) -> None:
        """Read a block of every input that covers it; they count alike, or not at all."""
        self._counts = [weight != 0 for weight in weights if weight is not None]
        take_rows(_covering(sources, weights), block)

    def finish(self, piece: Piece, position: int) -> memoryview:
        """Return the bytes of a piece of the result."""
        there = _comparable(piece, piece.rows[: len(self._counts)], position)
        rows = list(itertools.compress(there, self._counts))
        if not rows:
            piece.scratch.fill(0)
            return arithmetic.finish(piece.dtype, piece.scratch, piece.rows[0])
        addends, count = self._chosen(rows, piece.scratch)
        return _mean(piece, addends, count, position)

    def _chosen(self, rows: list[Array], spare: Array) -> tuple[Sequence[Array], int]:
        """Return the rows that are added, and the number by which their sum is divided.

        ``rows`` may be overwritten, and ``spare``, which is as long as one of them.
        """
        raise NotImplementedError


@dataclass
class TrimmedMean(_WholeColumns):
    """The mean of each column without its smallest and largest elements.

    Parameters
    ----------
    beta
        β, the share of the values that is left out at either end; None for the median, which leaves
        out all but the middle one or two.
    """

    beta: float | None = None

    def _chosen(self, rows: list[Array], spare: Array) -> tuple[Sequence[Array], int]:
        cut = (len(rows) - 1) // 2 if self.beta is None else cut_of(self.beta, len(rows))
        kept = _sort(rows, spare, cut)
        return kept, len(kept)


def cut_of(beta: float, inputs: int) -> int:
    """Return how many of the smallest, and of the largest, a trimmed mean leaves out.

    It is ⌊βN⌋ as by hand: the largest k for which the float k / N is at most β. A product is
    rounded: 0.29 · 100 would be 28.999999999999996.
    """
    nearest = round(beta * inputs)
    return min((inputs - 1) // 2, nearest - (nearest / inputs > beta))


@dataclass
class MeanAroundMedian(_WholeColumns):
    """The mean of the elements of each column that are closest to their median.

    Parameters
    ----------
    left_out
        The number of the others, which are even.
    """

    left_out: int

    def _chosen(self, rows: list[Array], spare: Array) -> tuple[Sequence[Array], int]:
        rows = _sort(rows, spare, 0)
        closest = len(rows) - self.left_out
        low, high = rows[(len(rows) - 1) // 2], rows[len(rows) // 2]
        median = np.divide(np.add(low, high), low.dtype.type(2))
        # The closest ones are side by side. They begin after the smallest one if that is farther
        # from the median than the one behind them, and so on.
        is_passed = [
            rows[start + closest] - median < median - rows[start] for start in range(self.left_out)
        ]
        for start, passed in enumerate(is_passed):
            rows[start][passed] = 0
            # Zero of what lies behind them. A row may be both, in different columns.
            rows[start + closest][~passed] = 0
        return rows, closest


def _comparable(piece: Piece, rows: list[Array], position: int) -> list[Array]:
    """Return rows of a piece, whose elements have been made sure to have one order."""
    for row in rows:
        if not piece.dtype.is_integer:
            # The result may be finite although an input is not.
            check_finite(piece, row, position, math.inf)
        # Processors differ in which of two zeros is the smaller one.
        np.add(row, 0.0, out=row)
    return rows


def _mean(piece: Piece, addends: Sequence[Array], count: int, position: int) -> memoryview:
    """Add rows in their order, and return the bytes of the sum divided by ``count``."""
    dtype, rows, result = piece.dtype, piece.rows, piece.scratch
    total, *others = addends
    for row in others:
        np.add(total, row, out=total)
    np.divide(total, result.dtype.type(count), out=result)
    if not dtype.is_integer:
        check_finite(piece, result, position, dtype.overflow)
    return arithmetic.finish(dtype, result, rows[0] if rows[0] is not result else rows[1])


@dataclass
class MajoritySign:
    """The majority of signs, which takes hardly more memory than a sum.

    Parameters
    ----------
    is_disordered
        Whether some inputs have their tensors in another order.
    """

    is_disordered: bool = False
    of_sums: ClassVar[bool] = False
    accumulator: ClassVar[None] = None
    _counts = False

    def rows(self, _inputs: int) -> int:
        """Return the number of arrays: the votes, and which elements are not finite."""
        return 2

    def block_bytes(self, inputs: int) -> int:
        """Return the size of a block in bytes of the layout."""
        return block_bytes(inputs, is_disordered=self.is_disordered)

    def take(
        self, sources: Sequence[Source], weights: Sequence[float | None], block: Block
    ) -> None:
        """Count the signs of every input that covers the block; they count alike, or not at all."""
        self._counts = any(weights)
        for piece in pieces_of(block):
            for tally in _bytes(piece):
                tally.fill(0)
        for source in _covering(sources, weights):
            for slice_ in block:
                source.read_into(slice_.raw)
                for piece in slice_.pieces:
                    self._vote(piece)

    def _vote(self, piece: Piece) -> None:
        dtype, elements, _, numbers = piece
        votes, bad = _bytes(piece)
        arithmetic.add(dtype, elements, 1.0, numbers, numbers, first=True)
        np.add(votes, np.greater(numbers, 0).view(np.int8), out=votes)
        np.subtract(votes, np.less(numbers, 0).view(np.int8), out=votes)
        finite = np.isfinite(numbers)
        if not finite.all():
            np.bitwise_or(bad, ~finite, out=bad)

    def finish(self, piece: Piece, position: int) -> memoryview:
        """Return the bytes of a piece of the result."""
        votes, bad = _bytes(piece)
        if bad.any():
            raise NonFiniteSumError(position + int(bad.argmax()) * piece.dtype.size)
        np.copyto(piece.scratch, np.sign(votes) if self._counts else 0)
        return arithmetic.finish(piece.dtype, piece.scratch, piece.rows[0])


def _bytes(piece: Piece) -> list[Array]:
    """Return a byte for each element in each of the rows: no more than 64 inputs vote."""
    return [row.view(np.int8)[: len(row)] for row in piece.rows]


class Comparator(NamedTuple):
    """An exchange that brings two rows into order.

    ``smaller`` goes to row ``low`` and ``larger`` to row ``high``; one of them may not be needed.
    """

    low: int
    high: int
    smaller: bool
    larger: bool


@functools.cache
def network(inputs: int, cut: int) -> tuple[Comparator, ...]:
    """Return the part of a sorting network that sorts all but ``cut`` rows at either end.

    It is Batcher's odd-even merge sort (Knuth, The Art of Computer Programming, volume 3, 5.2.2,
    algorithm M), without what only rows outside of [cut, inputs - cut) depend on.
    """
    needed = set(range(cut, inputs - cut))
    found = []
    for low, high in reversed(list(_batcher(inputs))):
        smaller, larger = low in needed, high in needed
        if smaller or larger:
            found.append(Comparator(low, high, smaller, larger))
            needed |= {low, high}
    return tuple(reversed(found))


def _batcher(inputs: int) -> Iterator[tuple[int, int]]:
    """Yield the pairs of rows that are compared, in order."""
    sizes = list(itertools.takewhile(lambda size: size < inputs, (2**i for i in range(16))))
    for size in sizes:
        for distance in reversed(sizes[: sizes.index(size) + 1]):
            for start in range(distance % size, inputs - distance, 2 * distance):
                for row in range(start, start + min(distance, inputs - distance - start)):
                    if row // (2 * size) == (row + distance) // (2 * size):
                        yield row, row + distance


def _sort(rows: list[Array], spare: Array, cut: int) -> list[Array]:
    """Return the sorted rows [cut, N - cut), in the memory of the rows and of ``spare``."""
    rows = list(rows)
    for low, high, smaller, larger in network(len(rows), cut):
        a, b = rows[low], rows[high]
        if smaller and larger:
            np.minimum(a, b, out=spare)
            np.maximum(a, b, out=b)
            rows[low], spare = spare, a
        elif smaller:
            np.minimum(a, b, out=a)
        else:
            np.maximum(a, b, out=b)
    return rows[cut : len(rows) - cut]
