"""The facts about a round, as JSON: all that the page shows, without further requests."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from gradshard_core.aggregation.arithmetic import SHARES
from gradshard_core.aggregation.topologies import AUTO
from gradshard_core.costs import measured_round_cost
from gradshard_core.planning.plan_parts import NOBODY
from gradshard_core.specs.round_spec_checks import default_quorum
from gradshard_core.stragglers.salf import FEDAVG

Facts = dict[str, Any]

COUNTED: Final = "counted"
REJECTED: Final = "rejected"
LATE: Final = "late"
WAITING: Final = "waiting"
UNUSED: Final = "unused"
"""The states of an upload: it is in the plan, it was rejected, it came after planning, the round
may still use it, or the round ended without it."""

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
    """Return the facts about a round.

    Parameters
    ----------
    status, plan
        The results of :meth:`gradshard.client.round_status.StatusPoller.poll` and ``plan``.
    tasks
        The tasks' records.
    partial_updates
        Uploads of partial updates, as :meth:`StatusPoller.partial_updates` returns them.
    architecture
        The functions' architecture, which sets their price.
    """
    manifest, plan = status["manifest"] or {}, plan or {}
    done = [_timed(task) for task in sorted(tasks, key=lambda t: (t["level"], t["task"]))]
    contributors = _contributors(plan)
    projected = plan.get("projected") or {}
    return {
        **_course(status, manifest, plan),
        **_settings(status["spec"], plan),
        **_planned(plan),
        **_clients(status, contributors, _uploads(status, contributors, partial_updates)),
        "layers": _layers(plan),
        # Reports are passed on, and noise does not hide the norm of a single update.
        "decision": None if status["spec"].get("dp") else status.get("decision"),
        "tasks_planned": (status["plan"] or {}).get("tasks", 0),
        "tasks_done": status["tasks_done"],
        "tasks": done,
        "totals": _totals(done),
        "projected": projected,
        "dollars": {
            "projected": projected.get("dollars"),
            "measured": _measured(
                status["spec"],
                done,
                contributors,
                plan,
                architecture,
                measuring=manifest.get("measuring", {}).get("tasks", ()),
            ),
        },
    }


def compared(rounds: Sequence[Facts]) -> list[Facts]:
    """Return the numbers by which rounds are compared; a number that is not known is None."""
    return [
        {
            "round": facts["round"],
            "state": facts["state"],
            # A round without an average has no contributors and no time of aggregation. That is
            # not the same as 0 of them.
            "contributors": len(facts["contributors"]) if _is_averaged(facts) else None,
            "rejected": len(facts["rejected"]),
            "seconds": facts["seconds"] if _is_averaged(facts) else None,
            "waited_seconds": facts["waited_seconds"],
            "dollars": (facts["dollars"]["measured"] or {}).get("total"),
            **{
                name: facts["totals"].get(name) for name in ("bytes_read", "cold_starts", "peak_mb")
            },
        }
        for facts in rounds
    ]


def _is_averaged(facts: Facts) -> bool:
    """Return whether a round has an average, or is computing it."""
    return facts["planned_at"] is not None and facts["state"] != "failed"


def _course(
    status: Mapping[str, Any], manifest: Mapping[str, Any], plan: Mapping[str, Any]
) -> Facts:
    """Return the round's state and its moments."""
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
        "updates_from": status["spec"].get("updates_from"),
        "model": manifest.get("model"),
        "privacy": manifest.get("privacy"),
    }


def _settings(spec: Mapping[str, Any], plan: Mapping[str, Any]) -> Facts:
    """Return how the round averages: from its plan, or from its spec if it was not planned."""
    rule = spec.get("rule") or FEDAVG
    asked = {
        "topology": spec.get("topology", AUTO),
        "order": spec.get("order"),
        "rule": rule["name"] if isinstance(rule, dict) else rule,
        "weights": spec.get("weights", SHARES),
    }
    return {name: plan.get(name, value) for name, value in asked.items()}


def _planned(plan: Mapping[str, Any]) -> Facts:
    """Return what the plan says about the aggregation."""
    return {
        "shards": plan.get("shards"),
        "groups": [
            [stop - first for first, stop in lvl["groups"]] for lvl in plan.get("levels", [])
        ],
        "nbytes": plan.get("nbytes"),
        "tensors": plan.get("tensors"),
        "attempts": plan["attempt"] + 1 if plan else 0,
        "notes": list(plan.get("notes", [])),
    }


def _clients(
    status: Mapping[str, Any], contributors: Sequence[Mapping[str, Any]], uploads: Sequence[Facts]
) -> Facts:
    """Return who took part, who did not, and the uploads."""
    clients = status["spec"].get("clients", 0)
    expected = clients if isinstance(clients, int) else len(clients)
    counted = {u["client"]: u["arrived_at"] for u in uploads if u["fate"] == COUNTED}
    # A status calls a client missing whose partial update was not averaged. It did send something.
    senders = {upload["client"] for upload in uploads}
    return {
        "expected": expected,
        "min_clients": status["spec"].get("min_clients") or default_quorum(expected),
        "contributors": [
            {
                **{name: entry[name] for name in ("client", "samples", "weight", "nbytes")},
                "codec": entry.get("codec"),
                "codec_error": entry.get("codec_error"),
                "arrived_at": counted.get(entry["client"]),
            }
            for entry in contributors
        ],
        "rejected": status["rejected"],
        "late": status["late"],
        "missing": [client for client in status["missing"] if client not in senders],
        "uploads": uploads,
    }


def _contributors(plan: Mapping[str, Any]) -> list[Facts]:
    """Return a plan's contributors in the form of a manifest's."""
    return [
        {
            "client": entry["client"],
            "samples": entry["samples"],
            "weight": None if plan["layers"] else entry["weight"],
            "nbytes": entry["source"]["nbytes"],
            "etag": entry["source"]["etag"],
        }
        for entry in plan.get("contributors", [])
        if entry["client"] != NOBODY
    ]


def _layers(plan: Mapping[str, Any]) -> list[Facts]:
    """Return a plan's layers in the form of a manifest's."""
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
    """Return the uploads by arrival, each with what became of it."""
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

    # A client's partial update is still listed after its finished update took its place.
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
    """Return a task's record with ``ended_at``: its start plus its seconds."""
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
    *,
    measuring: Sequence[Mapping[str, Any]],
) -> dict[str, float] | None:
    if not tasks:
        return None
    return measured_round_cost.measured(
        tasks,
        measuring=measuring,
        clients=len(contributors),
        memory_mb=plan["projected"]["memory_mb"],
        architecture=architecture,
        nbytes=plan["header"][0] + plan["nbytes"],
        sent=[entry["nbytes"] for entry in contributors],
        server_optimizer=spec.get("server_optimizer"),
    ).to_json()


def _between(begin: str | None, end: str | None) -> float | None:
    if begin is None or end is None:
        return None
    passed = datetime.fromisoformat(end) - datetime.fromisoformat(begin)
    return round(passed.total_seconds(), 3)
