"""Cut layouts into shards on element boundaries, and decide the sizes of a task's buffers.

:mod:`gradshard_core.costs.memory_projection` projects a task's memory from these sizes.
"""

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Final, NamedTuple

from gradshard_core.formats.dtypes import DTYPES
from gradshard_core.formats.layout import Span
from gradshard_core.units import MIB

MAX_BLOCK_BYTES: Final = MIB
ALL_BLOCKS_BYTES: Final = 10 * MIB
"""Bytes of the blocks of all inputs together: half of the size of their receive buffers."""

SLICE_BYTES: Final = 256 * 1024
"""Bytes read at a time: small enough that numpy works on them in the processor's cache."""

WIDENING: Final = 8
"""An element grows at most this much in its accumulator: 1-byte integers sum in float64."""

ROW_BYTES: Final = 64 * 1024
"""Bytes of a block of which a task holds every input's at once, whatever their number: few enough
for the memory of a small function, and enough for numpy's calls to cost little."""

MEASURED_BYTES: Final = 8 * MIB
"""Bytes of all inputs that a task which measures holds at once, if it can hold several chunks: so
many that reading costs hardly more than for a sum."""

MAX_ELEMENT_BYTES: Final = 8

STEP_ELEMENTS: Final = 32 * 1024
"""Elements in one step of a server optimizer: few enough for the processor's cache to hold all of
the step's float64 arrays."""


class Shard(NamedTuple):
    """The byte range [start, end) of a layout; numbered from 0."""

    number: int
    start: int
    end: int


def block_bytes(inputs: int, depth: int = 1, *, is_disordered: bool = False) -> int:
    """Return the size of a block: the bytes of each input that are added before the next input's.

    Parameters
    ----------
    inputs
        The number of streams that a task has open.
    depth
        The number of accumulators, one for each level of the task's order. Together they take no
        more memory than a single one.
    is_disordered
        Whether inputs have their tensors in other orders, so that each block needs its own
        requests.
    """
    if is_disordered:
        return reorder_memory_bytes(depth)
    unit = 64 * 1024
    size = min(MAX_BLOCK_BYTES, ALL_BLOCKS_BYTES // inputs) // depth
    return max(unit, size // unit * unit)


def reorder_memory_bytes(depth: int = 1) -> int:
    """Return the size of a block if inputs have their tensors in other orders.

    It does not depend on the number of inputs, which are read one after another into one buffer.
    """
    return MAX_BLOCK_BYTES // depth


def chunks_at_once(inputs: int) -> int:
    """Return the number of chunks of ``ROW_BYTES`` that a task which measures reads at a time.

    They fit one slice, though the last one may be longer by an element.
    """
    most = (SLICE_BYTES - MAX_ELEMENT_BYTES) // ROW_BYTES
    return max(1, min(most, MEASURED_BYTES // (inputs * ROW_BYTES)))


def receive_buffer_bytes(inputs: int) -> int:
    """Return the size of the operating system's receive buffer for each connection.

    Without a bound it may grow to 6 MB of the function's memory. Two blocks are enough for it to
    fill while the other inputs are read. With one block, receiving took 15 % more CPU time
    (docs/performance.md).
    """
    return 2 * block_bytes(inputs)


def cut(spans: Sequence[Span], start: int, end: int, pieces: int) -> list[int]:
    """Cut [start, end) into nearly equal pieces on element boundaries.

    Parameters
    ----------
    spans
        The whole layout's spans.
    start, end
        Element boundaries themselves.
    pieces
        The number of pieces, at least one.

    Returns
    -------
    list of int
        ``pieces + 1`` positions, the first ``start``, the last ``end``, never falling.
    """
    inner = (cut_position(spans, start, end, pieces, piece) for piece in range(1, pieces))
    return [start, *inner, end]


def cut_position(spans: Sequence[Span], start: int, end: int, pieces: int, piece: int) -> int:
    """Return where a piece begins, counted from 0, if :func:`cut` makes so many pieces."""
    position = start + (end - start) * piece // pieces
    if position == end:
        return end
    return aligned(spans, position)


def aligned(spans: Sequence[Span], position: int) -> int:
    """Return the start of the element that has byte ``position`` of the layout."""
    span = spans[_span_at(spans, position)]
    size = DTYPES[span.dtype].size
    return span.start + (position - span.start) // size * size


def cut_shards(spans: Sequence[Span], nbytes: int, shards: int) -> list[Shard]:
    """Cut a layout into M shards, each of which becomes a part of the result's upload."""
    positions = cut(spans, 0, nbytes, shards)
    return [
        Shard(number, start, end)
        for number, (start, end) in enumerate(itertools.pairwise(positions))
    ]


def clip(spans: Sequence[Span], start: int, end: int) -> Iterator[Span]:
    """Yield the parts of ``spans`` that lie in [start, end)."""
    for index in range(max(0, _span_at(spans, start)), len(spans)):
        span = spans[index]
        if span.start >= end:
            return
        yield Span(span.dtype, max(span.start, start), min(span.end, end))


def sums_bytes(spans: Sequence[Span], start: int, end: int) -> int:
    """Return the size of a partial sum of [start, end), whose elements are accumulators."""
    return sum(
        (span.end - span.start) // DTYPES[span.dtype].size * DTYPES[span.dtype].accumulator.itemsize
        for span in clip(spans, start, end)
    )


def count_elements(spans: Sequence[Span], start: int, end: int) -> int:
    """Return the number of elements in [start, end)."""
    return sum(
        (span.end - span.start) // DTYPES[span.dtype].size for span in clip(spans, start, end)
    )


def widening(spans: Sequence[Span]) -> float:
    """Return how much the elements of a layout grow in their accumulators at most."""
    dtypes = [DTYPES[span.dtype] for span in spans]
    return max((dtype.accumulator.itemsize / dtype.size for dtype in dtypes), default=1)


def _span_at(spans: Sequence[Span], position: int) -> int:
    return bisect_right(spans, position, key=attrgetter("start")) - 1
