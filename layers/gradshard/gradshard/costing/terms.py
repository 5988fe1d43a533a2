"""What every system's price is made of: a setting, tasks with their seconds, a bill."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, NamedTuple

from gradshard import limits, planning
from gradshard.costing import published

TITLES: Final = {
    "shards": "gradshard shards",
    "gradssharding": "GradsSharding",
    "lambda_fl": "λ-FL",
    "lifl": "LIFL",
    "lambda_fl_streamed": "λ-FL, streamed",
    "lifl_streamed": "LIFL, streamed",
}


@dataclass(frozen=True)
class Bandwidth:
    """How fast a function reads or writes S3.

    Parameters
    ----------
    name
        For people.
    bytes_per_second
        Sustained.
    latency_seconds
        From a request to its first byte.
    burst_bytes, burst_bytes_per_second
        What goes faster at first, and how fast.
    """

    name: str
    bytes_per_second: float
    latency_seconds: float = 0.0
    burst_bytes: float = 0.0
    burst_bytes_per_second: float = math.inf

    def seconds(self, nbytes: float) -> float:
        """Return the seconds that ``nbytes`` take, latency aside."""
        burst = min(nbytes, self.burst_bytes)
        return burst / self.burst_bytes_per_second + (nbytes - burst) / self.bytes_per_second

    def scaled(self, factor: float) -> "Bandwidth":
        """Return the same, ``factor`` times as fast in bytes per second."""
        return replace(
            self,
            name=f"{self.name} {factor - 1:+.0%}" if factor != 1 else self.name,
            bytes_per_second=self.bytes_per_second * factor,
            burst_bytes_per_second=self.burst_bytes_per_second * factor,
        )


BURST: Final = Bandwidth(
    "burst",
    limits.SUSTAINED_BYTES_PER_SECOND,
    burst_bytes=limits.BURST_BYTES,
    burst_bytes_per_second=limits.BURST_BYTES_PER_SECOND,
)
"""The planner's: sustained after a burst."""

PUBLISHED: Final = Bandwidth(
    "published",
    (published.SLOWEST_READ_BYTES_PER_SECOND + published.FASTEST_READ_BYTES_PER_SECOND) / 2,
    latency_seconds=0.05,
)
"""As measured in the paper: the middle of 44 to 57 MiB/s. The latency is assumed, S3's tens of
milliseconds, with the published cells in view: it shows where a function reads twenty small objects
one after another, ResNet-18's shards, and hardly elsewhere."""


@dataclass(frozen=True)
class Setting:
    """What the systems are compared under.

    Parameters
    ----------
    clients
        N.
    bandwidth
        Of every function, whatever the system.
    architecture
        ``arm64`` or ``x86_64``; decides the price.
    memory_mb
        Of gradshard's aggregators; the published systems follow their own rule.
    shards
        M; None for each system's own choice.
    within
        Time budget of gradshard's own choice of M; None for the planner's.
    batched
        Not how it is: an Express child runs up to 40 tasks in an inline Map, so that children are
        charged by the forty.
    """

    clients: int = published.CLIENTS
    bandwidth: Bandwidth = BURST
    architecture: str = "arm64"
    memory_mb: int = limits.MIN_MEMORY_MB
    shards: int | None = None
    within: float | None = None
    batched: bool = False

    @property
    def gb_second(self) -> float:
        """Dollars."""
        return limits.DOLLARS_PER_GB_SECOND[self.architecture]

    def reading_seconds(self, nbytes: float, memory_mb: int) -> float:
        """Return the seconds in which a function receives and adds ``nbytes``, latency aside."""
        processor = min(1.0, memory_mb / limits.MB_PER_VCPU)
        cpu_seconds = limits.CPU_SECONDS_PER_GB * nbytes / 1e9
        return max(self.bandwidth.seconds(nbytes), cpu_seconds / processor)


@dataclass(frozen=True)
class Bill:
    """Dollars of one round, by what they are paid for; see :mod:`gradshard.costing`."""

    lambda_: float
    s3_aggregators: float
    s3_clients: float
    requests: float = 0.0
    step_functions: float = 0.0
    round_: float = 0.0

    @property
    def aggregators(self) -> float:
        """The paper's ``agg``: Lambda and the aggregators' S3 requests."""
        return self.lambda_ + self.s3_aggregators

    @property
    def full(self) -> float:
        """The paper's ``full``: with the clients' S3 requests."""
        return self.aggregators + self.s3_clients

    @property
    def total(self) -> float:
        """Everything."""
        return self.full + self.requests + self.step_functions + self.round_

    def minus(self, other: "Bill") -> "Bill":
        """Return the difference, part by part."""
        return Bill(
            *(getattr(self, part.name) - getattr(other, part.name) for part in fields(self))
        )

    def to_json(self) -> dict[str, float]:
        """Return the parts and the three sums."""
        parts = {name.rstrip("_"): value for name, value in asdict(self).items()}
        return parts | {"agg": self.aggregators, "full": self.full, "total": self.total}


