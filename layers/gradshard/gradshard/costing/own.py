"""gradshard's own systems: shards as they are deployed, and the trees in streaming tasks."""

from collections.abc import Sequence

from gradshard import limits, planning
from gradshard.costing import published
from gradshard.costing.terms import (
    TITLES,
    Estimate,
    Setting,
    Tasks,
    lambda_fl_levels,
    lifl_levels,
    price,
)
from gradshard.errors import PlanError


def shards(nbytes: int, setting: Setting) -> Estimate:
    """Foresee a round of shards: :func:`gradshard.planning.choose` at any bandwidth.

    With M not given, the cheapest that meets the time budget, as the planner chooses.

    Raises
    ------
    PlanError
        Nothing fits.
    """
    fitting = choices(nbytes, setting)
    if not fitting:
        m = "no M averages" if setting.shards is None else f"M={setting.shards} does not average"
        raise PlanError(
            f"{m} updates of {nbytes} bytes: a task needs "
            f"{planning.project_memory(setting.clients):.0f} MB and has {setting.memory_mb}, may "
            f"take {limits.MAX_TASK_SECONDS:.0f} s and write {limits.MAX_PART_BYTES} bytes"
        )
    budget = planning.UNHURRIED_SECONDS if setting.within is None else setting.within
    quick = [e for e in fitting if e.seconds <= budget]
    if not quick and setting.within is not None:
        fastest = min(e.seconds for e in fitting)
        raise PlanError(f"no M takes at most {budget:g} s: the fastest takes {fastest:.1f} s")
    return min(quick or fitting, key=lambda e: (e.bill.total, e.shards))


def choices(nbytes: int, setting: Setting) -> list[Estimate]:
    """Return a round of shards for every M that fits, or the M given, whatever the time budget."""
    fewest, most = planning.min_shards(nbytes), planning.max_shards(nbytes)
    if setting.shards is not None:
        most = min(setting.shards, most)
        fewest = max(fewest, most)
    if planning.project_memory(setting.clients) > setting.memory_mb:
        return []
    estimates = (_shards(nbytes, m, setting) for m in range(fewest, most + 1))
    return [e for e in estimates if e.task_seconds <= limits.MAX_TASK_SECONDS]


def _shards(nbytes: int, m: int, setting: Setting) -> Estimate:
    seconds = task_seconds(setting.clients * nbytes / m, setting)
    return price(
        "shards",
        nbytes,
        setting,
        [[Tasks(m, seconds)]],
        memory_mb=setting.memory_mb,
        # A task reads the plan too; it writes its part and its report.
        gets=m * (setting.clients + 1),
        puts=m * 2,
        shards=m,
    )


def lambda_fl(nbytes: int, setting: Setting) -> Estimate:
    """Foresee λ-FL's tree in streaming tasks."""
    return _tree("lambda_fl_streamed", nbytes, lambda_fl_levels(setting.clients), setting)


def lifl(nbytes: int, setting: Setting) -> Estimate:
    """Foresee LIFL's tree in streaming tasks."""
    return _tree("lifl_streamed", nbytes, lifl_levels(setting.clients), setting)


def _tree(system: str, nbytes: int, levels: Sequence[Sequence[int]], setting: Setting) -> Estimate:
    tasks = sum(map(len, levels))
    estimate = price(
        system,
        nbytes,
        setting,
        [[Tasks(1, task_seconds(fan_in * nbytes, setting)) for fan_in in lvl] for lvl in levels],
        memory_mb=setting.memory_mb,
        gets=sum(map(sum, levels)) + tasks,
        # Parts and a report each; a partial sum is an upload of its own, begun and completed.
        puts=tasks * (planning.min_shards(nbytes) + 1) + 2 * (tasks - 1),
    )
    needed = planning.project_memory(max(map(max, levels)))
    # Lambda's limit: that of the Express children, five minutes, would rule large trees out.
    if needed > setting.memory_mb or estimate.task_seconds > published.TIMEOUT_SECONDS:
        raise PlanError(
            f"a task of {TITLES[system]} needs {needed:.0f} MB and {estimate.task_seconds:.0f} s; "
            f"there are {setting.memory_mb} MB and {published.TIMEOUT_SECONDS:.0f} s"
        )
    return estimate


def task_seconds(nbytes: float, setting: Setting) -> float:
    """Return the seconds of a task that reads ``nbytes``, all streams opened at once."""
    return (
        limits.TASK_START_SECONDS
        + setting.bandwidth.latency_seconds
        + setting.reading_seconds(nbytes, setting.memory_mb)
    )
