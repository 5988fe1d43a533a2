"""The plan of a round: its contributors with their weights, and its tasks with their inputs.

``plan_round`` writes it, and every later function of the round reads it
(:mod:`gradshard_core.planning.plan_json`).
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, Self

from gradshard_core.aggregation.addition_order import Order
from gradshard_core.aggregation.arithmetic import COUNTS, EQUAL, SHARES
from gradshard_core.aggregation.buffers import Stretches, clip_stretches
from gradshard_core.aggregation.gram import Measuring, cut_chunks
from gradshard_core.aggregation.gram_sample import Sample
from gradshard_core.aggregation.kernel import Addition, Reduction, Zone, clip_zones
from gradshard_core.aggregation.privacy import (
    Grid,
    PrivacyMechanism,
    PrivateSum,
    private_sums_bytes,
)
from gradshard_core.aggregation.ring_sum import Decoding, RingSum, ring_spans
from gradshard_core.aggregation.robust_rules import RobustRule
from gradshard_core.aggregation.sharding import Shard, count_elements, cut_shards, sums_bytes
from gradshard_core.formats.encoded import EncodedRuns
from gradshard_core.formats.keys import ObjectVersion, RoundKeys
from gradshard_core.formats.layout import Layout, Runs, Span, encode_header
from gradshard_core.formats.masked import Share
from gradshard_core.formats.pieces import StoredList
from gradshard_core.planning.masking import MASKED, Masking
from gradshard_core.planning.outputs import (
    NO_HEADER,
    NextModel,
    Output,
    StoredHeader,
    next_model_keys,
)
from gradshard_core.stragglers.assignments import Report


@dataclass(frozen=True, slots=True)
class Contributor:
    """A client whose update is part of the plan.

    Parameters
    ----------
    client
        The id of the client.
    source
        The version of its update that is averaged, even if it uploads another one later.
    samples
        n, the number of samples that it trained on.
    weight
        The factor of its update: n / Σn, or n. Partial updates have weights by layer instead, and
        those of a buffered training are discounted by their staleness.
    runs
        The places of the layout's bytes in the object; a partial update lacks some of them.
    report
        Its report on its training, if the round uses it.
    staleness
        In a buffered training, the number of versions that were made since the update began.
    codec_error
        The relative error of the encoding of its update, as it states it.
    share
        The values that it sent beside its masked elements, in a masked round.
    """

    client: str
    source: ObjectVersion
    samples: int
    weight: float
    runs: Runs
    report: Report | None = None
    staleness: int = 0
    codec_error: float | None = None
    share: Share | None = None

    @property
    def codec(self) -> str | None:
        """The codec of its update; None if that is not compressed."""
        return self.runs.codec if isinstance(self.runs, EncodedRuns) else None


@dataclass(frozen=True)
class Rejection:
    """An update that is not averaged, and the reason, which the client can read.

    ``late`` updates came after planning: an earlier one of the same client may be averaged.
    """

    client: str
    reason: str
    etag: str = ""
    late: bool = False


@dataclass(frozen=True)
class Participants:
    """The clients that take part in a round, and those that do not.

    Parameters
    ----------
    contributors
        Sorted by id, which is the order of the additions. In an eager round they are sorted within
        each group.
    rejected
        The updates that are not averaged.
    missing
        The expected clients that sent nothing.
    left_out
        Good updates that a robust rule gives no weight.
    samples
        The samples of all contributors together; None to add them up when they are needed.
    weights
        The sum of the weights that a robust rule has decided on; None before they are looked up.
    """

    contributors: Sequence[Contributor] = ()
    rejected: Sequence[Rejection] = ()
    missing: Sequence[str] = ()
    left_out: Sequence[Contributor] = ()
    samples: int | None = field(default=None, compare=False)
    weights: float | None = field(default=None, compare=False)


class LayerRanges(NamedTuple):
    """A layer of partial updates, and the byte ranges of its tensors in the layout."""

    name: str
    ranges: tuple[tuple[int, int], ...]


class PlannedLayerWeights(NamedTuple):
    """The weights of a layer of partial updates.

    Parameters
    ----------
    missed
        p, the probability that no client reaches the layer; None if the rule has none.
    weights
        The effective weight of each contributor; None for those that lack the layer.
    """

    missed: float | None
    weights: tuple[float | None, ...]


@dataclass(frozen=True)
class PlannedLayout:
    """The plan's part of the round's layout; empty while an eager round has none.

    Parameters
    ----------
    spans
        The stretches of one element type.
    nbytes, tensors
        The size, and the number of tensors.
    header
        The safetensors header of the average.
    layers
        The layers of partial updates; empty if updates are whole.
    state_header
        The safetensors header of the server optimizer's state.
    buffers
        The stretches of the model that are averaged and not stepped.
    """

    spans: tuple[Span, ...] = ()
    nbytes: int = 0
    tensors: int = 0
    header: StoredHeader = NO_HEADER
    layers: tuple[LayerRanges, ...] = ()
    state_header: StoredHeader = NO_HEADER
    buffers: Stretches = ()

    @classmethod
    def of(cls, layout: Layout, header: bytes | None = None, **more: Any) -> Self:
        """Describe a layout.

        Parameters
        ----------
        layout
            The round's layout.
        header
            The safetensors header, if it was read.
        **more
            Layers, state header and buffers.
        """
        header = encode_header(layout, {}) if header is None else header
        stored = StoredHeader.of(header)
        return cls(layout.spans, layout.nbytes, len(layout.tensors), stored, **more)


@dataclass(frozen=True)
class Level:
    """Tasks that run side by side.

    Parameters
    ----------
    groups
        The inputs of each group: [first, stop) of the contributors, or of the groups a level below.
        A group is empty if none of its clients takes part.
    order
        The order in which a task adds its inputs; sequential unless a task executes a tree.
    """

    groups: tuple[tuple[int, int], ...]
    order: Order = ()

    @classmethod
    def of_sizes(cls, sizes: Sequence[int], order: Order = ()) -> Self:
        """Make a level of consecutive groups of these sizes."""
        return cls(tuple(pairwise(accumulate(sizes, initial=0))), order)


@dataclass(frozen=True)
class Computation:
    """The topology, order, weights and rule of the average.

    Parameters
    ----------
    levels
        The groups, level by level.
    shards
        M.
    topology, order, weights
        As in :class:`gradshard_core.planning.spec.RoundSpec`, with the order that was chosen. Under
        a rule over columns, and while updates are measured, weights are ``equal``. After that they
        are ``measured``.
    rule
        The rule for partial updates, or the robust rule; ``fedavg`` without one.
    layers
        The weights of each of the layout's layers; empty if updates are whole.
    allow_nonfinite
        Whether NaN and infinities are averaged.
    robust
        The robust rule; None if updates are averaged.
    measures
        Whether tasks measure, which is the first of two passes, and write no average.
    measured
        In the second pass, the attempt that measured. The plan has no weights then: they are in the
        attempt's decision, which clients do not read.
    dp
        How the result is made private; None if it is not.
    surveys
        Whether tasks read the headers of a large round's updates, which is a pass before all
        others, and write no average. Weights and layout are not known then.
    sample
        The elements that tasks measure; None for all.
    """

    levels: tuple[Level, ...]
    shards: int = 1
    topology: str = "shards"
    order: str = "sequential"
    weights: str = SHARES
    rule: str = "fedavg"
    layers: tuple[PlannedLayerWeights, ...] = ()
    allow_nonfinite: bool = False
    robust: RobustRule | None = None
    measures: bool = False
    measured: int | None = None
    dp: PrivacyMechanism | None = None
    sample: Sample | None = None
    surveys: bool = False

    @property
    def has_outputs(self) -> bool:
        """Whether the tasks of the last level write the average."""
        return not (self.measures or self.surveys)


@dataclass(frozen=True)
class Stage:
    """The groups that one planning of an eager round adds; other rounds have one stage.

    Parameters
    ----------
    entered_at
        The time at which the state machine entered the planning state, ISO 8601. A request with the
        same time is a repetition and changes nothing.
    number
        The number of stages that the plan has so far.
    groups
        The groups of level 0 that this stage aggregates; None for all.
    awaited
        The groups of level 0 that later stages aggregate.
    """

    entered_at: str = ""
    number: int = 1
    groups: tuple[int, ...] | None = None
    awaited: tuple[int, ...] = ()


class Task(NamedTuple):
    """The work of one function: add some inputs over a byte range of the layout.

    Parameters
    ----------
    level
        The number of the level, from 0; the tasks of the last level write the average.
    number
        Within its level, from 0; it is part of the keys of the task's report and partial sum.
    start, end
        The byte range.
    first, stop
        Its inputs: contributors [first, stop) at level 0, else the partial sums of the tasks with
        these numbers one level below.
    """

    level: int
    number: int
    start: int
    end: int
    first: int
    stop: int

    @property
    def part(self) -> int:
        """The number of the part that a task of the last level writes; S3 counts from 1."""
        return self.number + 1


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
    stage: Stage = Stage()
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
    def good(self) -> Sequence[Contributor]:
        """The contributors, and behind them those whom a rule has left out."""
        left_out = self.participants.left_out
        return [*self.contributors, *left_out] if left_out else self.contributors

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
        return not (self.stage.awaited or self.is_asking)

    @property
    def is_asking(self) -> bool:
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

    def zones(self, first: int, stop: int) -> list[Zone]:
        """Return the weights of contributors [first, stop), along the layout."""
        if (first, stop) not in self._zones:
            self._zones.clear()
            self._zones[first, stop] = self._make_zones(first, stop)
        return self._zones[first, stop]

    @cached_property
    def _zones(self) -> dict[tuple[int, int], list[Zone]]:
        """The zones of the group that was asked for last."""
        return {}

    def _make_zones(self, first: int, stop: int) -> list[Zone]:
        layers, contributors = self.layout.layers, self.group(first, stop)
        if not layers:
            weights = [contributor.weight for contributor in contributors]
            zone = Zone(0, self.layout.nbytes, weights)
            return list(self._cut_out_buffers(zone, contributors, None))
        weighed = self.computation.layers
        places = sorted(
            (start, end, number)
            for number, layer in enumerate(layers)
            for start, end in layer.ranges
        )
        zones = [(Zone(start, end, weighed[n].weights[first:stop]), n) for start, end, n in places]
        return [
            cut
            for zone, number in zones
            for cut in self._cut_out_buffers(zone, contributors, number)
        ]

    def _cut_out_buffers(
        self, zone: Zone, contributors: Sequence[Contributor], layer: int | None
    ) -> Iterator[Zone]:
        """Give the model's buffers in a zone weights that are shares, under every rule.

        Weights that are normalised by steps, or corrected for missing clients, do not add up to
        one. Their sum is no average, and a variance could become negative.
        """
        is_plain = self.next_model is None or self.computation.weights in (COUNTS, EQUAL, MASKED)
        # A layer without its quorum has weights of zero: its buffers stay as they are, too.
        if is_plain or (layer is not None and not any(zone.weights)):
            yield zone
            return
        of = self._share_in(layer)
        plain = [
            None if weight is None else of(contributor)
            for contributor, weight in zip(contributors, zone.weights, strict=True)
        ]
        if plain == list(zone.weights):
            yield zone
            return
        position = zone.start
        for start, end in clip_stretches(self.layout.buffers, zone.start, zone.end):
            if position < start:
                yield zone._replace(start=position, end=start)
            if start < end:
                yield Zone(start, end, plain)
            position = end
        if position < zone.end:
            yield zone._replace(start=position)

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
        if self.is_asking:
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

    def reduction(self, level: int, inputs: int, *, gathers: bool = False) -> Reduction:
        """Return how the tasks of a level combine their inputs.

        Parameters
        ----------
        level, inputs
            The level, and how many inputs the task has.
        gathers
            Whether some inputs have their tensors in another order.
        """
        computation = self.computation
        if computation.measures:
            return Measuring(inputs, self.layout.buffers, pairs=self.pairs)
        if computation.robust is not None and computation.robust.is_columns:
            return computation.robust.reduction(gathers=gathers)
        is_last = self.is_last(level)
        if computation.dp is not None:
            return PrivateSum(
                computation.dp.grid(self._elements).step,
                computation.dp.divisor(len(self.contributors)),
                of_sums=level > 0,
                to_sums=not is_last,
                gathers=gathers,
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
            gathers=gathers,
        )

    @property
    def pairs(self) -> bool:
        """Whether the plan measures products of different updates; otherwise only norms."""
        decider = self.computation.dp or self.computation.robust
        return decider is None or decider.pairs

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

    def input_zones(self, task: Task, start: int) -> list[Zone]:
        """Return the weights of a task's inputs, from byte ``start`` of the layout on."""
        if task.level > 0:
            return [Zone(start, task.end, [1.0] * len(self.inputs(task)))]
        return list(clip_zones(self.zones(task.first, task.stop), start, task.end))

    def groups_behind(self, task: Task) -> list[tuple[int, int]]:
        """Return the groups [first, stop) of contributors whose updates are in a task's sum."""
        numbers = [task.number % len(self.levels[task.level].groups)]
        for level in reversed(self.levels[1 : task.level + 1]):
            numbers = [below for number in numbers for below in range(*level.groups[number])]
        return [self.levels[0].groups[number] for number in numbers]
