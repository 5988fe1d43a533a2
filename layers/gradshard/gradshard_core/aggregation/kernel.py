"""Combine one byte range of all inputs in lockstep, one block at a time.

All inputs' streams are open at once. For each block, the next bytes of one input after another are
read into a small buffer and taken into the block's rows. A finished block is written at once. A
*reduction* says how inputs are combined: :class:`Addition` is the weighted sum; others are in
:mod:`gradshard_core.robust.elementwise_rules` and :mod:`gradshard_core.robust.inner_products`.

The memory is that of a few blocks and does not depend on the size of shard and update. A sum has
one row, an accumulator, whatever the number of inputs, and one more for each further level of its
order. The order of the inputs is the order of the additions, so the result's bits do not depend on
any of these sizes.

Inputs are updates or partial sums of updates; the output is the average or a partial sum. A stretch
that no input covers has the sum zero. The same is true of a group: if none of its inputs covers a
stretch, zero is added for it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from gradshard_core.aggregation import arithmetic
from gradshard_core.aggregation.addition_order import SEQUENTIAL, Order
from gradshard_core.aggregation.block_sizes import SLICE_BYTES, WIDENING, block_bytes
from gradshard_core.aggregation.sharding import clip
from gradshard_core.errors import GradshardError
from gradshard_core.formats.dtypes import DTYPES, DType
from gradshard_core.formats.tensor_layout import Span


class Source(Protocol):
    """The bytes of one input in a range, in the order of the layout."""

    def read_into(self, buffer: memoryview) -> None:
        """Fill ``buffer`` with the next bytes; raise if there are not as many."""


class NonFiniteSumError(GradshardError):
    """The sum has its first NaN or infinity at byte ``position`` of the layout."""

    def __init__(self, position: int) -> None:
        super().__init__(f"the sum is not finite at byte {position}")
        self.position = position


class WeightedRange(NamedTuple):
    """Bytes [start, end) of the layout in which inputs have these weights; None: not covered."""

    start: int
    end: int
    weights: Sequence[float | None]


class Piece(NamedTuple):
    """Elements of one type within a slice, and the buffers to work on them.

    Parameters
    ----------
    dtype
        The type of the elements.
    elements
        Those of the input that was read last.
    rows
        The reduction's arrays, as long as ``elements``, of the accumulator's type or the
        reduction's own.
    scratch
        One more of these, whose contents are lost: ``elements`` itself if they are of that type.
    """

    dtype: DType
    elements: arithmetic.Array
    rows: list[arithmetic.Array]
    scratch: arithmetic.Array


class Slice(NamedTuple):
    """The bytes of an input that are read at a time, and what they consist of."""

    raw: memoryview
    pieces: list[Piece]


Block = list[Slice]


class Reduction(Protocol):
    """A way to combine the elements that all inputs have at one position.

    Elementwise, so that it does not matter how a range is cut into blocks and slices.
    """

    @property
    def of_sums(self) -> bool:
        """Whether inputs are partial sums, which consist of accumulators instead of elements."""

    @property
    def accumulator(self) -> np.dtype[Any] | None:
        """The type of the rows, if it is the same for all elements; None for the element's own."""

    def rows(self, inputs: int) -> int:
        """Return how many arrays as long as a block are needed for so many inputs."""

    def block_bytes(self, inputs: int) -> int:
        """Return the size of a block in bytes of the layout."""

    def take(
        self, sources: Sequence[Source], weights: Sequence[float | None], block: Block
    ) -> None:
        """Read a block of each source that covers it, and take it into the rows."""

    def finish(self, piece: Piece, position: int) -> memoryview:
        """Return the output's bytes of a piece of the block.

        ``position`` is its first byte in the layout.

        Raises
        ------
        NonFiniteSumError
            An element of the output, or of an input, is not finite, and that is not allowed.
        """


