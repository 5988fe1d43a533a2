"""Large updates and many shards: what the planner makes of them, and what planning costs."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

from benchmarks import runs
from benchmarks.rows.round import report_of
from benchmarks.servers import BUCKET, Server, aws_environment
from gradshard_core.aggregation import topologies
from gradshard_core.costs import assumed_speeds, memory_projection
from gradshard_core.costs.lambda_config import MEMORIES_MB, LambdaConfig
from gradshard_core.costs.round_projection import Projection
from gradshard_core.costs.workload import Workload
from gradshard_core.errors import PlanError
from gradshard_core.limits import aws_limits
from gradshard_core.planning import shard_count
from gradshard_core.planning.plan_parts import Task
from gradshard_core.units import MIB

GIGABYTES: Final = (5, 50, 500)
CLIENTS: Final = (20, 1000)
MEASURED: Final = ((10, 20), (100, 20), (1000, 20), (10_000, 20), (3750, 1000))
"""Shards and clients of the rounds that are planned and finalised."""

MAX_MAP_ITEMS: Final = 10_000
"""Children that a distributed Map runs at once."""
MAX_DESCRIPTORS: Final = 1024
MAX_SECONDS: Final = 900
REPORTS: Final = 2000
"""Task records that are read to measure the time of one."""

Json = dict[str, Any]


def measure(times: int, server: Server) -> Json:
    """Plan on paper, and time planning and finalising, S3 in memory, and reading of reports."""
    report = _read_reports(times, server)
    seconds = report["median"]
    return {
        "report_cpu_seconds": report,
        "plans": [
            _plan(gigabytes, clients, seconds) for gigabytes in GIGABYTES for clients in CLIENTS
        ],
        "measured": [_measured(shards, clients, times) for shards, clients in MEASURED],
    }


def _plan(gigabytes: int, clients: int, report_seconds: float) -> Json:
    """Plan in the smallest function in which every limit is kept; else in the smallest that can."""
    name = topologies.resolve(topologies.AUTO, clients)
    load = Workload(
        gigabytes * 10**9,
        topologies.group(name, clients),
        plan_bytes=memory_projection.plan_bytes(clients),
    )
    row: Json = {"gigabytes": gigabytes, "clients": clients, "topology": name}
    planned: list[Json] = []
    for memory_mb in MEMORIES_MB:
        aggregator = LambdaConfig(memory_mb, "arm64")
        try:
            projection, _ = shard_count.choose(load, aggregator)
        except PlanError as error:
            row["rejected"] = str(error)
            continue
        planned.append(
            {
                "memory_mb": memory_mb,
                "shards": projection.shards,
                "tasks": projection.tasks,
                "part_mb": load.nbytes / projection.shards / MIB,
                "needed_mb": projection.needed_mb,
                "task_seconds": projection.task_seconds,
                "seconds": projection.seconds,
                "dollars": projection.total_dollars,
                "over": list(_over(projection, load, aggregator, report_seconds)),
            }
        )
    if not planned:
        return row
    row.pop("rejected", None)
    return row | min(planned, key=lambda plan: len(plan["over"]))


def _over(
    projection: Projection, load: Workload, aggregator: LambdaConfig, report_seconds: float
) -> Iterator[str]:
    """Name the limits that a plan would break."""
    part = load.nbytes / projection.shards
    # What travels between states: one item of the Map; what tasks find is left in S3.
    task = Task(9, projection.tasks, load.nbytes, load.nbytes, projection.tasks, projection.tasks)
    item = {"round": "r" * 64, "attempt": 9, "task": task._asdict()}
    most_at_once = max(projection.shards * len(groups) for groups in load.levels)
    for name, value, most in (
        ("parts", projection.shards, aws_limits.MAX_PARTS),
        ("smallest part", -part, -aws_limits.MIN_PART_BYTES),
        ("largest part", part, aws_limits.MAX_PART_BYTES),
        (
            "payload",
            len(json.dumps({"tasks": [item] * aggregator.batch})),
            aws_limits.MAX_PAYLOAD_BYTES,
        ),
        ("Map items", -(-most_at_once // aggregator.batch), MAX_MAP_ITEMS),
        # A connection per input, one to upload, and the process's own few.
        ("descriptors", load.fan_in + 16, MAX_DESCRIPTORS),
        ("task seconds", projection.task_seconds, min(MAX_SECONDS, aws_limits.MAX_TASK_SECONDS)),
        ("memory", projection.needed_mb, min(projection.memory_mb, MEMORIES_MB[-1])),
        (
            "finalizing seconds",
            projection.tasks
            * report_seconds
            * aws_limits.MB_PER_VCPU
            / assumed_speeds.FINALIZE_MEMORY_MB,
            assumed_speeds.FINALIZE_TIMEOUT_SECONDS,
        ),
    ):
        if value > most:
            yield f"{name} {abs(value):.0f}"


def _read_reports(times: int, server: Server) -> dict[str, float]:
    """Return the processor time, of a whole one, that finalizing pays for each report."""
    keys = [f"reports/{number}" for number in range(REPORTS)]
    task = Task(0, 0, 0, 0, 0, 0)
    for key in keys:
        server.path(key).write_text(json.dumps(report_of(task, 0)))
        server.publish(key)
    job = json.dumps({"bucket": BUCKET, "keys": keys})
    found = [_row(["reports"], server.environment, job) for _ in range(times)]
    return runs.summary([result["cpu_seconds"] / REPORTS for result in found])


def _measured(shards: int, clients: int, times: int) -> Json:
    environment = aws_environment("http://127.0.0.1:9")
    found = [_row(["round", str(shards), str(clients)], environment) for _ in range(times)]
    figures = ("plan_cpu_seconds", "finalise_cpu_seconds", "peak_mib")
    return {
        **{name: found[0][name] for name in ("shards", "clients", "tasks")},
        **{figure: runs.summary([result[figure] for result in found]) for figure in figures},
    }


def _row(command: list[str], environment: Mapping[str, str], job: str = "") -> Json:
    """Run a row in a fresh process."""
    module, *arguments = command
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.rows.{module}", *arguments],
        input=job,
        cwd=runs.ROOT,
        env=os.environ | environment | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": runs.PYTHONPATH},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    result: Json = json.loads(done.stdout.splitlines()[-1])
    return result
