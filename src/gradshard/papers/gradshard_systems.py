"""gradshard's own systems: shards as they are deployed, and the trees in streaming tasks."""

from gradshard.papers import published_figures
from gradshard.papers.estimate import TITLES, Estimate, Setting
from gradshard_core.aggregation import topologies
from gradshard_core.aggregation.topologies import TOPOLOGIES
from gradshard_core.costs import memory_projection
from gradshard_core.costs.lambda_config import MEMORIES_MB
from gradshard_core.costs.round_projection import Projection, project
from gradshard_core.costs.workload import Workload
from gradshard_core.errors import PlanError
from gradshard_core.planning import shard_count


def shards(nbytes: int, setting: Setting) -> Estimate:
    """Foresee a round of shards, or of a grid beyond 64 clients, as the planner chooses M.

    Raises
    ------
    PlanError
        No plan fits.
    """
    load, aggregator = _load(nbytes, topologies.AUTO, setting), setting.aggregator()
    most = shard_count.max_shards(nbytes)
    m = None if setting.shards is None else min(setting.shards, most)
    projection, _ = shard_count.choose(load, aggregator, shards=m, time_budget=setting.time_budget)
    return _estimate("shards", nbytes, projection)


def frontier(nbytes: int, setting: Setting) -> list[Estimate]:
    """Return the choices of memory and M that no other beats on both seconds and dollars."""
    load = _load(nbytes, topologies.AUTO, setting)
    projections = shard_count.frontier(load, setting.aggregator(), memories=MEMORIES_MB)
    return [_estimate("shards", nbytes, projection) for projection in projections]


def lambda_fl(nbytes: int, setting: Setting) -> Estimate:
    """Foresee λ-FL's tree in streaming tasks."""
    return _tree("lambda_fl", nbytes, setting)


def lifl(nbytes: int, setting: Setting) -> Estimate:
    """Foresee LIFL's tree in streaming tasks."""
    return _tree("lifl", nbytes, setting)


def _tree(topology: str, nbytes: int, setting: Setting) -> Estimate:
    system = f"{topology}_streamed"
    m = shard_count.min_shards(nbytes)
    projection = project(_load(nbytes, topology, setting), m, setting.aggregator())
    # Lambda's limit: that of the Express children, five minutes, would rule large trees out.
    if (
        projection.needed_mb > setting.memory_mb
        or projection.task_seconds > published_figures.TIMEOUT_SECONDS
    ):
        raise PlanError(
            f"a task of {TITLES[system]} needs {projection.needed_mb:.0f} MB and "
            f"{projection.task_seconds:.0f} s; there are {setting.memory_mb} MB and "
            f"{published_figures.TIMEOUT_SECONDS:.0f} s"
        )
    return _estimate(system, nbytes, projection)


def _load(nbytes: int, topology: str, setting: Setting) -> Workload:
    name = topologies.resolve(topology, setting.clients)
    return Workload(
        nbytes,
        topologies.group(name, setting.clients),
        is_cut=TOPOLOGIES[name].is_cut,
        plan_bytes=memory_projection.plan_bytes(setting.clients),
    )


def _estimate(system: str, nbytes: int, projection: Projection) -> Estimate:
    return Estimate(
        system,
        nbytes,
        projection.shards,
        projection.tasks,
        projection.memory_mb,
        projection.task_seconds,
        projection.seconds,
        projection.gb_seconds,
        *projection.requests,
        projection.bill,
    )
