"""The price of a round on AWS, from its tasks, their seconds, its requests and its clients."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Final, NamedTuple

from gradshard_core.costs import assumed_speeds, aws_prices
from gradshard_core.costs.request_counts import NO_LISTS, Lists, Requests, count_requests
from gradshard_core.limits import aws_limits


@dataclass(frozen=True)
class Prices:
    """Dollars, in the units of AWS's price pages; by default those of us-east-1.

    Parameters
    ----------
    gb_second_x86_64, gb_second_arm64
        The price of a GB-second of Lambda, by architecture.
    invocations_per_million
        Lambda's fee per million invocations.
    put_per_1000, get_per_1000
        The prices of S3 requests; COPY, POST and LIST cost the same as PUT.
    transitions_per_1000
        The price of 1,000 state transitions of Standard executions.
    express_per_million, express_gb_second
        The prices of Express executions: per million requests, and per GB-second.
    events_per_million
        The price of a million custom events of EventBridge.
    notifications_per_million
        The price of a million messages to an SNS topic.
    """

    gb_second_x86_64: float = aws_prices.DOLLARS_PER_GB_SECOND["x86_64"]
    gb_second_arm64: float = aws_prices.DOLLARS_PER_GB_SECOND["arm64"]
    invocations_per_million: float = 1e6 * aws_prices.DOLLARS_PER_INVOCATION
    put_per_1000: float = 1e3 * aws_prices.DOLLARS_PER_PUT
    get_per_1000: float = 1e3 * aws_prices.DOLLARS_PER_GET
    transitions_per_1000: float = 1e3 * aws_prices.DOLLARS_PER_TRANSITION
    express_per_million: float = 1e6 * aws_prices.DOLLARS_PER_EXPRESS_REQUEST
    express_gb_second: float = aws_prices.DOLLARS_PER_EXPRESS_GB_SECOND
    events_per_million: float = 1e6 * aws_prices.DOLLARS_PER_EVENT
    notifications_per_million: float = 1e6 * aws_prices.DOLLARS_PER_NOTIFICATION

    def gb_second(self, architecture: str) -> float:
        """Return the price of a GB-second of an architecture."""
        return {"x86_64": self.gb_second_x86_64, "arm64": self.gb_second_arm64}[architecture]

    def s3(self, requests: "Requests") -> float:
        """Return the price of S3 requests."""
        return requests.gets * self.get_per_1000 / 1e3 + requests.puts * self.put_per_1000 / 1e3


@dataclass(frozen=True)
class Bill:
    """Dollars of one round, by what they are paid for.

    Parameters
    ----------
    lambda_
        GB-seconds of the aggregators.
    s3_aggregators, s3_clients
        S3 requests: the aggregators', and those of uploading updates and fetching the result.
    requests
        Lambda's fee for each invocation, of any function.
    step_functions
        Transitions, Express requests and their GB-seconds.
    round_
        Lambda and S3 of opening, collecting, planning and finalizing.
    events
        Notifications of uploaded objects, and the event of the round's end.
    starts
        Lambda's INIT phase of cold starts.
    """

    lambda_: float
    s3_aggregators: float
    s3_clients: float
    requests: float = 0.0
    step_functions: float = 0.0
    round_: float = 0.0
    events: float = 0.0
    starts: float = 0.0

    @property
    def aggregators(self) -> float:
        """The paper's ``agg``: Lambda and the aggregators' S3 requests."""
        return self.lambda_ + self.s3_aggregators

    @property
    def full(self) -> float:
        """The paper's ``full``: ``agg`` and the clients' S3 requests."""
        return self.aggregators + self.s3_clients

    @property
    def total(self) -> float:
        """The sum of all parts."""
        beside = self.requests + self.step_functions + self.round_ + self.events + self.starts
        return self.full + beside

    def minus(self, other: "Bill") -> "Bill":
        """Return the difference, part by part."""
        return Bill(
            *(getattr(self, part.name) - getattr(other, part.name) for part in fields(self))
        )

    def to_json(self) -> dict[str, float]:
        """Return the parts and the three sums."""
        parts = {name.rstrip("_"): value for name, value in asdict(self).items()}
        return parts | {"agg": self.aggregators, "full": self.full, "total": self.total}


class Tasks(NamedTuple):
    """A number of tasks side by side that take equally long."""

    number: int
    seconds: float


Level = Sequence[Tasks]
"""Tasks that run at the same time."""

US_EAST_1: Final = Prices()


def bill(
    levels: Sequence[Level],
    *,
    clients: int,
    memory_mb: int,
    architecture: str,
    aggregators: Requests,
    by_clients: Requests,
    batch: int = aws_limits.INLINE_ITERATIONS,
    models: int = 0,
    updates: int | None = None,
    cold_tasks: float | None = None,
    measuring: Sequence[Level] = (),
    lists: Lists = NO_LISTS,
    prices: Prices = US_EAST_1,
) -> Bill:
    """Price a round.

    Parameters
    ----------
    levels
        The aggregators' tasks, one level after another.
    clients
        The number of clients that send an update.
    memory_mb, architecture
        The memory of the aggregators in MB, and the processor of all functions.
    aggregators, by_clients
        The S3 requests of the aggregators and of the clients.
    batch
        The number of tasks that share an Express execution.
    models
        The number of objects of model and state that an applied round writes beside the update.
    updates
        The number of objects that clients send; by default one each.
    cold_tasks
        The number of tasks that start cold. By default all do, but tasks that measured are warm for
        the second pass. The functions around the tasks always start cold.
    measuring
        The tasks of the passes before, which read headers or measure, each a level of its own.
    lists
        The objects of the round besides its plan and its result.
    prices
        The prices of AWS.
    """
    gb_second = prices.gb_second(architecture)
    tasks = [sum(run.number for run in level) for level in levels]
    passes = [*measuring, *levels]
    before = [sum(run.number for run in level) for level in measuring]
    gb_seconds = memory_mb / 1024 * sum(run.number * run.seconds for lvl in passes for run in lvl)
    small_gb_seconds = clients * assumed_speeds.COLLECT_GB_SECONDS + assumed_speeds.ROUND_GB_SECONDS
    small_gb_seconds += assumed_speeds.REPLAN_GB_SECONDS * len(before)
    small_gb_seconds += assumed_speeds.ROUND_GB_SECONDS * (lists.stages - 1)
    return Bill(
        lambda_=gb_seconds * gb_second,
        s3_aggregators=prices.s3(aggregators),
        s3_clients=prices.s3(by_clients),
        requests=invocations(sum(tasks), clients, before, levels=len(levels), stages=lists.stages)
        * prices.invocations_per_million
        / 1e6,
        step_functions=_step_functions(
            passes, batch, prices, replans=len(before), stages=lists.stages
        ),
        round_=small_gb_seconds * gb_second
        + prices.s3(count_requests(tasks, clients, models, before, lists)),
        events=(
            notifications(clients if updates is None else updates)
            * prices.notifications_per_million
            + prices.events_per_million
        )
        / 1e6,
        starts=_starts(sum(tasks) if cold_tasks is None else cold_tasks, memory_mb) * gb_second,
    )


def notifications(updates: int) -> int:
    """Count the objects of a round of which S3 tells a topic.

    Those are the objects that clients send, and the result: S3 filters by the beginning and the end
    of a key. Each calls ``collect_update``.
    """
    return updates + 1


def _starts(tasks: float, memory_mb: int) -> float:
    """Return the GB-seconds of cold starts: of tasks, and of the functions around them."""
    started = tasks * _init_gb_seconds(assumed_speeds.TASK_INIT_CPU_SECONDS, memory_mb)
    return started + _small_starts()


@cache
def _small_starts() -> float:
    return sum(
        _init_gb_seconds(assumed_speeds.SMALL_INIT_CPU_SECONDS, memory)
        for memory in assumed_speeds.SMALL_MEMORIES_MB
    )


def _init_gb_seconds(cpu_seconds: float, memory_mb: int) -> float:
    share = min(1.0, memory_mb / aws_limits.MB_PER_VCPU)
    return memory_mb / 1024 * (assumed_speeds.RUNTIME_INIT_SECONDS + cpu_seconds / share)


def invocations(
    tasks: int, clients: int, before: Sequence[int] = (), *, levels: int = 1, stages: int = 1
) -> int:
    """Count a round's invocations: of its tasks, and of open, collect, plan and finalize.

    The result, too, calls ``collect_update``, which looks at its key alone. ``finalize_round`` is
    called after each level. After each pass ``before``, of so many tasks, the round is finalized
    and planned once more. Each further stage of an eager round is opened, planned and finalized.
    """
    around = 2 + levels + 3 * (stages - 1)
    return tasks + notifications(clients) + around + sum(number + 2 for number in before)


def _step_functions(
    levels: Sequence[Level], batch: int, prices: Prices, *, replans: int = 0, stages: int = 1
) -> float:
    """Price the machine: two states for each level, and an Express execution for each batch.

    Each stage of an eager round has at least one execution for its tasks, which are of one level.
    """
    transitions = aws_prices.ROUND_TRANSITIONS + aws_prices.LEVEL_TRANSITIONS * len(levels)
    transitions += aws_prices.REPLAN_TRANSITIONS * replans
    transitions += aws_prices.STAGE_TRANSITIONS * (stages - 1)
    started, seconds = 0, 0.0
    for number, level in enumerate(levels):
        children = -(-sum(run.number for run in level) // batch)
        if number == 0:
            children = max(children, stages)
        started += children
        # A batch ends with its slowest task.
        seconds += children * max(run.seconds for run in level)
    return (
        (transitions + started) * prices.transitions_per_1000 / 1e3
        + started * prices.express_per_million / 1e6
        + seconds * aws_prices.EXPRESS_MEMORY_GB * prices.express_gb_second
    )