@dataclass(frozen=True)
class Addition:
    """The weighted sum: how inputs are added.

    Parameters
    ----------
    order
        The order of the additions.
    of_sums
        Whether inputs are partial sums, which consist of accumulators instead of elements.
    to_sums
        Whether the output is a partial sum.
    divisor
        The number that the whole sum is divided by in the end.
    allow_nonfinite
        Whether NaN and infinities are written; otherwise they are errors.
    is_disordered
        Whether some inputs have their tensors in another order
        (:mod:`gradshard_core.aggregation.reordered_reads`).
    """

    order: Order = SEQUENTIAL
    of_sums: bool = False
    to_sums: bool = False
    divisor: int = 1
    allow_nonfinite: bool = False
    is_disordered: bool = False
    accumulator: ClassVar[None] = None

    @property
    def depth(self) -> int:
        """The number of accumulators, of which the last one has the whole sum."""
        return max(1, len(self.order))

    def rows(self, _inputs: int) -> int:
        """Return the number of accumulators."""
        return self.depth

    def block_bytes(self, inputs: int) -> int:
        """Return the size of a block in bytes of the layout."""
        return block_bytes(inputs, self.depth, is_disordered=self.is_disordered)

    def take(
        self, sources: Sequence[Source], weights: Sequence[float | None], block: Block
    ) -> None:
        """Add a block of every input that covers it."""
        _add_all(sources, weights, self.order, block)

    def finish(self, piece: Piece, position: int) -> memoryview:
        """Return the bytes of a finished piece, which begins at byte ``position`` of the layout."""
        dtype, total = piece.dtype, piece.rows[-1]
        if self.divisor != 1:
            arithmetic.divide(dtype, total, self.divisor)
        # Weights are far too small for sums of integers (salf.MAX_WEIGHT).
        if not (self.allow_nonfinite or dtype.is_integer):
            # A sum with a NaN or an infinity is not finite, so it is enough to check the sum.
            check_finite(piece, total, position, math.inf if self.to_sums else dtype.overflow)
        if self.to_sums:
            return arithmetic.bytes_of(total)
        return arithmetic.finish(dtype, total, piece.scratch)


def check_finite(piece: Piece, numbers: arithmetic.Array, position: int, bound: float) -> None:
    """Raise :class:`NonFiniteSumError` for the first number that is a NaN or not under a bound."""
    first = arithmetic.first_overflow(numbers, bound)
    if first is not None:
        raise NonFiniteSumError(position + first * piece.dtype.size)


