"""Rounds over an S3 that breaks: the right bytes, or a cause, and nothing left behind."""

import contextlib
import os
import random
import re
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, tzinfo
from typing import Any, Self

import pytest

from gradshard.aws import client_timeouts
from gradshard.local_engine.lifecycle import Engine
from gradshard_core.s3 import timeouts
from gradshard_core.s3.store import S3Store
from tests.integration.machine import (
    APPLIED,
    COLUMNS,
    EAGER,
    MEASURED,
    TREE,
    Call,
    FunctionError,
    Machine,
    in_this_process,
)
from tests.integration.proxy import Fault, Proxy, spoiling

COUNTED = {"clients": 4}
"""Terms of a round that knows only the number of its clients, so that they are listed."""

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")

KINDS = [
    "500",
    "503",
    "reset",
    "half sent",
    "unseen",
    "late",
    "reset in body",
    "reset at end",
    "cut",
    "stall",
    "range",
    "half",
    "empty",
]
# Every kind of fault at every request of a round: some 600 rounds. Else some of them.
EVERY = bool(os.environ.get("GRADSHARD_TEST_EVERY_FAULT"))
MOMENTS = 1


@pytest.fixture(scope="module")
def environment(function_environment: None) -> Iterator[None]:
    """Nothing waits for long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timeouts, "ANSWER_SECONDS", 0.3)
        patch.setattr(client_timeouts, "READ_TIMEOUT_SECONDS", 0.3)
        patch.setattr(timeouts, "READ_SECONDS", 0.3)
        yield


@pytest.fixture(scope="module")
def unspoiled(environment: None) -> Iterator[Call]:
    with in_this_process() as call:
        yield call


@pytest.fixture(scope="module")
def proxy(engine: Engine) -> Iterator[Proxy]:
    with spoiling(engine.port) as running:
        yield running


@pytest.fixture(scope="module")
def spoiled(environment: None, unspoiled: Call, proxy: Proxy) -> Iterator[Call]:
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        call = stack.enter_context(in_this_process())
        patch.undo()
        yield call


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)


def go(machine: Machine, unspoiled: Call) -> dict[str, Any]:
    manifest = machine.run()
    machine.check(manifest, unspoiled)
    return manifest


KINDS_OF_ROUNDS: dict[str, dict[str, Any]] = {
    "shards": {},
    "tree": TREE,
    "eager": EAGER,
    "applied": APPLIED,
    "measured": MEASURED,
    "columns": COLUMNS,
}


@pytest.fixture(scope="module", params=KINDS_OF_ROUNDS.values(), ids=[*KINDS_OF_ROUNDS])
def counted(
    request: pytest.FixtureRequest, spoiled: Call, unspoiled: Call, proxy: Proxy, store: S3Store
) -> tuple[dict[str, Any], int]:
    """Terms, and how many requests a round makes in which nothing breaks."""
    proxy.requests.clear()
    assert go(Machine(spoiled, store, request.param), unspoiled)["status"] == "completed"
    return request.param, len(proxy.requests)


@pytest.mark.parametrize("kind", KINDS)
def test_one_fault_at_any_request_changes_nothing(
    spoiled: Call,
    unspoiled: Call,
    proxy: Proxy,
    store: S3Store,
    counted: tuple[dict[str, Any], int],
    kind: str,
) -> None:
    terms, count = counted
    moments: Any = range(count)
    if not EVERY:
        moments = random.Random(f"{kind} {terms}").sample(moments, MOMENTS)  # noqa: S311
    for moment in moments:
        proxy.strike(moment, kind)
        manifest = go(Machine(spoiled, store, terms), unspoiled)
        assert manifest["status"] == "completed", (moment, manifest)
    print(f"{kind}: {len(moments)} rounds of {count} requests")


@pytest.mark.parametrize("terms", KINDS_OF_ROUNDS.values(), ids=[*KINDS_OF_ROUNDS])
def test_a_tenth_of_all_requests_throttled(
    spoiled: Call, unspoiled: Call, proxy: Proxy, store: S3Store, terms: dict[str, Any]
) -> None:
    proxy.throttled, before = 0.1, proxy.injected
    try:
        assert go(Machine(spoiled, store, terms), unspoiled)["status"] == "completed"
    finally:
        proxy.throttled = 0.0
    assert proxy.injected > before


@pytest.mark.parametrize(
    ("terms", "fault", "cause"),
    [
        ({}, Fault("503", "PUT", "/spec.json"), r"/spec\.json.*SlowDown"),
        ({}, Fault("500", "GET", "/spec.json"), r"/spec\.json.*InternalError"),
        ({}, Fault("reset", "PUT", "/plan.json"), r"/plan\.json.*[Cc]onnection"),
        ({}, Fault("stall", "GET", "/plan.json"), r"/plan\.json.*timed out"),
        ({}, Fault("503", "POST", "update.safetensors?uploads"), r"update\.safetensors.*SlowDown"),
        ({}, Fault("cut", "GET", "updates/b."), r"updates/b\.safetensors"),
        ({}, Fault("range", "GET", "updates/c."), r"updates/c\.safetensors.*bytes 0-9/10"),
        (
            {},
            Fault("stall", "GET", "updates/c."),
            r"updates/c\.safetensors: GET failed .* timed out",
        ),
        ({}, Fault("503", "PUT", "partNumber=1"), r"task 0 of level 0: .*update\.safe.* SlowDown"),
        ({}, Fault("half sent", "PUT", "partNumber=1"), r"task 0 of level 0: .*part 1: the conne"),
        ({}, Fault("late", "PUT", "partNumber=1"), r"task 0 of level 0: .*part 1: .*timed out"),
        ({}, Fault("500", "PUT", "/task-reports/0/00000"), r"task 0 of level 0: .*reports/0/00000"),
        (
            TREE,
            Fault("unseen", "PUT", "/partial-sums/0/0/00001"),
            r"task 1 of level 0: .*partial-sums/0/0",
        ),
        (
            TREE,
            Fault("cut", "GET", "/partial-sums/0/0/00001"),
            r"task 0 of level 1: .*partial-sums/0/0/0",
        ),
        ({}, Fault("half", "GET", "/spec.json"), r"/spec\.json: \d+ bytes that are no JSON"),
        ({}, Fault("half", "GET", "/plan.json"), r"task 0 .*/plan\.json: \d+ bytes that are no"),
        (
            {},
            Fault("empty", "GET", "/plan.json"),
            r"task 0 of level 0: .*/plan\.json: 0 bytes that",
        ),
        (
            {},
            Fault("half", "GET", "/task-reports/"),
            r"/task-reports/0/00000\.json: \d+ bytes that are no",
        ),
        (COUNTED, Fault("empty", "GET", "list-type=2"), r"/updates/: S3's answer has no 'IsTru"),
        (
            COUNTED,
            Fault("half", "GET", "list-type=2"),
            r"/updates/: GET failed 6 .* are no XML",
        ),
        ({}, Fault("drip", "GET", "updates/c.safetensors?v"), r"updates/c\.saf.* bytes in 0.3 s"),
        ({}, Fault("empty", "GET", "updates/c."), r"updates/c\.safetensors: .* 0 bytes instead"),
        ({}, Fault("empty", "POST", "?uploads"), r"update\.safetensors: S3's answer has no 'Upl"),
        ({}, Fault("replaced", "POST", "update.safetensors?uploadId"), r"update.*: .*InvalidPart"),
        ({}, Fault("200", "POST", "update.safetensors?uploadId"), r"update\.safe.*InternalError"),
        ({}, Fault("503", "PUT", "/manifest.json"), r"/manifest\.json.*SlowDown"),
        ({}, Fault("denied", "PUT", "/plan.json"), r"/plan\.json: .* PUT .*AccessDenied.* to whom"),
        ({}, Fault("denied", "PUT", "partNumber=1"), r"update\.s.* PUT .*AccessDenied.* to whom"),
        ({}, Fault("skewed", "GET", "/plan.json"), r"plan\.json: .*TooSkewed.* the clock of this"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, Fault) else "",
)
def test_a_fault_that_stays_fails_the_round_and_is_named(
    spoiled: Call,
    unspoiled: Call,
    proxy: Proxy,
    store: S3Store,
    terms: dict[str, Any],
    fault: Fault,
    cause: str,
) -> None:
    machine = Machine(spoiled, store, terms)
    proxy.faults = [fault] * 1000

    def call(function: str, event: dict[str, Any]) -> dict[str, Any]:
        # The machine's last resort comes when the fault has passed, or nothing could be written.
        if function == "abort_round":
            proxy.faults = []
        return spoiled(function, event)

    machine.call = call
    try:
        manifest = machine.run()
    finally:
        proxy.faults = []
    assert manifest["status"] == "failed"
    assert re.search(cause, manifest["cause"], re.DOTALL), manifest["cause"]
    machine.check(manifest, unspoiled)


def test_a_part_that_was_sent_again_is_looked_for(
    spoiled: Call, unspoiled: Call, proxy: Proxy, store: S3Store
) -> None:
    """As under a KMS key, if a task runs twice: S3 then has the part under another ETag."""
    replaced = Fault("replaced", "POST", "update.safetensors?uploadId")
    for then in ([], [Fault("empty", "GET", "?uploadId")]):
        proxy.faults = [replaced, *then]
        assert go(Machine(spoiled, store, {}), unspoiled)["status"] == "completed"
        assert proxy.faults == []


def test_completing_an_upload_with_a_lost_response_counts_as_success(
    spoiled: Call, unspoiled: Call, proxy: Proxy, store: S3Store
) -> None:
    """The second request finds no upload, and S3 says 404: the object is looked at."""
    for kind in ("unseen", "late", "cut"):
        proxy.faults = [Fault(kind, "POST", "update.safetensors?uploadId")]
        assert go(Machine(spoiled, store, {}), unspoiled)["status"] == "completed"
        assert proxy.faults == []


@pytest.mark.parametrize("name", ["spec", "plan", "manifest"])
def test_a_conditional_write_with_a_lost_response_counts_as_success(
    spoiled: Call, unspoiled: Call, proxy: Proxy, store: S3Store, name: str
) -> None:
    """The second request finds the object there, and S3 says 412."""
    for kind in ("unseen", "late"):
        proxy.faults = [Fault(kind, "PUT", f"/{name}.json")]
        assert go(Machine(spoiled, store, {}), unspoiled)["status"] == "completed"
        assert proxy.faults == []


def test_a_slow_connection_is_opened_again(
    spoiled: Call, unspoiled: Call, proxy: Proxy, store: S3Store
) -> None:
    """Each byte comes in time, and a shard would take a year."""
    proxy.faults = [Fault("drip", "GET", "updates/c.safetensors?versionId")] * 2
    manifest = go(Machine(spoiled, store, {}), unspoiled)
    assert manifest["status"] == "completed"
    # On a busy machine others may be asked for again, too.
    assert manifest["totals"]["retries"] >= 2
    assert proxy.faults == []


@pytest.mark.parametrize("terms", [TREE, APPLIED], ids=["tree", "applied"])
def test_a_part_that_s3_is_too_busy_to_store_is_computed_again(
    spoiled: Call, unspoiled: Call, proxy: Proxy, store: S3Store, terms: dict[str, Any]
) -> None:
    """Oftener than the machine tries: a tenth of all requests are that, of some task of many."""
    path = "/partial-sums/" if terms is TREE else "partNumber=1"
    proxy.faults = [Fault(kind, "PUT", path) for kind in ("503", "half sent", "rested")] * 3
    assert go(Machine(spoiled, store, terms), unspoiled)["status"] == "completed"
    assert proxy.faults == []


def test_slow_task_records_are_requested_again(
    spoiled: Call, unspoiled: Call, proxy: Proxy, store: S3Store
) -> None:
    """There are thousands of them; other documents wait for their function's timeout."""
    proxy.faults = [Fault("drip", "GET", "/task-reports/0/00000")] * 2
    asked: list[str] = []
    proxy.watch = lambda when, path: asked.append(path) if when == "after" else None
    try:
        assert go(Machine(spoiled, store, {}), unspoiled)["status"] == "completed"
    finally:
        proxy.watch = lambda *_: None
    assert proxy.faults == []
    assert sum("/task-reports/0/00000" in path for path in asked) >= 4  # one was the PUT


