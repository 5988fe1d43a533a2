"""The table: every row on every size of round, and what follows for the targets."""

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from benchmarks import runs
from benchmarks.runs import ARITHMETIC, FLOWER, FUNCTION, PUBLISHED, RECEIVE, SEQUENTIAL, Row
from benchmarks.servers import Server
from benchmarks.workload import RESNET_18, VGG_16, Case, Prepared, Workloads
from gradshard_core.aggregation import block_sizes
from gradshard_core.costs import memory_projection

CASES: Final = (
    Case(20, RESNET_18, None, whole=True),
    Case(20, RESNET_18, 4, whole=True),
    Case(64, RESNET_18, None, whole=False),
    Case(20, VGG_16, None, whole=False),
    Case(20, VGG_16, 4, whole=False),
)
QUICK_CASES: Final = (Case(20, RESNET_18, 4, whole=True),)
LIMITED_CLIENTS: Final = (4, 8)
LIMIT: Final = 60_000_000
"""Bytes per second of one connection, of the order of S3's."""

MOST_FOR_FLOWER: Final = 3_000_000_000
"""Bytes of updates that Flower's row is given: it holds them and more in memory."""

Progress = Callable[[str], None]
Json = dict[str, Any]


def throughput(
    server: Server, rows: Sequence[Row], times: int, *, quick: bool, notes: list[str], say: Progress
) -> Iterator[Json]:
    """Measure the rows on one size after another; add to ``notes`` what was left out."""
    if FLOWER in rows and not runs.flower_python():
        notes.append("flower: flwr is not installed; pip install flwr, or set FLOWER_PYTHON")
        rows = [row for row in rows if row is not FLOWER]
    workloads = Workloads(server)
    seen: dict[tuple[int, int, int], Case] = {}
    for case in QUICK_CASES if quick else CASES:
        if case.clients * case.elements * 4 > server.holds:
            notes.append(f"{case.round_id}: more than the engine can hold in memory")
            continue
        say(f"{case.round_id}: making updates")
        prepared = workloads.prepare(case)
        same = seen.setdefault((case.clients, case.elements, prepared.shards), case)
        if same is not case:
            notes.append(
                f"{case.round_id}: the planner's M is {prepared.shards} too, once is enough"
            )
            continue
        fitting = list(rows)
        if FLOWER in rows and prepared.client_bytes > MOST_FOR_FLOWER:
            gigabytes = prepared.client_bytes / 1e9
            notes.append(f"flower on {case.round_id}: {gigabytes:.1f} GB of updates in memory")
            fitting.remove(FLOWER)
        yield _measure(prepared, server, fitting, times, say)


def _measure(
    prepared: Prepared, server: Server, rows: Sequence[Row], times: int, say: Progress
) -> Json:
    case = prepared.case
    measured = runs.interleave(rows, prepared, server, times, say)
    return {
        "case": case.round_id,
        "clients": case.clients,
        "megabytes": case.megabytes,
        "shards": prepared.shards,
        "tasks": len(prepared.job["tasks"]),
        "client_gb": prepared.client_bytes / 1e9,
        "projected_mb": prepared.projected_mb,
        "load": os.getloadavg()[0],
        "rows": {
            row.name: {"what": row.what, "runs": times, **runs.summarise(measured[row.name])}
            for row in rows
        },
        "ratios": _ratios(measured),
    }


def _ratios(measured: dict[str, list[dict[str, float]]]) -> Json:
    """Compare runs of the same round of interleaving, then take the median."""
    cpu = {name: [run["cpu_seconds_per_gb"] for run in found] for name, found in measured.items()}
    ratios: Json = {}
    if {FUNCTION.name, RECEIVE.name, ARITHMETIC.name} <= cpu.keys():
        ratios["function_to_limit"] = runs.summary(
            [
                whole / (receive + arithmetic)
                for whole, receive, arithmetic in zip(
                    cpu[FUNCTION.name], cpu[RECEIVE.name], cpu[ARITHMETIC.name], strict=True
                )
            ]
        )
    if {FUNCTION.name, PUBLISHED.name} <= cpu.keys():
        ratios["function_to_published"] = runs.summary(
            [a / b for a, b in zip(cpu[FUNCTION.name], cpu[PUBLISHED.name], strict=True)]
        )
    return ratios


def rate_limited(
    server: Server, limited: Server, times: int, *, quick: bool, say: Progress
) -> list[Json]:
    """Hold each connection to a rate; compare lockstep with reading one after another.

    Parameters
    ----------
    server
        The server of the objects.
    limited
        Serves the same, at a rate.
    """
    workloads = Workloads(server)
    # Long enough for the rate to settle.
    alone = workloads.prepare(Case(1, VGG_16, 4, whole=False))
    results: list[Json] = []
    for clients in LIMITED_CLIENTS[: 1 if quick else None]:
        prepared = workloads.prepare(Case(clients, VGG_16, 4, whole=False))
        measured = [("alone", RECEIVE, alone), (FUNCTION.name, FUNCTION, prepared)]
        # One after another is as slow with many as with few, and takes the longer.
        if clients == LIMITED_CLIENTS[0]:
            measured.append((SEQUENTIAL.name, SEQUENTIAL, prepared))
        rates: dict[str, list[float]] = {name: [] for name, _, _ in measured}
        for number in range(times):
            for name, row, job in measured:
                say(f"rate-limited, {clients} connections: run {number + 1} of {times}, {name}")
                result = runs.run(row, job, limited)
                rates[name].append(result["gb_per_second"] * 1e9)
        limit = statistics.median(rates["alone"])
        results.append(
            {
                "connections": clients,
                "limit": LIMIT,
                "alone": limit,
                "rows": {
                    name: {
                        "rate": runs.summary(found),
                        "of_limit": statistics.median(found) / (clients * LIMIT),
                        "of_alone": statistics.median(found) / (clients * limit),
                    }
                    for name, found in rates.items()
                    if name != "alone"
                },
            }
        )
    return results


def whole_memory(case: Json) -> float:
    """Return an aggregator's measured memory in MB, with what its process does not show.

    That is Lambda's runtime client, and the kernel's receive buffers, which are twice what is
    asked for (socket(7)).
    """
    row = case["rows"][FUNCTION.name]
    buffers = 2 * case["clients"] * block_sizes.receive_buffer_bytes(case["clients"]) / 2**20
    return float(
        row["idle_mib"]["median"] + row["peak_mib"]["max"] + buffers + memory_projection.RUNTIME_MB
    )