@dataclass(frozen=True)
class Estimate:
    """What a round is expected to take.

    Parameters
    ----------
    system
        Its name in :data:`gradshard.costing.SYSTEMS`.
    nbytes
        Size of an update's tensors.
    shards
        M; 1 for trees.
    tasks
        Functions, over all levels.
    memory_mb
        Of each function.
    task_seconds
        Of the longest task.
    seconds
        Of the aggregation: one level after another.
    gb_seconds
        Of the aggregators.
    gets, puts
        S3 requests of the aggregators.
    bill
        Dollars.
    """

    system: str
    nbytes: int
    shards: int
    tasks: int
    memory_mb: int
    task_seconds: float
    seconds: float
    gb_seconds: float
    gets: int
    puts: int
    bill: Bill

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as JSON."""
        return asdict(self) | {"bill": self.bill.to_json()}


class Tasks(NamedTuple):
    """As many tasks side by side that take as long."""

    number: int
    seconds: float


Level = Sequence[Tasks]
"""What runs side by side."""


def groups(inputs: int, fan_in: int) -> list[int]:
    """Return the sizes of consecutive groups of ``fan_in``, the last one of the rest."""
    full, rest = divmod(inputs, fan_in)
    return [fan_in] * full + ([rest] if rest else [])


def lambda_fl_levels(clients: int) -> list[list[int]]:
    """Return what each function reads, level by level: leaves of k = ⌈√N⌉, then a root."""
    leaves = groups(clients, math.isqrt(clients - 1) + 1)
    return [leaves, [len(leaves)]]


def lifl_levels(clients: int) -> list[list[int]]:
    """Return what each function reads: leaves and middles of b = max(2, ⌈N^⅓⌉), then the top."""
    b = 2
    while b**3 < clients:
        b += 1
    leaves = groups(clients, b)
    middles = groups(len(leaves), b)
    return [leaves, middles, [len(middles)]]


def price(
    system: str,
    nbytes: int,
    setting: Setting,
    levels: Sequence[Level],
    *,
    memory_mb: int,
    gets: int,
    puts: int,
    shards: int = 1,
    client_requests: int | None = None,
) -> Estimate:
    """Add up what functions of known seconds cost, and the round around them.

    Parameters
    ----------
    system, nbytes, shards
        As in the estimate.
    setting
        The prices.
    levels
        The functions, one level after another.
    memory_mb
        Of each function.
    gets, puts
        S3 requests of the functions.
    client_requests
        PUTs, and as many GETs, of all clients together; None for what gradshard's clients make.
    """
    tasks = sum(run.number for level in levels for run in level)
    gb_seconds = memory_mb / 1024 * sum(run.number * run.seconds for lvl in levels for run in lvl)
    # Bandwidth and functions' memory are not in the dollars that are taken from the planner.
    planned = planning.project(
        nbytes,
        setting.clients,
        tasks,
        memory_mb=setting.memory_mb,
        architecture=setting.architecture,
    ).dollars
    small_gb_seconds = setting.clients * limits.COLLECT_GB_SECONDS + limits.ROUND_GB_SECONDS
    return Estimate(
        system,
        nbytes,
        shards,
        tasks,
        memory_mb,
        max(run.seconds for level in levels for run in level),
        sum(max(run.seconds for run in level) for level in levels) + limits.ROUND_OVERHEAD_SECONDS,
        gb_seconds,
        gets,
        puts,
        Bill(
            gb_seconds * setting.gb_second,
            gets * limits.DOLLARS_PER_GET + puts * limits.DOLLARS_PER_PUT,
            planned["s3_clients"]
            if client_requests is None
            else client_requests * (limits.DOLLARS_PER_PUT + limits.DOLLARS_PER_GET),
            (tasks + setting.clients + 3) * limits.DOLLARS_PER_INVOCATION,
            _step_functions(levels, setting),
            small_gb_seconds * setting.gb_second + planned["s3_round"],
        ),
    )


def _step_functions(levels: Sequence[Level], setting: Setting) -> float:
    children = [run for level in levels for run in (_batches(level) if setting.batched else level)]
    started = sum(run.number for run in children)
    # A Map more for each further level, and a state that goes to it.
    transitions = limits.ROUND_TRANSITIONS + 2 * (len(levels) - 1) + started
    return (
        transitions * limits.DOLLARS_PER_TRANSITION
        + started * limits.DOLLARS_PER_EXPRESS_REQUEST
        + sum(run.number * run.seconds for run in children)
        * limits.EXPRESS_MEMORY_GB
        * limits.DOLLARS_PER_EXPRESS_GB_SECOND
    )


def _batches(level: Level) -> Level:
    """Return the children of a level by the forty; each is given the slowest task's seconds."""
    tasks = sum(run.number for run in level)
    return [
        Tasks(-(-tasks // limits.INLINE_ITERATIONS), max(run.seconds for run in level)),
    ]
