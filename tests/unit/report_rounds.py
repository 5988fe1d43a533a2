"""Facts about invented rounds, for the page of ``gradshard report``."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from gradshard.report.round_facts import Facts, facts_of
from gradshard_core.costs.lambda_config import LambdaConfig
from gradshard_core.costs.round_projection import project
from gradshard_core.costs.workload import Workload

OPENED: Final = datetime(2026, 3, 1, 12, tzinfo=UTC)
PLANNED: Final = OPENED + timedelta(minutes=7, milliseconds=400)

HOSTILE: Final = "<script>alert(1)</script>\"'\u202e\x1b[31m\n{x}</style>"


def sample(
    name: str = "r1",
    *,
    clients: int = 8,
    groups: int = 1,
    shards: int = 4,
    layers: int = 0,
    state: str = "completed",
    cause: str | None = None,
    done: float = 1.0,
    seed: int = 0,
    is_planned: bool = True,
    missing: Sequence[str] = ("gone-1", "gone-2"),
    reason: str = "tensor 'fc.weight' holds a NaN or an infinity at element 3",
) -> Facts:
    """Return the facts about a round, as :func:`facts_of` returns them.

    One update is rejected and one is late, whatever the round's state.
    """
    rng = random.Random(seed)  # noqa: S311 - figures for a picture
    ids = [f"client-{n:04}" for n in range(clients)]
    nbytes = 44_700_000
    sizes = [[clients]] if groups == 1 else [_sizes(clients, groups), [groups]]
    projection = project(
        Workload(nbytes, tuple(map(tuple, sizes))), shards, LambdaConfig(256, "arm64")
    )
    contributors = [_contributor(client, rng, clients, layers) for client in ids]
    plan: dict[str, Any] = {
        "attempt": 0,
        "topology": "shards" if groups == 1 else "grid",
        "order": "sequential",
        "rule": "salf" if layers else "fedavg",
        "weights": "shares",
        "levels": [{"groups": _bounds(level), "order": []} for level in sizes],
        "contributors": contributors,
        "layers": _layers(contributors, layers, rng),
        "nbytes": nbytes,
        "header": [9_000, "sha256"],
        "tensors": 62,
        "shards": shards,
        "notes": [],
        "projected": projection.to_json(),
        "planned_at": PLANNED.isoformat(),
    }
    tasks = _tasks(sizes, shards, rng)
    tasks = tasks[: round(len(tasks) * done)]
    arrived = [
        {
            "client": c["client"],
            "nbytes": c["source"]["nbytes"],
            "etag": c["source"]["etag"],
            "arrived_at": (OPENED + timedelta(seconds=rng.triangular(5, 410, 60))).isoformat(),
        }
        for c in contributors
    ]
    bad = {
        "nbytes": nbytes,
        "etag": "bad",
        "arrived_at": (OPENED + timedelta(minutes=3)).isoformat(),
    }
    late = {
        "nbytes": nbytes,
        "etag": "l",
        "arrived_at": (PLANNED + timedelta(seconds=2)).isoformat(),
    }
    finished = max(map(_ended, tasks), default=PLANNED)
    manifest: dict[str, Any] | None = None
    if state == "completed":
        manifest = {
            "status": state,
            "finished_at": (finished + timedelta(seconds=0.4)).isoformat(),
        }
    elif state == "failed":
        manifest = {"status": state, "error": "QuorumError", "finished_at": finished.isoformat()}
    is_planned = is_planned and state != "awaiting"
    status = {
        "round": name,
        "state": state,
        "cause": cause,
        "opened_at": OPENED.isoformat(),
        "deadline_at": (OPENED + timedelta(minutes=30)).isoformat(),
        "spec": {"clients": clients + 4, "min_clients": 3},
        "arrived": [*arrived, {"client": "mallory", **bad}, {"client": "tardy", **late}],
        "missing": list(missing),
        "rejected": [{"client": "mallory", "reason": reason}],
        "late": [{"client": "tardy", "reason": "the round was planned before this update came"}],
        "plan": {"tasks": shards * sum(map(len, sizes))} if is_planned else None,
        "tasks_done": len(tasks) if is_planned else 0,
        "manifest": manifest,
    }
    return facts_of(
        status,
        plan=plan if is_planned else None,
        tasks=tasks if is_planned else [],
        partial_updates=[],
        architecture="arm64",
    )


def arrival(client: str, etag: str = "e") -> dict[str, Any]:
    """Return an upload as a status has it."""
    return {"client": client, "nbytes": 5, "etag": etag, "arrived_at": OPENED.isoformat()}


def task(seconds: float) -> dict[str, Any]:
    """Return a task's record."""
    return {**sample()["tasks"][0], "seconds": seconds}


