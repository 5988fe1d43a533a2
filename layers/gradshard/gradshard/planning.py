"""Cut an update into shards, and foresee what aggregating them takes.

A plan is worked out from sizes alone: this module knows nothing of AWS but the numbers in
:mod:`gradshard.limits`.
"""

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any, Final, NamedTuple

from gradshard import limits
from gradshard.dtypes import DTYPES
from gradshard.errors import PlanError
from gradshard.layout import MAX_HEADER_BYTES, Span
from gradshard.limits import MIB
from gradshard.spec import MAX_SHARDS

MAX_BLOCK_BYTES: Final = MIB
ALL_BLOCKS_BYTES: Final = 10 * MIB
"""Bytes of the blocks of all contributors together, half of what their receive buffers hold."""

SLICE_BYTES: Final = 256 * 1024
"""Bytes read at a time: small enough that numpy works on them in the processor's cache."""

CLIENT_RANGE_BYTES: Final = 16 * MIB
CLIENT_RANGES: Final = 8

UNHURRIED_SECONDS: Final = 60.0
"""The time budget when none is given, kept where it can be: the last few per cent of the price
would be paid for with minutes, and with tasks so long that no retry fits."""


def client_ranges(nbytes: int) -> list[tuple[int, int]]:
    """Return the ranges in which a client fetches the result, and sends an update in parts.

    Each is a request that is paid for; eight lose little when one has to be repeated.
    """
    size = min(max(CLIENT_RANGE_BYTES, -(-nbytes // CLIENT_RANGES)), limits.MAX_PART_BYTES)
    return [(start, min(start + size, nbytes)) for start in range(0, nbytes, size)]


def block_bytes(contributors: int) -> int:
    """Return how many bytes of each contributor are added before the next contributor's are."""
    unit = 64 * 1024
    return max(unit, min(MAX_BLOCK_BYTES, ALL_BLOCKS_BYTES // contributors // unit * unit))


def receive_buffer_bytes(contributors: int) -> int:
    """Return what the kernel may hold of each connection.

    Left alone it may grow to 6 MB, and it is the function's memory. Two blocks: while the others
    are read it fills again, and a turn seldom waits (bounded to one block, receiving took 15 %
    more CPU: see docs/performance.md).
    """
    return 2 * block_bytes(contributors)


class Shard(NamedTuple):
    """The byte range [start, end) of one task; numbered from 0."""

    number: int
    start: int
    end: int

    @property
    def part(self) -> int:
        """The part of the result's upload that it becomes; S3 numbers them from 1."""
        return self.number + 1


@dataclass(frozen=True)
class Projection:
    """What aggregating with M shards is expected to take on AWS.

    Parameters
    ----------
    shards
        M.
    memory_mb
        The aggregator's configured memory.
    needed_mb
        Peak memory of one aggregator, in MB of 1024² bytes as Lambda counts them.
    task_seconds
        Duration of one task.
    seconds
        From the last update to the finished round.
    dollars
        By what it is paid for, per round: ``lambda``, ``s3_aggregators``, ``s3_clients``,
        ``s3_round``, ``orchestration``.
    """

    shards: int
    memory_mb: int
    needed_mb: float
    task_seconds: float
    seconds: float
    dollars: dict[str, float]

    @property
    def total_dollars(self) -> float:
        """The whole round's price."""
        return sum(self.dollars.values())

    def to_json(self) -> dict[str, Any]:
        """Return the projection as JSON, the total included."""
        return {**asdict(self), "total_dollars": self.total_dollars}


def cut(spans: Sequence[Span], start: int, end: int, pieces: int) -> list[int]:
    """Cut [start, end) into nearly equal pieces on element boundaries.

    Parameters
    ----------
    spans
        The whole layout's spans.
    start, end
        Element boundaries themselves.
    pieces
        How many; at least one.

    Returns
    -------
    list of int
        ``pieces + 1`` positions, the first ``start``, the last ``end``, never falling.
    """
    positions = [start]
    for piece in range(1, pieces):
        position = start + (end - start) * piece // pieces
        span = spans[_span_at(spans, position)]
        size = DTYPES[span.dtype].size
        positions.append(span.start + (position - span.start) // size * size)
    positions.append(end)
    return positions


def min_shards(nbytes: int) -> int:
    """Return the smallest M whose parts stay within S3's 5 GiB."""
    # The first part carries the header, too.
    return -(-nbytes // (limits.MAX_PART_BYTES - MAX_HEADER_BYTES - limits.MIB))


def max_shards(nbytes: int) -> int:
    """Return the largest M whose parts all reach S3's 5 MiB."""
    # A cut moves by less than an element, so a shard may come out that much smaller.
    largest_element = max(dtype.size for dtype in DTYPES.values())
    return max(1, min(MAX_SHARDS, nbytes // (limits.MIN_PART_BYTES + largest_element)))


def cut_shards(spans: Sequence[Span], nbytes: int, shards: int) -> list[Shard]:
    """Cut a layout into M shards, each one part of the result's upload."""
    positions = cut(spans, 0, nbytes, shards)
    return [
        Shard(number, start, end)
        for number, (start, end) in enumerate(itertools.pairwise(positions))
    ]


def clip(spans: Sequence[Span], start: int, end: int) -> Iterator[Span]:
    """Yield the parts of ``spans`` that lie in [start, end)."""
    for index in range(_span_at(spans, start), len(spans)):
        span = spans[index]
        if span.start >= end:
            return
        yield Span(span.dtype, max(span.start, start), min(span.end, end))


RESIDENT_MB: Final = 40.0
"""Measured, x86-64: the handler imported, with numpy, TLS and Powertools, 37.5."""

RUNTIME_MB: Final = 12.0
"""Lambda's own runtime client beside it; measured in its container."""

STREAM_BYTES: Final = 192 * 1024
"""Of a connection beside its receive buffer: its objects and OpenSSL's state and buffers."""

PLAN_FACTOR: Final = 8
"""Memory of the parsed plan, over the size of its JSON."""

WIDENING: Final = 8
"""An element grows at most this much in its accumulator: 1-byte integers sum in float64."""


def project_memory(contributors: int, plan_bytes: int = 0) -> float:
    """Return the peak memory of one aggregator in MB, as an upper bound.

    projected = resident + runtime + block + scratch + streams + plan, where

    - *block*, *scratch*: in the accumulator's type, up to eight times the element's size, and the
      bytes read and written;
    - *streams*: a connection per contributor, with the kernel's receive buffer, which takes
      twice what is asked for (socket(7));
    - *plan*: the parsed plan, which grows with the number of runs.

    Neither the update's size nor M is in it.
    """
    block = block_bytes(contributors)
    arithmetic = SLICE_BYTES + block + WIDENING * (block + SLICE_BYTES)
    streams = (contributors + 1) * STREAM_BYTES
    streams += 2 * contributors * receive_buffer_bytes(contributors)
    buffers = arithmetic + streams + PLAN_FACTOR * plan_bytes
    return RESIDENT_MB + RUNTIME_MB + buffers / limits.MIB


def project(
    nbytes: int,
    contributors: int,
    shards: int,
    *,
    memory_mb: int,
    architecture: str,
    plan_bytes: int = 0,
) -> Projection:
    """Foresee one aggregation.

    Parameters
    ----------
    nbytes
        Size of an update's tensors.
    contributors
        Number of updates.
    shards
        M.
    memory_mb
        The aggregator's configured memory, which is also its share of a processor.
    architecture
        ``arm64`` or ``x86_64``; decides the price.
    plan_bytes
        Size of the plan's JSON, read by every task.
    """
    read_bytes = contributors * nbytes / shards
    task_seconds = limits.TASK_START_SECONDS + max(
        _network_seconds(read_bytes),
        limits.CPU_SECONDS_PER_GB * read_bytes / 1e9 / min(1.0, memory_mb / limits.MB_PER_VCPU),
    )
    small_invocations = contributors + 3
    client_parts = len(client_ranges(nbytes))
    gb_seconds = (
        shards * task_seconds * memory_mb / 1024
        + contributors * limits.COLLECT_GB_SECONDS
        + limits.ROUND_GB_SECONDS
    )
    dollars = {
        "lambda": gb_seconds * limits.DOLLARS_PER_GB_SECOND[architecture]
        + (shards + small_invocations) * limits.DOLLARS_PER_INVOCATION,
        # A task reads the plan and every contributor, and writes its part and its report.
        "s3_aggregators": shards * (contributors + 1) * limits.DOLLARS_PER_GET
        + shards * 2 * limits.DOLLARS_PER_PUT,
        # Each client uploads its update and fetches the result.
        "s3_clients": contributors
        * (
            (client_parts + (3 if client_parts > 1 else 0)) * limits.DOLLARS_PER_PUT
            + client_parts * limits.DOLLARS_PER_GET
        ),
        # An arrival is five reads and a listing; planning reads each header again.
        "s3_round": contributors * (6 * limits.DOLLARS_PER_GET + limits.DOLLARS_PER_PUT)
        + shards * limits.DOLLARS_PER_GET
        + 8 * limits.DOLLARS_PER_PUT,
        "orchestration": (limits.ROUND_TRANSITIONS + shards) * limits.DOLLARS_PER_TRANSITION
        + shards * limits.DOLLARS_PER_EXPRESS_REQUEST
        + shards * task_seconds * limits.EXPRESS_MEMORY_GB * limits.DOLLARS_PER_EXPRESS_GB_SECOND,
    }
    return Projection(
        shards=shards,
        memory_mb=memory_mb,
        needed_mb=project_memory(contributors, plan_bytes),
        task_seconds=task_seconds,
        seconds=task_seconds + limits.ROUND_OVERHEAD_SECONDS,
        dollars=dollars,
    )


def choose(
    nbytes: int,
    contributors: int,
    *,
    memory_mb: int,
    architecture: str,
    shards: int | None = None,
    within: float | None = None,
    plan_bytes: int = 0,
) -> tuple[Projection, list[str]]:
    """Choose M: the one asked for, or the cheapest that meets the time budget.

    Parameters
    ----------
    nbytes, contributors, memory_mb, architecture, plan_bytes
        As for :func:`project`.
    shards
        M, if it is given.
    within
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
    fewest, most, notes = _bounds(nbytes, shards)
    needed = project_memory(contributors, plan_bytes)
    if needed > memory_mb:
        raise PlanError(
            f"an aggregator needs {needed:.0f} MB and has {memory_mb}; "
            f"deploy with AggregatorMemory={_round_up(needed)}"
        )

    def projected(m: int) -> Projection:
        return project(
            nbytes,
            contributors,
            m,
            memory_mb=memory_mb,
            architecture=architecture,
            plan_bytes=plan_bytes,
        )

    candidates = [projected(m) for m in range(fewest, most + 1)]
    quick = [p for p in candidates if _fits_in_time(p)]
    if not quick:
        larger = map(projected, range(fewest, max_shards(nbytes) + 1))
        raise _too_slow(
            candidates[-1], nbytes, contributors, next(filter(_fits_in_time, larger), None)
        )
    budget = UNHURRIED_SECONDS if within is None else within
    in_time = [p for p in quick if p.seconds <= budget]
    if not in_time and within is not None:
        fastest = min(quick, key=lambda p: p.seconds)
        raise PlanError(
            f"no M aggregates within {within:g} s: the fastest, M={fastest.shards} at "
            f"{memory_mb} MB, takes {fastest.seconds:.1f} s; allow that, or deploy with more "
            "AggregatorMemory"
        )
    return min(in_time or quick, key=lambda p: (p.total_dollars, p.shards)), notes


def _bounds(nbytes: int, shards: int | None) -> tuple[int, int, list[str]]:
    """Return the least and the largest M to consider, and what was changed to get there."""
    fewest, most = min_shards(nbytes), max_shards(nbytes)
    if fewest > most or (shards is not None and shards < fewest):
        change = "ask for that many" if fewest <= most else f"a round takes at most {most}"
        raise PlanError(
            f"an update of {nbytes} bytes takes at least {fewest} shards, since S3 takes at most "
            f"{limits.MAX_PART_BYTES} bytes in a part; {change}"
        )
    if shards is None:
        return fewest, most, []
    if shards <= most:
        return shards, shards, []
    note = (
        f"M lowered from {shards} to {most}: cut into more, an update of {nbytes} bytes would have "
        f"shards under the {limits.MIN_PART_BYTES} bytes that S3 wants of a part"
    )
    return most, most, [note]


def _too_slow(
    projection: Projection, nbytes: int, contributors: int, quicker: Projection | None
) -> PlanError:
    if quicker:
        change = f"ask for at least {quicker.shards} shards"
    elif _network_seconds(contributors * nbytes / max_shards(nbytes)) < limits.MAX_TASK_SECONDS:
        change = "deploy with more AggregatorMemory, which is processor time"
    else:
        change = "average fewer clients a round"
    return PlanError(
        f"a task would take {projection.task_seconds:.0f} s, over the "
        f"{limits.MAX_TASK_SECONDS:.0f} s that a task may; {change}"
    )


def frontier(
    nbytes: int,
    contributors: int,
    *,
    architecture: str,
    memories: Sequence[int],
    shards: int | None = None,
) -> list[Projection]:
    """Return the choices of memory and M that no other beats on both seconds and dollars."""
    most = max_shards(nbytes)
    choices = sorted(
        (
            projection
            for memory_mb in memories
            for m in ([min(shards, most)] if shards else range(1, most + 1))
            if (
                projection := project(
                    nbytes, contributors, m, memory_mb=memory_mb, architecture=architecture
                )
            ).needed_mb
            <= memory_mb
            and projection.task_seconds <= limits.MAX_TASK_SECONDS
        ),
        key=lambda p: (p.seconds, p.total_dollars),
    )
    best: list[Projection] = []
    for projection in choices:
        if not best or projection.total_dollars < best[-1].total_dollars:
            best.append(projection)
    return best


def _span_at(spans: Sequence[Span], position: int) -> int:
    return bisect_right(spans, position, key=attrgetter("start")) - 1


def _fits_in_time(projection: Projection) -> bool:
    return projection.task_seconds <= limits.MAX_TASK_SECONDS


def _network_seconds(nbytes: float) -> float:
    burst = min(nbytes, limits.BURST_BYTES)
    return (
        burst / limits.BURST_BYTES_PER_SECOND + (nbytes - burst) / limits.SUSTAINED_BYTES_PER_SECOND
    )


def _round_up(megabytes: float) -> int:
    return max(limits.MIN_MEMORY_MB, -(-int(megabytes + 1) // 64) * 64)
