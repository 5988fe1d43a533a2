"""Reading of updates whose tensors are in another order than the round's.

A task needs bytes in the order of the layout. Where an object has them in another order, each
stretch would be a request of its own, one after another. Instead, the stretches of one block
of the layout are read as a *group*, in the order of the object and over the gaps between them, into
a buffer that has them in the layout's order. The *disorder* of an update is its cost in further
requests and in bytes of gaps. It is bounded.
"""

from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Final, NamedTuple, Self

from gradshard_core.aggregation.block_sizes import reorder_memory_bytes
from gradshard_core.formats.tensor_layout import Runs
from gradshard_core.units import MIB

GROUPED: Final = 4096
"""Stretches of a group at most, whose positions take a MB."""

GAP_BYTES: Final = 4 * MIB
"""A task reads a gap of up to this size, because another request costs more. It takes 0.1 s
(speeds.REQUEST_SECONDS), in which a function reads 7 MiB, and its price is that of 128 MB of memory
for 0.24 s."""

MAX_FURTHER_REQUESTS: Final = 256
"""An update's order may cost this many requests, or gaps of GAP_BYTES, plus one for each GAP_BYTES
of the update. So its order takes at most as long as reading it, plus half a minute. Models of a few
hundred tensors stay below that if they are sorted by name or by type, or reversed."""

ADVICE: Final = (
    "write its tensors in the round's order, as gradshard's own client does where the round has a "
    "layout or a model"
)

Range = tuple[int, int]
"""Bytes [start, end) of an object, or of a layout."""


class Group(NamedTuple):
    """Stretches of an object that are read together.

    Parameters
    ----------
    ranges
        The ranges, in the order of the layout.
    windows
        The parts of the object that are requested for them, in its order.
    """

    ranges: list[Range]
    windows: list[Range]

    @property
    def nbytes(self) -> int:
        """Bytes of the ranges."""
        return sum(end - start for start, end in self.ranges)


def groups(runs: Runs, blocks: Iterable[Range]) -> Iterator[Group]:
    """Group an object's stretches, by block of the layout.

    Parameters
    ----------
    runs
        The places of the layout's bytes in the object.
    blocks
        Of the layout, one behind the other; where there is one alone, runs have to be in order.
    """
    for start, end in blocks:
        group: list[Range] = []
        for range_ in joined(runs.ranges(start, end)):
            if len(group) == GROUPED:
                yield Group(group, _windows(group))
                group = []
            group.append(range_)
        if group:
            yield Group(group, _windows(group))


def requests(found: Iterable[Group]) -> Iterator[Range]:
    """Yield what is requested for groups: windows, those that follow each other as one."""
    return joined(window for group in found for window in group.windows)


def joined(ranges: Iterable[Range]) -> Iterator[Range]:
    """Join ranges that follow each other."""
    last: Range | None = None
    for start, end in ranges:
        if last is not None and last[1] == start:
            last = last[0], end
            continue
        if last is not None:
            yield last
        last = start, end
    if last is not None:
        yield last


class Disorder(NamedTuple):
    """The cost of the order of tensors, beyond one request for each object.

    Parameters
    ----------
    requests
        Requests beyond the first of each object.
    skipped
        Bytes of gaps that are read.
    groups
        The number of groups in which the objects are read; each shard begins one more.
    """

    requests: int = 0
    skipped: int = 0
    groups: int = 0

    @classmethod
    def of(cls, runs: Runs, nbytes: int) -> Self:
        """Count what an object's order costs in a round whose layout has so many bytes."""
        if runs.are_in_order:
            return cls()
        size = reorder_memory_bytes()
        blocks = [(start, min(start + size, nbytes)) for start in range(0, nbytes, size)]
        asked = list(requests(groups(runs, blocks)))
        read = sum(end - start for start, end in asked)
        return cls(len(asked) - 1, max(0, read - runs.nbytes), sum(1 for _ in groups(runs, blocks)))

    @property
    def equivalent(self) -> float:
        """The cost in requests."""
        return self.requests + self.skipped / GAP_BYTES

    def plus(self, other: "Disorder") -> "Disorder":
        """Return the sum."""
        return Disorder(*(mine + more for mine, more in zip(self, other, strict=True)))

    def cut(self, shards: int) -> tuple[float, float]:
        """Return the requests and the bytes of gaps where M shards begin groups of their own."""
        factor = (self.groups + shards - 1) / self.groups if self.groups else 0.0
        return factor * self.requests, factor * self.skipped

    def excess(self, nbytes: int) -> str | None:
        """Say what is too much for an update of so many bytes, and what to do; None if it is not.

        The sender reads it.
        """
        most = MAX_FURTHER_REQUESTS + nbytes // GAP_BYTES
        if self.equivalent <= most:
            return None
        return (
            f"its tensors stand in another order than the round's. So reading its {nbytes} bytes "
            f"takes {self.requests} further requests and reads {self.skipped} bytes in vain. An "
            f"update of that size may take {most} further requests, and {GAP_BYTES} bytes in vain "
            f"count as one; {ADVICE}"
        )


def _windows(ranges: list[Range]) -> list[Range]:
    windows: list[Range] = []
    for start, end in sorted(ranges, key=itemgetter(0)):
        if windows and start - windows[-1][1] <= GAP_BYTES:
            windows[-1] = windows[-1][0], end
        else:
            windows.append((start, end))
    return windows
