"""``python -m benchmarks.load``: run many clients, large updates and many rounds at once.

The rounds run on the local engine. Every result is compared with that of a plain loop, and the
bucket is searched for leftovers. The engine holds all objects in memory: the largest scenario takes
about 7 GB.
"""

import argparse
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tests import reference

from gradshard import Federation
from gradshard.aws.boto_client import make_client
from gradshard.aws.client_store import ClientStore
from gradshard.local_engine import lifecycle
from gradshard.local_engine.lifecycle import Engine
from gradshard_core.units import MIB

COLUMNS = [
    "",
    "clients",
    "MiB each",
    "topology",
    "tasks",
    "seconds to submit",
    "seconds after that",
    "MB of a task, at most",
    "MB of the engine",
]

DISTINCT = 4
"""Updates that differ; further clients send the same under other weights."""

SENDERS = 8
SECONDS = 1800


@dataclass(frozen=True)
class Scenario:
    """Rounds that run at once.

    Parameters
    ----------
    name
        The name that people read.
    clients, mib
        The number of clients of a round, and the MiB of an update.
    rounds
        The number of rounds that run at once.
    terms
        The options of the rounds.
    """

    name: str
    clients: int
    mib: int
    rounds: int
    terms: dict[str, Any]


SCENARIOS = [
    Scenario("20 rounds at once", 4, 4, 20, {}),
    Scenario("500 clients", 500, 1, 1, {}),
    Scenario("64 large updates", 64, 43, 1, {"topology": "grid", "fan_in": 8}),
]
QUICK = [
    Scenario("4 rounds at once", 2, 1, 4, {}),
    Scenario("80 clients", 80, 1, 1, {}),
]


def main() -> None:
    """Run the scenarios and print a row for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small scenarios, a minute")
    scenarios = QUICK if parser.parse_args().quick else SCENARIOS
    engine = lifecycle.up(0, progress=print, owner=os.getpid())
    try:
        os.environ.update(engine.environment)
        print(f"| {' | '.join(COLUMNS)} |")
        print("|---" * len(COLUMNS) + "|")
        for scenario in scenarios:
            print(run(scenario, engine), flush=True)
    finally:
        lifecycle.down(engine.port, delete=True)


def run(scenario: Scenario, engine: Engine) -> str:
    """Run one scenario; return its row."""
    federation = Federation()
    store = ClientStore(federation.bucket, make_client(2 * SENDERS))
    names = [f"load-{scenario.clients}-{number}" for number in range(scenario.rounds)]
    updates = [update(seed, scenario.mib) for seed in range(DISTINCT)]
    rounds = [
        federation.open_round(name, scenario.clients, timeout=SECONDS, **scenario.terms)
        for name in names
    ]
    begun = time.monotonic()
    with ThreadPoolExecutor(SENDERS) as pool:
        sending = [
            pool.submit(round_.submit, f"c{client:03}", updates[client % DISTINCT], client + 1)
            for round_ in rounds
            for client in range(scenario.clients)
        ]
        for sent in sending:
            sent.result()
    sent_at = time.monotonic()
    manifests = [round_.wait(SECONDS) for round_ in rounds]
    ended = time.monotonic()
    expected = None
    for round_, manifest in zip(rounds, manifests, strict=True):
        assert len(manifest["contributors"]) == scenario.clients, manifest["rejected"]
        expected = expected or average(scenario, manifest, updates)
        result = round_.fetch()
        assert all(result[name].tobytes() == expected[name].tobytes() for name in expected)
        assert store.open_uploads(round_.keys.result) == []
        assert list(store.list_objects(round_.keys.partial_sums)) == []
    size = memory_mb(engine.pid or 0)
    for round_ in rounds:
        store.delete_versions(round_.keys.root)
    peak = max(manifest["totals"]["peak_mb"] for manifest in manifests)
    tasks = sum(len(manifest["tasks"]) for manifest in manifests)
    columns = [
        scenario.name,
        scenario.clients,
        scenario.mib,
        manifests[0]["topology"],
        tasks,
        f"{sent_at - begun:.0f}",
        f"{ended - sent_at:.0f}",
        f"{peak:.0f}",
        f"{size:.0f}",
    ]
    return f"| {' | '.join(map(str, columns))} |"


def update(seed: int, mib: int) -> dict[str, reference.Array]:
    """Draw an update of so many tensors of 1 MiB."""
    rng = np.random.default_rng(seed)
    return {f"layer.{n}": rng.standard_normal(MIB // 4, np.float32) for n in range(mib)}


def average(
    scenario: Scenario, manifest: dict[str, Any], updates: Sequence[dict[str, reference.Array]]
) -> dict[str, reference.Array]:
    """Average in a plain loop, in the round's order."""
    sizes = [int(size) for size in manifest["order"].partition(":")[2].split(",") if size]
    everyone = [updates[client % DISTINCT] for client in range(scenario.clients)]
    return reference.average(everyone, range(1, scenario.clients + 1), tree=sizes)


def memory_mb(pid: int) -> float:
    """Return the most a process has had resident, in MB."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024


if __name__ == "__main__":
    main()
