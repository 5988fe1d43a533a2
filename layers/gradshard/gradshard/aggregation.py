"""Lockstep: average one shard of all contributors, a block at a time.

All contributors' streams are open at once. Block by block, the next bytes of each contributor,
in contributor order, are read into one small buffer and added to the block's accumulator; a
finished block is rounded and written on at once. Memory is a few blocks, whatever the size of shard
and update and however many contributors there are; and since the contributors' order is the order
of the additions, the result's bits do not depend on any of these sizes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from gradshard import arithmetic
from gradshard.dtypes import DTYPES, DType
from gradshard.errors import GradshardError
from gradshard.layout import Span
from gradshard.planning import MAX_BLOCK_BYTES, SLICE_BYTES, WIDENING, Shard, block_bytes, clip


class Source(Protocol):
    """One contributor's bytes of a shard, in the order of the layout."""

    def read_into(self, buffer: memoryview) -> None:
        """Fill ``buffer`` with the next bytes; raise if there are not as many."""


class NonFiniteSumError(GradshardError):
    """The sum holds a NaN or an infinity at or after byte ``position`` of the layout."""

    def __init__(self, position: int) -> None:
        super().__init__(f"the sum is not finite from byte {position} on")
        self.position = position


class _Piece(NamedTuple):
    """Elements of one type within a slice, with the room to work on them."""

    dtype: DType
    elements: arithmetic.Array
    accumulator: arithmetic.Array
    scratch: arithmetic.Array


class _Slice(NamedTuple):
    raw: memoryview
    pieces: list[_Piece]


class _Workspace:
    """The buffers of one task, made once and carved anew for each block."""

    def __init__(self) -> None:
        self._raw = memoryview(bytearray(SLICE_BYTES))
        self._accumulator = np.empty(WIDENING * MAX_BLOCK_BYTES, np.uint8)
        self._scratch = np.empty(WIDENING * SLICE_BYTES, np.uint8)

    def carve(self, spans: Sequence[Span], start: int, end: int) -> list[_Slice]:
        """Lay out a block: its slices, and in each the pieces of one type."""
        slices: list[_Slice] = []
        used = 0
        for slice_start, slice_end in steps(spans, start, end, SLICE_BYTES):
            pieces: list[_Piece] = []
            for span in clip(spans, slice_start, slice_end):
                dtype = DTYPES[span.dtype]
                count = (span.end - span.start) // dtype.size
                length = count * dtype.accumulator.itemsize
                pieces.append(
                    _Piece(
                        dtype,
                        np.frombuffer(
                            self._raw, dtype.storage, count, offset=span.start - slice_start
                        ),
                        self._accumulator[used : used + length].view(dtype.accumulator),
                        self._scratch[:length].view(dtype.accumulator),
                    )
                )
                used += -(-length // WIDENING) * WIDENING
            slices.append(_Slice(self._raw[: slice_end - slice_start], pieces))
        return slices


def aggregate(
    sources: Sequence[Source],
    weights: Sequence[float],
    spans: Sequence[Span],
    shard: Shard,
    write: Callable[[memoryview], None],
    *,
    allow_nonfinite: bool = False,
) -> None:
    """Write the weighted sum of one shard of all contributors.

    Parameters
    ----------
    sources
        One per contributor, in contributor order, each giving the shard's bytes.
    weights
        One per contributor, adding up to one.
    spans
        The whole layout's spans.
    shard
        The range to aggregate.
    write
        Takes the result's bytes, piece by piece; may keep none of the memory it is given.
    allow_nonfinite
        Let NaN and infinities through.

    Raises
    ------
    NonFiniteSumError
        An addend was not finite, and that is not allowed.
    """
    workspace = _Workspace()
    size = block_bytes(len(sources))
    finished = memoryview(bytearray(size))
    with np.errstate(all="ignore"):
        for start, end in steps(spans, shard.start, shard.end, size):
            block = workspace.carve(spans, start, end)
            _add_all(sources, weights, block)
            if not (allow_nonfinite or _is_finite(block)):
                raise NonFiniteSumError(start)
            _finish(block, finished[: end - start])
            write(finished[: end - start])


def find_nonfinite(
    sources: Sequence[Source], spans: Sequence[Span], start: int, end: int
) -> dict[int, int]:
    """Find who sent NaN or infinity: contributor's index → byte position of their first one.

    Parameters
    ----------
    sources
        Each giving the bytes [start, end) of the layout, read again for this purpose.
    spans
        The whole layout's spans.
    start, end
        The range to search.
    """
    workspace = _Workspace()
    found: dict[int, int] = {}
    for slice_start, slice_end in steps(spans, start, end, SLICE_BYTES):
        [slice_] = workspace.carve(spans, slice_start, slice_end)
        for index, source in enumerate(sources):
            if index in found:
                continue
            source.read_into(slice_.raw)
            position = slice_start
            for piece in slice_.pieces:
                element = arithmetic.first_nonfinite(piece.dtype, piece.elements)
                if element is not None:
                    found[index] = position + element * piece.dtype.size
                    break
                position += piece.elements.nbytes
    return found


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


def _add_all(sources: Sequence[Source], weights: Sequence[float], block: list[_Slice]) -> None:
    for index, (source, weight) in enumerate(zip(sources, weights, strict=True)):
        for slice_ in block:
            source.read_into(slice_.raw)
            for dtype, elements, accumulator, scratch in slice_.pieces:
                arithmetic.add(dtype, elements, weight, accumulator, scratch, first=index == 0)


def _is_finite(block: list[_Slice]) -> bool:
    return all(
        arithmetic.is_finite(piece.dtype, piece.accumulator)
        for slice_ in block
        for piece in slice_.pieces
    )


def _finish(block: list[_Slice], out: memoryview) -> None:
    for slice_ in block:
        for piece in slice_.pieces:
            nbytes = piece.elements.nbytes
            arithmetic.finish(piece.dtype, piece.accumulator, out[:nbytes])
            out = out[nbytes:]
