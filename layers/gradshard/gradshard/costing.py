r"""What a round costs on AWS, by system: gradshard's shards beside the published systems.

Pure arithmetic over :mod:`gradshard.limits` and :mod:`gradshard.published`. For functions f of a
system, with m_f MB and t_f seconds each,

    lambda          = Σ_f m_f/1024 · t_f · dollars per GB-second
    s3_aggregators  = GETs · dollars per GET + PUTs · dollars per PUT, of the functions
    s3_clients      = the same, of uploading the updates and fetching the result
    requests        = invocations · dollars per invocation
    step_functions  = transitions, Express requests and Express GB-seconds
    round           = Lambda and S3 of opening, collecting, planning, finalizing

The first two are the paper's ``agg`` column, the first three its ``full`` column; it counts none
of the others. They are counted here as if gradshard's state machine ran every system.

Time: a function that reads r bytes in g GETs takes

    t_f = start + g·latency + max(network(r), CPU per byte · r / share of a processor)

and, where whole results are held and written after they are finished, latency + network(written)
on top. A level takes as long as its slowest function, a system as long as its levels together.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from gradshard import limits, planning, published
from gradshard.errors import PlanError
from gradshard.limits import MIB
from gradshard.published import Measurement

CLIENT_PART_BYTES: Final = 16 * MIB
"""The client library's parts, up and down: :data:`gradshard.uploads.PART_BYTES`."""

MAX_PUT_BYTES: Final = 5 * 1024 * MIB
"""S3's limit of one PUT, https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html"""


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
"""As measured in the paper: the middle of 44 to 57 MiB/s. The latency is assumed: S3's tens of
milliseconds, which show where a function reads twenty small objects one after another."""


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
    parts
        Whether clients upload and fetch in parts of 16 MiB, as the client library does, rather
        than with one request.
    """

    clients: int = published.CLIENTS
    bandwidth: Bandwidth = BURST
    architecture: str = "arm64"
    memory_mb: int = 256
    shards: int | None = None
    within: float | None = None
    parts: bool = False

    @property
    def gb_second(self) -> float:
        """Dollars."""
        return limits.DOLLARS_PER_GB_SECOND[self.architecture]


@dataclass(frozen=True)
class Bill:
    """Dollars of one round, by what they are paid for; see the module."""

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
        Its name in :data:`SYSTEMS`.
    nbytes
        Size of an update's tensors.
    shards
        M; 1 for trees.
    tasks
        Functions, over all levels.
    memory_mb
        Of each function.
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
    seconds: float
    gb_seconds: float
    gets: int
    puts: int
    bill: Bill

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as JSON."""
        return asdict(self) | {"bill": self.bill.to_json()}


def shards(nbytes: int, setting: Setting) -> Estimate:
    """Foresee gradshard's own round: :func:`gradshard.planning.project` at any bandwidth.

    With M not given, the cheapest that meets the time budget, as the planner chooses.

    Raises
    ------
    PlanError
        Nothing fits.
    """
    most = planning.max_shards(nbytes)
    if setting.shards is not None:
        estimate = _shards(nbytes, min(setting.shards, most), setting)
        if estimate is None:
            raise PlanError(
                f"M={setting.shards} does not fit in {setting.memory_mb} MB "
                f"and {limits.MAX_TASK_SECONDS:.0f} s a task"
            )
        return estimate
    fitting = [e for m in range(1, most + 1) if (e := _shards(nbytes, m, setting)) is not None]
    if not fitting:
        raise PlanError(
            f"no M averages updates of {nbytes} bytes in {setting.memory_mb} MB "
            f"and {limits.MAX_TASK_SECONDS:.0f} s a task"
        )
    budget = planning.UNHURRIED_SECONDS if setting.within is None else setting.within
    quick = [e for e in fitting if e.seconds <= budget]
    if not quick and setting.within is not None:
        fastest = min(e.seconds for e in fitting)
        raise PlanError(f"no M takes at most {budget:g} s: the fastest takes {fastest:.1f} s")
    return min(quick or fitting, key=lambda e: (e.bill.total, e.shards))


