"""Project the time, the requests and the price of an aggregation."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gradshard_core.costs import assumed_speeds, large_round_limits, round_cost
from gradshard_core.costs.lambda_config import LambdaConfig
from gradshard_core.costs.memory_projection import needed_memory
from gradshard_core.costs.request_counts import Requests
from gradshard_core.costs.round_cost import Bill, Tasks
from gradshard_core.costs.workload import Workload
from gradshard_core.s3.client_transfers import SINGLE_PUT_BYTES, client_ranges, download_ranges


@dataclass(frozen=True)
class Projection:
    """The expected time, requests and price of an aggregation with M shards on AWS.

    Parameters
    ----------
    shards
        M.
    tasks
        The number of tasks of all levels.
    memory_mb
        The aggregator's configured memory.
    needed_mb
        Peak memory of one aggregator, in MB of 1024² bytes as Lambda counts them.
    task_seconds
        Duration of the longest task.
    seconds
        Duration from the last update to the finished round.
    gb_seconds
        GB-seconds of the tasks.
    requests
        S3 requests of the tasks.
    bill
        The round's price in dollars, by what is paid for.
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


# A planner asks for the same round with every M.
@lru_cache(maxsize=16)
def client_requests(nbytes: int, sent: int | None = None) -> Requests:
    """Return the S3 requests of a client that sends its update and downloads the average.

    Parameters
    ----------
    nbytes
        Size of the average.
    sent
        Size of the update, if it is another one.
    """
    sent = nbytes if sent is None else sent
    # An upload in parts is created, completed, and listed to find parts of an earlier try.
    puts = 1 if sent <= SINGLE_PUT_BYTES else len(client_ranges(sent)) + 3
    return Requests(gets=len(download_ranges(nbytes)), puts=puts)


def project(load: Workload, shards: int, aggregator: LambdaConfig) -> Projection:
    """Project one aggregation with M shards."""
    levels = [
        [
            Tasks(shards * number, _task_seconds(load, shards, aggregator, level, fan_in))
            for fan_in, number in fan_ins.items()
        ]
        for level, fan_ins in enumerate(load.fan_ins)
    ]
    measuring = [*_surveying(load, aggregator), *_measuring(load, shards, aggregator)]
    passes = [*measuring, *levels]
    longest = [max(tasks.seconds for tasks in level) for level in passes]
    seconds = sum(
        seconds * aggregator.waves(sum(tasks.number for tasks in level))
        for seconds, level in zip(longest, passes, strict=True)
    )
    gb = aggregator.memory_mb / 1024
    # After a pass before and after the last level, the reports of all tasks since are read.
    numbers = [[tasks.number for tasks in level] for level in passes]
    reported = [*map(sum, numbers[: len(measuring)]), sum(map(sum, numbers[len(measuring) :]))]
    requests = _requests(load, shards)
    by_client = client_requests(load.nbytes, round(load.update_bytes))
    return Projection(
        shards=shards,
        tasks=_task_count(load, shards),
        memory_mb=aggregator.memory_mb,
        needed_mb=needed_memory(load),
        task_seconds=max(longest),
        seconds=seconds
        + assumed_speeds.ROUND_OVERHEAD_SECONDS
        + assumed_speeds.LEVEL_OVERHEAD_SECONDS * (len(levels) - 1)
        + assumed_speeds.REPLAN_OVERHEAD_SECONDS * len(measuring)
        + sum(large_round_limits.report_seconds(tasks) for tasks in reported)
        + large_round_limits.control_seconds(
            load.contributors, measures=load.measures, assigns=load.lists.assigns
        ),
        gb_seconds=gb * sum(tasks.number * tasks.seconds for level in passes for tasks in level),
        requests=requests,
        bill=round_cost.bill(
            levels,
            clients=load.contributors,
            memory_mb=aggregator.memory_mb,
            architecture=aggregator.architecture,
            aggregators=requests,
            by_clients=Requests(*(load.contributors * number for number in by_client)),
            batch=aggregator.batch,
            models=load.models,
            measuring=measuring,
            lists=load.lists,
            prices=aggregator.prices,
        ),
    )


def _surveying(load: Workload, aggregator: LambdaConfig) -> list[list[Tasks]]:
    """Return the tasks of the pass that reads headers, if there is one, as a list of levels."""
    if not large_round_limits.is_surveyed(load.contributors):
        return []
    seconds = large_round_limits.survey_seconds(aggregator.memory_mb)
    return [[Tasks(large_round_limits.pieces(load.contributors), seconds)]]


