"""The cost of a finished round at AWS's prices, from its task records."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradshard_core.aggregation.server_optimizers import parse_server_optimizer
from gradshard_core.costs import round_cost
from gradshard_core.costs.request_counts import Requests
from gradshard_core.costs.round_cost import Bill, Tasks
from gradshard_core.costs.round_projection import client_requests
from gradshard_core.errors import GradshardError


def measured(
    reports: Sequence[Mapping[str, Any]],
    *,
    clients: int,
    memory_mb: int,
    architecture: str,
    nbytes: int,
    sent: Sequence[int] = (),
    server_optimizer: Any = None,
    measuring: Sequence[Mapping[str, Any]] = (),
) -> Bill:
    """Return the cost of what was measured.

    Parameters
    ----------
    reports
        Of the tasks, at least one: ``level``, ``seconds``, ``gets``, ``puts`` and ``is_cold`` are
        read.
    clients
        The number of clients that took part.
    memory_mb, architecture
        The memory in MB, and the processor, of the aggregators.
    nbytes
        The bytes of the result.
    sent
        The bytes of each update; by default as many as those of the result.
    server_optimizer
        The server optimizer of the round, as its options state it; None if it changes no model.
    measuring
        The reports of the tasks that measured before, under a robust rule.

    Raises
    ------
    GradshardError
        There are no reports, as of a round of more tasks than its manifest lists.
    """
    if not reports:
        raise GradshardError("no task's report is there to be priced")
    levels: dict[int, list[Tasks]] = {}
    for report in reports:
        levels.setdefault(report["level"], []).append(Tasks(1, report["seconds"]))
    everything = [*measuring, *reports]
    by_clients = [client_requests(nbytes, size) for size in sent or [nbytes] * clients]
    return round_cost.bill(
        list(levels.values()),
        clients=clients,
        memory_mb=memory_mb,
        architecture=architecture,
        aggregators=Requests(
            sum(report["gets"] for report in everything),
            sum(report["puts"] for report in everything),
        ),
        by_clients=Requests(
            sum(request.gets for request in by_clients), sum(request.puts for request in by_clients)
        ),
        cold_tasks=sum(report["is_cold"] for report in everything),
        measuring=[[Tasks(1, report["seconds"]) for report in measuring]] if measuring else [],
        models=0
        if server_optimizer is None
        else 1 + len(parse_server_optimizer(server_optimizer).state),
    )
