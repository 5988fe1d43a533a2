"""Cut layouts into shards on element boundaries."""

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple

from gradshard_core.formats.dtypes import DTYPES
from gradshard_core.formats.tensor_layout import Span


class Shard(NamedTuple):
    """The byte range [start, end) of a layout; numbered from 0."""

    number: int
    start: int
    end: int


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