def _shards(nbytes: int, m: int, setting: Setting) -> Estimate | None:
    """Correct the planner's projection for another bandwidth; None where it does not fit."""
    projected = planning.project(
        nbytes,
        setting.clients,
        m,
        memory_mb=setting.memory_mb,
        architecture=setting.architecture,
    )
    # The streams are opened side by side: one latency.
    seconds = streamed_seconds(setting.clients * nbytes / m, setting.memory_mb, setting)
    if projected.needed_mb > setting.memory_mb or seconds > limits.MAX_TASK_SECONDS:
        return None
    gb_seconds = m * seconds * setting.memory_mb / 1024
    projected_gb_seconds = m * projected.task_seconds * setting.memory_mb / 1024
    requests = _request_fee(m, setting)
    dollars = projected.dollars
    parts = max(1, nbytes // m // planning.part_bytes(nbytes))
    return Estimate(
        "shards",
        nbytes,
        m,
        m,
        setting.memory_mb,
        projected.seconds + seconds - projected.task_seconds,
        gb_seconds,
        gets=m * (setting.clients + 1),
        puts=m * (parts + 1),
        bill=Bill(
            gb_seconds * setting.gb_second,
            dollars["s3_aggregators"],
            _client_dollars(nbytes, setting) if setting.parts else dollars["s3_clients"],
            requests,
            dollars["orchestration"] + _express_dollars(m, seconds - projected.task_seconds),
            # Of the Lambda dollars, what neither tasks nor requests are: the small functions.
            dollars["lambda"]
            - projected_gb_seconds * setting.gb_second
            - requests
            + dollars["s3_round"],
        ),
    )


def gradssharding(nbytes: int, setting: Setting) -> Estimate:
    """Foresee GradsSharding as published: N·M objects, M functions that hold whole shards.

    M, when it is not given, is the smallest of 4, 8, 16 … whose functions stay within the 3,008 MB
    of the paper's account, which gives the M that it used.
    """
    m = setting.shards or 4
    while not setting.shards and whole_memory_mb(nbytes / m) > published.ACCOUNT_MEMORY_MB:
        m *= 2
    whole = _Whole(nbytes / m, whole_memory_mb(nbytes / m), setting)
    estimate = whole.estimate("gradssharding", nbytes, [[setting.clients] * m])
    requests = setting.clients * m
    clients = requests * (limits.DOLLARS_PER_PUT + limits.DOLLARS_PER_GET)
    return replace(estimate, shards=m, bill=replace(estimate.bill, s3_clients=clients))


def lambda_fl(nbytes: int, setting: Setting) -> Estimate:
    """Foresee λ-FL as published: functions that hold whole updates."""
    whole = _Whole(nbytes, whole_memory_mb(nbytes), setting)
    return whole.estimate("lambda_fl", nbytes, lambda_fl_levels(setting.clients))


def lifl(nbytes: int, setting: Setting) -> Estimate:
    """Foresee LIFL as the paper ran it: its hierarchy, in functions that hold whole updates."""
    whole = _Whole(nbytes, whole_memory_mb(nbytes), setting)
    return whole.estimate("lifl", nbytes, lifl_levels(setting.clients))


def lambda_fl_streamed(nbytes: int, setting: Setting) -> Estimate:
    """Foresee λ-FL's tree in gradshard's streaming tasks."""
    return _streamed("lambda_fl_streamed", nbytes, lambda_fl_levels(setting.clients), setting)


def lifl_streamed(nbytes: int, setting: Setting) -> Estimate:
    """Foresee LIFL's tree in gradshard's streaming tasks."""
    return _streamed("lifl_streamed", nbytes, lifl_levels(setting.clients), setting)


SYSTEMS: Final[dict[str, Callable[[int, Setting], Estimate]]] = {
    "shards": shards,
    "gradssharding": gradssharding,
    "lambda_fl": lambda_fl,
    "lifl": lifl,
    "lambda_fl_streamed": lambda_fl_streamed,
    "lifl_streamed": lifl_streamed,
}

TITLES: Final = {
    "shards": "gradshard shards",
    "gradssharding": "GradsSharding",
    "lambda_fl": "λ-FL",
    "lifl": "LIFL",
    "lambda_fl_streamed": "λ-FL, streamed",
    "lifl_streamed": "LIFL, streamed",
}


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


def whole_memory_mb(nbytes: float) -> int:
    """Return the memory of a published function that holds inputs of ``nbytes``."""
    return math.ceil(published.COPIES_HELD * nbytes / MIB + published.FUNCTION_OVERHEAD_MB)


def streamed_seconds(nbytes: float, memory_mb: int, setting: Setting) -> float:
    """Return the seconds of a task that reads ``nbytes`` over connections opened side by side."""
    return (
        limits.TASK_START_SECONDS
        + setting.bandwidth.latency_seconds
        + _reading_seconds(nbytes, memory_mb, setting)
    )


def published_bill(measurement: Measurement) -> Bill:
    """Return the dollars of what was measured, from its seconds and memory.

    The paper bills each function for its own seconds, not for the wall clock's: waiting for the
    slowest costs nothing. Memory counts in 1024ths of a GB.
    """
    gb_seconds = sum(
        level.functions * level.mean_seconds * measurement.memory_mb / 1024
        for level in measurement.levels
    )
    tasks = [level.functions for level in measurement.levels]
    if measurement.system == "gradssharding":
        gets, client_requests = published.CLIENTS * tasks[0], published.CLIENTS * tasks[0]
    else:
        # Every level but the first reads what the one below it wrote.
        gets, client_requests = published.CLIENTS + sum(tasks[:-1]), published.CLIENTS
    return Bill(
        gb_seconds * limits.DOLLARS_PER_GB_SECOND[published.ARCHITECTURE],
        gets * limits.DOLLARS_PER_GET + sum(tasks) * limits.DOLLARS_PER_PUT,
        client_requests * (limits.DOLLARS_PER_PUT + limits.DOLLARS_PER_GET),
    )


def published_estimate(measurement: Measurement) -> Estimate:
    """Return the model's own answer for what was measured: its time, memory and dollars."""
    setting = Setting(
        bandwidth=PUBLISHED,
        architecture=published.ARCHITECTURE,
        shards=measurement.model.shards if measurement.system == "gradssharding" else None,
    )
    return SYSTEMS[measurement.system](measurement.model.nbytes, setting)


@dataclass(frozen=True)
class _Whole:
    """A published function: reads one input after another, writes the result when it has it."""

    input_bytes: float
    memory_mb: int
    setting: Setting

    def estimate(self, system: str, nbytes: int, levels: Sequence[Sequence[int]]) -> Estimate:
        if self.memory_mb > limits.MAX_MEMORY_MB:
            raise PlanError(
                f"{TITLES[system]} holds inputs of {self.input_bytes / MIB:.0f} MB and needs "
                f"{self.memory_mb} MB a function, over Lambda's {limits.MAX_MEMORY_MB}"
            )
        seconds = [[self._seconds(fan_in) for fan_in in level] for level in levels]
        longest = max(max(level) for level in seconds)
        if longest > published.TIMEOUT_SECONDS:
            raise PlanError(
                f"a function of {TITLES[system]} would take {longest:.0f} s, over Lambda's "
                f"{published.TIMEOUT_SECONDS:.0f}"
            )
        return _estimate(
            system,
            nbytes,
            self.memory_mb,
            seconds,
            gets=sum(map(sum, levels)),
            puts=sum(map(len, levels)),
            setting=self.setting,
        )

    def _seconds(self, fan_in: int) -> float:
        bandwidth = self.setting.bandwidth
        return (
            limits.TASK_START_SECONDS
            + (fan_in + 1) * bandwidth.latency_seconds
            + _reading_seconds(fan_in * self.input_bytes, self.memory_mb, self.setting)
            + bandwidth.seconds(self.input_bytes)
        )


def _streamed(
    system: str, nbytes: int, levels: Sequence[Sequence[int]], setting: Setting
) -> Estimate:
    memory_mb = setting.memory_mb
    needed = max(planning.project_memory(nbytes, 1, fan_in) for fan_in in levels[0])
    seconds = [
        [streamed_seconds(fan_in * nbytes, memory_mb, setting) for fan_in in level]
        for level in levels
    ]
    longest = max(max(level) for level in seconds)
    if needed > memory_mb or longest > published.TIMEOUT_SECONDS:
        raise PlanError(
            f"a task of {TITLES[system]} needs {needed:.0f} MB and {longest:.0f} s; there are "
            f"{memory_mb} MB and {published.TIMEOUT_SECONDS:.0f} s"
        )
    tasks = sum(map(len, levels))
    parts = max(1, nbytes // planning.part_bytes(nbytes))
    return _estimate(
        system,
        nbytes,
        memory_mb,
        seconds,
        # Each task reads the plan too.
        gets=sum(map(sum, levels)) + tasks,
        # A report each; a partial sum is an upload of its own, begun and completed.
        puts=tasks * (parts + 1) + 2 * (tasks - 1),
        setting=setting,
    )


def _estimate(
    system: str,
    nbytes: int,
    memory_mb: int,
    seconds: Sequence[Sequence[float]],
    *,
    gets: int,
    puts: int,
    setting: Setting,
) -> Estimate:
    tasks = sum(map(len, seconds))
    task_seconds = sum(map(sum, seconds))
    gb_seconds = task_seconds * memory_mb / 1024
    # A Map more for each further level, and a state that goes to it.
    transitions = limits.ROUND_TRANSITIONS + 2 * (len(seconds) - 1) + tasks
    return Estimate(
        system,
        nbytes,
        1,
        tasks,
        memory_mb,
        sum(max(level) for level in seconds) + limits.ROUND_OVERHEAD_SECONDS,
        gb_seconds,
        gets,
        puts,
        Bill(
            gb_seconds * setting.gb_second,
            gets * limits.DOLLARS_PER_GET + puts * limits.DOLLARS_PER_PUT,
            _client_dollars(nbytes, setting),
            _request_fee(tasks, setting),
            transitions * limits.DOLLARS_PER_TRANSITION
            + tasks * limits.DOLLARS_PER_EXPRESS_REQUEST
            + _express_dollars(1, task_seconds),
            _around(tasks, setting),
        ),
    )


def _reading_seconds(nbytes: float, memory_mb: int, setting: Setting) -> float:
    processor = min(1.0, memory_mb / limits.MB_PER_VCPU)
    return max(
        setting.bandwidth.seconds(nbytes), limits.CPU_SECONDS_PER_GB * nbytes / 1e9 / processor
    )


def _small_invocations(setting: Setting) -> int:
    return setting.clients + 3


def _request_fee(tasks: int, setting: Setting) -> float:
    return (tasks + _small_invocations(setting)) * limits.DOLLARS_PER_INVOCATION


def _express_dollars(tasks: int, seconds: float) -> float:
    return tasks * seconds * limits.EXPRESS_MEMORY_GB * limits.DOLLARS_PER_EXPRESS_GB_SECOND


def _around(tasks: int, setting: Setting) -> float:
    """Return what gradshard pays around as many tasks."""
    around = planning.project(
        limits.MIB,
        setting.clients,
        tasks,
        memory_mb=setting.memory_mb,
        architecture=setting.architecture,
    )
    small = (
        _small_invocations(setting) * limits.SMALL_FUNCTION_GB_SECONDS * setting.gb_second
    )
    return small + around.dollars["s3_round"]


def _client_dollars(nbytes: int, setting: Setting) -> float:
    """Return what the clients' S3 requests cost: an upload and a fetch each."""
    puts = gets = 1
    if setting.parts and nbytes >= CLIENT_PART_BYTES:
        gets = math.ceil(nbytes / CLIENT_PART_BYTES)
        # Looking for an interrupted upload, beginning one, the parts, completing it.
        puts = gets + 3
    elif nbytes > MAX_PUT_BYTES:
        puts = math.ceil(nbytes / MAX_PUT_BYTES) + 2
    return setting.clients * (puts * limits.DOLLARS_PER_PUT + gets * limits.DOLLARS_PER_GET)
