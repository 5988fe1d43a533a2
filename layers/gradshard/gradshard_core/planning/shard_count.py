"""Choose M, the number of shards, from the projections of all that are possible."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from gradshard_core.costs import large_round_limits
from gradshard_core.costs.lambda_config import LambdaConfig
from gradshard_core.costs.round_projection import Projection, project
from gradshard_core.costs.workload import Workload
from gradshard_core.errors import PlanError
from gradshard_core.formats.dtypes import DTYPES
from gradshard_core.formats.headers import MAX_HEADER_BYTES
from gradshard_core.limits import aws_limits
from gradshard_core.units import MIB

EVERY_SHARD_COUNT: Final = 128
"""Up to twice this number the planner considers every M, and above it steps of less than 1 %. That
leaves 761 of 10,000. The cheapest of these costs hardly more than the cheapest of all."""

UNHURRIED_SECONDS: Final = 60.0
"""The time budget if none is given; it is exceeded if no M meets it. Without it, the last few per
cent of the price would cost minutes, and tasks would become too long for a retry. With 20 clients,
half of this budget costs up to 5 % more."""


def min_shards(nbytes: int) -> int:
    """Return the smallest M whose parts, or partial sums, stay within S3's 5 GiB."""
    # The first part carries the header, too.
    return max(1, -(-nbytes // (aws_limits.MAX_PART_BYTES - MAX_HEADER_BYTES - MIB)))


def max_shards(nbytes: int) -> int:
    """Return the largest M whose parts all reach S3's 5 MiB."""
    # A cut moves by less than an element, so a shard may come out that much smaller.
    largest_element = max(dtype.size for dtype in DTYPES.values())
    return max(
        1, min(aws_limits.MAX_PARTS, nbytes // (aws_limits.MIN_PART_BYTES + largest_element))
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
        The arguments of :func:`project`.
    shards
        M, if it was asked for.
    time_budget
        The time budget of the aggregation in seconds.

    Returns
    -------
    Projection
        The projection of the chosen M.
    list of str
        Notes on what was decided otherwise than asked for, and why.

    Raises
    ------
    PlanError
        No M is possible. The text has the numbers and the smallest change that makes one possible.
    """
    fewest, most, notes = _bounds(load, shards)
    projected = [project(load, m, aggregator) for m in shard_counts(fewest, most)]
    fitting = [p for p in projected if p.needed_mb <= aggregator.memory_mb]
    if not fitting:
        raise _too_large(projected[-1])
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
    """Return the M to consider, from ``fewest`` to ``most``, including both.

    The largest M has the shortest tasks, so leaving out others makes no round impossible.
    """
    counts, m = [], fewest
    while m < most:
        counts.append(m)
        m += max(1, m // EVERY_SHARD_COUNT)
    return [*counts, most]


def _bounds(load: Workload, shards: int | None) -> tuple[int, int, list[str]]:
    """Return the smallest and the largest possible M, and notes if the M asked for was lowered."""
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
            f"{aws_limits.MAX_PART_BYTES} bytes in a request; {change}"
        )
    least, finalizable = min(shards or fewest, most), _finalizable(load)
    if least > finalizable:
        asked = least > fewest and fewest <= finalizable
        change = f"ask for at most {finalizable} shards" if asked else _fewer_clients(load, fewest)
        raise PlanError(f"{_over_tasks(load, least)}; {change}")
    if shards is None:
        return fewest, min(most, finalizable), []
    if shards <= most:
        return shards, shards, []
    note = (
        f"M lowered from {shards} to {most}: cut into more, an update of {load.nbytes} bytes would "
        f"have shards under the {aws_limits.MIN_PART_BYTES} bytes that S3 wants of a part"
    )
    return most, most, [note]


def _too_large(projection: Projection) -> PlanError:
    needed, memory_mb = projection.needed_mb, projection.memory_mb
    return PlanError(
        f"an aggregator needs {math.ceil(needed)} MB and has {memory_mb}; "
        f"deploy with AggregatorMemory={_round_up(needed)}"
    )


def _finalizable(load: Workload) -> int:
    """Return the largest M of whose tasks ``finalize_round`` can read the reports."""
    return large_round_limits.MAX_TASKS // sum(map(len, load.levels))


def _over_tasks(load: Workload, shards: int, aside: str = "") -> str:
    tasks = shards * sum(map(len, load.levels))
    return (
        f"{shards} shards{aside} are {tasks} tasks, over the {large_round_limits.MAX_TASKS} of "
        "which finalize_round can read the reports in time"
    )


def _fewer_clients(load: Workload, shards: int) -> str:
    """Return the advice to average so few clients that ``shards`` are not too many tasks."""
    tasks = shards * sum(map(len, load.levels))
    # A tenth less, since the last groups of levels may be small.
    clients = load.contributors * large_round_limits.MAX_TASKS // tasks * 9 // 10
    return f"average at most {clients} clients a round"


def _too_slow(load: Workload, aggregator: LambdaConfig, projection: Projection) -> PlanError:
    most = max_shards(load.nbytes) if load.is_cut else 1
    larger = range(projection.shards + 1, most + 1)
    # The duration of a task never grows with M, so the first M that fits can be bisected.
    enough = bisect_left(larger, True, key=lambda m: _fits_in_time(project(load, m, aggregator)))
    unbounded = replace(aggregator, memory_mb=aws_limits.MB_PER_VCPU)
    finalizable = _finalizable(load)
    if enough < len(larger) and larger[enough] <= finalizable:
        change = f"ask for at least {larger[enough]} shards"
    elif _fits_in_time(project(load, min(most, finalizable), unbounded)):
        change = "deploy with more AggregatorMemory, which is processor time"
    elif enough < len(larger):
        needed = larger[enough]
        change = f"{_over_tasks(load, needed, ', which would do,')}: {_fewer_clients(load, needed)}"
    elif not load.is_cut:
        change = "take shards or grid, whose tasks are cut"
    elif load.is_disordered:
        change = "open the round with a layout, so that clients write their tensors in its order"
    else:
        change = "average fewer clients a round"
    return PlanError(
        f"a task would take {projection.task_seconds:.0f} s, over the "
        f"{aws_limits.MAX_TASK_SECONDS:.0f} s that a task may; {change}"
    )


def frontier(
    load: Workload, aggregator: LambdaConfig, *, memories: Sequence[int], shards: int | None = None
) -> list[Projection]:
    """Return the choices of memory and M for which no other is both faster and cheaper."""
    fewest, most, _ = _bounds(load, shards)
    counts = shard_counts(fewest, most)
    choices = sorted(
        (
            projection
            for sized in (replace(aggregator, memory_mb=memory_mb) for memory_mb in memories)
            for m in counts
            if (projection := project(load, m, sized)).needed_mb <= sized.memory_mb
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
    return projection.task_seconds <= aws_limits.MAX_TASK_SECONDS


def _round_up(megabytes: float) -> int:
    return max(aws_limits.MIN_MEMORY_MB, math.ceil(megabytes / 64) * 64)