class Outage:
    """S3 is not there, from a request on, until those who try again have waited so often."""

    def __init__(self, proxy: Proxy, moment: int, waits: int) -> None:
        self._proxy, self._moment, self._waits = proxy, moment, waits
        self._lock = threading.Lock()
        self.has_begun = self.is_over = False

    def watch(self, when: str, _path: str) -> None:
        with self._lock:
            self._moment -= when == "before"
            if self._moment < 0 and not self.has_begun:
                self.has_begun = True
                self._proxy.go_away()

    def wait(self, _seconds: float) -> None:
        with self._lock:
            self._waits -= self.has_begun
            if self._waits <= 0:
                self._end()

    def end(self) -> None:
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self.has_begun and not self.is_over:
            self.is_over = True
            self._proxy.come_back()


# A request is tried six times, so it waits five; the machine calls a function four times.
@pytest.mark.parametrize("waits", [4, 12, 10**6], ids=["shorter", "longer", "too long"])
def test_s3_rejects_connections_for_a_while(
    spoiled: Call,
    unspoiled: Call,
    proxy: Proxy,
    store: S3Store,
    monkeypatch: pytest.MonkeyPatch,
    waits: int,
) -> None:
    for terms in (TREE, APPLIED):
        outage = Outage(proxy, random.Random(f"{waits} {terms}").randrange(50), waits)  # noqa: S311
        monkeypatch.setattr(time, "sleep", outage.wait)

        def call(function: str, event: dict[str, Any], outage: Outage = outage) -> dict[str, Any]:
            if function == "abort_round":
                outage.end()  # or nothing could be written
            return spoiled(function, event)

        proxy.watch = outage.watch
        machine = Machine(call, store, terms)
        try:
            manifest = machine.run()
        finally:
            proxy.watch = lambda *_: None
            outage.end()
        assert outage.has_begun
        monkeypatch.setattr(time, "sleep", lambda _: None)
        machine.check(manifest, unspoiled)
        if waits == 10**6:
            assert re.search(
                rf"/{machine.name}/.*(ConnectionRefusedError| rejected)",
                manifest["cause"],
            )
        else:
            assert manifest["status"] == "completed", manifest


