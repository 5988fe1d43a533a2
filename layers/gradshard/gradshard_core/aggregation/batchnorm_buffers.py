"""Buffers: tensors of a model that are averaged, and never stepped by a server optimizer.

A buffer is measured, not trained. BatchNorm's running variance is one: momentum carries it on below
zero, where every value is finite and the model is of no use. Integers count something and are
buffers, whatever their names.
"""

import fnmatch
import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from gradshard_core.errors import SpecError
from gradshard_core.formats.dtypes import DTYPES
from gradshard_core.formats.tensor_layout import Layout, Span, Tensor, shorten

Stretches = tuple[tuple[int, int], ...]
"""Bytes [start, end) of a layout, in their order, apart from each other."""

CONVENTIONAL: Final = (
    "*running_mean",
    "*running_var",
    "*moving_mean*",
    "*moving_variance*",
    "*batch_stats*",
)
"""Names of BatchNorm's statistics in PyTorch, Keras and Flax."""


def check_patterns(stated: Any) -> tuple[str, ...]:
    """Return patterns of buffers' names, as JSON holds them, if they make sense.

    Raises
    ------
    SpecError
        They are no list of texts.
    """
    if (
        isinstance(stated, str)
        or not isinstance(stated, Sequence)
        or not all(isinstance(pattern, str) and pattern for pattern in stated)
    ):
        raise SpecError(f"buffers is {stated!r}, not a list of tensors' names or patterns")
    return tuple(stated)


def named(layout: Layout, patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the tensors that are named.

    Parameters
    ----------
    layout
        The model's.
    patterns
        Names, or patterns of names with ``*``, ``?`` and ``[…]``.

    Raises
    ------
    SpecError
        A pattern matches no tensor.
    """
    names = [tensor.name for tensor in layout.tensors]
    found: set[str] = set()
    for pattern in patterns:
        matching = {n for n in names if n == pattern} or set(_matching(names, pattern))
        if not matching:
            raise SpecError(
                f"buffers: {shorten(pattern)!r} matches none of the model's {len(names)} tensors, "
                f"of which {shorten(names[0])!r} is the first"
            )
        found |= matching
    return tuple(name for name in names if name in found)


def conventional(layout: Layout, known: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the names of the tensors that are buffers by their names.

    Parameters
    ----------
    layout
        The model's.
    known
        Names of further ones; those that the layout lacks are left out.
    """
    names = [tensor.name for tensor in layout.tensors]
    found = {name for pattern in CONVENTIONAL for name in _matching(names, pattern)}.union(known)
    return tuple(name for name in names if name in found)


def stretches_of(layout: Layout, names: Iterable[str]) -> Stretches:
    """Return the stretches of a layout's buffers: the tensors of these names, and all integers."""
    wanted = set(names)
    stretches: list[tuple[int, int]] = []
    for tensor in layout.tensors:
        if tensor.start == tensor.end or not (tensor.name in wanted or _is_integer(tensor)):
            continue
        if stretches and stretches[-1][1] == tensor.start:
            stretches[-1] = (stretches[-1][0], tensor.end)
        else:
            stretches.append((tensor.start, tensor.end))
    return tuple(stretches)


def names_in(layout: Layout, stretches: Stretches) -> tuple[str, ...]:
    """Return the names of the tensors in some stretches of a layout."""
    return tuple(
        tensor.name
        for tensor in layout.tensors
        if tensor.start < tensor.end and is_in(stretches, tensor.start)
    )


def is_in(stretches: Stretches, position: int) -> bool:
    """Return whether a byte of a layout is in one of some stretches of it."""
    index = bisect_right(stretches, position, key=lambda stretch: stretch[0]) - 1
    return index >= 0 and position < stretches[index][1]


def clip_stretches(stretches: Stretches, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of stretches that lie in [start, end)."""
    first = bisect_right(stretches, start, key=lambda stretch: stretch[1])
    for a, b in itertools.islice(stretches, first, None):
        if a >= end:
            return
        yield max(a, start), min(b, end)


def split_spans(spans: Sequence[Span], stretches: Stretches) -> list[Span]:
    """Split spans where a stretch begins or ends, so that each is in one or in none."""
    edges = list(itertools.chain.from_iterable(stretches))
    found = []
    for span in spans:
        inner = edges[bisect_right(edges, span.start) : bisect_left(edges, span.end)]
        found += [
            Span(span.dtype, start, end)
            for start, end in itertools.pairwise([span.start, *inner, span.end])
        ]
    return found


def _matching(names: Iterable[str], pattern: str) -> list[str]:
    return [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def _is_integer(tensor: Tensor) -> bool:
    return DTYPES[tensor.dtype].is_integer
