"""The published systems, as published: functions that hold whole inputs, one object after another.

Their clients make one request for each object, as the paper counts.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from gradshard.papers import published_figures
from gradshard.papers.estimate import PUBLISHED, TITLES, Estimate, Setting
from gradshard.papers.published_figures import Measurement
from gradshard_core.aggregation import topologies
from gradshard_core.costs import assumed_speeds, round_cost
from gradshard_core.costs.lambda_config import LambdaConfig
from gradshard_core.costs.request_counts import Requests
from gradshard_core.costs.round_cost import US_EAST_1, Bill, Tasks
from gradshard_core.errors import PlanError
from gradshard_core.limits import aws_limits
from gradshard_core.units import MIB

WHOLE_COPIES: Final = 3
WHOLE_OVERHEAD_MB: Final = 450
"""The published rule for functions that hold whole inputs: ⌈3 · input + 450⌉ MB of 1024² bytes, for
the running sum, the object as it was read and the array made of it (Barrak 2026)."""


def gradssharding(nbytes: int, setting: Setting) -> Estimate:
    """Foresee GradsSharding: N·M objects, M functions that hold whole shards.

    M, when it is not given, is the smallest of 4, 8, 16 … whose functions stay within the 3,008 MB
    of the paper's account, which gives the M that it used.
    """
    m = setting.shards or 4
    while not setting.shards and memory_mb(nbytes / m) > published_figures.ACCOUNT_MEMORY_MB:
        m *= 2
    estimate = _estimate("gradssharding", nbytes, nbytes / m, [[setting.clients] * m], setting)
    return replace(estimate, shards=m)


def lambda_fl(nbytes: int, setting: Setting) -> Estimate:
    """Foresee λ-FL."""
    return _estimate("lambda_fl", nbytes, nbytes, topologies.lambda_fl(setting.clients), setting)


def lifl(nbytes: int, setting: Setting) -> Estimate:
    """Foresee LIFL as the paper ran it: its hierarchy, without what Lambda cannot offer."""
    return _estimate("lifl", nbytes, nbytes, topologies.lifl(setting.clients), setting)


def memory_mb(nbytes: float) -> int:
    """Return the memory of a function that holds inputs of ``nbytes``."""
    return math.ceil(WHOLE_COPIES * nbytes / MIB + WHOLE_OVERHEAD_MB)


def task_seconds(
    aggregator: LambdaConfig, fan_in: int, input_bytes: float, output_bytes: float
) -> float:
    """Return the duration of a function that holds whole inputs.

    It reads one input after another, each with a request of its own, and writes when all are added.
    """
    return (
        aggregator.task_seconds(fan_in * input_bytes)
        # task_seconds includes the first input's latency; the request that writes adds one more.
        + fan_in * aggregator.bandwidth.latency_seconds
        + aggregator.bandwidth.seconds(output_bytes)
    )


def measured_bill(measurement: Measurement) -> Bill:
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
        gets, client_requests = (
            published_figures.CLIENTS * tasks[0],
            published_figures.CLIENTS * tasks[0],
        )
    else:
        # Every level but the first reads what the one below it wrote.
        gets, client_requests = (
            published_figures.CLIENTS + sum(tasks[:-1]),
            published_figures.CLIENTS,
        )
    return Bill(
        gb_seconds * US_EAST_1.gb_second(published_figures.ARCHITECTURE),
        US_EAST_1.s3(Requests(gets, sum(tasks))),
        US_EAST_1.s3(Requests(client_requests, client_requests)),
    )


def modelled(measurement: Measurement) -> Estimate:
    """Return the model's own answer for what was measured: its time, memory and dollars.

    Without the seconds of a round around the tasks: the paper timed a pool of invocations.
    """
    systems = {"gradssharding": gradssharding, "lambda_fl": lambda_fl, "lifl": lifl}
    setting = Setting(
        bandwidth=PUBLISHED,
        architecture=published_figures.ARCHITECTURE,
        shards=measurement.model.shards if measurement.system == "gradssharding" else None,
    )
    estimate = systems[measurement.system](measurement.model.nbytes, setting)
    levels = len(measurement.levels)
    around = assumed_speeds.ROUND_OVERHEAD_SECONDS + assumed_speeds.LEVEL_OVERHEAD_SECONDS * (
        levels - 1
    )
    return replace(estimate, seconds=estimate.seconds - around)


def _estimate(
    system: str,
    nbytes: int,
    input_bytes: float,
    levels: Sequence[Sequence[int]],
    setting: Setting,
) -> Estimate:
    """Price functions, each of which reads its inputs, then writes the result it holds."""
    memory = memory_mb(input_bytes)
    if memory > aws_limits.MAX_MEMORY_MB:
        raise PlanError(
            f"{TITLES[system]} holds inputs of {input_bytes / MIB:.0f} MB and needs "
            f"{memory} MB a function, over Lambda's {aws_limits.MAX_MEMORY_MB}"
        )

    aggregator = setting.aggregator(memory)

    priced = [
        [Tasks(1, task_seconds(aggregator, fan_in, input_bytes, input_bytes)) for fan_in in lv]
        for lv in levels
    ]
    longest = [max(run.seconds for run in level) for level in priced]
    if max(longest) > published_figures.TIMEOUT_SECONDS:
        raise PlanError(
            f"a function of {TITLES[system]} would take {max(longest):.0f} s, over "
            f"Lambda's {published_figures.TIMEOUT_SECONDS:.0f}"
        )
    requests = Requests(gets=sum(map(sum, levels)), puts=sum(map(len, levels)))
    # An object for each input of the first level, and as many read back.
    by_clients = Requests(sum(levels[0]), sum(levels[0]))
    bill = round_cost.bill(
        priced,
        clients=setting.clients,
        memory_mb=memory,
        architecture=setting.architecture,
        aggregators=requests,
        by_clients=by_clients,
        updates=by_clients.puts,
        prices=setting.prices,
    )
    return Estimate(
        system,
        nbytes,
        shards=1,
        tasks=requests.puts,
        memory_mb=memory,
        task_seconds=max(longest),
        seconds=sum(longest)
        + assumed_speeds.ROUND_OVERHEAD_SECONDS
        + assumed_speeds.LEVEL_OVERHEAD_SECONDS * (len(levels) - 1),
        gb_seconds=memory / 1024 * sum(run.seconds for level in priced for run in level),
        gets=requests.gets,
        puts=requests.puts,
        bill=bill,
    )
