"""The facts on a training's page, as JSON: from its options, its state and its records."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from gradshard.report.round_facts import Facts
from gradshard_core.formats.client_metrics import most_frequent
from gradshard_core.formats.object_keys import sender_of


def training_facts(status: Mapping[str, Any], read_at: datetime) -> Facts:
    """Return the facts about a training.

    Parameters
    ----------
    status
        The result of :meth:`gradshard.client.training.Training.status`.
    read_at
        The time at which it was read.
    """
    rounds = [_round(record) for record in status["rounds"]]
    until = status["changed_at"] if status["status"] == "ended" else read_at.isoformat()
    budget = status["spec"].get("budget") or {}
    return {
        "training": status["training"],
        "status": status["status"],
        "cause": status["cause"],
        "model": _model(status["spec"]),
        "rounds_completed": status["completed"],
        "rounds_planned": status["spec"]["rounds"],
        "started_at": status["started_at"],
        "seconds": _seconds(status["started_at"], until),
        "dollars": status["dollars"],
        "budget_seconds": budget.get("seconds"),
        "budget_dollars": budget.get("dollars"),
        "version": status["version"],
        "best": status["best"],
        "under_way": status["invitation"],
        "rounds": rounds,
        "clients": participation(status["rounds"], status["silent"], status.get("rejected")),
        "spec": status["spec"],
    }


def metric_names(facts: Facts) -> list[tuple[str, bool]]:
    """Return the metrics of a training's rounds, each with whether evaluations measured it.

    The one by which the training stops comes first, then those that most rounds have.
    """
    rounds, rule = facts["rounds"], facts["spec"].get("stop") or {}
    found = {(name, r["is_evaluation"]) for r in rounds for name in r["metrics"]}
    names = most_frequent((r["metrics"] for r in rounds), rule.get("metric"))
    rank = {name: number for number, name in enumerate(names)}
    return sorted(found, key=lambda entry: (rank[entry[0]], entry[1]))


def participation(
    records: Sequence[Mapping[str, Any]],
    silent: Mapping[str, int],
    rejections: Mapping[str, int] | None,
) -> list[dict[str, Any]]:
    """Count, for each client, the rounds to which it was invited, and what it did in them.

    In a buffered training, the updates and evaluations count that were averaged or rejected: its
    rounds invite nobody.

    Parameters
    ----------
    records
        The records of the rounds.
    silent
        The number of invitations in a row that clients have missed.
    rejections
        The number of updates of clients that a buffered training has rejected, in rounds or
        because they were too old, say; None in other trainings.
    """
    invited: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    in_versions: Counter[str] = Counter()
    last: dict[str, int] = {}
    for record in records:
        # A version may have several updates of a client.
        averaged, bad = (
            [sender_of(name) for name in record[kind]] for kind in ("contributors", "rejected")
        )
        if not record["is_completed"]:
            averaged = []
        counted.update(averaged)
        (rejected if record["clients"] else in_versions).update(bad)
        if rejections is None:
            invited.update(record["clients"])
        else:
            invited.update([*averaged, *(bad if record["clients"] else ())])
        last |= dict.fromkeys(averaged, record["number"])
    # The bucket deletes rejections after a time, so that only the records may have them.
    buffered = in_versions | Counter(rejections or {})
    invited, rejected = invited + buffered, rejected + buffered
    return [
        {
            "client": client,
            "invited": invited[client],
            "contributed": counted[client],
            "rejected": rejected[client],
            "last_round": last.get(client),
            "silent": silent.get(client, 0),
        }
        for client in sorted(invited)
    ]


def _round(record: Mapping[str, Any]) -> Facts:
    return {
        "round": record["round_id"],
        "number": record["number"],
        "is_evaluation": record["is_evaluation"],
        "is_completed": record["is_completed"],
        "error": record["error"],
        "cause": record["cause"],
        "invited": len(record["clients"]) or record["awaited"],
        "contributed": len(record["contributors"]),
        "rejected": len(record["rejected"]),
        "missing": sorted({*record["clients"]} - {*record["contributors"], *record["rejected"]}),
        "base_version": record["base_version"],
        "version": record["version"],
        "metrics": record["metrics"],
        "dollars": record["dollars"],
        "closed_at": record["closed_at"],
        "notes": record["notes"],
        "staleness": record.get("staleness", {}),
        "settings": record["settings"],
    }


def _model(spec: Mapping[str, Any]) -> str:
    optimizer = spec["round"]["server_optimizer"]
    return "model" if isinstance(optimizer, str) else str(optimizer.get("model", "model"))


def _seconds(begin: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()
