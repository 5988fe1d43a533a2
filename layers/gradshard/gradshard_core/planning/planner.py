"""Choose into how many shards an update is cut: foresee what aggregating them takes.

A plan is worked out from sizes alone: this module knows nothing of AWS but the numbers in
:mod:`gradshard_core.planning.limits`.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

from gradshard_core.aggregation.gathering import GROUPED, Disorder
from gradshard_core.aggregation.sharding import (
    SLICE_BYTES,
    STEP_ELEMENTS,
    WIDENING,
    block_bytes,
    gathered_bytes,
    receive_buffer_bytes,
)
from gradshard_core.aggregation.topologies import Levels
from gradshard_core.errors import PlanError
from gradshard_core.formats.dtypes import DTYPES
from gradshard_core.formats.layout import MAX_HEADER_BYTES
from gradshard_core.planning import limits, pricing
from gradshard_core.planning.bandwidth import BURST, Bandwidth
from gradshard_core.planning.pricing import US_EAST_1, Bill, Prices, Requests, Tasks
from gradshard_core.planning.transfers import SINGLE_PUT_BYTES, client_ranges
from gradshard_core.units import MIB

EVERY_SHARD_COUNT: Final = 128
"""Up to twice this the planner considers every M, beyond that steps of less than 1 %, which leave
761 of 10,000; the best of them costs hardly more than the best of all."""

DEFAULT_MEMORY_MB: Final = 192
"""The template's. The smallest function, of 128 MB, has too little of a processor to add up what
its network brings; at 192 MB it waits for the network, at the same price and in up to 30 % less
time. More memory costs more and hardly saves any time (docs/cost.md)."""

UNHURRIED_SECONDS: Final = 60.0
"""The time budget when none is given, kept where it can be: the last few per cent of the price
would be paid for with minutes, and with tasks so long that no retry fits. Half of it costs up to
5 % more with 20 clients."""


def client_requests(nbytes: int) -> Requests:
    """Return what a client asks of S3 to send its update and to fetch the result."""
    ranges = len(client_ranges(nbytes))
    # In parts: begun, completed, and a look at whether an earlier try left any behind.
    return Requests(gets=ranges, puts=1 if nbytes <= SINGLE_PUT_BYTES else ranges + 3)


@dataclass(frozen=True)
class Workload:
    """What is to be averaged.

    Parameters
    ----------
    nbytes
        Size of an update's tensors.
    levels
        The topology's groups.
    is_cut
        Whether the planner may cut updates into shards.
    sums_bytes
        Size of a partial sum of a whole update; None where it has an update's size.
    depth
        The most accumulators a task keeps: the levels of its part of the order.
    plan_bytes
        Size of the plan's JSON, read by every task.
    applied
        Where the update is applied to the model: how many objects of state the server optimizer
        has. None where it is not.
    disorder
        What the orders of the contributors' tensors cost, by group of level 0; empty where all
        have the round's order.
    """

    nbytes: int
    levels: Levels
    is_cut: bool = True
    sums_bytes: int | None = None
    depth: int = 1
    plan_bytes: int = 0
    applied: int | None = None
    disorder: tuple[Disorder, ...] = ()

    @property
    def contributors(self) -> int:
        """How many updates are averaged."""
        return sum(self.levels[0])

    @property
    def fan_in(self) -> int:
        """The most inputs of a task."""
        return max(map(max, self.levels))

    @cached_property
    def fan_ins(self) -> list[Counter[int]]:
        """How many groups there are of each size, level by level."""
        return [Counter(sizes) for sizes in self.levels]

    def input_bytes(self, level: int) -> int:
        """Size of what a level reads of each input, uncut."""
        return self.nbytes if level == 0 else self.sum_bytes

    def output_bytes(self, level: int) -> int:
        """Size of what a level writes for each group, uncut."""
        return self.nbytes if level == len(self.levels) - 1 else self.sum_bytes

    @property
    def models(self) -> int:
        """How many objects applying reads and writes beside the update: model and state."""
        return 0 if self.applied is None else 1 + self.applied

    @property
    def model_bytes(self) -> int:
        """Size of what applying reads, uncut; it writes as much."""
        return 0 if self.applied is None else self.nbytes + self.applied * self.sum_bytes

    @property
    def is_disordered(self) -> bool:
        """Whether anybody's tensors are read in groups."""
        return any(disorder.groups for disorder in self.disorder)

    def further(self, shards: int) -> list[tuple[float, float]]:
        """Return further requests and bytes of gaps by group of level 0, of all M shards."""
        return [disorder.cut(shards) for disorder in self.disorder]

    @property
    def sum_bytes(self) -> int:
        """Size of a sum of whole updates."""
        return self.nbytes if self.sums_bytes is None else self.sums_bytes


