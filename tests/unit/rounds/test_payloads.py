"""What the state machine carries between its states, of rounds with thousands of clients.

Step Functions takes 256 KiB from a state, an execution's input or a function, however many clients
there are; a state that has more fails, past the retries and most of what catches.
"""

import json

import numpy as np
import pytest

from gradshard_core.costs import large_round_limits
from gradshard_core.limits import aws_limits
from gradshard_core.records.plan_and_manifest import read_manifest
from gradshard_core.rounds import aws_requests
from gradshard_core.rounds.collect_update import collect_update
from tests import reference
from tests.unit.in_memory import MAX_CAUSE, OPENED, Machine, Told, size

MOST = aws_limits.MAX_PAYLOAD_BYTES

MOST_OF_TREE = 64**2
"""Clients of a tree of two levels."""

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")


def client(number: int) -> str:
    """Return an id as long as any."""
    return f"c{number:04}".ljust(64, "x")


# ------------------------------------------------------------------------- thousands of clients


@pytest.mark.slow
def test_five_thousand_clients_most_of_them_rejected_while_they_are_read(machine: Machine) -> None:
    """More arrive than a round takes; of those it takes all but ten hold NaN."""
    machine.open(clients=MOST_OF_TREE, min_clients=1, topology="lambda_fl")
    good = {client(i): {"w": np.full(3, i, "f4")} for i in range(0, 4000, 400)}
    bad = {"w": np.array([1, 2, np.nan], "f4")}
    for i in range(5000):
        machine.submit(client(i), good.get(client(i), bad))
    outcome = machine.turn(OPENED)
    assert (outcome["status"], outcome["rejected"]) == ("replan", MOST_OF_TREE - 10)
    # Whole, those of 100,000 clients would take most of the function's memory.
    assert len(machine.store.objects[machine.keys.replan(0)]) < 2000
    assert machine.turn(outcome) == {"status": "completed"}
    manifest = read_manifest(machine.store, machine.keys)
    assert manifest is not None
    assert [c["client"] for c in manifest["contributors"]] == sorted(good)
    assert len({rejection["client"] for rejection in manifest["rejected"]}) == 4990
    result = reference.decode(machine.store.objects[machine.keys.result])
    expected = reference.average(list(good.values()), [1] * 10)
    assert result["w"].tobytes() == expected["w"].tobytes()


def test_thousands_of_clients_that_send_nothing_or_junk(machine: Machine, told: Told) -> None:
    """As many ids as terms may hold; who is missing, and why others were rejected, is the cause."""
    names = [client(i) for i in range(3700)]
    machine.open(clients=names, min_clients=2000)
    for name in names[:1000]:
        machine.store.put_bytes(machine.keys.update(name), b"junk")
    with pytest.raises(Exception, match="0 good updates") as failed:
        machine.turn(OPENED)
    cause = as_lambda_says(type(failed.value).__name__, str(failed.value))
    aborted = machine.step("abort_round", error="QuorumError", cause=cause)
    assert aborted["error"] == "QuorumError"
    assert len(told.events) == 1


def as_lambda_says(error: str, message: str) -> str:
    cause = json.dumps({"errorType": error, "errorMessage": message})
    assert len(cause) <= MAX_CAUSE
    return cause


def test_a_task_with_nan_of_every_client_in_a_tensor_with_a_long_name(machine: Machine) -> None:
    machine.open(clients=64, min_clients=1)
    name = "\U0001f600" * 10_000
    for i in range(63):
        machine.submit(client(i), {name: np.full(1, np.nan, "f4")})
    machine.submit("good", {name: np.ones(1, "f4")})
    outcome = machine.turn(OPENED)
    assert outcome["rejected"] == 63
    assert machine.turn(outcome) == {"status": "completed"}


@pytest.mark.parametrize("character", ["x", "\x1b", "é", "\U0001f600"])
def test_a_cause_as_long_as_step_functions_has_it(
    machine: Machine, told: Told, character: str
) -> None:
    room = MAX_CAUSE - len(as_lambda_says("StoreError", ""))
    cause = as_lambda_says("StoreError", character * (room // len(json.dumps(character)[1:-1])))
    answer = machine.step("abort_round", error="StoreError", cause=cause)
    assert 1_000 < len(answer["cause"]) <= aws_requests.MAX_CAUSE
    assert len(told.events) == 1


def test_terms_that_are_wrong_at_length(machine: Machine, told: Told) -> None:
    """The terms are quoted in the cause with which the execution fails."""
    assert machine.open(clients="x" * 200_000)["status"] == "rejected"
    assert len(told.causes) == 1


def test_children_are_as_few_as_their_map_can_hand_back() -> None:
    """Each leaves an empty object; a map that hands back more than 256 KiB fails.

    With MapConcurrency=1, each task is a child.
    """
    assert size([{}] * large_round_limits.MAX_TASKS) <= MOST


# ------------------------------------------------------------------ which rejections a plan heeds


def test_a_plan_leaves_out_clients_that_its_own_tasks_rejected(
    machine: Machine,
) -> None:
    """What clients read is of any upload; what the next plan heeds is of the versions it froze."""
    key = machine.keys.update
    machine.open(clients=["a", "b", "c"])
    good = {"w": np.ones(1, "f4")}
    machine.store.put_bytes(key("b"), b"junk")
    rejected = collect_update(machine.store, key("b"), "the junk's")
    assert rejected["status"] == "rejected"
    machine.submit("a", {"w": np.full(1, np.nan, "f4")})
    machine.submit("b", good)  # repaired in time; the event of this upload is still on its way
    etag = machine.submit("c", good)
    planned = machine.plan(OPENED)
    machine.aggregate(planned)
    outcome = machine.step("finalize_round")
    assert outcome["rejected"] == 1
    assert machine.store.get_json(machine.keys.rejection("b"))["etag"]
    # Repaired too late: its sender reads that instead.
    etag = machine.submit("a", good)
    assert collect_update(machine.store, key("a"), etag)["late"]
    assert machine.store.get_json(machine.keys.rejection("a"))["late"]
    assert machine.turn(outcome) == {"status": "completed"}
    manifest = machine.store.get_json(machine.keys.manifest)
    assert [c["client"] for c in manifest["contributors"]] == ["b", "c"]
    assert [(r["client"], r["late"]) for r in manifest["rejected"]] == [("a", False)]


def test_a_late_run_of_an_earlier_attempt_changes_nothing(machine: Machine) -> None:
    machine.open(clients=3, min_clients=1)
    for name, value in (("a", 1.0), ("b", 2.0), ("c", np.nan)):
        machine.submit(name, {"w": np.full(1, value, "f4")})
    planned = machine.plan(machine.turn(OPENED))
    # Gone for good, and so found to be bad by the second attempt.
    machine.store.delete(machine.keys.update("b"))
    machine.aggregate(planned)
    outcome = machine.step("finalize_round")
    # A function that was thought dead says again what the first attempt found.
    machine.store.put_json(machine.keys.replan(0), [{"client": "c", "reason": "NaN", "etag": ""}])
    assert machine.turn(outcome) == {"status": "completed"}
    manifest = machine.store.get_json(machine.keys.manifest)
    assert [c["client"] for c in manifest["contributors"]] == ["a"]
    assert [r["client"] for r in manifest["rejected"]] == ["c", "b"]
