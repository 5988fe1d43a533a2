"""Round after round on warm functions: memory, descriptors and threads level."""

import gc
import logging
import os
import threading
from pathlib import Path

import pytest

from gradshard_core.s3.http_connections import HttpRequests
from gradshard_core.s3.store import S3Store
from tests.integration.machine import APPLIED, EAGER, TREE, Machine, in_this_process

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")

ROUNDS = int(os.environ.get("GRADSHARD_TEST_ROUNDS", "30"))
TERMS = [{}, TREE, EAGER, APPLIED]
MOST_KEPT = 32
"""Bounds the connections that one client of a service keeps; 16 requests are under way at once."""
WARM_UP = 6
"""Rounds after which everything has been imported and connected."""


def memory_mb() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) / 1024


def descriptors() -> int:
    """Count descriptors, without connections that are kept for the next request.

    Their number depends on how many requests were ever under way at once.
    """
    kept = [len(found.idle) for found in gc.get_objects() if isinstance(found, HttpRequests)]
    assert max(kept, default=0) <= MOST_KEPT
    return len(list(Path("/proc/self/fd").iterdir())) - sum(kept)


def test_memory_descriptors_and_threads_level(
    function_environment: None, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest keeps every line that is logged until the test has ended.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    seen: list[tuple[float, int, int]] = []
    with in_this_process() as call:
        for number in range(ROUNDS + WARM_UP):
            machine = Machine(call, store, TERMS[number % len(TERMS)])
            assert machine.run()["status"] == "completed"
            machine.check_result(store.get_bytes(machine.keys.result) or b"")
            store.delete_versions(machine.keys.root)
            if number >= WARM_UP:
                seen.append((memory_mb(), descriptors(), threading.active_count()))
            if number % 50 == 0:
                print(number, memory_mb(), descriptors(), threading.active_count(), flush=True)
    quarter = max(1, len(seen) // 4)
    # By the quarters' least: what comes and goes in between is no leak.
    first, last = (
        tuple(map(min, zip(*part, strict=True))) for part in (seen[:quarter], seen[-quarter:])
    )
    print(f"{ROUNDS} rounds: MB, descriptors, threads were {first}, are {last}")
    assert last[0] - first[0] < 8 + ROUNDS / 100
    assert last[1] <= first[1] + 2
    assert last[2] <= first[2] + 1
