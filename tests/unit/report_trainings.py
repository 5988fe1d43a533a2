"""Trainings for tests of the page about them."""

import math
import random
from datetime import UTC, datetime, timedelta
from typing import Any

from gradshard.report.round_facts import Facts
from gradshard.report.training_facts import training_facts

STARTED = datetime(2026, 3, 1, 12, tzinfo=UTC)


def sample_status(
    name: str = "mnist", *, rounds: int = 60, clients: int = 50, status: str = "ended", **more: Any
) -> dict[str, Any]:
    """Return a training as :meth:`gradshard.client.training.Training.status` returns it."""
    rng = random.Random(1)  # noqa: S311 - figures for a picture
    ids = [f"client-{n:03}" for n in range(clients)]
    records = []
    for number in range(1, rounds + 1):
        invited = sorted(rng.sample(ids, min(10, clients)))
        came = [client for client in invited if rng.random() > 0.1]
        closed = STARTED + timedelta(minutes=number)
        loss = 2.3 * math.exp(-number / 20) + rng.uniform(0, 0.05)
        records.append(_record(name, number, invited, came, closed, {"loss": loss}))
        if number == 7:
            failed = {"is_completed": False, "error": "QuorumError", "cause": "3 good updates"}
            records.insert(-1, records[-1] | failed | {"version": None, "metrics": {}})
        if number % 5 == 0:
            accuracy = {"accuracy": 1 - math.exp(-number / 15), "drift": rng.uniform(-2, 1)}
            record = _record(name, number, invited, came, closed, accuracy)
            round_id = f"{record['round_id']}-eval"
            evaluation = {"round_id": round_id, "is_evaluation": True, "version": None}
            records.append(record | evaluation | {"base_version": number + 1})
    best = {"version": 56, "number": 55, "metric": "accuracy", "value": 0.974}
    return {
        "training": name,
        "spec": {
            "rounds": rounds,
            "round": {"server_optimizer": {"optimizer": "fedavg", "model": "net"}},
            "sample": 10,
            "evaluate_every": 5,
            "budget": {"dollars": 2.0},
        },
        "status": status,
        "cause": "all 60 rounds have completed",
        "completed": rounds,
        "version": rounds + 1,
        "best": best if rounds >= 55 else None,
        "invitation": None,
        "started_at": STARTED.isoformat(),
        "changed_at": (STARTED + timedelta(minutes=rounds)).isoformat(),
        "dollars": sum(record["dollars"] for record in records),
        "silent": {"client-003": 2} if clients > 3 else {},
        "rounds": records,
        **more,
    }


def sample_training(name: str = "mnist", **options: Any) -> Facts:
    """Return the facts about a training."""
    return training_facts(sample_status(name, **options), STARTED + timedelta(hours=2))


def _record(
    name: str,
    number: int,
    invited: list[str],
    came: list[str],
    closed: datetime,
    metrics: dict[str, float],
) -> dict[str, Any]:
    return {
        "round_id": f"{name}-{number:05}",
        "number": number,
        "repetition": 0,
        "is_evaluation": False,
        "is_completed": True,
        "clients": invited,
        "contributors": came[1:] if number == 9 else came,
        "rejected": came[:1] if number == 9 else [],
        "awaited": 10,
        "base_version": number,
        "version": number + 1,
        "metrics": metrics,
        "dollars": 0.0007,
        "closed_at": closed.isoformat(),
        "notes": ["metrics of client-001 do not count: NaN"] if number == 9 else [],
        "settings": {},
        "error": None,
        "cause": None,
    }
