"""Speed, time left and cost so far of a running round, estimated from its finished tasks."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from statistics import fmean
from typing import Any, NamedTuple

from gradshard_core.costs import measured_round_cost


class Pace(NamedTuple):
    """The estimates for a round that is being aggregated.

    Parameters
    ----------
    bytes_read
        Bytes of updates that the finished tasks read; shards are of nearly equal size.
    bytes_per_second
        Bytes read per second since the round was planned.
    seconds_left
        The seconds until the round ends: the planner's projection, corrected by the longest
        finished task; None before a task is finished.
    dollars
        The cost so far. Tasks that were not looked at count as average ones.
    """

    bytes_read: int
    bytes_per_second: float
    seconds_left: float | None
    dollars: float | None


def bytes_read(status: Mapping[str, Any]) -> int:
    """Return the bytes of updates that the finished tasks of level 0 have read."""
    plan = status["plan"]
    whole = plan["nbytes"] * len(plan["contributors"])
    return int(whole * status["tasks_done_by_level"][0] / plan["tasks_by_level"][0])


def pace(
    status: Mapping[str, Any],
    tasks: Sequence[Mapping[str, Any]],
    *,
    now: datetime,
    architecture: str,
) -> Pace:
    """Estimate the speed of a planned round.

    Parameters
    ----------
    status
        The result of :meth:`gradshard.client.round_status.StatusPoller.poll`.
    tasks
        Task records of some of the finished tasks.
    now
        The time of the poll.
    architecture
        The processor of the functions, for their price.
    """
    plan = status["plan"]
    # The clocks of the function that planned and of who watches are two.
    elapsed = max((now - datetime.fromisoformat(plan["planned_at"])).total_seconds(), 0.001)
    read = bytes_read(status)
    if not tasks:
        return Pace(read, read / elapsed, None, None)
    bill = measured_round_cost.measured(
        [*tasks, *_average(tasks, status["tasks_done_by_level"])],
        clients=len(plan["contributors"]),
        memory_mb=plan["projected"]["memory_mb"],
        architecture=architecture,
        nbytes=plan["nbytes"],
        server_optimizer=status["spec"].get("server_optimizer"),
    )
    return Pace(read, read / elapsed, _left(status, tasks, elapsed), bill.total)


def _average(tasks: Sequence[Mapping[str, Any]], done: Sequence[int]) -> list[dict[str, Any]]:
    """Return an average task, for the finished tasks whose records were not read."""
    found = []
    for level, count in enumerate(done):
        known = [task for task in tasks if task["level"] == level] or tasks
        average = {
            name: fmean(task[name] for task in known)
            for name in ("seconds", "gets", "puts", "is_cold")
        }
        unread = count - sum(task["level"] == level for task in tasks)
        found += [{"level": level, **average}] * unread
    return found


def _left(status: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]], elapsed: float) -> float:
    plan = status["plan"]
    projected = plan["projected"]
    longest = max(task["seconds"] for task in tasks)
    left = projected["seconds"] * longest / projected["task_seconds"] - elapsed
    if left > 0:
        return float(left)
    # It takes longer than its tasks made believe: then as it has gone so far.
    return float(elapsed * (1 - status["tasks_done"] / plan["tasks"]))
