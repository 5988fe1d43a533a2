"""Runs rows, each in a fresh process, one after another in rounds; what they wrote is checked."""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.servers import BUCKET, Server
from benchmarks.workload import Prepared

ROOT: Final = Path(__file__).parents[1]
WIDE: Final = 0.3
"""The spread, as a share of the median, beyond which a figure is noisy."""
PYTHONPATH: Final = os.pathsep.join(map(str, (ROOT, ROOT / "src", ROOT / "layers" / "gradshard")))


@dataclass(frozen=True)
class Row:
    """A row's module, and which of the expected objects it has to write.

    Parameters
    ----------
    name
        The name on the command line and in the tables.
    module
        The module in :mod:`benchmarks.rows`.
    what
        The work of the row, in a few words.
    writes
        Tells the targets it must write from those that other rows do.
    """

    name: str
    module: str
    what: str
    writes: Callable[[str], bool] = field(default=lambda _: False)


RECEIVE: Final = Row(
    "receive", "receive", "limit: the same ranges over as many connections, thrown away"
)
ARITHMETIC: Final = Row(
    "arithmetic", "arithmetic", "limit: the same arithmetic on arrays in memory"
)
FUNCTION: Final = Row(
    "aggregate_shard",
    "function",
    "the function's handler, whole: plan, GETs, arithmetic, the part, report",
    lambda target: "partNumber" in target,
)
PUBLISHED: Final = Row(
    "published",
    "published",
    "boto3 get_object().read(), np.load, add; then divide, put",
    lambda target: "/mean/" in target,
)
SEQUENTIAL: Final = Row(
    "sequential",
    "sequential",
    "boto3 ranged GETs one after another into a shard-sized accumulator",
    lambda target: "/sum/" in target,
)
FLOWER: Final = Row(
    "flower", "flower", "Flower's aggregate_arrayrecords, all updates in memory before the clock"
)
ROWS: Final = (RECEIVE, ARITHMETIC, FUNCTION, PUBLISHED, SEQUENTIAL, FLOWER)


class WrongBytesError(Exception):
    """A row wrote something else than the reference."""


def flower_python() -> str | None:
    """Return a Python that has Flower: this one, or the one that FLOWER_PYTHON names."""
    named = os.environ.get("FLOWER_PYTHON")
    if named or importlib.util.find_spec("flwr"):
        return named or sys.executable
    return None


def run(row: Row, prepared: Prepared, server: Server) -> dict[str, float]:
    """Run a row once.

    Raises
    ------
    WrongBytesError
        The row wrote other bytes than expected.
    RuntimeError
        The row failed.
    """
    server.take_written()
    python = flower_python() if row is FLOWER else sys.executable
    environment = {
        **os.environ,
        **server.environment,
        # Of the function's template.
        "GRADSHARD_BUCKET": BUCKET,
        "GRADSHARD_BUCKET_HOST": "",
        "GRADSHARD_STACK": "gradshard",
        "OPENBLAS_NUM_THREADS": "1",
        # This checkout's package, wherever the environment's installation points.
        "PYTHONPATH": PYTHONPATH,
    }
    done = subprocess.run(
        [python or sys.executable, "-m", f"benchmarks.rows.{row.module}"],
        input=json.dumps(prepared.job),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{row.name} on {prepared.case.round_id} failed:\n{done.stderr[-2000:]}")
    _check(row, prepared, server.take_written())
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    gigabytes = prepared.client_bytes / 1e9
    result["gb_per_second"] = gigabytes / result["seconds"]
    result["cpu_seconds_per_gb"] = result["cpu_seconds"] / gigabytes
    return result


def interleave(
    rows: Sequence[Row],
    prepared: Prepared,
    server: Server,
    times: int,
    progress: Callable[[str], None],
) -> dict[str, list[dict[str, float]]]:
    """Run every row once, then every row again, so that all meet the machine's moods alike."""
    results: dict[str, list[dict[str, float]]] = {row.name: [] for row in rows}
    for number in range(times):
        for row in rows:
            progress(f"{prepared.case.round_id}: run {number + 1} of {times}, {row.name}")
            results[row.name].append(run(row, prepared, server))
    return results


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def is_wide(figure: dict[str, float]) -> bool:
    """Return whether runs differ too much for their median to say anything."""
    return figure["max"] - figure["min"] > WIDE * figure["median"]


def summarise(results: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Summarise every figure of a row's runs."""
    return {name: summary([result[name] for result in results]) for name in results[0]}


def _check(row: Row, prepared: Prepared, written: dict[str, str]) -> None:
    expected = {
        target: digest for target, digest in prepared.expected.items() if row.writes(target)
    }
    wrong = sorted(target for target in expected if written.get(target) != expected[target])
    if wrong:
        raise WrongBytesError(
            f"{row.name} on {prepared.case.round_id}: {len(wrong)} of {len(expected)} objects "
            f"differ from the reference, first {wrong[0]}"
        )