@dataclass(frozen=True)
class LambdaConfig:
    """What the tasks run on.

    Parameters
    ----------
    memory_mb
        Configured memory, which is also the share of a processor.
    architecture
        ``arm64`` or ``x86_64``; decides the price.
    bandwidth
        Its network.
    concurrency
        How many functions may run at once; 0 for no limit.
    prices
        What AWS asks for them and all around.
    """

    memory_mb: int
    architecture: str
    bandwidth: Bandwidth = BURST
    concurrency: int = 0
    prices: Prices = US_EAST_1

    @property
    def batch(self) -> int:
        """How many tasks share an execution of the machine's map."""
        return min(limits.INLINE_ITERATIONS, self.concurrency or limits.INLINE_ITERATIONS)

    def waves(self, tasks: int) -> int:
        """Return how many times as long as one task so many take; batches run whole."""
        at_once = self.concurrency // self.batch * self.batch
        return -(-tasks // at_once) if at_once else 1

    def task_seconds(self, nbytes: float) -> float:
        """Return the duration of a task that reads ``nbytes``, all streams opened at once."""
        processor = min(1.0, self.memory_mb / limits.MB_PER_VCPU)
        cpu_seconds = limits.CPU_SECONDS_PER_GB * nbytes / 1e9
        return (
            limits.TASK_START_SECONDS
            + self.bandwidth.latency_seconds
            + max(self.bandwidth.seconds(nbytes), cpu_seconds / processor)
        )


@dataclass(frozen=True)
class Projection:
    """What aggregating with M shards is expected to take on AWS.

    Parameters
    ----------
    shards
        M.
    tasks
        Of all levels.
    memory_mb
        The aggregator's configured memory.
    needed_mb
        Peak memory of one aggregator, in MB of 1024² bytes as Lambda counts them.
    task_seconds
        Duration of the longest task.
    seconds
        From the last update to the finished round.
    gb_seconds
        Of the aggregators.
    requests
        S3 requests of the aggregators.
    bill
        Dollars of the round.
    """

    shards: int
    tasks: int
    memory_mb: int
    needed_mb: float
    task_seconds: float
    seconds: float
    gb_seconds: float
    requests: Requests
    bill: Bill

    @property
    def total_dollars(self) -> float:
        """The whole round's price."""
        return self.bill.total

    def to_json(self) -> dict[str, Any]:
        """Return the projection as JSON."""
        fields = {**vars(self), **self.requests._asdict(), "dollars": self.bill.to_json()}
        return {name: fields[name] for name in fields if name not in {"requests", "bill"}}


def min_shards(nbytes: int) -> int:
    """Return the smallest M whose parts, or partial sums, stay within S3's 5 GiB."""
    # The first part carries the header, too.
    return max(1, -(-nbytes // (limits.MAX_PART_BYTES - MAX_HEADER_BYTES - MIB)))


def max_shards(nbytes: int) -> int:
    """Return the largest M whose parts all reach S3's 5 MiB."""
    # A cut moves by less than an element, so a shard may come out that much smaller.
    largest_element = max(dtype.size for dtype in DTYPES.values())
    return max(1, min(limits.MAX_PARTS, nbytes // (limits.MIN_PART_BYTES + largest_element)))


RESIDENT_MB: Final = 40.0
"""Measured, x86-64: the handler imported, with numpy and a TLS context, 35.7."""

RUNTIME_MB: Final = 12.0
"""Lambda's own runtime client beside it; measured in its container."""

STREAM_BYTES: Final = 192 * 1024
"""Of a connection beside its receive buffer: its objects and OpenSSL's state and buffers."""

PLAN_FACTOR: Final = 8
"""Memory of the parsed plan, over the size of its JSON."""

PLAN_BYTES_PER_CLIENT: Final = 576
"""Of the plan's JSON, for a contributor of one run."""

PLAN_BYTES_PER_WEIGHT: Final = 11
"""For a contributor's weight in a layer of partial updates: half of its JSON, since a number takes
less memory for its length than an object does (measured: 83 bytes, text and all)."""

PLAN_BYTES_PER_SPAN: Final = 64

PLAN_BYTES_PER_RUN: Final = 20
"""For a further run of a contributor: three numbers, which are not kept as objects (measured: 140
bytes of memory)."""

POSITION_BYTES: Final = 300
"""Of a stretch that is read in a group: where it begins and ends, and where it goes."""

STEP_BYTES: Final = 12 * STEP_ELEMENTS * 8
"""Model, update, state before and after, what lies between: a dozen arrays of float64 at most."""


def plan_bytes(contributors: int, *, layers: int = 0, spans: int = 0, runs: int = 0) -> int:
    """Return the size of a plan's JSON, as far as it counts for a task's memory.

    Parameters
    ----------
    contributors
        How many there are, each with a run and with a weight for each of the layers.
    layers
        Those of partial updates.
    spans
        Of the layout.
    runs
        Contributors' further ones.
    """
    each = PLAN_BYTES_PER_CLIENT + PLAN_BYTES_PER_WEIGHT * layers
    return each * contributors + PLAN_BYTES_PER_SPAN * spans + PLAN_BYTES_PER_RUN * runs


def project_memory(
    inputs: int,
    plan_bytes: int = 0,
    depth: int = 1,
    models: int = 0,
    *,
    is_disordered: bool = False,
) -> float:
    """Return the peak memory of one aggregator in MB, as an upper bound.

    projected = resident + runtime + accumulators + scratch + streams + plan + gathered, where

    - *accumulators*, *scratch*: up to eight times the elements' size, for a block at each of the
      ``depth`` levels of the task's order, and the bytes read. A partial sum that is read is as
      wide as its accumulator;
    - *streams*: a connection per input, with the kernel's receive buffer, which takes twice what
      is asked for (socket(7));
    - *plan*: the parsed plan, which grows with the number of contributors, layers and runs;
    - *step*: where the update is applied, a stream to read and one to write for each of
      ``models``, and what the step takes;
    - *gathered*: a block of an input whose tensors stand in another order, what is read for it, and
      the positions of its stretches.

    Neither the update's size nor M is in it.
    """
    block = block_bytes(inputs, depth, gathers=is_disordered)
    arithmetic = WIDENING * (depth * block + 2 * SLICE_BYTES)
    streams = (inputs + 1) * STREAM_BYTES
    streams += 2 * (inputs + models) * receive_buffer_bytes(inputs)
    streams += 2 * models * STREAM_BYTES
    step = STEP_BYTES if models else 0
    gathered = gathered_bytes(depth) + SLICE_BYTES + POSITION_BYTES * GROUPED
    buffers = arithmetic + streams + step + PLAN_FACTOR * plan_bytes
    buffers += gathered if is_disordered else 0
    return RESIDENT_MB + RUNTIME_MB + buffers / MIB


def needed_memory(load: Workload) -> float:
    """Return the peak memory of one aggregator in MB, whatever M is."""
    return project_memory(
        load.fan_in, load.plan_bytes, load.depth, load.models, is_disordered=load.is_disordered
    )


def project(load: Workload, shards: int, aggregator: LambdaConfig) -> Projection:
    """Foresee one aggregation with M shards."""
    further = load.further(shards)
    # Of the group that is read longest, since groups of one size count as one: a bound.
    waiting = max((requests for requests, _ in further), default=0) * limits.REQUEST_SECONDS
    skipped = max((nbytes for _, nbytes in further), default=0)

    def seconds(level: int, fan_in: int) -> float:
        read = load.input_bytes(level) / shards
        gaps, waits = (skipped / shards, waiting / shards) if level == 0 else (0.0, 0.0)
        if level == len(load.levels) - 1:
            return aggregator.task_seconds(fan_in * read + gaps + load.model_bytes / shards) + waits
        return aggregator.task_seconds(fan_in * read + gaps) + waits

    levels = [
        [Tasks(shards * number, seconds(level, fan_in)) for fan_in, number in fan_ins.items()]
        for level, fan_ins in enumerate(load.fan_ins)
    ]
    longest = [max(run.seconds for run in level) for level in levels]
    tasks = shards * sum(map(len, load.levels))
    gb_seconds = (
        aggregator.memory_mb / 1024 * sum(r.number * r.seconds for lv in levels for r in lv)
    )
    # A task reads the plan and its inputs, some in several requests, the first of the last level
    # the headers too; it writes its sum and its report. The last level's read and write model and
    # state besides.
    applying = shards * load.models
    requests = Requests(
        gets=shards * sum(map(sum, load.levels))
        + round(sum(requests for requests, _ in further))
        + (tasks + 1 + load.models + applying),
        puts=2 * tasks + applying,
    )
    by_client = client_requests(load.nbytes)
    return Projection(
        shards=shards,
        tasks=tasks,
        memory_mb=aggregator.memory_mb,
        needed_mb=needed_memory(load),
        task_seconds=max(longest),
        seconds=sum(
            seconds * aggregator.waves(sum(run.number for run in level))
            for seconds, level in zip(longest, levels, strict=True)
        )
        + limits.ROUND_OVERHEAD_SECONDS
        + limits.LEVEL_OVERHEAD_SECONDS * (len(levels) - 1),
        gb_seconds=gb_seconds,
        requests=requests,
        bill=pricing.bill(
            levels,
            clients=load.contributors,
            memory_mb=aggregator.memory_mb,
            architecture=aggregator.architecture,
            aggregators=requests,
            by_clients=Requests(*(load.contributors * number for number in by_client)),
            batch=aggregator.batch,
            models=load.models,
            prices=aggregator.prices,
        ),
    )


def choose(
    load: Workload,
    aggregator: LambdaConfig,
    *,
    shards: int | None = None,
    time_budget: float | None = None,
) -> tuple[Projection, list[str]]:
    """Choose M: the one asked for, or the cheapest that meets the time budget.

    Parameters
    ----------
    load, aggregator
        As for :func:`project`.
    shards
        M, if it is given.
    time_budget
        The time budget for the whole aggregation in seconds.

    Returns
    -------
    Projection
        Of the chosen M.
    list of str
        What was decided otherwise than asked for, and why.

    Raises
    ------
    PlanError
        Nothing fits; the text has the numbers and the smallest change that would do.
    """
    fewest, most, notes = _bounds(load, shards)
    projected = [project(load, m, aggregator) for m in shard_counts(fewest, most)]
    startable = limits.MAX_CHILDREN * aggregator.batch
    candidates = [p for p in projected if p.tasks <= startable]
    if not candidates:
        raise PlanError(
            f"{projected[0].tasks} tasks are over the {startable} that the state machine follows "
            f"with {aggregator.batch} in an execution; deploy with a larger MapConcurrency, or ask "
            "for fewer shards"
        )
    fitting = [p for p in candidates if p.needed_mb <= aggregator.memory_mb]
    if not fitting:
        raise _too_large(candidates[-1])
    quick = [p for p in fitting if _fits_in_time(p)]
    if not quick:
        raise _too_slow(load, aggregator, fitting[-1])
    budget = UNHURRIED_SECONDS if time_budget is None else time_budget
    in_time = [p for p in quick if p.seconds <= budget]
    if not in_time and time_budget is not None:
        fastest = min(quick, key=lambda p: p.seconds)
        raise PlanError(
            f"no M aggregates within {time_budget:g} s: the fastest, M={fastest.shards} at "
            f"{aggregator.memory_mb} MB, takes {fastest.seconds:.1f} s; allow that, or deploy with "
            "more AggregatorMemory"
        )
    return min(in_time or quick, key=lambda p: (p.total_dollars, p.shards)), notes


def shard_counts(fewest: int, most: int) -> list[int]:
    """Return the M from ``fewest`` to ``most`` that are worth projecting, both among them.

    The largest has the quickest tasks, so leaving some out makes no round impossible.
    """
    counts, m = [], fewest
    while m < most:
        counts.append(m)
        m += max(1, m // EVERY_SHARD_COUNT)
    return [*counts, most]


def _bounds(load: Workload, shards: int | None) -> tuple[int, int, list[str]]:
    """Return the least and the largest M to consider, and what was changed to get there."""
    largest = max(map(load.output_bytes, range(len(load.levels))))
    if load.applied:
        largest = max(largest, load.sum_bytes)
    fewest, most = min_shards(largest), max_shards(load.nbytes) if load.is_cut else 1
    if fewest > most or (shards is not None and shards < fewest):
        if not load.is_cut:
            change = "take grid, whose tasks are cut"
        else:
            change = "ask for that many" if fewest <= most else f"a round takes at most {most}"
        what = f"an update of {load.nbytes} bytes"
        if largest > load.nbytes:
            wide = "optimizer's state has" if load.applied else "partial sums have"
            what += f", whose {wide} {largest},"
        raise PlanError(
            f"{what} takes at least {fewest} shards, since S3 takes at most "
            f"{limits.MAX_PART_BYTES} bytes in a request; {change}"
        )
    if shards is None:
        return fewest, most, []
    if shards <= most:
        return shards, shards, []
    note = (
        f"M lowered from {shards} to {most}: cut into more, an update of {load.nbytes} bytes would "
        f"have shards under the {limits.MIN_PART_BYTES} bytes that S3 wants of a part"
    )
    return most, most, [note]


def _too_large(projection: Projection) -> PlanError:
    needed, memory_mb = projection.needed_mb, projection.memory_mb
    return PlanError(
        f"an aggregator needs {needed:.0f} MB and has {memory_mb}; "
        f"deploy with AggregatorMemory={_round_up(needed)}"
    )


def _too_slow(load: Workload, aggregator: LambdaConfig, projection: Projection) -> PlanError:
    most = max_shards(load.nbytes) if load.is_cut else 1
    larger = range(projection.shards + 1, most + 1)
    # With more shards a task is never slower.
    enough = bisect_left(larger, True, key=lambda m: _fits_in_time(project(load, m, aggregator)))
    unbounded = replace(aggregator, memory_mb=limits.MB_PER_VCPU)
    if enough < len(larger):
        change = f"ask for at least {larger[enough]} shards"
    elif _fits_in_time(project(load, most, unbounded)):
        change = "deploy with more AggregatorMemory, which is processor time"
    elif not load.is_cut:
        change = "take shards or grid, whose tasks are cut"
    elif load.is_disordered:
        change = "open the round with a layout, so that clients write their tensors in its order"
    else:
        change = "average fewer clients a round"
    return PlanError(
        f"a task would take {projection.task_seconds:.0f} s, over the "
        f"{limits.MAX_TASK_SECONDS:.0f} s that a task may; {change}"
    )


def frontier(
    load: Workload, aggregator: LambdaConfig, *, memories: Sequence[int], shards: int | None = None
) -> list[Projection]:
    """Return the choices of memory and M that no other beats on both seconds and dollars."""
    fewest, most, _ = _bounds(load, shards)
    counts = shard_counts(fewest, most)
    choices = sorted(
        (
            projection
            for memory_mb in memories
            for m in counts
            if (projection := project(load, m, replace(aggregator, memory_mb=memory_mb))).needed_mb
            <= memory_mb
            and _fits_in_time(projection)
        ),
        key=lambda p: (p.seconds, p.total_dollars),
    )
    best: list[Projection] = []
    for projection in choices:
        if not best or projection.total_dollars < best[-1].total_dollars:
            best.append(projection)
    return best


def _fits_in_time(projection: Projection) -> bool:
    return projection.task_seconds <= limits.MAX_TASK_SECONDS


def _round_up(megabytes: float) -> int:
    return max(limits.MIN_MEMORY_MB, math.ceil(megabytes / 64) * 64)
