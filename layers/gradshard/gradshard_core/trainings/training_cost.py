"""The price of a training's rounds on AWS: projected before they are opened, and as measured."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from gradshard_core.aggregation.server_optimizers import ServerOptimizer
from gradshard_core.costs import (
    assumed_speeds,
    large_round_limits,
    measured_round_cost,
    request_counts,
    round_cost,
)
from gradshard_core.costs.lambda_config import LambdaConfig
from gradshard_core.costs.workload_from_spec import workload_of
from gradshard_core.limits import aws_limits
from gradshard_core.planning import shard_count
from gradshard_core.planning.plan import Plan
from gradshard_core.s3.parallel_reads import SMALL_OBJECT_READERS
from gradshard_core.specs.round_spec import RoundSpec

TRANSITIONS: Final = 3
"""Of federation.asl.json for each round: AdvanceTraining, WhatIsNext, RunRound."""

ADVANCE_MEMORY_MB: Final = 256
"""Of advance_training, in the template."""

ADVANCE_SECONDS: Final = 0.5
"""Assumed: the least of advance_training."""

ADVANCE_CPU_SECONDS_PER_CLIENT: Final = 3.9e-5
"""Of inviting and of recording a round together, S3 in memory: 3.9 CPU-seconds for 100,000 clients
(python -m benchmarks.large_round 100000 --training, 2-core x86-64 machine, 2026-11)."""

ADVANCE_PUTS: Final = 2
"""State and record. To these come the list of members, and pieces of long lists."""

ADVANCE_GETS: Final = 12
"""Spec, state twice, manifest, plan, two to see that the next round's name is free, and the records
of the model. To these comes the header of each update, or what tasks have read of many; and pieces
of long lists."""

LISTS_READ: Final = 4
LISTS_WRITTEN: Final = 3
"""The invited and the silent clients; the contributors, in manifest and plan or in the record."""

# write_notices, which an event of each new state calls, at the template's 256 MB. Assumed: a tenth
# of a second, in which it finds that nobody has a ticket.
NOTICES_GB_SECONDS: Final = 0.25 * 0.1
NOTICES_PUTS: Final = 1
"""The list of notices, which costs as much as a PUT."""

ARRIVAL_GETS: Final = 11
"""Of collect_update for an update of a buffered training, beyond one of a round: options and state
of the training, twice, membership, model, layout, and what is under way."""

CLOSING_PUTS: Final = 2
"""In a buffered training: a list of updates, and what has counted."""


def overhead(clients: int, aggregator: LambdaConfig, *, is_buffered: bool = False) -> float:
    """Return the dollars of a training for each round, beside the round's own.

    ``is_buffered`` if updates arrived in a buffered training, where each also lists the others.
    """
    requests = of_functions(clients, is_buffered=is_buffered)
    prices = aggregator.prices
    return (
        TRANSITIONS * prices.transitions_per_1000 / 1e3
        + 2 * prices.invocations_per_million / 1e6
        + (ADVANCE_MEMORY_MB / 1024 * advance_seconds(clients) + NOTICES_GB_SECONDS)
        * prices.gb_second(aggregator.architecture)
        + prices.s3(requests)
        + prices.notifications_per_million / 1e6  # the state
    )


def advance_seconds(clients: int) -> float:
    """Return how long advance_training takes to record a round and to invite to the next one.

    Headers are read several at a time, and pieces and pages of listings one after another.
    """
    headers = 0 if large_round_limits.is_surveyed(clients) else clients
    requests = of_functions(clients)
    others = requests.gets + requests.puts - headers
    cpu_seconds = (
        ADVANCE_CPU_SECONDS_PER_CLIENT + assumed_speeds.LISTED_CPU_SECONDS
    ) * clients + assumed_speeds.REQUEST_CPU_SECONDS * (headers + others)
    waiting = assumed_speeds.REQUEST_SECONDS * (headers / SMALL_OBJECT_READERS + others)
    # That of a small round is in the least.
    of_small = assumed_speeds.REQUEST_SECONDS * (ADVANCE_GETS + ADVANCE_PUTS + NOTICES_PUTS + 1)
    share = ADVANCE_MEMORY_MB / aws_limits.MB_PER_VCPU
    return max(ADVANCE_SECONDS, cpu_seconds / share + waiting - of_small)


def of_functions(clients: int, *, is_buffered: bool = False) -> request_counts.Requests:
    """Return the requests of a training for each round, beside the round's own.

    Of members, silent clients and long lists there may be fewer, or more members than are invited.
    """
    pieces = large_round_limits.pieces(clients)
    is_surveyed = large_round_limits.is_surveyed(clients)
    members = -(-clients // aws_limits.LISTED_ENTRIES)
    return request_counts.Requests(
        gets=ADVANCE_GETS
        + LISTS_READ * pieces
        + (pieces if is_surveyed else clients)
        + (ARRIVAL_GETS * clients if is_buffered else 0),
        puts=ADVANCE_PUTS
        + members
        + LISTS_WRITTEN * pieces
        + (pieces if is_surveyed else 0)
        + NOTICES_PUTS
        + (CLOSING_PUTS + clients if is_buffered else 0),
    )


def projected(spec: RoundSpec, nbytes: int, aggregator: LambdaConfig) -> float:
    """Return the dollars that a round is expected to cost, with all its functions started cold.

    Parameters
    ----------
    spec
        The round's.
    nbytes
        The size of an update's tensors.
    aggregator
        The functions that do its tasks.
    """
    clients = spec.expected
    choice, _ = shard_count.choose(
        workload_of(spec, nbytes, clients),
        aggregator,
        shards=spec.shards,
        time_budget=spec.time_budget,
    )
    return choice.total_dollars + overhead(clients, aggregator, is_buffered=spec.inbox is not None)


def measured(
    manifest: Mapping[str, Any],
    sent: Sequence[int],
    optimizer: ServerOptimizer | None,
    aggregator: LambdaConfig,
    *,
    is_buffered: bool,
) -> float:
    """Return the dollars that a completed round has cost, by its manifest.

    If the manifest lists no tasks, because there were too many, it is the projected cost.

    Parameters
    ----------
    manifest
        The manifest.
    sent
        The bytes of the contributors' updates.
    optimizer
        The server optimizer of the round; None for an evaluation.
    aggregator
        The functions that did its tasks.
    is_buffered
        Whether the updates arrived in a buffered training.
    """
    clients = len(sent)
    more = overhead(clients, aggregator, is_buffered=is_buffered)
    if not manifest["tasks"]:
        return float(manifest["projected"]["dollars"]["total"]) + more
    bill = measured_round_cost.measured(
        manifest["tasks"],
        clients=clients,
        memory_mb=aggregator.memory_mb,
        architecture=aggregator.architecture,
        nbytes=manifest["update"]["nbytes"],
        sent=sent,
        server_optimizer=optimizer and optimizer.to_json(),
    )
    return bill.total + more


def of_failed(plan: Plan | None, answered: int, aggregator: LambdaConfig) -> float:
    """Return the dollars that a failed round has cost at most, whose tasks left no bill.

    Parameters
    ----------
    plan
        Its last plan, whose projection is for tasks that all ran; None if it was not planned. A
        plan whose tasks read headers has none, and is not counted.
    answered
        The number of clients that had sent an update.
    aggregator
        The functions that do its tasks.
    """
    nothing = request_counts.Requests(0, 0)
    more = overhead(answered, aggregator)
    if plan is not None and not plan.computation.surveys:
        return float(plan.projected["dollars"]["total"]) + more
    opened = round_cost.bill(
        [[round_cost.Tasks(0, 0.0)]],
        clients=answered,
        memory_mb=aggregator.memory_mb,
        architecture=aggregator.architecture,
        aggregators=nothing,
        by_clients=nothing,
        prices=aggregator.prices,
    )
    return opened.total + more
