"""The plan of a round: its contributors with their weights, and its tasks with their inputs.

``plan_round`` writes it, and every later function of the round reads it
(:mod:`gradshard_core.planning.plan_json`).
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gradshard_core.aggregation.arithmetic import COUNTS, EQUAL
from gradshard_core.aggregation.batchnorm_buffers import clip_stretches
from gradshard_core.aggregation.kernel import Addition, Reduction, WeightedRange, clip_ranges
from gradshard_core.aggregation.masked_sum import Decoding, RingSum, ring_spans
from gradshard_core.aggregation.sharding import Shard, count_elements, cut_shards, sums_bytes
from gradshard_core.formats.long_lists import StoredList
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.formats.tensor_layout import Span
from gradshard_core.planning.output_objects import NextModel, Output, next_model_keys
from gradshard_core.planning.plan_parts import (
    NOBODY,
    Computation,
    Contributor,
    Level,
    Participants,
    PlannedLayout,
    Stage,
    Task,
)
from gradshard_core.privacy.noise_grid import Grid
from gradshard_core.privacy.private_sum import PrivateSum, private_sums_bytes
from gradshard_core.robust.inner_products import Measuring, cut_chunks
from gradshard_core.specs.masking_options import MASKED, Masking


@dataclass(frozen=True)
class Plan:
    """The plan of a round.

    Parameters
    ----------
    round_id
        The round.
    participants, computation, layout
        The contributors, the rule of the average, and the layout.
    attempt
        The number of replans before this plan, because contributors were rejected while their
        updates were read.
    stage
        The groups that this planning adds.
    upload_id
        The multipart upload that becomes the average.
    next_model
        The version of the model that the round makes, if it makes one.
    masking
        The values with which a masked round adds and decodes; None in other rounds.
    assignments
        The terms by which clients are told what to do next, as JSON; None for no assignments.
    notes
        The decisions that differ from the request.
    projected
        The planner's projection, as JSON.
    opened_at, planned_at
        Times in ISO 8601.
    """

    round_id: str
    participants: Participants
    computation: Computation
    layout: PlannedLayout
    attempt: int = 0
    stage: Stage = field(default_factory=Stage)
    upload_id: str = ""
    next_model: NextModel | None = None
    masking: Masking | None = None
    assignments: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    projected: dict[str, Any] = field(default_factory=dict)
    opened_at: str = ""
    planned_at: str = ""

    @property
    def contributors(self) -> Sequence[Contributor]:
        """The participants whose updates are averaged."""
        return self.participants.contributors

    @property
    def senders(self) -> Sequence[Contributor]:
        """The contributors that are clients: none if a round goes on without (:data:`NOBODY`)."""
        contributors = self.contributors
        is_nobody = len(contributors) == 1 and contributors[0].client == NOBODY
        return () if is_nobody else contributors

    @property
    def good(self) -> Sequence[Contributor]:
        """The contributors, and behind them those whom a rule has left out."""
        left_out = self.participants.left_out
        return [*self.contributors, *left_out] if left_out else self.senders

    def contributor(self, client: str) -> Contributor | None:
        """Return the contributor with an id; None if the client is none."""
        contributors = self.contributors
        if isinstance(contributors, StoredList) and self.stage.groups is None:
            # In an eager round they are sorted within each group only.
            contributors = contributors.near(client)
        return next((found for found in contributors if found.client == client), None)

    @cached_property
    def samples(self) -> int:
        """The samples of all contributors together."""
        known = self.participants.samples
        return sum(c.samples for c in self.contributors) if known is None else known

    @property
    def levels(self) -> tuple[Level, ...]:
        """The groups, level by level."""
        return self.computation.levels

    @property
    def is_complete(self) -> bool:
        """Whether neither a group of clients nor the keeper is awaited any more."""
        return not (self.stage.awaited or self.awaits_keeper)

    @property
    def awaits_keeper(self) -> bool:
        """Whether the keeper's sum of the masks is awaited."""
        return self.masking is not None and self.masking.answer is None

    @property
    def input_spans(self) -> Sequence[Span]:
        """The layout's spans, with the types in which inputs hold their elements."""
        if self.masking is None:
            return self.layout.spans
        return ring_spans(self.layout.spans, self.masking.terms.ring_bits)

    @property
    def divisor(self) -> int:
        """The number that the whole sum is divided by, once, at the end."""
        if self.computation.weights != COUNTS:
            return 1
        return self.samples

    def group(self, first: int, stop: int) -> list[Contributor]:
        """Return contributors [first, stop); a task asks for those of its group more than once."""
        if (first, stop) not in self._groups:
            self._groups.clear()
            self._groups[first, stop] = list(self.contributors[first:stop])
        return self._groups[first, stop]

    @cached_property
    def _groups(self) -> dict[tuple[int, int], list[Contributor]]:
        """The group that was asked for last."""
        return {}

    def weighted_ranges(self, first: int, stop: int) -> list[WeightedRange]:
        """Return the weights of contributors [first, stop), along the layout."""
        if (first, stop) not in self._weighted_ranges:
            self._weighted_ranges.clear()
            self._weighted_ranges[first, stop] = self._make_weighted_ranges(first, stop)
        return self._weighted_ranges[first, stop]

    @cached_property
    def _weighted_ranges(self) -> dict[tuple[int, int], list[WeightedRange]]:
        """The weighted ranges of the group that was asked for last."""
        return {}

    def _make_weighted_ranges(self, first: int, stop: int) -> list[WeightedRange]:
        layers, contributors = self.layout.layers, self.group(first, stop)
        if not layers:
            weights = [contributor.weight for contributor in contributors]
            weighted_range = WeightedRange(0, self.layout.nbytes, weights)
            return list(self._cut_out_buffers(weighted_range, contributors, None))
        weighed = self.computation.layers
        places = sorted(
            (start, end, number)
            for number, layer in enumerate(layers)
            for start, end in layer.ranges
        )
        weighted_ranges = [
            (WeightedRange(start, end, weighed[n].weights[first:stop]), n)
            for start, end, n in places
        ]
        return [
            cut
            for weighted_range, number in weighted_ranges
            for cut in self._cut_out_buffers(weighted_range, contributors, number)
        ]

    def _cut_out_buffers(
        self, weighted_range: WeightedRange, contributors: Sequence[Contributor], layer: int | None
    ) -> Iterator[WeightedRange]:
        """Give the model's buffers in a range weights that are shares, under every rule.

        Weights that are normalised by steps, or corrected for missing clients, do not add up to
        one. Their sum is no average, and a variance could become negative.
        """
        is_plain = self.next_model is None or self.computation.weights in (COUNTS, EQUAL, MASKED)
        is_plain = is_plain or self.computation.dp is not None  # which takes no buffers
        # A layer without its quorum has weights of zero: its buffers stay as they are, too.
        if is_plain or (layer is not None and not any(weighted_range.weights)):
            yield weighted_range
            return
        if self.decides_by_layer:  # in one group
            total = math.fsum(weight for weight in weighted_range.weights if weight is not None)
            plain = [
                None if weight is None else weight / total for weight in weighted_range.weights
            ]
        else:
            of = self._share_in(layer)
            plain = [
                None if weight is None else of(contributor)
                for contributor, weight in zip(contributors, weighted_range.weights, strict=True)
            ]
        if plain == list(weighted_range.weights):
            yield weighted_range
            return
        position = weighted_range.start
        for start, end in clip_stretches(
            self.layout.buffers, weighted_range.start, weighted_range.end
        ):
            if position < start:
                yield weighted_range._replace(start=position, end=start)
            if start < end:
                yield WeightedRange(start, end, plain)
            position = end
        if position < weighted_range.end:
            yield weighted_range._replace(start=position)

    def _share_in(self, layer: int | None) -> Callable[[Contributor], float]:
        """Return what gives a contributor's share in a buffer: by samples, or as a rule weighs.

        The shares are those among all contributors, or among those that have a layer.
        """
        there = self.contributors
        if layer is not None:
            covers = [weight is not None for weight in self.computation.layers[layer].weights]
            there = list(itertools.compress(there, covers))
        if self.computation.measured is not None:
            weights = self.participants.weights
            if layer is not None:
                weights = math.fsum(contributor.weight for contributor in there)
            if weights:
                return lambda contributor: contributor.weight / weights
        samples = self.samples if layer is None else sum(c.samples for c in there)
        return lambda contributor: contributor.samples / samples

    @property
    def outputs(self) -> list[Output]:
        """The objects that the last level writes: the average, then the model and its state."""
        keys, layout = RoundKeys(self.round_id), self.layout
        average = Output(keys.result, self.upload_id, keys.layout, layout.header, layout.nbytes)
        if self.next_model is None:
            return [average]
        model_key, *state_keys = next_model_keys(self.next_model.server_optimizer, self.round_id)
        model_id, *state_ids = self.next_model.uploads
        state_bytes = sums_bytes(layout.spans, 0, layout.nbytes)
        return [
            average,
            average._replace(key=model_key, upload_id=model_id),
            *(
                Output(key, upload_id, keys.state_layout, layout.state_header, state_bytes)
                for key, upload_id in zip(state_keys, state_ids, strict=True)
            ),
        ]

    def is_last(self, level: int) -> bool:
        """Return whether the tasks of a level write the average."""
        return level == len(self.levels) - 1

    def tasks(self, level: int) -> list[Task]:
        """Return a level's tasks of all stages, shard by shard; empty groups have none."""
        groups = self.levels[level].groups
        below = len(self.levels[level - 1].groups) if level else 0
        return [
            Task(
                level,
                shard.number * len(groups) + number,
                shard.start,
                shard.end,
                shard.number * below + first,
                shard.number * below + stop,
            )
            for shard in self._cut()
            for number, (first, stop) in enumerate(groups)
            if self.has_inputs(level, number)
        ]

    def _cut(self) -> list[Shard]:
        """Cut the layout into M shards."""
        if self.computation.surveys:  # no layout is known
            return [Shard(0, 0, 0)]
        layout, shards, sample = self.layout, self.computation.shards, self.computation.sample
        if not self.computation.measures:
            return cut_shards(layout.spans, layout.nbytes, shards)
        together = 1 if sample is None else sample.together
        return cut_chunks(layout.spans, layout.nbytes, shards, together)

    def stretches(self, task: Task) -> list[tuple[int, int]]:
        """Return the ranges that a task reads: all of it, or a sample while it measures."""
        sample, layout = self.computation.sample, self.layout
        if sample is None or not self.computation.measures:
            return [(task.start, task.end)]
        return sample.stretches(layout.spans, layout.nbytes, task.start, task.end)

    def next_tasks(self) -> list[list[Task]]:
        """Return the tasks of this stage, and the higher levels when no group is awaited.

        A masked round has one level without tasks until its keeper has answered.
        """
        if self.awaits_keeper:
            return [[]]
        lowest, groups = self.tasks(0), self.stage.groups
        if groups is not None:
            width = len(self.levels[0].groups)
            lowest = [task for task in lowest if task.number % width in groups]
        higher = range(1, len(self.levels)) if self.is_complete else ()
        return [lowest, *(self.tasks(level) for level in higher)]

    def has_inputs(self, level: int, group: int) -> bool:
        """Return whether a group has any contributor."""
        first, stop = self.levels[level].groups[group]
        if level == 0:
            return first < stop
        return any(self.has_inputs(level - 1, below) for below in range(first, stop))

    def inputs(self, task: Task) -> list[int]:
        """Return the numbers of a task's inputs that exist."""
        numbers = range(task.first, task.stop)
        if task.level == 0:
            return list(numbers)
        below = len(self.levels[task.level - 1].groups)
        return [n for n in numbers if self.has_inputs(task.level - 1, n % below)]

    def reduction(self, level: int, inputs: int, *, is_disordered: bool = False) -> Reduction:
        """Return how the tasks of a level combine their inputs.

        Parameters
        ----------
        level, inputs
            The level, and how many inputs the task has.
        is_disordered
            Whether some inputs have their tensors in another order.
        """
        computation = self.computation
        if computation.measures:
            layers = [layer.ranges for layer in self.layout.layers] if self.decides_by_layer else ()
            return Measuring(inputs, self.layout.buffers, pairs=self.pairs, layers=layers)
        if computation.robust is not None and computation.robust.is_elementwise:
            return computation.robust.reduction(is_disordered=is_disordered)
        is_last = self.is_last(level)
        if computation.dp is not None:
            return PrivateSum(
                computation.dp.grid(self._elements).step,
                computation.dp.divisor(len(self.contributors)),
                of_sums=level > 0,
                to_sums=not is_last,
                is_disordered=is_disordered,
            )
        if self.masking is not None:
            decoding = Decoding(self.masking.fixed, self.masking.total)
            return RingSum(decoding if is_last else None)
        return Addition(
            order=self.levels[level].order,
            of_sums=level > 0,
            to_sums=not is_last,
            divisor=self.divisor if is_last else 1,
            allow_nonfinite=self.computation.allow_nonfinite,
            is_disordered=is_disordered,
        )

    @property
    def pairs(self) -> bool:
        """Whether the plan measures products of different updates; otherwise only norms."""
        decider = self.computation.dp or self.computation.robust
        return decider is None or decider.pairs

    @property
    def decides_by_layer(self) -> bool:
        """Whether a rule compares partial updates, which it does in each layer by itself."""
        return self.computation.robust is not None and self.computation.robust.decides_by_layer

    def sums_bytes(self, start: int, end: int) -> int:
        """Return the size of a partial sum of [start, end) of the layout."""
        if self.computation.dp is not None:
            return private_sums_bytes(self.layout.spans, start, end)
        return sums_bytes(self.input_spans, start, end)

    @property
    def grid(self) -> Grid | None:
        """The grid of a private sum; None if the plan makes none."""
        dp = self.computation.dp
        if dp is None or self.computation.measures:
            return None
        return dp.grid(self._elements)

    @property
    def _elements(self) -> int:
        return count_elements(self.layout.spans, 0, self.layout.nbytes)

    def input_ranges(self, task: Task, start: int) -> list[WeightedRange]:
        """Return the weights of a task's inputs, from byte ``start`` of the layout on."""
        if task.level > 0:
            return [WeightedRange(start, task.end, [1.0] * len(self.inputs(task)))]
        return list(clip_ranges(self.weighted_ranges(task.first, task.stop), start, task.end))

    def groups_behind(self, task: Task) -> list[tuple[int, int]]:
        """Return the groups [first, stop) of contributors whose updates are in a task's sum."""
        numbers = [task.number % len(self.levels[task.level].groups)]
        for level in reversed(self.levels[1 : task.level + 1]):
            numbers = [below for number in numbers for below in range(*level.groups[number])]
        return [self.levels[0].groups[number] for number in numbers]
