"""The price of a training's rounds on AWS: projected before they are opened, and as measured."""

from collections.abc import Mapping
from typing import Any, Final

from gradshard_core.aggregation.server_optimizers import ServerOptimizer
from gradshard_core.formats.keys import base_version
from gradshard_core.planning import measured_cost, planner, pricing
from gradshard_core.planning.lambda_config import LambdaConfig
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.round_spec import RoundSpec
from gradshard_core.planning.round_workload import workload_of

TRANSITIONS: Final = 3
"""Of federation.asl.json for each round: AdvanceTraining, WhatIsNext, RunRound."""

# advance_training, at the template's 256 MB. Assumed: half a second.
ADVANCE_GB_SECONDS: Final = 0.25 * 0.5
ADVANCE_PUTS: Final = 3
"""State, record, and the list of members."""

ADVANCE_GETS: Final = 10
"""Spec, state twice, manifest, plan, and the records of the model. To these comes the header of
each update."""

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
    requests = pricing.Requests(
        gets=ADVANCE_GETS + clients + (ARRIVAL_GETS * clients if is_buffered else 0),
        puts=ADVANCE_PUTS + NOTICES_PUTS + (CLOSING_PUTS + clients if is_buffered else 0),
    )
    prices = aggregator.prices
    return (
        TRANSITIONS * prices.transitions_per_1000 / 1e3
        + 2 * prices.invocations_per_million / 1e6
        + (ADVANCE_GB_SECONDS + NOTICES_GB_SECONDS) * prices.gb_second(aggregator.architecture)
        + prices.s3(requests)
        + prices.notifications_per_million / 1e6  # the state
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
    choice, _ = planner.choose(
        workload_of(spec, nbytes, clients),
        aggregator,
        shards=spec.shards,
        time_budget=spec.time_budget,
    )
    return choice.total_dollars + overhead(clients, aggregator, is_buffered=spec.inbox is not None)


def measured(
    manifest: Mapping[str, Any], optimizer: ServerOptimizer | None, aggregator: LambdaConfig
) -> float:
    """Return the dollars that a completed round has cost, by its manifest.

    If the manifest lists no tasks, because there were too many, it is the projected cost.
    """
    clients = len(manifest["contributors"])
    is_buffered = any(base_version(c["key"]) is not None for c in manifest["contributors"])
    more = overhead(clients, aggregator, is_buffered=is_buffered)
    if not manifest["tasks"]:
        return float(manifest["projected"]["dollars"]["total"]) + more
    bill = measured_cost.measured(
        manifest["tasks"],
        clients=clients,
        memory_mb=aggregator.memory_mb,
        architecture=aggregator.architecture,
        nbytes=manifest["update"]["nbytes"],
        sent=[contributor["nbytes"] for contributor in manifest["contributors"]],
        server_optimizer=optimizer and optimizer.to_json(),
    )
    return bill.total + more


def of_failed(plan: Plan | None, answered: int, aggregator: LambdaConfig) -> float:
    """Return the dollars that a failed round has cost at most, whose tasks left no bill.

    Parameters
    ----------
    plan
        Its last plan, whose projection is for tasks that all ran; None if it was not planned.
    answered
        The number of clients that had sent an update.
    aggregator
        The functions that do its tasks.
    """
    nothing = pricing.Requests(0, 0)
    more = overhead(answered, aggregator)
    if plan is not None:
        return float(plan.projected["dollars"]["total"]) + more
    opened = pricing.bill(
        [[pricing.Tasks(0, 0.0)]],
        clients=answered,
        memory_mb=aggregator.memory_mb,
        architecture=aggregator.architecture,
        aggregators=nothing,
        by_clients=nothing,
        prices=aggregator.prices,
    )
    return opened.total + more
