"""Listing, closing, cancelling and removing rounds, against a bucket in memory."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from gradshard.client import federation as module
from gradshard.client import operator_actions
from gradshard.client.executions import Execution, ListedExecution
from gradshard.client.federation import Federation
from gradshard.client.round import Round
from gradshard_core.errors import RoundNotFoundError, RoundStateError, SpecError
from gradshard_core.rounds import aws_requests
from gradshard_core.rounds.abort_round import abort_round
from gradshard_core.rounds.resume_round import deadline_passed
from tests.unit.client.test_federation import OPENED, SPEC, plan_json
from tests.unit.fakes import MemoryStack, MemoryStore

COMPLETED = {"status": "completed", "update": {}}


def execution(status: str) -> Execution:
    return Execution(status, SPEC, "", "", "2026-01-01T00:00:00+00:00", "")


class OperatedStack(MemoryStack):
    """Runs the functions that an operator calls in this process."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.events: list[dict[str, Any]] = []
        self.logged: dict[str, list[tuple[int, str]]] = {}

    def invoke(self, output: str, event: dict[str, Any]) -> dict[str, Any]:
        self.events.append(event)
        if output == "CollectUpdateFunctionName":
            return deadline_passed(self.store, event["round"])
        assert output == "AbortRoundFunctionName"
        return abort_round(self.store, event["round"], error=event["error"], cause=event["cause"])

    def list_executions(self, status: str | None = None) -> Iterator[ListedExecution]:
        for name, found in reversed(self.executions.items()):
            if status in {None, found.status}:
                yield ListedExecution(name, found.status, found.started, found.stopped)

    def log_events(self, function: str, round_id: str, since: int) -> Iterator[tuple[int, str]]:
        assert since == 1_767_225_600_000
        return iter(self.logged.get(function, []))


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def resumed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens that are waited for, which are used up."""
    waiting = ["token"]

    def resume(token: str, _reason: str) -> bool:
        if token not in waiting:
            return False
        waiting.remove(token)
        return True

    monkeypatch.setattr(aws_requests, "resume", resume)
    monkeypatch.setattr(aws_requests, "publish", lambda *_: None)
    return waiting


@pytest.fixture
def stack(store: MemoryStore) -> OperatedStack:
    return OperatedStack(store)


@pytest.fixture
def federation(stack: OperatedStack, monkeypatch: pytest.MonkeyPatch) -> Federation:
    monkeypatch.setattr(module, "Stack", lambda *_, **__: stack)
    return Federation()


@pytest.fixture
def round_(federation: Federation, stack: OperatedStack, store: MemoryStore) -> Round:
    """A round that waits for its updates."""
    round_ = federation.round("r1")
    store.put_json(round_.keys.spec, OPENED)
    store.put_json(round_.keys.callback, {"tokens": ["token"]})
    stack.executions["r1"] = execution("RUNNING")
    return round_


@pytest.mark.usefixtures("resumed")
class TestClosing:
    def test_resumes_the_round_once(self, round_: Round) -> None:
        assert round_.close()
        assert not round_.close()

    def test_of_a_round_that_has_ended(self, round_: Round, store: MemoryStore) -> None:
        store.put_json(round_.keys.manifest, COMPLETED)
        with pytest.raises(RoundStateError, match=r"'r1' has ended \(completed\)"):
            round_.close()

    def test_of_a_round_that_was_stopped(self, round_: Round, stack: OperatedStack) -> None:
        stack.executions["r1"] = execution("ABORTED")
        with pytest.raises(RoundStateError, match=r"without a manifest .* cancel it to clean up"):
            round_.close()

    def test_waits_for_a_round_that_is_just_being_opened(
        self, round_: Round, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.delete(round_.keys.callback)

        def open_round(_: float) -> None:
            store.put_json(round_.keys.callback, {"tokens": ["token"]})

        monkeypatch.setattr("time.sleep", open_round)
        assert round_.close()

    def test_waits_until_the_round_can_be_resumed(
        self, round_: Round, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A bad update came while the round was being opened.
        store.put_json(round_.keys.callback, {"tokens": []})

        def open_round(_: float) -> None:
            store.put_json(round_.keys.callback, {"tokens": ["token"]})

        monkeypatch.setattr("time.sleep", open_round)
        assert round_.close()

    def test_of_a_round_of_clients_drawn_in_secret_that_is_just_being_opened(
        self,
        round_: Round,
        stack: OperatedStack,
        store: MemoryStore,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        store.delete(round_.keys.spec)
        store.delete(round_.keys.callback)
        dp = {
            "clip": 1.0,
            "noise_multiplier": 2.0,
            "delta": 1e-5,
            "draw": {"training": "t", "draw": "1", "probability": 0.5, "divisor": 2},
        }
        optimizer = {"optimizer": "fedavg", "model": "m", "updates": "deltas"}
        drawn = {**SPEC, "dp": dp, "server_optimizer": optimizer}
        execution_of = stack.execution

        def opened_meanwhile(name: str) -> Execution | None:
            store.put_json(round_.keys.spec, {**OPENED, "spec": drawn})
            store.put_json(round_.keys.callback, {"tokens": ["token"]})
            return execution_of(name)

        monkeypatch.setattr(stack, "execution", opened_meanwhile)
        with pytest.raises(RoundStateError, match="drawn in secret"):
            round_.close()
        assert not stack.events

    def test_says_that_a_round_ended_while_it_was_planned(
        self, round_: Round, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.delete(round_.keys.callback)
        monkeypatch.setattr("time.sleep", lambda _: store.put_json(round_.keys.manifest, COMPLETED))
        with pytest.raises(RoundStateError, match=r"'r1' has ended \(completed\)"):
            round_.close()

    def test_of_a_round_that_stays_being_opened(
        self, round_: Round, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(operator_actions, "SETTLING_SECONDS", 0.1)
        store.delete(round_.keys.callback)
        with pytest.raises(RoundStateError, match="just being opened or planned"):
            round_.close()

    def test_of_a_round_that_is_planned(self, round_: Round, store: MemoryStore) -> None:
        store.delete(round_.keys.callback)  # as planning does
        store.put_json(round_.keys.plan, {})
        assert not round_.close()

    def test_of_no_round(self, federation: Federation) -> None:
        with pytest.raises(RoundNotFoundError):
            federation.round("nope").close()


@pytest.mark.usefixtures("resumed")
class TestCancelling:
    def test_stops_the_execution_and_writes_the_cause(
        self, round_: Round, stack: OperatedStack, store: MemoryStore
    ) -> None:
        upload = store.create_upload(round_.keys.result)
        assert round_.cancel(" wrong model ") == "cancelled: wrong model"
        assert stack.executions["r1"].status == "ABORTED"
        assert upload in store.aborted
        manifest = json.loads(store.objects[round_.keys.manifest])
        assert (manifest["status"], manifest["error"]) == ("failed", "Cancelled")
        assert round_.cancel("another") == "cancelled: wrong model"

    def test_finishes_an_interrupted_cleanup(self, round_: Round, stack: OperatedStack) -> None:
        stack.executions["r1"] = execution("ABORTED")
        assert round_.cancel("why") == "cancelled: why"
        assert round_.status()["state"] == "failed"

    def test_leaves_a_completed_round(
        self, round_: Round, stack: OperatedStack, store: MemoryStore
    ) -> None:
        store.put_json(round_.keys.manifest, COMPLETED)
        with pytest.raises(RoundStateError, match="'r1' was completed"):
            round_.cancel("why")
        assert stack.events == []

    def test_leaves_a_round_that_is_completed_just_then(
        self,
        round_: Round,
        stack: OperatedStack,
        store: MemoryStore,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def stop(*_: str) -> None:
            store.put_json(round_.keys.manifest, COMPLETED)

        monkeypatch.setattr(stack, "stop", stop)
        with pytest.raises(RoundStateError, match="completed before it could be cancelled"):
            round_.cancel("why")
        assert json.loads(store.objects[round_.keys.manifest]) == COMPLETED

    def test_needs_a_reason(self, round_: Round, federation: Federation) -> None:
        with pytest.raises(SpecError, match="give a reason"):
            round_.cancel(" ")
        with pytest.raises(SpecError, match="give a reason"):
            list(federation.cancel_all(""))

    def test_of_no_round(self, federation: Federation) -> None:
        with pytest.raises(RoundNotFoundError):
            federation.round("nope").cancel("why")

    def test_of_all_that_run(
        self, round_: Round, federation: Federation, stack: OperatedStack
    ) -> None:
        stack.executions |= {
            "r2": execution("RUNNING"),
            "old": execution("SUCCEEDED"),
            "bad": execution("FAILED"),
        }
        assert [found.id for found in federation.cancel_all("why")] == [round_.id, "r2"]
        assert {e.status for e in stack.executions.values()} == {
            "ABORTED",
            "SUCCEEDED",
            "FAILED",
        }


class TestRemoving:
    def test_deletes_everything(
        self, round_: Round, stack: OperatedStack, store: MemoryStore
    ) -> None:
        store.put_json(round_.keys.manifest, COMPLETED)
        stack.executions["r1"] = execution("SUCCEEDED")
        round_.remove()
        assert not store.objects
        round_.remove()

    def test_first_deletes_that_the_round_was_opened(
        self,
        round_: Round,
        stack: OperatedStack,
        store: MemoryStore,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Cancelling one without a plan, half removed, would refund its privacy."""
        deleted = list[str]()
        store.put_json(round_.keys.manifest, COMPLETED)
        stack.executions["r1"] = execution("SUCCEEDED")
        monkeypatch.setattr(store, "delete_versions", deleted.append)
        round_.remove()
        assert deleted == [round_.keys.spec, round_.keys.root]

    def test_finishes_an_interrupted_cleanup(
        self, round_: Round, stack: OperatedStack, store: MemoryStore
    ) -> None:
        stack.executions["r1"] = execution("SUCCEEDED")
        store.delete(round_.keys.spec)
        round_.remove()
        assert not store.objects

    @pytest.mark.parametrize(("manifest", "text"), [(None, "has not ended"), (COMPLETED, "ending")])
    def test_of_a_round_that_runs(
        self, round_: Round, store: MemoryStore, manifest: Any, text: str
    ) -> None:
        if manifest:
            store.put_json(round_.keys.manifest, manifest)
        with pytest.raises(RoundStateError, match=text):
            round_.remove()
        assert round_.keys.spec in store.objects

    def test_of_no_round(self, federation: Federation) -> None:
        with pytest.raises(RoundNotFoundError):
            federation.round("nope").remove()


