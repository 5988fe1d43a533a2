"""What is known of a round, as JSON that no longer needs the round's objects."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from gradshard.client import round_cost
from gradshard_core.aggregation.arithmetic import SHARES
from gradshard_core.aggregation.topologies import AUTO
from gradshard_core.planning.spec import default_quorum
from gradshard_core.stragglers.salf import FEDAVG

Facts = dict[str, Any]

COUNTED: Final = "counted"
REJECTED: Final = "rejected"
LATE: Final = "late"
WAITING: Final = "waiting"
UNUSED: Final = "unused"
"""What became of an upload. Those that count were planned with; unused are those of a round that
ended otherwise than by them."""

_TASK_FIELDS: Final = (
    "level",
    "task",
    "start",
    "end",
    "seconds",
    "cpu_seconds",
    "peak_mb",
    "gets",
    "puts",
    "retries",
    "bytes_read",
    "bytes_written",
    "is_cold",
    "started_at",
)


def facts_of(
    status: Mapping[str, Any],
    *,
    plan: Mapping[str, Any] | None,
    tasks: Sequence[Mapping[str, Any]],
    partial_updates: Sequence[Mapping[str, Any]],
    architecture: str,
) -> Facts:
    """Return what is known of a round.

    Parameters
    ----------
    status, plan
        As :meth:`gradshard.client.status.StatusPoller.poll` and ``plan`` return them.
    tasks
        What the tasks reported.
    partial_updates
        What clients have sent of partial updates.
    architecture
        Of the functions, for their price.
    """
    manifest, plan = status["manifest"] or {}, plan or {}
    done = [_timed(task) for task in sorted(tasks, key=lambda t: (t["level"], t["task"]))]
    contributors = _contributors(plan)
    uploads = _uploads(status, contributors, partial_updates)
    counted = {u["client"]: u["arrived_at"] for u in uploads if u["fate"] == COUNTED}
    projected = plan.get("projected") or {}
    clients = status["spec"].get("clients", 0)
    expected = clients if isinstance(clients, int) else len(clients)
    return {
        "round": status["round"],
        "state": status["state"],
        "cause": status["cause"],
        "error": manifest.get("error"),
        "opened_at": status["opened_at"],
        "deadline_at": status["deadline_at"],
        "planned_at": plan.get("planned_at"),
        "finished_at": manifest.get("finished_at"),
        "waited_seconds": _between(status["opened_at"], plan.get("planned_at")),
        "seconds": _between(plan.get("planned_at"), manifest.get("finished_at")),
        "expected": expected,
        "min_clients": status["spec"].get("min_clients") or default_quorum(expected),
        "updates_from": status["spec"].get("updates_from"),
        "model": manifest.get("model"),
        **_terms(status["spec"], plan),
        "shards": plan.get("shards"),
        "groups": [
            [stop - first for first, stop in lvl["groups"]] for lvl in plan.get("levels", [])
        ],
        "nbytes": plan.get("nbytes"),
        "tensors": plan.get("tensors"),
        "attempts": plan["attempt"] + 1 if plan else 0,
        "notes": list(plan.get("notes", [])),
        "contributors": [
            {
                **{name: entry[name] for name in ("client", "samples", "weight", "nbytes")},
                "arrived_at": counted.get(entry["client"]),
            }
            for entry in contributors
        ],
        "rejected": status["rejected"],
        "late": status["late"],
        "missing": status["missing"],
        "uploads": uploads,
        "layers": _layers(plan),
        "tasks_planned": (status["plan"] or {}).get("tasks", 0),
        "tasks_done": status["tasks_done"],
        "tasks": done,
        "totals": _totals(done),
        "projected": projected,
        "dollars": {
            "projected": projected.get("dollars"),
            "measured": _measured(status["spec"], done, contributors, plan, architecture),
        },
    }


def compared(rounds: Sequence[Facts]) -> list[Facts]:
    """Return the numbers by which rounds are compared; None where they are not known."""
    return [
        {
            "round": facts["round"],
            "state": facts["state"],
            "contributors": len(facts["contributors"]),
            "rejected": len(facts["rejected"]),
            "seconds": facts["seconds"],
            "waited_seconds": facts["waited_seconds"],
            "dollars": (facts["dollars"]["measured"] or {}).get("total"),
            **{
                name: facts["totals"].get(name) for name in ("bytes_read", "cold_starts", "peak_mb")
            },
        }
        for facts in rounds
    ]


def _terms(spec: Mapping[str, Any], plan: Mapping[str, Any]) -> Facts:
    """Return how the round averages: as planned, else as it was opened."""
    rule = spec.get("rule") or FEDAVG
    asked = {
        "topology": spec.get("topology", AUTO),
        "order": spec.get("order"),
        "rule": rule["name"] if isinstance(rule, dict) else rule,
        "weights": spec.get("weights", SHARES),
    }
    return {name: plan.get(name, value) for name, value in asked.items()}


def _contributors(plan: Mapping[str, Any]) -> list[Facts]:
    """Return a plan's contributors as a manifest has them."""
    return [
        {
            "client": entry["client"],
            "samples": entry["samples"],
            "weight": None if plan["layers"] else entry["weight"],
            "nbytes": entry["source"]["nbytes"],
            "etag": entry["source"]["etag"],
        }
        for entry in plan.get("contributors", [])
    ]


