"""``python -m benchmarks.large_round``: one round of very many tiny updates, phase by phase.

``--engine`` runs it on the local engine, with real events and functions. Otherwise the functions
run with a bucket in memory, each call of ``plan_round`` and ``finalize_round`` in a process of its
own. The result is compared with a plain loop, group by group, bit for bit.
"""

import argparse
import gc
import json
import os
import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tests import reference
from tests.unit.fakes import MemoryStack, MemoryStore
from tests.unit.in_memory import Machine, Told, load
from tests.unit.observability.test_embedded_metrics import ENVIRONMENT

from gradshard import Federation
from gradshard.client.model import Model
from gradshard.local_engine import lifecycle
from gradshard_core.aggregation import topologies
from gradshard_core.formats.object_keys import TrainingKeys
from gradshard_core.observability.memory import peak_memory_mb, reset_peak_memory
from gradshard_core.records.plan_and_manifest import read_manifest
from gradshard_core.records.training_state import change_state
from gradshard_core.rounds import aws_json, aws_requests
from gradshard_core.trainings.start_training import start_training

ELEMENTS = 24
SENDERS = 4
SECONDS = 3600


def main() -> None:
    """Run one round and print its phases."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_round", description=__doc__)
    parser.add_argument("clients", type=int)
    parser.add_argument("--engine", action="store_true", help="on the local engine")
    parser.add_argument(
        "--training", action="store_true", help="a round that a training invites to"
    )
    parser.add_argument("--terms", type=json.loads, default={}, help="options of the round, JSON")
    chosen = parser.parse_args()
    run = on_engine if chosen.engine else in_training if chosen.training else in_memory
    run(chosen.clients, chosen.terms)


class Updates:
    """The updates of a round, drawn from a seed."""

    def __init__(self, clients: int) -> None:
        rng = np.random.default_rng(clients)
        self.rows = rng.standard_normal((clients, ELEMENTS)).astype(np.float32)
        self.samples = list(map(int, rng.integers(1, 1000, clients)))
        self.names = [f"c{number:06}" for number in range(clients)]

    def average(self) -> bytes:
        """Add group by group, as a grid does, one rounding after each step."""
        rows: Any = self.rows
        total = sum(self.samples)
        weights = [np.float32(n / total) for n in self.samples]
        name = topologies.resolve(topologies.AUTO, len(rows))
        for level in topologies.group(name, len(rows)):
            sums, first = [], 0
            for size in level:
                added = weights[first] * rows[first]
                for number in range(first + 1, first + size):
                    added = added + weights[number] * rows[number]
                sums.append(added)
                first += size
            rows, weights = sums, [np.float32(1)] * len(sums)
        return bytes(rows[0].tobytes())


# ------------------------------------------------------------------------------------ in memory


class Forked:
    """Runs control functions in processes of their own, which share the bucket as it was.

    A process measures the memory that a function takes beside the bucket.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine, self._store = machine, machine.store

    def step(self, function: str, **event: Any) -> dict[str, Any]:
        """Run a function; print what it took; take over the objects that it has written."""
        reading, writing = os.pipe()
        gc.collect()
        gc.freeze()
        process = os.fork()
        if not process:
            os.close(reading)
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(self._measured(function, event), pipe)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            outcome, took, store = pickle.load(pipe)  # noqa: S301 - our own child
        os.waitpid(process, 0)
        self._store.objects.update(store["objects"])
        self._store.etags.update(store["etags"])
        self._store.uploads = store["uploads"]
        print(f"{function}: {took[0]:.0f} MB more than before, {took[1]:.2f} CPU-seconds")
        return dict(outcome)

    def _measured(self, function: str, event: dict[str, Any]) -> Any:
        store, before = self._store, _resident_mb()
        etags = dict(store.etags)
        reset_peak_memory()
        begun = time.process_time()
        outcome = Machine.step(self._machine, function, **event)
        took = peak_memory_mb() - before, time.process_time() - begun
        new = [key for key, etag in store.etags.items() if etags.get(key) != etag]
        parts = {name: {k: getattr(store, name)[k] for k in new} for name in ("objects", "etags")}
        return outcome, took, parts | {"uploads": store.uploads}


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def in_memory(clients: int, terms: dict[str, Any]) -> None:
    """Run a round whose bucket is in memory."""
    machine, updates = _machine(), Updates(clients)
    machine.open(clients=clients, **terms)
    _run(machine, Forked(machine), updates)
    manifest = read_manifest(machine.store, machine.keys)
    _check(manifest, machine.store.objects[machine.keys.result], updates, terms)
    _print_sizes(machine.store, machine.name)