class TestListing:
    @pytest.fixture(autouse=True)
    def rounds(self, round_: Round, stack: OperatedStack, store: MemoryStore) -> None:
        for name, status in (
            ("busy", "RUNNING"),
            ("done", "SUCCEEDED"),
            ("bad", "FAILED"),
            ("late", "TIMED_OUT"),
            ("stopped", "ABORTED"),
            ("stopped-late", "ABORTED"),
        ):
            stack.executions[name] = execution(status)
        store.put_json("rounds/busy/plan.json", plan_json({}))
        store.put_json("rounds/stopped-late/manifest.json", COMPLETED)

    def test_has_the_state_of_each(self, federation: Federation) -> None:
        assert {found.round: found.state for found in federation.rounds()} == {
            "r1": "awaiting",
            "busy": "aggregating",
            "done": "completed",
            "bad": "failed",
            "late": "failed",
            "stopped": "failed",
            "stopped-late": "completed",
        }

    @pytest.mark.parametrize(
        ("state", "names"),
        [
            ("awaiting", ["r1"]),
            ("aggregating", ["busy"]),
            ("completed", ["stopped-late", "done"]),
            ("failed", ["stopped", "late", "bad"]),
        ],
    )
    def test_of_one_state(self, federation: Federation, state: str, names: list[str]) -> None:
        assert [found.round for found in federation.rounds(state)] == names

    def test_an_execution_that_is_no_round_is_not_listed(
        self, federation: Federation, stack: OperatedStack
    ) -> None:
        stack.executions["_by-hand"] = execution("FAILED")
        stack.executions["by.hand"] = execution("RUNNING")
        assert len(list(federation.rounds())) == 7

    def test_of_no_state(self, federation: Federation) -> None:
        with pytest.raises(SpecError, match="state 'done' is not one of awaiting, aggregating"):
            list(federation.rounds("done"))


class TestLog:
    def test_is_of_the_round_in_the_order_of_time(
        self, round_: Round, stack: OperatedStack
    ) -> None:
        def line(round_id: str, **fields: Any) -> str:
            return json.dumps({"round": round_id, **fields})

        stack.logged = {
            "open_round": [(1, line("r1", n=1) + "\nnot JSON\n{broken\n" + line("r1", n=2))],
            "abort_round": [(4, line("r1", n=4)), (3, line("r11", cause="r1")), (2, line("r1"))],
        }
        assert [(found.at, found.function) for found in round_.log()] == [
            (1, "open_round"),
            (1, "open_round"),
            (2, "abort_round"),
            (4, "abort_round"),
        ]

    def test_of_no_round(self, federation: Federation) -> None:
        with pytest.raises(RoundNotFoundError):
            federation.round("nope").log()