def small(
    *,
    tasks: list[dict[str, Any]] | None = None,
    arrived: list[dict[str, Any]] | None = None,
    partial_updates: list[dict[str, Any]] | None = None,
    contributors: dict[str, str] | None = None,
    missing: Sequence[str] = (),
    server_optimizer: Any = None,
) -> Facts:
    """Return the facts about a completed round with nothing but these tasks and uploads."""
    entries = [
        {"client": client, "samples": 1, "weight": 1.0, "source": {"nbytes": 5, "etag": etag}}
        for client, etag in (contributors or {"a": "e"}).items()
    ]
    manifest = {"finished_at": PLANNED.isoformat()}
    plan = {
        "attempt": 0, "levels": [{"groups": [[0, 1]]}], "nbytes": 5, "header": [8, "sha256"],
        "tensors": 1, "shards": 1, "planned_at": PLANNED.isoformat(), "layers": [],
        "contributors": entries, "projected": {"memory_mb": 256, "dollars": None},
    }  # fmt: skip
    return facts_of(
        {
            "round": "r", "state": "completed", "cause": None, "manifest": manifest,
            "plan": {"tasks": 1}, "opened_at": OPENED.isoformat(), "deadline_at": None,
            "tasks_done": 1, "arrived": arrived or [], "missing": list(missing),
            "rejected": [], "late": [],
            "spec": {"clients": 1, "server_optimizer": server_optimizer},
        },
        plan=plan, tasks=tasks or [], partial_updates=partial_updates or [], architecture="arm64",
    )  # fmt: skip


def _ended(task: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(task["started_at"]) + timedelta(seconds=task["seconds"])


def _sizes(clients: int, groups: int) -> list[int]:
    return [clients // groups + (n < clients % groups) for n in range(groups)]


def _bounds(sizes: list[int]) -> list[list[int]]:
    return [[sum(sizes[:n]), sum(sizes[: n + 1])] for n in range(len(sizes))]


def _contributor(client: str, rng: random.Random, clients: int, layers: int) -> dict[str, Any]:
    samples = rng.randrange(200, 3_000)
    return {
        "client": client,
        "samples": samples,
        "weight": samples / (1_600 * clients),
        "source": {"nbytes": 44_709_000, "etag": f'"{client}"'},
        "reached": rng.randrange(1, layers + 1) if layers else 0,
    }


def _layers(contributors: list[dict[str, Any]], layers: int, rng: random.Random) -> list[Any]:
    found = []
    for n in range(layers):
        weights = [
            rng.uniform(0.5, 1.5) / len(contributors) if c["reached"] >= layers - n else None
            for c in contributors
        ]
        found.append([f"block.{n}.conv", [], (1 - (n + 1) / (layers + 1)) ** 3, weights])
    return found


def _tasks(sizes: list[list[int]], shards: int, rng: random.Random) -> list[dict[str, Any]]:
    tasks, at = [], PLANNED + timedelta(seconds=0.3)
    for level, groups in enumerate(sizes):
        longest = 0.0
        for number in range(shards * len(groups)):
            seconds = rng.triangular(1.5, 7, 2.2)
            longest = max(longest, seconds)
            started = at + timedelta(seconds=rng.random() * 0.8)
            tasks.append(
                {
                    "level": level,
                    "task": number,
                    "attempt": 0,
                    "start": 0,
                    "end": 1,
                    "seconds": round(seconds, 3),
                    "cpu_seconds": round(seconds / 3, 3),
                    "peak_mb": round(rng.uniform(41, 47), 1),
                    "gets": groups[0] + 2,
                    "puts": 2,
                    "retries": int(rng.random() < 0.05),
                    "bytes_read": 44_700_000 * groups[0] // shards,
                    "bytes_written": 44_700_000 // shards,
                    "is_cold": rng.random() < 0.3,
                    "started_at": started.isoformat(timespec="milliseconds"),
                }
            )
        at += timedelta(seconds=longest + 1)
    return tasks
