"""The work of a round's aggregation, in sizes and counts."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from gradshard_core.aggregation.block_sizes import WIDENING
from gradshard_core.aggregation.reordered_reads import Disorder
from gradshard_core.aggregation.topologies import Levels
from gradshard_core.costs.request_counts import NO_LISTS, Lists
from gradshard_core.formats.long_lists import PIECE
from gradshard_core.robust.measured_sample import Sample


@dataclass(frozen=True)
class Workload:
    """The sizes and counts that decide what an aggregation takes.

    Parameters
    ----------
    nbytes
        Size of an update's tensors.
    levels
        The sizes of the topology's groups, level by level.
    is_cut
        Whether the planner may cut updates into shards.
    sums_bytes
        Size of a partial sum of a whole update; None if it is an update's size.
    depth
        The largest number of accumulators of a task: the levels of its part of the order.
    plan_bytes
        Size of the plan's JSON, which every task reads.
    widening
        The largest factor by which elements grow in their accumulators.
    holds_all
        Whether a task of the last level holds a block of every input at once.
    measures
        Whether a pass comes before in which tasks do that, and measure.
    matrices
        The number of Gram matrices that it adds up; one of F64 counts as four.
    sample
        The elements that they measure; None for all.
    noises
        The number of keys of which tasks of the last level make noise.
    applied
        The number of objects in the server optimizer's state; None if the average is not applied
        to a model.
    disorder
        The cost of reading tensors in other orders, by group of level 0; empty if all updates have
        the round's order.
    stored_bytes
        Mean size of an update as it is stored, if some are compressed; None if none is.
    unit_bytes
        Size of the largest unit of entries, of which a task holds one of each input.
    lists
        The objects of the round besides its plan and its result.
    """

    nbytes: int
    levels: Levels
    is_cut: bool = True
    sums_bytes: int | None = None
    depth: int = 1
    plan_bytes: int = 0
    widening: float = WIDENING
    holds_all: bool = False
    measures: bool = False
    matrices: int = 1
    sample: Sample | None = None
    noises: int = 0
    applied: int | None = None
    disorder: tuple[Disorder, ...] = ()
    stored_bytes: float | None = None
    unit_bytes: int = 0
    lists: Lists = NO_LISTS

    @cached_property
    def contributors(self) -> int:
        """The number of updates that are averaged."""
        return sum(self.levels[0])

    @cached_property
    def pieces_read(self) -> int:
        """The pieces of a large round's lists that the groups of level 0 read, one or two each."""
        ends = list(accumulate(self.levels[0]))
        starts = [0, *ends[:-1]]
        return sum(
            (end - 1) // PIECE - start // PIECE + 1 for start, end in zip(starts, ends, strict=True)
        )

    @property
    def update_bytes(self) -> float:
        """Mean size of an update as it is stored."""
        return self.nbytes if self.stored_bytes is None else self.stored_bytes

    @cached_property
    def fan_in(self) -> int:
        """The largest number of inputs of a task."""
        return max(map(max, self.levels))

    @cached_property
    def fan_ins(self) -> list[Counter[int]]:
        """The number of groups of each size, level by level."""
        return [Counter(sizes) for sizes in self.levels]

    def input_bytes(self, level: int) -> float:
        """Return the size of one input of a level, over all shards."""
        return self.update_bytes if level == 0 else self.sum_bytes

    def output_bytes(self, level: int) -> int:
        """Return the size of what a level writes for each group, over all shards."""
        return self.nbytes if level == len(self.levels) - 1 else self.sum_bytes

    @property
    def models(self) -> int:
        """The number of objects that applying the average reads and writes: model and state."""
        return 0 if self.applied is None else 1 + self.applied

    @property
    def model_bytes(self) -> int:
        """Bytes that applying the average reads, over all shards; it writes as many."""
        return 0 if self.applied is None else self.nbytes + self.applied * self.sum_bytes

    @cached_property
    def is_disordered(self) -> bool:
        """Whether any update has its tensors in another order than the layout."""
        return any(disorder.groups for disorder in self.disorder)

    def measured_reads(self, shards: int) -> tuple[float, int]:
        """Return the share of the elements that is measured, and the requests for each update."""
        if self.sample is None:
            return 1.0, shards
        return 1 / self.sample.one_in, self.sample.strata(self.nbytes)

    def extra_reads(self, shards: int) -> list[tuple[float, float]]:
        """Return extra requests and bytes of gaps by group of level 0, over all M shards.

        They come from updates that have their tensors in another order than the round.
        """
        return [disorder.cut(shards) for disorder in self.disorder]

    @property
    def sum_bytes(self) -> int:
        """Size of a partial sum, over all shards."""
        return self.nbytes if self.sums_bytes is None else self.sums_bytes
