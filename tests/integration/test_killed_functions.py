"""Functions that are killed, starved, too slow, or there twice: the bytes stay the same."""

import json
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import numpy as np
import pytest

from gradshard.local_engine.lifecycle import Engine
from gradshard_core.s3.store import S3Store
from tests.integration.forks import Lane, lane
from tests.integration.machine import (
    APPLIED,
    COLUMNS,
    EAGER,
    FUNCTIONS,
    MEASURED,
    TREE,
    FunctionError,
    Machine,
)
from tests.integration.proxy import Fault, Proxy, spoiling

KILLS = int(os.environ.get("GRADSHARD_TEST_KILLS", "36"))
TERMS = [{}, TREE, EAGER, APPLIED, MEASURED, COLUMNS]
# Three blocks of a task each.
LARGE = [{"w": np.full(3 << 18, 1 + client, np.float32)} for client in range(4)]


@pytest.fixture(scope="module")
def proxy(engine: Engine) -> Iterator[Proxy]:
    with spoiling(engine.port) as running:
        yield running


@pytest.fixture(scope="module")
def lanes(function_environment: None, proxy: Proxy) -> Iterator[list[Lane]]:
    """Two machines over the proxy, and one past it."""
    with lane() as calm, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        with lane() as first, lane() as second:
            yield [first, second, calm]


@pytest.fixture(autouse=True)
def _unwatched(proxy: Proxy) -> Iterator[None]:
    yield
    proxy.watch = lambda *_: None
    proxy.faults = []


def stopping(lane: Lane) -> tuple[threading.Event, Callable[[str, str], None]]:
    """Return an event, and a watcher that sets it and stops a lane at client a's update."""
    asleep = threading.Event()

    def stop(when: str, path: str) -> None:
        if when == "after" and "/updates/a." in path and not asleep.is_set():
            asleep.set()
            lane.signal(signal.SIGSTOP)

    return asleep, stop


class Killer:
    """Calls functions and kills one of them, by the number of a request or after a time."""

    def __init__(self, lane: Lane, proxy: Proxy, seed: int) -> None:
        self.lane, self.proxy = lane, proxy
        self.random = random.Random(seed)  # noqa: S311
        self.function = FUNCTIONS[seed % len(FUNCTIONS)]
        # Nothing comes to the aid of who gives a round up, and is killed twice.
        self.times = 1 if self.function == "abort_round" else self.random.choice([1, 1, 1, 2])
        self.killed = 0

    def __call__(self, function: str, event: dict[str, Any]) -> dict[str, Any]:
        if function != self.function or self.killed == self.times:
            return self.lane(function, event)
        number = self.random.choice([None, *range(8)])
        moment = self.random.choice(["before", "after"])
        seen: Counter[str] = Counter()

        def watch(when: str, _path: str) -> None:
            seen[when] += 1
            if when == moment and seen[when] - 1 == number:
                self.lane.signal(signal.SIGKILL)

        self.proxy.watch = watch
        timer = threading.Timer(self.random.random() / 5, self.lane.signal, [signal.SIGKILL])
        if number is None:
            timer.start()
        try:
            return self.lane(function, event)
        except FunctionError as failure:
            self.killed += failure.error == "Runtime.ExitError"
            raise
        finally:
            timer.cancel()
            self.proxy.watch = lambda *_: None