class Clock(datetime):
    """A machine's clock, ``off`` by so much and ``drift`` more each time it is looked at."""

    off = drift = timedelta()

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        Clock.off += Clock.drift
        return super().now(tz) + Clock.off


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Clock]]:
    """That of everything but the proxy."""
    for name, module in list(sys.modules.items()):
        if name.startswith("gradshard") and getattr(module, "datetime", None) is datetime:
            monkeypatch.setattr(module, "datetime", Clock)
    monkeypatch.setattr("botocore.compat.datetime.datetime", Clock)
    yield Clock
    Clock.off = Clock.drift = timedelta()


def test_a_clock_that_goes_backwards_changes_nothing(
    spoiled: Call, unspoiled: Call, proxy: Proxy, store: S3Store, clock: type[Clock]
) -> None:
    """As long as AWS accepts its requests: S3 up to 15 minutes off, EventBridge up to 5."""
    for terms in KINDS_OF_ROUNDS.values():
        clock.off, clock.drift = timedelta(minutes=4), timedelta(seconds=-0.5)
        assert go(Machine(spoiled, store, terms), unspoiled)["status"] == "completed"


def test_a_machine_with_a_wrong_clock_is_named_and_replaced(
    spoiled: Call, unspoiled: Call, proxy: Proxy, store: S3Store, clock: type[Clock]
) -> None:
    failures: list[FunctionError] = []

    def call(function: str, event: dict[str, Any]) -> dict[str, Any]:
        clock.off = timedelta(minutes=0 if function == failing[-1] else 20)
        failing.append(function)
        try:
            return spoiled(function, event)
        except FunctionError as failure:
            failures.append(failure)
            raise

    failing = [""]
    manifest = Machine(call, store, {}).run()
    assert manifest["status"] == "completed"
    assert len(failures) > 4
    for failure in failures:
        assert "RequestTimeTooSkewed" in str(failure), failure
        assert "set it" in str(failure), failure


def test_a_part_with_a_lost_response_is_stored_again(
    spoiled: Call, unspoiled: Call, proxy: Proxy, store: S3Store
) -> None:
    for kind in ("unseen", "late", "reset at end"):
        proxy.faults = [Fault(kind, "PUT", "partNumber=1")]
        assert go(Machine(spoiled, store, {}), unspoiled)["status"] == "completed"
        assert proxy.faults == []
