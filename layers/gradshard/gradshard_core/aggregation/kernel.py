"""Add up one byte range of all inputs in lockstep, one block at a time.

All inputs' streams are open at once. For each block, the next bytes of one input after another are
read into a small buffer and added to the block's accumulator. A finished block is rounded and
written at once. The memory is that of a few blocks and depends neither on the size of shard and
update nor on the number of contributors. The order of the inputs is the order of the additions, so
the result's bits do not depend on any of these sizes.

Inputs are updates or partial sums of updates; the output is the average or a partial sum. An order
of several levels needs one accumulator for each level. A stretch that no input covers has the sum
zero. The same is true of a group: if none of its inputs covers a stretch, zero is added for it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from gradshard_core.aggregation import arithmetic
from gradshard_core.aggregation.addition_order import SEQUENTIAL, Order
from gradshard_core.aggregation.sharding import SLICE_BYTES, WIDENING, block_bytes, clip
from gradshard_core.errors import GradshardError
from gradshard_core.formats.dtypes import DTYPES, DType
from gradshard_core.formats.layout import Span


class Source(Protocol):
    """The bytes of one input in a range, in the order of the layout."""

    def read_into(self, buffer: memoryview) -> None:
        """Fill ``buffer`` with the next bytes; raise if there are not as many."""


class NonFiniteSumError(GradshardError):
    """The sum has its first NaN or infinity at byte ``position`` of the layout."""

    def __init__(self, position: int) -> None:
        super().__init__(f"the sum is not finite at byte {position}")
        self.position = position


class Zone(NamedTuple):
    """Bytes [start, end) of the layout in which inputs have these weights; None: not covered."""

    start: int
    end: int
    weights: Sequence[float | None]


@dataclass(frozen=True)
class Addition:
    """The rule by which inputs are added.

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
    gathers
        Whether some inputs have their tensors in another order
        (:mod:`gradshard_core.aggregation.gathering`).
    """

    order: Order = SEQUENTIAL
    of_sums: bool = False
    to_sums: bool = False
    divisor: int = 1
    allow_nonfinite: bool = False
    gathers: bool = False

    @property
    def depth(self) -> int:
        """The number of accumulators."""
        return max(1, len(self.order))


class _Piece(NamedTuple):
    """Elements of one type within a slice, and the buffers to work on them.

    The last accumulator has the whole sum.
    """

    dtype: DType
    elements: arithmetic.Array
    accumulators: list[arithmetic.Array]
    scratch: arithmetic.Array


class _Slice(NamedTuple):
    raw: memoryview
    pieces: list[_Piece]


class _Workspace:
    """The buffers of one task, allocated once and divided anew for each block.

    Parameters
    ----------
    block
        The largest size of a block, in bytes of the layout.
    depth
        The number of accumulators.
    of_sums
        Whether inputs are as wide as accumulators.
    """

    def __init__(self, block: int, *, depth: int = 1, of_sums: bool = False) -> None:
        self._of_sums = of_sums
        # Large enough for the widest elements; pages that are never touched take no memory.
        raw = (WIDENING if of_sums else 1) * SLICE_BYTES
        self._raw = memoryview(np.empty(raw, np.uint8))
        self._accumulators = [np.empty(WIDENING * block, np.uint8) for _ in range(depth)]
        self._scratch = np.empty(WIDENING * SLICE_BYTES, np.uint8)

    def carve(self, spans: Sequence[Span], start: int, end: int) -> list[_Slice]:
        """Divide the buffers for a block into slices, and each slice into pieces of one type."""
        slices: list[_Slice] = []
        used = 0
        for slice_start, slice_end in steps(spans, start, end, SLICE_BYTES):
            pieces: list[_Piece] = []
            read = 0
            for span in clip(spans, slice_start, slice_end):
                dtype = DTYPES[span.dtype]
                count = (span.end - span.start) // dtype.size
                stored = dtype.accumulator if self._of_sums else dtype.storage
                length = count * dtype.accumulator.itemsize
                pieces.append(
                    _Piece(
                        dtype,
                        np.frombuffer(self._raw, stored, count, offset=read),
                        [
                            a[used : used + length].view(dtype.accumulator)
                            for a in self._accumulators
                        ],
                        self._scratch[:length].view(dtype.accumulator),
                    )
                )
                read += count * stored.itemsize
                used += -(-length // WIDENING) * WIDENING
            slices.append(_Slice(self._raw[:read], pieces))
        return slices


def aggregate(
    sources: Sequence[Source],
    zones: Sequence[Zone],
    addition: Addition,
    spans: Sequence[Span],
    write: Callable[[memoryview], None],
) -> None:
    """Write the weighted sum of a byte range of all inputs.

    Parameters
    ----------
    sources
        One per input, in the order of the additions. Each yields the bytes of the zones that its
        input covers.
    zones
        The range, divided into adjacent stretches with different weights.
    addition
        The rule of the addition.
    spans
        The spans of the whole layout.
    write
        Called with the sum's bytes, piece by piece. The memory is reused after each call.

    Raises
    ------
    NonFiniteSumError
        An addend is not finite, or the sum overflows the type in which it is written, and
        ``allow_nonfinite`` is not set.
    """
    size = block_bytes(len(sources), addition.depth, gathers=addition.gathers)
    workspace = _Workspace(size, depth=addition.depth, of_sums=addition.of_sums)
    with np.errstate(all="ignore"):
        for weights, block_start, block_end in blocks(zones, spans, size):
            block = workspace.carve(spans, block_start, block_end)
            _add_all(sources, weights, addition.order, block)
            position = block_start
            for piece in _pieces(block):
                write(_finish(piece, addition, position))
                position += len(piece.elements) * piece.dtype.size


def find_nonfinite(
    sources: Sequence[Source], zones: Sequence[Zone], addition: Addition, spans: Sequence[Span]
) -> dict[int, int]:
    """Find the inputs that have a NaN or an infinity: index → byte position of the first one.

    Parameters
    ----------
    sources
        New streams of the inputs; each yields the bytes of the zones that its input covers.
    zones
        The range to search.
    addition
        The rule of the addition. It decides the size of the blocks that are read.
    spans
        The spans of the whole layout.
    """
    size = block_bytes(len(sources), addition.depth, gathers=addition.gathers)
    workspace = _Workspace(size)
    found: dict[int, int] = {}
    for weights, block_start, block_end in blocks(zones, spans, size):
        block = workspace.carve(spans, block_start, block_end)
        for index, source in enumerate(sources):
            if index in found or weights[index] is None:
                continue
            position = _first_nonfinite(source, block)
            if position is not None:
                found[index] = block_start + position
    return found


def _first_nonfinite(source: Source, block: list[_Slice]) -> int | None:
    """Read a block up to its first NaN or infinity; return the byte position in the block."""
    position = 0
    for slice_ in block:
        source.read_into(slice_.raw)
        for piece in slice_.pieces:
            element = arithmetic.first_nonfinite(piece.dtype, piece.elements)
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


def clip_zones(zones: Sequence[Zone], start: int, end: int) -> list[Zone]:
    """Return the parts of ``zones`` that lie in [start, end)."""
    return [
        zone._replace(start=max(zone.start, start), end=min(zone.end, end))
        for zone in zones
        if zone.start < end and start < zone.end
    ]


def blocks(
    zones: Sequence[Zone], spans: Sequence[Span], size: int
) -> Iterator[tuple[Sequence[float | None], int, int]]:
    """Yield zones in blocks of at most ``size`` bytes: weights, start and end of each."""
    for zone in zones:
        for start, end in steps(spans, zone.start, zone.end, size):
            yield zone.weights, start, end


def _add_all(
    sources: Sequence[Source],
    weights: Sequence[float | None],
    order: Order,
    block: list[_Slice],
) -> None:
    """Add a block of every input to the first accumulator, and each group's sum to the next one."""
    group, *larger = order or (len(sources),)
    first = True
    for index, (source, weight) in enumerate(zip(sources, weights, strict=True)):
        if weight is not None:
            for slice_ in block:
                source.read_into(slice_.raw)
                for dtype, elements, accumulators, scratch in slice_.pieces:
                    arithmetic.add(dtype, elements, weight, accumulators[0], scratch, first=first)
            first = False
        if (index + 1) % group == 0 or index + 1 == len(sources):
            if first:
                for piece in _pieces(block):
                    piece.accumulators[0].fill(0)
            _fold_groups(block, index, len(sources), group, larger)
            first = True