def in_training(clients: int, terms: dict[str, Any]) -> None:
    """Run a round of a training, all of whose members it invites; half of them were silent."""
    machine, updates = _machine(), Updates(clients)
    Model(MemoryStack(machine.store)).put({"w": np.zeros(ELEMENTS, np.float32)})
    keys, fields = TrainingKeys("t"), {"rounds": 2, "round": {"server_optimizer": "fedavg"} | terms}
    start_training(machine.store, "t", fields, started=datetime.now().astimezone().isoformat())
    for name in updates.names:
        machine.store.put_bytes(keys.member(name), b"")
    silent = dict.fromkeys(updates.names[::2], 1)
    change_state(machine.store, keys, lambda state: replace(state, silent=silent))
    forked = Forked(machine)
    invited = forked.step("advance_training", training="t", run=1, step=0)
    print(f"state.json: {len(machine.store.objects[keys.state]):,} bytes")
    machine.begin(invited["round"])
    machine.open(**invited["spec"])
    _run(machine, forked, updates)
    forked.step("advance_training", training="t", run=1, step=1)
    record = machine.store.get_json(keys.record(invited["round"]))
    print(f"its record: {len(json.dumps(record)):,} bytes, metrics {record['metrics']}")
    _print_sizes(machine.store, invited["round"])


def _machine() -> Machine:
    os.environ.update(ENVIRONMENT)
    vars(aws_json)["call"] = Told().call
    for name in ("schedule_deadline", "cancel_deadline"):
        vars(aws_requests)[name] = lambda *_: None
    return Machine(_functions())


def _run(machine: Machine, forked: Forked, updates: Updates) -> None:
    """Send the updates, and go around until the round has ended."""
    for name, row, samples in zip(updates.names, updates.rows, updates.samples, strict=True):
        stated = {"num_samples": str(samples), "train_seconds": "1", "epochs": "1"}
        stated["metrics"] = json.dumps({"loss": samples / 1000, "accuracy": 0.5})
        body = reference.encode({"w": row}, stated)
        machine.store.put_bytes(machine.keys.update(name), body)
    outcome, planned = {"reason": "complete", "attempt": 0}, 0
    while outcome.get("status") != "completed":
        planned += 1
        request = {"reason": outcome["reason"], "attempt": outcome["attempt"]}
        levels = forked.step("plan_round", entered_at=f"2026-01-01T00:00:{planned:02}Z", **request)
        begun, cpu = time.monotonic(), time.process_time()
        machine.aggregate(levels)
        print(f"tasks: {time.monotonic() - begun:.1f} s, {time.process_time() - cpu:.1f} CPU-s")
        outcome = forked.step("finalize_round")


def _functions() -> Callable[[str], ModuleType]:
    loaded: dict[str, ModuleType] = {}

    def function(name: str) -> ModuleType:
        if name not in loaded:
            loaded[name] = load(name)
        return loaded[name]

    return function


def _print_sizes(store: MemoryStore, round_id: str) -> None:
    for name in ("plan.json", "manifest.json", "tasks/0.json"):
        print(f"{name}: {len(store.objects[f'rounds/{round_id}/{name}']):,} bytes")
    pieces = [len(body) for key, body in store.objects.items() if "/pieces/" in key]
    print(f"pieces: {len(pieces)}, at most {max(pieces, default=0):,} bytes")


def _check(
    manifest: dict[str, Any] | None, result: bytes, updates: Updates, terms: dict[str, Any]
) -> None:
    assert manifest is not None
    assert [c["client"] for c in manifest["contributors"]] == updates.names
    if terms.keys() & {"rule", "dp"}:  # another result than the average
        return
    assert reference.decode(result)["w"].tobytes() == updates.average()
    print(f"{len(manifest['contributors']):,} clients: the bits are those of a plain loop")


# ---------------------------------------------------------------------------------- local engine


def on_engine(clients: int, terms: dict[str, Any]) -> None:
    """Run a round on the local engine."""
    engine = lifecycle.up(0, progress=print, owner=os.getpid())
    try:
        os.environ.update(engine.environment)
        federation, updates = Federation(), Updates(clients)
        round_ = federation.open_round("large", clients, timeout=SECONDS, **terms)
        begun = time.time()
        with ThreadPoolExecutor(SENDERS) as pool:
            list(
                pool.map(
                    lambda n: round_.submit(
                        updates.names[n], {"w": updates.rows[n]}, updates.samples[n]
                    ),
                    range(clients),
                )
            )
        sent = time.time()
        manifest = round_.wait(SECONDS)
        tasks = [
            datetime.fromisoformat(task["started_at"]).timestamp() for task in manifest["tasks"]
        ]
        planned, finished = _time(manifest["planned_at"]), _time(manifest["finished_at"])
        ended = max(
            start + task["seconds"] for start, task in zip(tasks, manifest["tasks"], strict=True)
        )
        print(f"submitting: {sent - begun:.1f} s")
        print(f"the last arrivals and planning: {planned - sent:.1f} s")
        print(f"{len(tasks)} tasks: {ended - planned:.1f} s")
        print(f"finalizing: {finished - ended:.1f} s")
        print(f"from the last upload to the end: {finished - sent:.1f} s")
        found = round_.fetch()["w"]
        assert found.tobytes() == updates.average()
        assert [c["client"] for c in manifest["contributors"]] == updates.names
        print(f"{clients:,} clients: the bits are those of a plain loop")
    finally:
        lifecycle.down(engine.port, delete=True)


def _time(stated: str) -> float:
    return datetime.fromisoformat(stated).timestamp()


if __name__ == "__main__":
    main()
