"""Lockstep: add up one byte range of all inputs, a block at a time.

All inputs' streams are open at once. Block by block, the next bytes of each input, in their order,
are read into one small buffer and added to the block's accumulator; a finished block is rounded and
written on at once. Memory is a few blocks, whatever the size of shard and update and however many
contributors there are; and since the inputs' order is the order of the additions, the result's bits
do not depend on any of these sizes.

Inputs are updates, or partial sums of updates; what is written is the result, or a partial sum. An
order of several levels keeps an accumulator for each. Where nobody covers a stretch, its sum is
zero; so is that of a group none of whose inputs covers it, and it is added as such.
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
    """One input's bytes of a range, in the order of the layout."""

    def read_into(self, buffer: memoryview) -> None:
        """Fill ``buffer`` with the next bytes; raise if there are not as many."""


class NonFiniteSumError(GradshardError):
    """What would be written has its first NaN or infinity at byte ``position`` of the layout."""

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
    """How inputs are added.

    Parameters
    ----------
    order
        Of the additions.
    of_sums
        Whether inputs are partial sums, which hold accumulators, not elements.
    to_sums
        Whether a partial sum is written.
    divisor
        What the whole sum is divided by in the end.
    allow_nonfinite
        Let NaN and infinities through.
    gathers
        Whether inputs stand in other orders (:mod:`gradshard_core.aggregation.gathering`).
    """

    order: Order = SEQUENTIAL
    of_sums: bool = False
    to_sums: bool = False
    divisor: int = 1
    allow_nonfinite: bool = False
    gathers: bool = False

    @property
    def depth(self) -> int:
        """How many accumulators it takes."""
        return max(1, len(self.order))


class _Piece(NamedTuple):
    """Elements of one type within a slice, with the room to work on them.

    The last of the accumulators is that of the whole sum.
    """

    dtype: DType
    elements: arithmetic.Array
    accumulators: list[arithmetic.Array]
    scratch: arithmetic.Array


class _Slice(NamedTuple):
    raw: memoryview
    pieces: list[_Piece]


class _Workspace:
    """The buffers of one task, made once and carved anew for each block.

    Parameters
    ----------
    block
        Bytes of the layout that are added before the next input's are.
    depth
        How many accumulators there are.
    of_sums
        Whether what is read is as wide as an accumulator.
    """

    def __init__(self, block: int, *, depth: int = 1, of_sums: bool = False) -> None:
        self._of_sums = of_sums
        # Large enough for the widest elements; pages that are never touched take no memory.
        raw = (WIDENING if of_sums else 1) * SLICE_BYTES
        self._raw = memoryview(np.empty(raw, np.uint8))
        self._accumulators = [np.empty(WIDENING * block, np.uint8) for _ in range(depth)]
        self._scratch = np.empty(WIDENING * SLICE_BYTES, np.uint8)

    def carve(self, spans: Sequence[Span], start: int, end: int) -> list[_Slice]:
        """Lay out a block: its slices, and in each the pieces of one type."""
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
        One per input, in their order, each giving the bytes of the zones that it covers.
    zones
        The range, in stretches of different weights one behind the other.
    addition
        How to add.
    spans
        The whole layout's spans.
    write
        Takes the sum's bytes, piece by piece; may keep none of the memory it is given.

    Raises
    ------
    NonFiniteSumError
        An addend is not finite, or the sum overflows the type in which it is written, and that is
        not allowed.
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
    """Find who sent NaN or infinity: contributor's index → byte position of their first one.

    Parameters
    ----------
    sources
        Each giving the bytes of the zones that it covers, read again for this purpose.
    zones
        What to search.
    addition
        What they were read for, in the same blocks.
    spans
        The whole layout's spans.
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
    """Read a block as far as its first NaN or infinity; return where in it that is."""
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
    """Walk [start, end) in steps of at most ``size`` bytes that end on element boundaries."""
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
    """Walk zones in blocks of at most ``size`` bytes: their weights, and where they are."""
    for zone in zones:
        for start, end in steps(spans, zone.start, zone.end, size):
            yield zone.weights, start, end


def _add_all(
    sources: Sequence[Source],
    weights: Sequence[float | None],
    order: Order,
    block: list[_Slice],
) -> None:
    """Add every input's block to the first accumulator, and what is a group's sum to the next."""
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
    """After an input that ends its group, add the group's sum to the level above, and so on up."""
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
    """Return a finished piece's bytes; it stands at byte ``position`` of the layout."""
    dtype, total = piece.dtype, piece.accumulators[-1]
    if addition.divisor != 1:
        arithmetic.divide(dtype, total, addition.divisor)
    # Weights are far too small for sums of integers (salf.MAX_WEIGHT).
    if not (addition.allow_nonfinite or dtype.is_integer):
        # A NaN or an infinity stays one, whatever is added, so one look at the sum is enough.
        bound = math.inf if addition.to_sums else dtype.overflow
        first = arithmetic.first_overflow(total, bound)
        if first is not None:
            raise NonFiniteSumError(position + first * dtype.size)
    if addition.to_sums:
        return arithmetic.bytes_of(total)
    return arithmetic.finish(dtype, total, piece.scratch)