def _measuring(load: Workload, shards: int, aggregator: LambdaConfig) -> list[list[Tasks]]:
    """Return the tasks of the pass that measures, if there is one, as a list of levels."""
    if not load.measures:
        return []
    extra = load.extra_reads(shards)
    gap_bytes = max((gap_bytes for _, gap_bytes in extra), default=0)
    requests = max((requests for requests, _ in extra), default=0)
    share, stretches = load.measured_reads(shards)
    # Streams are opened together; those of the first stretch are in the time of a task.
    waiting = (requests + max(0, stretches - shards)) * assumed_speeds.REQUEST_SECONDS / shards
    further = assumed_speeds.ROWS_CPU_SECONDS_PER_GB - assumed_speeds.CPU_SECONDS_PER_GB
    seconds = {
        fan_in: aggregator.task_seconds(
            share * (fan_in * load.nbytes + gap_bytes) / shards,
            further * share * fan_in * load.nbytes / shards / 1e9,
        )
        for fan_in in load.fan_ins[0]
    }
    groups = load.fan_ins[0].items()
    return [[Tasks(shards * number, seconds[fan_in] + waiting) for fan_in, number in groups]]


def _task_seconds(
    load: Workload, shards: int, aggregator: LambdaConfig, level: int, fan_in: int
) -> float:
    """Return the duration of a task of a level with ``fan_in`` inputs."""
    nbytes = fan_in * (load.input_bytes(level) / shards)
    waiting = 0.0
    if level == 0:
        # Groups of one size count as one here, so these are the maxima of all groups.
        extra = load.extra_reads(shards)
        nbytes += max((gap_bytes for _, gap_bytes in extra), default=0) / shards
        requests = max((requests for requests, _ in extra), default=0)
        waiting = requests * assumed_speeds.REQUEST_SECONDS / shards
    if level == len(load.levels) - 1:
        nbytes += load.model_bytes / shards
    further = 0.0
    elements = fan_in * (load.nbytes / shards) / 1e9
    if not level and load.stored_bytes is not None:
        further += assumed_speeds.DECODING_CPU_SECONDS_PER_GB * elements
    if load.holds_all and level == len(load.levels) - 1:
        further += (
            assumed_speeds.ROWS_CPU_SECONDS_PER_GB - assumed_speeds.CPU_SECONDS_PER_GB
        ) * elements
    if load.noises:
        further += assumed_speeds.PRIVATE_CPU_SECONDS_PER_GB * elements
        further += (
            assumed_speeds.NOISE_CPU_SECONDS_PER_GB * load.noises * (load.nbytes / shards) / 1e9
        )
    return aggregator.task_seconds(nbytes, further) + waiting


def _task_count(load: Workload, shards: int) -> int:
    return shards * sum(map(len, load.levels)) + _measuring_tasks(load, shards)


def _measuring_tasks(load: Workload, shards: int) -> int:
    return shards * len(load.levels[0]) if load.measures else 0


def _requests(load: Workload, shards: int) -> Requests:
    """Return the S3 requests of all tasks.

    A task reads the plan and its inputs, some of them with several requests. It writes its sum and
    its report. A task that measures writes a report only, and each task after it reads the decision
    of the rule. If the update is applied, the tasks of the last level also read and write the model
    and the optimizer's state. The first of them reads the headers that are not in the plan.
    """
    tasks = _task_count(load, shards)
    inputs = shards * sum(map(sum, load.levels))
    extra = round(sum(requests for requests, _ in load.extra_reads(shards)))
    applying = shards * load.models
    headers = 1 + load.models if load.lists.stores_headers else 0
    counted = Requests(gets=inputs + extra + tasks + headers + applying, puts=2 * tasks + applying)
    clients = load.contributors
    if pieces := large_round_limits.pieces(clients):
        # Tasks of the lowest level read the piece, or two, that their group is in: of the plan, in
        # each pass, and of the decision.
        read = shards * load.pieces_read
        counted = counted.plus(Requests(gets=read * (1 + 2 * load.measures), puts=0))
    if large_round_limits.is_surveyed(clients):  # the plan, a piece and its headers, and a record
        counted = counted.plus(Requests(gets=2 * pieces + clients, puts=pieces))
    # The keys of noise.
    counted = counted.plus(Requests(gets=load.noises * shards, puts=0))
    if not load.measures:
        return counted
    _, stretches = load.measured_reads(shards)
    measuring = _measuring_tasks(load, shards)
    gets = stretches * load.contributors + extra + tasks - measuring
    return counted.plus(Requests(gets=gets, puts=-measuring))
