"""The plan of a round: who contributes with which weight, and which task does what."""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, Self

from gradshard_core.aggregation.addition_order import Order
from gradshard_core.aggregation.arithmetic import COUNTS, shares_of
from gradshard_core.aggregation.buffers import Stretches, clip_stretches
from gradshard_core.aggregation.kernel import Zone
from gradshard_core.aggregation.server_optimizers import ServerOptimizer, parse_server_optimizer
from gradshard_core.aggregation.sharding import cut_shards, sums_bytes
from gradshard_core.errors import BrokenObjectError
from gradshard_core.formats.keys import ModelKeys, ObjectVersion, RoundKeys, StoredTensors
from gradshard_core.formats.layout import PREFIX_BYTES, Layout, Runs, Span, parse_header


@dataclass(frozen=True)
class Contributor:
    """A client frozen into the plan.

    Parameters
    ----------
    client
        Its id.
    source
        The version of its update that is averaged, whatever it uploads later.
    samples
        n, the number of samples it trained on.
    weight
        By which its update is multiplied: n / Σn, or n. Partial updates have weights by layer.
    runs
        Where the layout's bytes stand in its object; a partial update has not all of them.
    report
        What it says of its training (:class:`gradshard_core.stragglers.assignments.Report`), where
        that is used.
    """

    client: str
    source: ObjectVersion
    samples: int
    weight: float
    runs: Runs
    report: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "client": self.client,
            "source": self.source._asdict(),
            "samples": self.samples,
            "weight": self.weight,
            "runs": self.runs.to_json(),
            "report": self.report,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote."""
        return cls(
            fields["client"],
            ObjectVersion(**fields["source"]),
            fields["samples"],
            fields["weight"],
            Runs(fields["runs"]),
            fields["report"],
        )


@dataclass(frozen=True)
class Rejection:
    """An update that does not take part, and the reason its sender reads.

    ``late`` ones came after planning: an earlier one of the same client may well take part.
    """

    client: str
    reason: str
    etag: str = ""
    late: bool = False


class PlannedLayer(NamedTuple):
    """A layer of partial updates.

    Parameters
    ----------
    name
        Its name.
    ranges
        Where its tensors stand in the layout.
    missed
        p, the probability that nobody reaches it; None where the rule has none.
    weights
        The contributors' effective weights, in their order; None for those that lack it.
    """

    name: str
    ranges: tuple[tuple[int, int], ...]
    missed: float | None
    weights: tuple[float | None, ...]


class Task(NamedTuple):
    """What one function does: add some inputs over a byte range of the layout.

    Parameters
    ----------
    level
        From 0; the last level's tasks write the result.
    number
        Within its level, from 0; names its report and its partial sum.
    start, end
        The byte range.
    first, stop
        Its inputs: contributors [first, stop) at level 0, else the partial sums of the tasks with
        these numbers, one level below.
    """

    level: int
    number: int
    start: int
    end: int
    first: int
    stop: int

    @property
    def part(self) -> int:
        """The part of the result that a task of the last level writes; S3 counts from 1."""
        return self.number + 1


@dataclass(frozen=True)
class Level:
    """Tasks that run side by side.

    Parameters
    ----------
    groups
        What each group adds: [first, stop) of the contributors, or of the groups one level below.
        Empty where none of a group's clients takes part.
    order
        In which a task adds its group's; sequential unless a task executes a tree.
    """

    groups: tuple[tuple[int, int], ...]
    order: Order


def level_of(sizes: Sequence[int], order: Order) -> Level:
    """Make a level of consecutive groups of these sizes."""
    return Level(tuple(pairwise(accumulate(sizes, initial=0))), order)


class Output(NamedTuple):
    """An object that the tasks of the last level write, a part each.

    Parameters
    ----------
    key
        Its name.
    upload_id
        The multipart upload that becomes it.
    header_key, header_bytes, header_sha256
        Where its safetensors header is, which the first task writes, how long that is, and its
        digest.
    nbytes
        Of its tensors.
    """

    key: str
    upload_id: str
    header_key: str
    header_bytes: int
    header_sha256: str
    nbytes: int

    def check_header(self, header: bytes | None) -> bytes:
        """Return the header as it was read, if it is the one that was planned.

        Raises
        ------
        BrokenObjectError
            It is not.
        """
        if header is None or len(header) != self.header_bytes:
            raise BrokenObjectError(
                f"{self.header_key} has {len(header or b'')} bytes, not the planned "
                f"{self.header_bytes}"
            )
        if digest_of(header) != self.header_sha256:
            # A belated planning's, of other uploads.
            raise BrokenObjectError(f"{self.header_key} is not the one that was planned")
        return header

    def layout(self, header: bytes | None) -> Layout:
        """Read the layout that the header says, as :meth:`check_header` lets it through."""
        header = self.check_header(header)
        return parse_header(header[PREFIX_BYTES:], len(header) + self.nbytes).layout


def digest_of(header: bytes) -> str:
    """Return the SHA-256 by which a header is known."""
    return hashlib.sha256(header).hexdigest()


@dataclass(frozen=True)
class NextModel:
    """The version of the model that a round makes.

    Parameters
    ----------
    server_optimizer
        How the update is applied.
    version
        Its number.
    step
        t: which step of the optimizer makes it, from 1.
    model
        The model before.
    state
        The optimizer's state before; none at its first step.
    uploads
        The multipart uploads that become the model and the state.
    state_header_bytes, state_header_sha256
        Size and digest of a state's header.
    buffers
        The stretches of the layout that are averaged and not stepped.
    """

    server_optimizer: ServerOptimizer
    version: int
    step: int
    model: StoredTensors
    state: tuple[StoredTensors, ...]
    uploads: tuple[str, ...]
    state_header_bytes: int
    state_header_sha256: str
    buffers: Stretches

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return vars(self) | {
            "server_optimizer": self.server_optimizer.to_json(),
            "model": self.model.to_json(),
            "state": [kept.to_json() for kept in self.state],
        }

    @classmethod
    def from_json(cls, written: dict[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote."""
        return cls(
            **written
            | {
                "server_optimizer": parse_server_optimizer(written["server_optimizer"]),
                "model": StoredTensors.from_json(written["model"]),
                "state": tuple(StoredTensors.from_json(kept) for kept in written["state"]),
                "uploads": tuple(written["uploads"]),
                "buffers": tuple((start, end) for start, end in written["buffers"]),
            }
        )


