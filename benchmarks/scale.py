"""Large updates and many shards: what the planner makes of them, and what planning costs."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Final

from benchmarks import runs
from benchmarks.servers import aws_environment
from gradshard import limits, planning
from gradshard.errors import PlanError
from gradshard.planning import Projection
from gradshard.spec import MAX_CLIENTS

GIGABYTES: Final = (5, 50, 500)
CLIENTS: Final = (20, MAX_CLIENTS)
# 3,008 MB is the most that a new account's functions may have.
MEMORIES_MB: Final = (128, 256, 512, 1024, 1769, 3008)
SHARDS: Final = (10, 100, 1000, 10_000)
MAX_PARTS: Final = 10_000
MAX_MAP_ITEMS: Final = 10_000
"""Children that a distributed Map runs at once."""
MAX_DESCRIPTORS: Final = 1024
MAX_SECONDS: Final = 900

Json = dict[str, Any]


def measure(times: int) -> Json:
    """Plan on paper, and time planning and finalising with S3 in memory."""
    return {
        "plans": [_plan(gigabytes, clients) for gigabytes in GIGABYTES for clients in CLIENTS],
        "measured": [_measured(shards, times) for shards in SHARDS],
        "clients": f"a round takes at most {MAX_CLIENTS} clients today; more need another topology",
    }


def _plan(gigabytes: int, clients: int) -> Json:
    nbytes = gigabytes * 10**9
    row: Json = {"gigabytes": gigabytes, "clients": clients}
    for memory_mb in MEMORIES_MB:
        try:
            projection, _ = planning.choose(
                nbytes, clients, memory_mb=memory_mb, architecture="arm64"
            )
        except PlanError as error:
            row |= {"memory_mb": memory_mb, "refused": str(error)}
            continue
        row.pop("refused", None)
        return row | {
            "memory_mb": memory_mb,
            "shards": projection.shards,
            "part_mb": nbytes / projection.shards / limits.MIB,
            "needed_mb": projection.needed_mb,
            "task_seconds": projection.task_seconds,
            "seconds": projection.seconds,
            "dollars": projection.total_dollars,
            "over": list(_over(projection, nbytes, clients)),
        }
    return row


def _over(projection: Projection, nbytes: int, clients: int) -> Iterator[str]:
    """Name the limits that a plan would break."""
    part = nbytes / projection.shards
    # What travels between states: one item of the Map, and the Map's result is left in S3.
    item = {"round": "r" * 64, "attempt": 9, "shard": [nbytes] * 3}
    for name, value, most in (
        ("parts", projection.shards, MAX_PARTS),
        ("smallest part", -part, -limits.MIN_PART_BYTES),
        ("largest part", part, limits.MAX_PART_BYTES),
        ("payload", len(json.dumps(item)), limits.MAX_PAYLOAD_BYTES),
        ("Map items", projection.shards, MAX_MAP_ITEMS),
        # A connection per contributor, one to upload, and the process's own few.
        ("descriptors", clients + 16, MAX_DESCRIPTORS),
        ("task seconds", projection.task_seconds, min(MAX_SECONDS, limits.MAX_TASK_SECONDS)),
        ("memory", projection.needed_mb, min(projection.memory_mb, MEMORIES_MB[-1])),
    ):
        if value > most:
            yield f"{name} {abs(value):.0f}"


def _measured(shards: int, times: int) -> Json:
    found: list[Json] = []
    for _ in range(times):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.rows.round", str(shards)],
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
        "shards": found[0]["shards"],
        **{figure: runs.summary([result[figure] for result in found]) for figure in figures},
    }
