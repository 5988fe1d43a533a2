"""Large updates and many shards: what the planner makes of them, and what planning costs."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Final

from benchmarks import runs
from benchmarks.servers import aws_environment
from gradshard import limits, planning, topologies
from gradshard.errors import PlanError
from gradshard.plan import Task
from gradshard.planning import PLAN_BYTES_PER_CLIENT, Aggregator, Load, Projection

GIGABYTES: Final = (5, 50, 500)
CLIENTS: Final = (20, 1000)
# 3,008 MB is the most that a new account's functions may have.
MEMORIES_MB: Final = limits.MEMORIES_MB
MEASURED: Final = ((10, 20), (100, 20), (1000, 20), (10_000, 20), (3750, 1000))
"""Shards and clients of the rounds that are planned and finalised."""

MAX_PARTS: Final = 10_000
MAX_MAP_ITEMS: Final = 10_000
"""Children that a distributed Map runs at once."""
MAX_DESCRIPTORS: Final = 1024
MAX_SECONDS: Final = 900
REQUEST_CPU_SECONDS: Final = 0.001
"""boto3's, on a whole processor: what finalizing pays for each report that it reads."""
FINALIZE_MEMORY_MB: Final = 256
FINALIZE_SECONDS: Final = 900
"""The template's."""

Json = dict[str, Any]


def measure(times: int) -> Json:
    """Plan on paper, and time planning and finalising with S3 in memory."""
    return {
        "plans": [_plan(gigabytes, clients) for gigabytes in GIGABYTES for clients in CLIENTS],
        "measured": [_measured(shards, clients, times) for shards, clients in MEASURED],
    }


def _plan(gigabytes: int, clients: int) -> Json:
    """Plan in the smallest function in which every limit is kept; else in the smallest that can."""
    name = topologies.resolve(topologies.AUTO, clients)
    load = Load(
        gigabytes * 10**9,
        topologies.group(name, clients),
        plan_bytes=PLAN_BYTES_PER_CLIENT * clients,
    )
    row: Json = {"gigabytes": gigabytes, "clients": clients, "topology": name}
    planned: list[Json] = []
    for memory_mb in MEMORIES_MB:
        aggregator = Aggregator(memory_mb, "arm64")
        try:
            projection, _ = planning.choose(load, aggregator)
        except PlanError as error:
            row["refused"] = str(error)
            continue
        planned.append(
            {
                "memory_mb": memory_mb,
                "shards": projection.shards,
                "tasks": projection.tasks,
                "part_mb": load.nbytes / projection.shards / limits.MIB,
                "needed_mb": projection.needed_mb,
                "task_seconds": projection.task_seconds,
                "seconds": projection.seconds,
                "dollars": projection.total_dollars,
                "over": list(_over(projection, load, aggregator)),
            }
        )
    if not planned:
        return row
    row.pop("refused", None)
    return row | min(planned, key=lambda plan: len(plan["over"]))


def _over(projection: Projection, load: Load, aggregator: Aggregator) -> Iterator[str]:
    """Name the limits that a plan would break."""
    part = load.nbytes / projection.shards
    # What travels between states: one item of the Map; what tasks find is left in S3.
    task = Task(9, projection.tasks, load.nbytes, load.nbytes, projection.tasks, projection.tasks)
    item = {"round": "r" * 64, "attempt": 9, "task": task._asdict()}
    most_at_once = max(projection.shards * len(groups) for groups in load.levels)
    for name, value, most in (
        ("parts", projection.shards, MAX_PARTS),
        ("smallest part", -part, -limits.MIN_PART_BYTES),
        ("largest part", part, limits.MAX_PART_BYTES),
        (
            "payload",
            len(json.dumps({"tasks": [item] * aggregator.batch})),
            limits.MAX_PAYLOAD_BYTES,
        ),
        ("Map items", -(-most_at_once // aggregator.batch), MAX_MAP_ITEMS),
        # A connection per input, one to upload, and the process's own few.
        ("descriptors", load.fan_in + 16, MAX_DESCRIPTORS),
        ("task seconds", projection.task_seconds, min(MAX_SECONDS, limits.MAX_TASK_SECONDS)),
        ("memory", projection.needed_mb, min(projection.memory_mb, MEMORIES_MB[-1])),
        ("finalizing seconds", _finalize_seconds(projection.tasks), FINALIZE_SECONDS),
    ):
        if value > most:
            yield f"{name} {abs(value):.0f}"


def _finalize_seconds(tasks: int) -> float:
    return tasks * REQUEST_CPU_SECONDS * limits.MB_PER_VCPU / FINALIZE_MEMORY_MB


def _measured(shards: int, clients: int, times: int) -> Json:
    found: list[Json] = []
    for _ in range(times):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.rows.round", str(shards), str(clients)],
            cwd=runs.ROOT,
            env=os.environ | aws_environment("http://127.0.0.1:9") | {"OPENBLAS_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"planning {shards} shards failed:\n{done.stderr[-2000:]}")
        found.append(json.loads(done.stdout.splitlines()[-1]))
    figures = ("plan_cpu_seconds", "finalise_cpu_seconds", "peak_mib")
    return {
        **{name: found[0][name] for name in ("shards", "clients", "tasks")},
        **{figure: runs.summary([result[figure] for result in found]) for figure in figures},
    }