def test_functions_killed_at_random_moments(
    lanes: list[Lane], proxy: Proxy, store: S3Store
) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(KILLS):
        killer = Killer(lanes[0], proxy, seed)
        terms = dict(TERMS[seed // len(FUNCTIONS) % len(TERMS)])
        machine = Machine(killer, store, terms)
        if killer.function == "abort_round":  # which takes a round that fails
            terms = {
                name: term for name, term in machine.terms.items() if name == "server_optimizer"
            }
            machine.terms = terms | {"min_clients": 4}
            machine.lost = {"d"}
        manifest = machine.run()
        machine.check(manifest, lanes[2])
        outcomes[f"{killer.function} {manifest['status']}"] += 1
        outcomes["killed"] += killer.killed
        if manifest["status"] == "failed" and killer.function != "abort_round":
            assert killer.killed == 2
            assert f"{killer.function} was killed" in manifest["cause"]
        if seed % 20 == 19:
            print(f"{seed + 1} rounds: {dict(outcomes)}", flush=True)
    assert outcomes["killed"] > KILLS / 3


@pytest.mark.parametrize(
    "terms", TERMS, ids=["shards", "tree", "eager", "applied", "measured", "columns"]
)
def test_every_function_twice_at_once(
    lanes: list[Lane], store: S3Store, terms: dict[str, Any]
) -> None:
    def twice(function: str, event: dict[str, Any]) -> dict[str, Any]:
        with ThreadPoolExecutor(2) as pool:
            calls = [pool.submit(one, function, event) for one in lanes[:2]]
        first, second = (call.result() for call in calls)
        if function in {"plan_round", "finalize_round"}:
            assert first == second
        return second

    machine = Machine(twice, store, terms)
    manifest = machine.run()
    assert manifest["status"] == "completed"
    machine.check(manifest, lanes[2])


@pytest.mark.parametrize("wakes", ["before the end", "after the end"])
@pytest.mark.parametrize("terms", TERMS[:2], ids=["shards", "tree"])
def test_a_task_that_goes_on_when_another_has_done_it(
    lanes: list[Lane], proxy: Proxy, store: S3Store, terms: dict[str, Any], wakes: str
) -> None:
    slow, quick, calm = lanes
    asleep, stop = stopping(slow)

    with ThreadPoolExecutor(1) as pool:
        stragglers: list[Any] = []

        def call(function: str, event: dict[str, Any]) -> dict[str, Any]:
            if function == "aggregate_shard" and not stragglers:
                proxy.watch = stop
                stragglers.append(pool.submit(slow, function, event))
                assert asleep.wait(120)
            if function == "finalize_round" and wakes == "before the end":
                slow.signal(signal.SIGCONT)
                stragglers[0].result()
            return quick(function, event)

        machine = Machine(call, store, terms)
        manifest = machine.run()
        slow.signal(signal.SIGCONT)
        if wakes == "after the end" and terms == {}:
            with pytest.raises(FunctionError, match="NoSuchUpload"):
                stragglers[0].result()
        else:
            stragglers[0].result()
    assert manifest["status"] == "completed"
    if wakes == "after the end" and terms == TREE:
        # What nobody awaits any more stays until the round's objects expire.
        assert set(machine.versions(machine.keys.partial_sums)) == {
            machine.keys.partial_sum(0, 0, 0)
        }
        store.delete_versions(machine.keys.partial_sums)
    machine.check(manifest, calm)


@pytest.mark.parametrize("wakes", ["before the end", "after the end", "given up"])
def test_a_task_stopped_while_it_sends_its_part(
    lanes: list[Lane], proxy: Proxy, store: S3Store, wakes: str
) -> None:
    """Another does its work meanwhile; then it goes on sending, where that still counts or not."""
    slow, quick, calm = lanes
    asleep = threading.Event()
    proxy.gate.clear()
    # It has sent the first of its blocks, and waits for the next, when it is stopped.
    proxy.faults = [Fault("hold", "GET", "/updates/d.safetensors?versionId")]

    def stop(when: str, path: str) -> None:
        if when == "begun" and "partNumber" in path and not asleep.is_set():
            asleep.set()
            slow.signal(signal.SIGSTOP)

    with ThreadPoolExecutor(1) as pool:
        stragglers: list[Any] = []

        def call(function: str, event: dict[str, Any]) -> dict[str, Any]:
            if function == "aggregate_shard" and not stragglers:
                proxy.watch = stop
                stragglers.append(pool.submit(slow, function, event))
                assert asleep.wait(120)
                proxy.gate.set()
            if function == "finalize_round" and wakes == "given up":
                raise FunctionError("SomeError", "no more")
            if function == "finalize_round" and wakes == "before the end":
                slow.signal(signal.SIGCONT)
                stragglers[0].result()
            return quick(function, event)

        machine = Machine(call, store, {"shards": 1}, updates=LARGE)
        manifest = machine.run()
        slow.signal(signal.SIGCONT)
        if wakes == "before the end":
            stragglers[0].result()
        else:
            with pytest.raises(FunctionError, match="NoSuchUpload"):
                stragglers[0].result()
    assert proxy.faults == []
    assert manifest["status"] == ("failed" if wakes == "given up" else "completed")
    machine.check(manifest, calm)


def test_one_of_two_openings_is_killed(lanes: list[Lane], proxy: Proxy, store: S3Store) -> None:
    """The other's token stays, there and in the deadline's schedule, whatever the first one did."""
    first, second, calm = lanes
    scheduler, killed = boto3.client("scheduler"), 0
    for number in range(KILLS // 4):
        seen = Counter[str]()
        moment = ["before", "after"][number % 2]

        def kill(
            when: str, _path: str, seen: Counter[str] = seen, number: int = number, at: str = moment
        ) -> None:
            seen[when] += 1
            if when == at and seen[when] == 1 + number:
                first.signal(signal.SIGKILL)

        proxy.watch = kill
        machine = Machine(calm, store, {})
        spec = {"clients": list(machine.clients), "timeout": 3600}
        opening = {"round": machine.name, "spec": spec, "started": "2026-01-01T00:00:00+00:00"}
        with ThreadPoolExecutor(2) as pool:
            doomed = pool.submit(first, "open_round", opening | {"token": "first"})
            other = pool.submit(second, "open_round", opening | {"token": "second"})
        killed += doomed.exception() is not None
        assert other.result()["status"] == "opened"
        proxy.watch = lambda *_: None
        kept = store.get_json(machine.keys.callback)["tokens"]
        name, group = machine.name, "gradshard-deadlines"
        target = scheduler.get_schedule(Name=name, GroupName=group)["Target"]
        told = json.loads(target["Input"])["tokens"]
        assert "second" in kept
        assert "second" in told
        if number % 3 == 0:
            manifest = machine.run()
            assert manifest["status"] == "completed"
            machine.check(manifest, calm)
    assert killed > 1


@pytest.mark.parametrize("ends", ["completed", "failed"])
def test_a_slow_read_waits_for_the_functions_timeout(
    lanes: list[Lane], proxy: Proxy, store: S3Store, ends: str
) -> None:
    """Each function but a task's, once: a byte at a time comes in time, and never ends."""
    drips = {
        "collect_update": Fault("drip", "GET", "/callback.json"),
        "plan_round": Fault("drip", "GET", "/updates/b."),
        "finalize_round": Fault("drip", "GET", "/plan.json"),
        "abort_round": Fault("drip", "GET", "/spec.json"),
    }
    timed_out = []

    def call(function: str, event: dict[str, Any]) -> dict[str, Any]:
        drip = drips.pop(function, None)
        proxy.faults = [drip] if drip else []
        lanes[0].seconds = 1.0 if drip else 240.0
        try:
            return lanes[0](function, event)
        except FunctionError as failure:
            timed_out.append((function, failure.error))
            raise
        finally:
            lanes[0].seconds = 240.0

    machine = Machine(call, store, {} if ends == "completed" else {"min_clients": 4})
    if ends == "failed":
        machine.lost = {"d"}
        drips = {"abort_round": drips["abort_round"]}
    due = [(function, "Sandbox.Timedout") for function in drips if function != "abort_round"]
    manifest = machine.run()
    assert manifest["status"] == ends
    if ends == "failed":
        assert timed_out[1:] == [("abort_round", "Sandbox.Timedout")]
        assert "missing: d" in manifest["cause"]
    else:
        assert timed_out == due
    machine.check(manifest, lanes[2])


def test_a_round_aborted_while_a_task_runs_stays_aborted(
    lanes: list[Lane], proxy: Proxy, store: S3Store
) -> None:
    slow, quick, calm = lanes
    asleep, stop = stopping(slow)

    def call(function: str, event: dict[str, Any]) -> dict[str, Any]:
        if function != "aggregate_shard":
            return quick(function, event)
        proxy.watch = stop
        with ThreadPoolExecutor(1) as pool:
            task = pool.submit(slow, function, event)
            assert asleep.wait(120)
            given_up = {"round": event["round"], "error": "SomeError", "cause": "no more"}
            assert quick("abort_round", given_up)["status"] == "failed"
            slow.signal(signal.SIGCONT)
            return task.result()

    machine = Machine(call, store, {})
    manifest = machine.run()
    assert (manifest["status"], manifest["cause"]) == ("failed", "no more")
    machine.check(manifest, calm)


def test_a_task_out_of_memory(lanes: list[Lane], store: S3Store) -> None:
    def starved(times: int) -> Machine:
        calls = Counter[str]()

        def call(function: str, event: dict[str, Any]) -> dict[str, Any]:
            calls[function] += 1
            is_starved = function == "aggregate_shard" and calls[function] <= times
            lanes[0].spare_mb = 1 if is_starved else None
            return lanes[0](function, event)

        return Machine(call, store, {})

    machine = starved(1)
    machine.check(manifest := machine.run(), lanes[2])
    assert manifest["status"] == "completed"
    machine = starved(99)
    machine.check(manifest := machine.run(), lanes[2])
    assert (manifest["status"], manifest["error"]) == ("failed", "Runtime.ExitError")
    assert manifest["cause"] == "task 0 of level 0: aggregate_shard was killed: signal 9"


def test_a_task_past_its_timeout(lanes: list[Lane], proxy: Proxy, store: S3Store) -> None:
    def call(function: str, event: dict[str, Any]) -> dict[str, Any]:
        is_slow = function == "aggregate_shard"
        proxy.faults = [Fault("stall", "GET", "/updates/")] * 99 if is_slow else []
        lanes[0].seconds = 1.0 if is_slow else 240.0
        return lanes[0](function, event)

    machine = Machine(call, store, {})
    manifest = machine.run()
    lanes[0].seconds = 240.0
    assert (manifest["status"], manifest["error"]) == ("failed", "Sandbox.Timedout")
    assert manifest["cause"] == "task 0 of level 0: timed out after 1.0 seconds"
    machine.check(manifest, lanes[2])