def _layers(plan: Mapping[str, Any]) -> list[Facts]:
    """Return a plan's layers as a manifest has them."""
    clients = [entry["client"] for entry in plan.get("contributors", [])]
    return [
        {
            "name": name,
            "p": missed,
            "weights": {c: w for c, w in zip(clients, weights, strict=True) if w is not None},
        }
        for name, _ranges, missed, weights in plan.get("layers", [])
    ]


def _uploads(
    status: Mapping[str, Any],
    contributors: Sequence[Mapping[str, Any]],
    partial_updates: Sequence[Mapping[str, Any]],
) -> list[Facts]:
    """Return uploads in the order of their arrival, with what became of them."""
    averaged = {entry["client"]: entry["etag"] for entry in contributors}
    rejected = {entry["client"] for entry in status["rejected"]}
    late = {entry["client"] for entry in status["late"]}

    def fate(upload: Mapping[str, Any]) -> str:
        if averaged.get(upload["client"]) == upload["etag"]:
            return COUNTED
        if upload["client"] in late:
            return LATE
        if upload["client"] in rejected:
            return REJECTED
        return UNUSED if status["manifest"] else WAITING

    # A partial update stays beside the finished one that takes its place.
    finished = {u["client"] for u in status["arrived"] if fate(u) in {COUNTED, WAITING}}
    partial = [upload for upload in partial_updates if upload["client"] not in finished]
    found = [
        {
            "client": upload["client"],
            "nbytes": upload["nbytes"],
            "arrived_at": upload["arrived_at"],
            "fate": fate(upload),
        }
        for upload in (*status["arrived"], *partial)
    ]
    return sorted(found, key=lambda upload: (upload["arrived_at"], upload["client"]))


def _timed(task: Mapping[str, Any]) -> Facts:
    """Return a task's report with ``ended_at``, which follows from its start and its seconds."""
    ended = datetime.fromisoformat(task["started_at"]) + timedelta(seconds=task["seconds"])
    return {**{name: task[name] for name in _TASK_FIELDS}, "ended_at": ended.isoformat()}


def _totals(tasks: Sequence[Facts]) -> Facts:
    if not tasks:
        return {}
    summed = (
        "seconds",
        "cpu_seconds",
        "gets",
        "puts",
        "retries",
        "bytes_read",
        "bytes_written",
    )
    return {
        **{name: sum(task[name] for task in tasks) for name in summed},
        "cold_starts": sum(task["is_cold"] for task in tasks),
        "peak_mb": max(task["peak_mb"] for task in tasks),
        "longest_seconds": max(task["seconds"] for task in tasks),
    }


def _measured(
    spec: Mapping[str, Any],
    tasks: Sequence[Facts],
    contributors: Sequence[Mapping[str, Any]],
    plan: Mapping[str, Any],
    architecture: str,
) -> dict[str, float] | None:
    if not tasks:
        return None
    return round_cost.measured(
        tasks,
        clients=len(contributors),
        memory_mb=plan["projected"]["memory_mb"],
        architecture=architecture,
        nbytes=plan["header_bytes"] + plan["nbytes"],
        server_optimizer=spec.get("server_optimizer"),
    ).to_json()


def _between(begin: str | None, end: str | None) -> float | None:
    if begin is None or end is None:
        return None
    passed = datetime.fromisoformat(end) - datetime.fromisoformat(begin)
    return round(passed.total_seconds(), 3)