@dataclass(frozen=True)
class Plan:
    """What :func:`gradshard_core.rounds.plan_round` freezes and every task reads.

    Parameters
    ----------
    round_id, attempt
        Whose plan, and how often contributors were rejected while their updates were read: each
        time the round is planned again without them.
    visit
        The state machine's visit to planning that made it; the same one again changes nothing.
    wave
        The groups of level 0 that this planning set to work: all of them, but in an eager round.
    waves
        How many plannings made the plan: one, but in an eager round.
    awaited
        The groups of level 0 whose contributors are not frozen yet: none, but in an eager round.
    topology, order, weights
        As in :class:`gradshard_core.planning.spec.RoundSpec`; the order as it came to be.
    rule
        How partial updates are averaged, or ``fedavg`` of whole ones.
    layers
        Those of partial updates; none where updates are whole.
    assignments
        In which server_optimizer clients are told what to do next; None: not at all.
    levels
        The groups, level by level.
    contributors
        In the order of their ids, which is that of their additions; in an eager round, so within
        each group.
    spans
        The layout's element types.
    nbytes, tensors
        Size of the layout, and the number of its tensors.
    header_bytes, header_sha256
        Size and digest of the result's header, which the first task of the last level writes.
    upload_id
        The multipart upload that becomes the result.
    next_model
        The version of the model that the round makes, if it applies its update.
    shards
        M.
    allow_nonfinite
        Whether NaN and infinities are averaged.
    rejected, missing
        Who does not take part.
    notes
        What was decided otherwise than asked for.
    projected
        What the round was expected to take.
    opened_at, planned_at
        Times in ISO 8601.
    """

    round_id: str
    attempt: int
    visit: str
    wave: tuple[int, ...]
    waves: int
    awaited: tuple[int, ...]
    topology: str
    order: str
    weights: str
    rule: str
    layers: tuple[PlannedLayer, ...]
    assignments: dict[str, Any] | None
    levels: tuple[Level, ...]
    contributors: tuple[Contributor, ...]
    spans: tuple[Span, ...]
    nbytes: int
    tensors: int
    header_bytes: int
    header_sha256: str
    upload_id: str
    next_model: NextModel | None
    shards: int
    allow_nonfinite: bool
    rejected: tuple[Rejection, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    projected: dict[str, Any]
    opened_at: str
    planned_at: str

    @property
    def is_sealed(self) -> bool:
        """Whether all contributors are frozen."""
        return not self.awaited

    @property
    def zones(self) -> list[Zone]:
        """The contributors' weights, along the layout."""
        if not self.layers:
            weights = [contributor.weight for contributor in self.contributors]
            return self._with_buffers(Zone(0, self.nbytes, weights))
        zones = sorted(
            Zone(start, end, layer.weights) for layer in self.layers for start, end in layer.ranges
        )
        return [part for zone in zones for part in self._with_buffers(zone)]

    def _with_buffers(self, zone: Zone) -> list[Zone]:
        """Cut out the model's buffers, whose weights are shares whatever the rule.

        Normalised by steps, or corrected for who is missing, weights do not add up to one: their
        sum is no average, and a variance may come out below zero.
        """
        if self.next_model is None or self.weights == COUNTS:
            return [zone]
        there = [weight is not None for weight in zone.weights]
        shares = iter(shares_of([c.samples for c in itertools.compress(self.contributors, there)]))
        plain = [next(shares) if covers else None for covers in there]
        if plain == list(zone.weights):
            return [zone]
        zones, position = [], zone.start
        for start, end in clip_stretches(self.next_model.buffers, zone.start, zone.end):
            zones += [zone._replace(start=position, end=start), Zone(start, end, plain)]
            position = end
        zones.append(zone._replace(start=position))
        return [part for part in zones if part.start < part.end]

    @property
    def outputs(self) -> list[Output]:
        """What the last level writes: the averaged update first, then model and state."""
        keys, new = RoundKeys(self.round_id), self.next_model
        header = (keys.layout, self.header_bytes, self.header_sha256)
        update = Output(keys.result, self.upload_id, *header, self.nbytes)
        if new is None:
            return [update]
        (model_key, *state_keys), (model_id, *state_ids) = (
            next_keys(new.server_optimizer, self.round_id),
            new.uploads,
        )
        model = update._replace(key=model_key, upload_id=model_id)
        state = [
            Output(
                key,
                upload_id,
                keys.state_layout,
                new.state_header_bytes,
                new.state_header_sha256,
                sums_bytes(self.spans, 0, self.nbytes),
            )
            for key, upload_id in zip(state_keys, state_ids, strict=True)
        ]
        return [update, model, *state]

    @property
    def divisor(self) -> int:
        """What the whole sum is divided by, once, at the end."""
        return sum(c.samples for c in self.contributors) if self.weights == COUNTS else 1

    def is_last(self, level: int) -> bool:
        """Whether a level's tasks write the result."""
        return level == len(self.levels) - 1

    def tasks(self, level: int) -> list[Task]:
        """Return a level's tasks, of all waves, shard by shard; empty groups have none."""
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
            for shard in cut_shards(self.spans, self.nbytes, self.shards)
            for number, (first, stop) in enumerate(groups)
            if self.has_inputs(level, number)
        ]

    def next_tasks(self) -> list[list[Task]]:
        """Return what is to be done now, level by level: the wave, then what waits for all."""
        width = len(self.levels[0].groups)
        wave = [task for task in self.tasks(0) if task.number % width in self.wave]
        above = range(1, len(self.levels)) if self.is_sealed else ()
        return [wave, *(self.tasks(level) for level in above)]

    def has_inputs(self, level: int, group: int) -> bool:
        """Whether any contributor is behind a group."""
        first, stop = self.levels[level].groups[group]
        if level == 0:
            return first < stop
        return any(self.has_inputs(level - 1, below) for below in range(first, stop))

    def inputs(self, task: Task) -> list[int]:
        """Return the numbers of a task's inputs that are there."""
        numbers = range(task.first, task.stop)
        if task.level == 0:
            return list(numbers)
        below = len(self.levels[task.level - 1].groups)
        return [n for n in numbers if self.has_inputs(task.level - 1, n % below)]

    def contributors_behind(self, task: Task) -> list[int]:
        """Return the numbers of all contributors whose updates are in a task's sum."""
        numbers = [task.number % len(self.levels[task.level].groups)]
        for level in reversed(self.levels[: task.level + 1]):
            numbers = [below for number in numbers for below in range(*level.groups[number])]
        return numbers

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON."""
        written = {field.name: getattr(self, field.name) for field in fields(self)}
        return written | {
            "round": written.pop("round_id"),
            "levels": [vars(level) for level in self.levels],
            "contributors": [contributor.to_json() for contributor in self.contributors],
            "rejected": [vars(rejection) for rejection in self.rejected],
            "next_model": self.next_model and self.next_model.to_json(),
        }

    @classmethod
    def from_json(cls, written: dict[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote."""
        written = {"waves": 1} | written | {"round_id": written["round"]}
        new = written["next_model"]
        read: dict[str, Any] = {
            **{field.name: written[field.name] for field in fields(cls)},
            "levels": tuple(
                Level(
                    tuple((first, stop) for first, stop in level["groups"]), tuple(level["order"])
                )
                for level in written["levels"]
            ),
            "layers": tuple(
                PlannedLayer(name, tuple(map(tuple, ranges)), missed, tuple(weights))
                for name, ranges, missed, weights in written["layers"]
            ),
            "wave": tuple(written["wave"]),
            "awaited": tuple(written["awaited"]),
            "contributors": tuple(Contributor.from_json(c) for c in written["contributors"]),
            "spans": tuple(Span(*span) for span in written["spans"]),
            "rejected": tuple(Rejection(**rejection) for rejection in written["rejected"]),
            "missing": tuple(written["missing"]),
            "notes": tuple(written["notes"]),
            "next_model": new and NextModel.from_json(new),
        }
        return cls(**read)


def next_keys(server_optimizer: ServerOptimizer, round_id: str) -> list[str]:
    """Return the keys of what applying makes: of the model, then of the optimizer's state."""
    keys = ModelKeys(server_optimizer.model)
    return [
        keys.next_model(round_id),
        *(keys.state(round_id, name) for name in server_optimizer.state),
    ]


def weigh(contributors: Sequence[Contributor], weights: str) -> tuple[Contributor, ...]:
    """Give contributors their weights: shares, or counts, which do not hang on the others."""
    samples = [contributor.samples for contributor in contributors]
    values = list(map(float, samples)) if weights == COUNTS else shares_of(samples)
    return tuple(
        replace(contributor, weight=weight)
        for contributor, weight in zip(contributors, values, strict=True)
    )
