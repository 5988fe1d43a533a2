"""The parts of a round's plan: contributors, layout, levels of groups, computation, tasks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, Final, NamedTuple, Self

from gradshard_core.aggregation.addition_order import Order
from gradshard_core.aggregation.arithmetic import SHARES
from gradshard_core.aggregation.batchnorm_buffers import Stretches
from gradshard_core.formats.compressed_updates import EncodedRuns
from gradshard_core.formats.masked_updates import Share
from gradshard_core.formats.object_keys import ObjectVersion
from gradshard_core.formats.tensor_layout import Layout, Runs, Span, encode_header
from gradshard_core.planning.output_objects import NO_HEADER, StoredHeader
from gradshard_core.privacy.privacy_mechanism import PrivacyMechanism
from gradshard_core.robust.measured_sample import Sample
from gradshard_core.robust.rules import RobustRule
from gradshard_core.stragglers.client_report import Report


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


NOBODY: Final = "(nobody)"
"""The contributor of a round of drawn clients to which nobody has sent a good update: the version
of the model that the round begins from, with a weight of zero. No client may have such an id."""


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

    def is_in(self, runs: Runs) -> bool:
        """Return whether an object has the layer, of which it has all or nothing."""
        return all(runs.has(start) for start, _ in self.ranges)


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
        As in :class:`gradshard_core.specs.round_spec.RoundSpec`, with the order that was chosen.
        Under an element-wise rule, and while updates are measured, weights are ``equal``. After
        that they are ``measured``.
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