class _Workspace:
    """The buffers of one task, allocated once and divided anew for each block.

    Parameters
    ----------
    block
        The largest size of a block, in bytes of the layout.
    rows
        The number of the reduction's arrays.
    of_sums
        Whether inputs are as wide as accumulators.
    accumulator
        The type of the rows; None for the elements' own accumulators.
    """

    def __init__(
        self,
        block: int,
        *,
        rows: int = 1,
        of_sums: bool = False,
        accumulator: np.dtype[Any] | None = None,
    ) -> None:
        self._of_sums, self._accumulator = of_sums, accumulator
        # Large enough for the widest elements; pages that are never touched take no memory.
        raw = (WIDENING if of_sums else 1) * SLICE_BYTES
        self._raw = memoryview(np.empty(raw, np.uint8))
        self._rows = [np.empty(WIDENING * block, np.uint8) for _ in range(rows)]
        self._scratch = np.empty(WIDENING * SLICE_BYTES, np.uint8)

    def carve(self, spans: Sequence[Span], start: int, end: int) -> Block:
        """Divide the buffers for a block into slices, and each slice into pieces of one type."""
        slices: Block = []
        used = 0
        for slice_start, slice_end in steps(spans, start, end, SLICE_BYTES):
            pieces: list[Piece] = []
            read = 0
            for span in clip(spans, slice_start, slice_end):
                dtype = DTYPES[span.dtype]
                count = (span.end - span.start) // dtype.size
                accumulator = self._accumulator or dtype.accumulator
                stored = accumulator if self._of_sums else dtype.storage
                length = count * accumulator.itemsize
                elements = np.frombuffer(self._raw, stored, count, offset=read)
                rows = [row[used : used + length].view(accumulator) for row in self._rows]
                # Less memory stays in the processor's cache if elements are multiplied in place.
                scratch = elements
                if stored != accumulator:
                    scratch = self._scratch[:length].view(accumulator)
                pieces.append(Piece(dtype, elements, rows, scratch))
                read += count * stored.itemsize
                used += -(-length // WIDENING) * WIDENING
            slices.append(Slice(self._raw[:read], pieces))
        return slices


def aggregate(
    sources: Sequence[Source],
    weighted_ranges: Iterable[WeightedRange],
    reduction: Reduction,
    spans: Sequence[Span],
    write: Callable[[memoryview], None],
) -> None:
    """Write what a byte range of all inputs is combined to.

    Parameters
    ----------
    sources
        One per input, in the order of the additions. Each yields the bytes of the ranges that its
        input covers.
    weighted_ranges
        The range, divided into adjacent stretches with different weights.
    reduction
        The way to combine the inputs.
    spans
        The spans of the whole layout.
    write
        Called with the output's bytes, piece by piece. The memory is reused after each call.

    Raises
    ------
    NonFiniteSumError
        An input is not finite, or the output overflows the type in which it is written, and that
        is not allowed.
    """
    size, rows = reduction.block_bytes(len(sources)), reduction.rows(len(sources))
    workspace = _Workspace(
        size, rows=rows, of_sums=reduction.of_sums, accumulator=reduction.accumulator
    )
    with np.errstate(all="ignore"):
        for weights, block_start, block_end in blocks(weighted_ranges, spans, size):
            block = workspace.carve(spans, block_start, block_end)
            reduction.take(sources, weights, block)
            position = block_start
            for piece in pieces_of(block):
                write(reduction.finish(piece, position))
                position += len(piece.elements) * piece.dtype.size


def no_bound(_dtype: DType) -> float:
    """Return that no finite number is too large."""
    return math.inf


def find_nonfinite(
    sources: Sequence[Source],
    weighted_ranges: Iterable[WeightedRange],
    reduction: Reduction,
    spans: Sequence[Span],
    bound_of: Callable[[DType], float] = no_bound,
) -> dict[int, int]:
    """Find the inputs that have a NaN or an infinity: index → byte position of the first one.

    Parameters
    ----------
    sources
        New streams of the inputs; each yields the bytes of the ranges that its input covers.
    weighted_ranges
        The range to search.
    reduction
        The way in which the inputs were combined. It decides the size of the blocks that are read.
    spans
        The spans of the whole layout.
    bound_of
        The least magnitude of a type that is too large, if that is less than infinity.
    """
    size = reduction.block_bytes(len(sources))
    workspace = _Workspace(size)
    found: dict[int, int] = {}
    with np.errstate(all="ignore"):
        for weights, block_start, block_end in blocks(weighted_ranges, spans, size):
            block = workspace.carve(spans, block_start, block_end)
            for index, source in enumerate(sources):
                if index in found or weights[index] is None:
                    continue
                position = _first_nonfinite(source, block, bound_of)
                if position is not None:
                    found[index] = block_start + position
    return found


def _first_nonfinite(
    source: Source, block: Block, bound_of: Callable[[DType], float]
) -> int | None:
    """Read a block up to its first NaN or too large element; return the position in the block."""
    position = 0
    for slice_ in block:
        source.read_into(slice_.raw)
        for piece in slice_.pieces:
            bound = bound_of(piece.dtype)
            element = arithmetic.first_nonfinite(piece.dtype, piece.elements, bound)
            if element is not None:
                return position + element * piece.dtype.size
            position += piece.elements.nbytes
    return None


def steps(spans: Sequence[Span], start: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield [start, end) in ranges of at most ``size`` bytes that end on element boundaries."""
    pieces = list(clip(spans, start, end))
    begin = start
    index = 0
    while begin < end:
        stop = min(begin + size, end)
        while pieces[index].end < stop:
            index += 1
        if stop < end:
            span = pieces[index]
            element = DTYPES[span.dtype].size
            stop = span.start + (stop - span.start) // element * element
        yield begin, stop
        begin = stop


def clip_ranges(
    weighted_ranges: Sequence[WeightedRange], start: int, end: int
) -> list[WeightedRange]:
    """Return the parts of ``weighted_ranges`` that lie in [start, end)."""
    return [
        weighted_range._replace(
            start=max(weighted_range.start, start), end=min(weighted_range.end, end)
        )
        for weighted_range in weighted_ranges
        if weighted_range.start < end and start < weighted_range.end
    ]


def blocks(
    weighted_ranges: Iterable[WeightedRange], spans: Sequence[Span], size: int
) -> Iterator[tuple[Sequence[float | None], int, int]]:
    """Yield weighted ranges in blocks of at most ``size`` bytes: weights, start and end of each."""
    for weighted_range in weighted_ranges:
        for start, end in steps(spans, weighted_range.start, weighted_range.end, size):
            yield weighted_range.weights, start, end


def _add_all(
    sources: Sequence[Source],
    weights: Sequence[float | None],
    order: Order,
    block: Block,
) -> None:
    """Add a block of every input to the first accumulator, and each group's sum to the next one."""
    group, *larger = order or (len(sources),)
    first = True
    for index, (source, weight) in enumerate(zip(sources, weights, strict=True)):
        if weight is not None:
            for slice_ in block:
                source.read_into(slice_.raw)
                for dtype, elements, rows, scratch in slice_.pieces:
                    arithmetic.add(dtype, elements, weight, rows[0], scratch, first=first)
            first = False
        if (index + 1) % group == 0 or index + 1 == len(sources):
            if first:
                for piece in pieces_of(block):
                    piece.rows[0].fill(0)
            _fold_groups(block, index, len(sources), group, larger)
            first = True


def _fold_groups(block: Block, index: int, inputs: int, group: int, larger: Sequence[int]) -> None:
    """Add the sum of each group that ends with input ``index`` to the level above it."""
    for level, size in enumerate(larger):
        if (index + 1) % group and index + 1 < inputs:
            return
        first = index // group % size == 0
        for piece in pieces_of(block):
            arithmetic.fold(piece.rows[level], piece.rows[level + 1], first=first)
        group *= size


def pieces_of(block: Block) -> Iterator[Piece]:
    """Yield the pieces of a block, in the order of the layout."""
    for slice_ in block:
        yield from slice_.pieces