def _fold_groups(
    block: list[_Slice], index: int, inputs: int, group: int, larger: Sequence[int]
) -> None:
    """Add the sum of each group that ends with input ``index`` to the level above it."""
    for level, size in enumerate(larger):
        if (index + 1) % group and index + 1 < inputs:
            return
        first = index // group % size == 0
        for piece in _pieces(block):
            arithmetic.fold(piece.accumulators[level], piece.accumulators[level + 1], first=first)
        group *= size


def _pieces(block: list[_Slice]) -> Iterator[_Piece]:
    for slice_ in block:
        yield from slice_.pieces


def _finish(piece: _Piece, addition: Addition, position: int) -> memoryview:
    """Return the bytes of a finished piece, which begins at byte ``position`` of the layout."""
    dtype, total = piece.dtype, piece.accumulators[-1]
    if addition.divisor != 1:
        arithmetic.divide(dtype, total, addition.divisor)
    # Weights are far too small for sums of integers (salf.MAX_WEIGHT).
    if not (addition.allow_nonfinite or dtype.is_integer):
        # A sum with a NaN or an infinity is not finite, so it is enough to check the sum.
        bound = math.inf if addition.to_sums else dtype.overflow
        first = arithmetic.first_overflow(total, bound)
        if first is not None:
            raise NonFiniteSumError(position + first * dtype.size)
    if addition.to_sums:
        return arithmetic.bytes_of(total)
    return arithmetic.finish(dtype, total, piece.scratch)
