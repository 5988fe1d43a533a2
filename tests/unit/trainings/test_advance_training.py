"""Trainings from their start to their end, with functions that die at each of their requests."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from botocore.exceptions import ClientError

from gradshard.client import training_loop
from gradshard.client.executions import Execution
from gradshard_core.errors import TrainingStateError
from gradshard_core.formats.client_metrics import MAX_KEPT
from gradshard_core.formats.headers import parse_header
from gradshard_core.formats.long_lists import StoredList
from gradshard_core.formats.object_keys import ModelKeys, RoundKeys
from gradshard_core.limits import aws_limits
from gradshard_core.records.plan_and_manifest import piece_reader
from gradshard_core.records.stored_spec import PAYLOAD_ROOM_BYTES
from gradshard_core.records.training_state import Invitation, change_state
from gradshard_core.rounds import aws_requests
from gradshard_core.rounds.abort_round import abort_round
from gradshard_core.rounds.open_round import open_round
from gradshard_core.specs.round_spec_checks import parse_new_spec
from gradshard_core.trainings import advance_training as advancing
from gradshard_core.trainings import round_outcome
from gradshard_core.trainings.advance_training import advance_training
from gradshard_core.trainings.start_training import start_training
from tests import reference
from tests.integration.by_hand import put_model
from tests.unit.trainings.deaths import watch_deaths
from tests.unit.trainings.machine import (
    AGGREGATOR,
    MODEL,
    NAME,
    Killed,
    Machine,
    TaskError,
    training_of,
)

CLIENTS = ["ann", "bo", "cy"]


def bits(machine: Machine) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in machine.model.fetch().items()}


def test_a_training_runs_all_its_rounds(machine: Machine) -> None:
    state = machine.start(rounds=4, clients=CLIENTS, evaluate_every=2)
    assert (state.status, state.cause) == ("ended", "all 4 rounds have completed")
    assert (state.completed, state.evaluated, state.version) == (4, 4, 5)
    assert [record["round_id"] for record in machine.training.records()] == [
        *("t-00001", "t-00002", "t-00002-eval", "t-00003", "t-00004", "t-00004-eval")
    ]
    assert machine.ended == {"t": "Succeed"}


def test_metrics_are_averaged_by_samples(machine: Machine) -> None:
    sent = {"ann": (10, {"loss": 1.0}), "bo": (30, {"loss": 2.0, "f1": 0.5}), "cy": (5, {})}

    def train(client: str, model: Mapping[str, Any], _invitation: Invitation) -> Any:
        return dict(model), *sent[client]

    machine.train = train
    machine.start(rounds=1, clients=CLIENTS)
    [record] = machine.training.records()
    assert record["metrics"] == {"f1": 0.5, "loss": (10 * 1.0 + 30 * 2.0) / 40}


def test_evaluations_send_metrics_and_no_tensors_of_the_model(machine: Machine) -> None:
    samples = {"ann": 1, "bo": 3, "cy": 4}

    def evaluate(client: str, model: Mapping[str, Any], invitation: Invitation) -> Any:
        assert invitation.version == 2
        assert model.keys() == {"w", "b"}
        return {"accuracy": samples[client] / 8}, samples[client]

    machine.evaluate = evaluate
    machine.start(rounds=1, clients=CLIENTS, evaluate_every=1)
    record = machine.training.records()[-1]
    assert record["metrics"] == {"accuracy": pytest.approx((1 + 9 + 16) / 64, rel=1e-15)}
    assert record["version"] is None
    assert record["base_version"] == 2


@pytest.mark.slow
def test_a_function_that_dies_at_any_request_leaves_what_it_would_have_left(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call dies once at each of its requests in turn, before and after it took effect."""

    def lose(invitation: Invitation) -> None:
        """Have the second round's execution end without a manifest, once."""
        if invitation.round_id == "t-00002":
            raise TaskError("States.TaskFailed", "stopped by hand")

    machine.before_round = lose
    others = watch_deaths(machine, monkeypatch)
    state = machine.start(rounds=3, clients=CLIENTS, evaluate_every=2)
    assert (state.status, state.completed) == ("ended", 3)
    assert {name for name, _ in machine.calls} == {
        "StartTrainingFunction",
        "AdvanceTrainingFunction",
        "AbortRoundFunction",
    }
    assert others == {}


def test_a_step_that_is_asked_for_twice_at_once_is_taken_once(machine: Machine) -> None:
    answers = []
    call = machine._call

    def twice(name: str, event: dict[str, Any]) -> Any:
        first, second = call(name, event), call(name, event)
        answers.append((first, second))
        return second

    machine._call = twice  # type: ignore[method-assign]
    state = machine.start(rounds=3, clients=CLIENTS)
    assert state.completed == 3
    assert all(first == second for first, second in answers)


def test_a_late_call_of_an_earlier_step_changes_nothing(machine: Machine) -> None:
    machine.start(rounds=3, clients=CLIENTS)
    before = dict(machine.store.objects)
    for step in range(3):
        event = {"training": "t", "run": 1, "step": step}
        assert machine._call("AdvanceTrainingFunction", event)["status"] in {"superseded", "ended"}
    assert machine.store.objects == before


def test_a_training_that_pauses_late_is_left_alone_in_its_next_execution(machine: Machine) -> None:
    machine.train = lambda *_: None
    machine.start(rounds=2, clients=CLIENTS, repeats=0)
    machine.train = training_of
    machine.resume()
    state = machine.state
    event = {"training": "t", "run": 1, "error": "E", "cause": "late"}
    assert machine._call("PauseTrainingFunction", event)["status"] == "ended"
    assert machine.state == state


# -------------------------------------------------------------------------------------- failures


def test_a_round_below_its_quorum_is_repeated_and_then_the_training_pauses(
    machine: Machine,
) -> None:
    machine.train = lambda client, model, invitation: (
        None if invitation.number == 2 else training_of(client, model, invitation)
    )
    state = machine.start(rounds=3, clients=CLIENTS, repeats=2)
    assert (state.status, state.completed) == ("paused", 1)
    assert state.cause is not None
    assert "round 't-00002-again2' failed (QuorumError): " in state.cause
    assert "It was tried 3 times." in state.cause
    assert machine.ended == {"t": "Fail"}
    assert state.silent == dict.fromkeys(CLIENTS, 3)


def test_a_training_that_has_paused_goes_on_to_the_same_bits(
    new_machine: Callable[[], Machine],
) -> None:
    undisturbed = new_machine()
    undisturbed.start(rounds=3, clients=CLIENTS)
    machine = new_machine()
    machine.train = lambda client, model, invitation: (
        None if invitation.number == 2 else training_of(client, model, invitation)
    )
    assert machine.start(rounds=3, clients=CLIENTS, repeats=0).status == "paused"
    machine.train = training_of
    state = machine.resume()
    assert (state.status, state.run, state.completed) == ("ended", 2, 3)
    assert bits(machine) == bits(undisturbed)


def test_a_client_that_answers_again_is_silent_no_more(machine: Machine) -> None:
    machine.train = lambda client, model, invitation: (
        None
        if client == "ann" and invitation.number < 3
        else training_of(client, model, invitation)
    )
    assert machine.start(rounds=2, clients=CLIENTS).silent == {"ann": 2}


def test_a_silent_client_that_has_left_is_counted_no_more(machine: Machine) -> None:
    """Else the state, which every client reads, would grow with each id that was ever used."""
    for client in CLIENTS:
        machine.store.put_bytes(machine.keys.member(client), b"")
    machine.train = lambda client, model, invitation: (
        training_of(client, model, invitation) if client == "cy" else None
    )
    machine.before_round = lambda _: machine.training.leave("ann")
    of_round = {"server_optimizer": "fedavg", "min_clients": 1}
    assert machine.start(rounds=2, round=of_round).silent == {"bo": 2}


def test_a_model_that_was_put_by_hand_pauses_the_training_and_is_gone_on_from(
    machine: Machine,
) -> None:
    def put(invitation: Invitation) -> None:
        if invitation.round_id == "t-00001-eval":
            machine.model.put({name: np.ones_like(t) for name, t in machine.model.fetch().items()})

    machine.before_round = put
    state = machine.start(rounds=3, clients=CLIENTS, evaluate_every=1)
    assert state.status == "paused"
    assert state.cause is not None
    assert "version 3 of model 'model' was made by others" in state.cause
    assert "whose last version is 2" in state.cause
    machine.before_round = lambda _: None
    state = machine.resume()
    assert (state.status, state.completed, state.version) == ("ended", 3, 5)


def test_a_model_that_was_put_while_a_round_opens_pauses_the_training(machine: Machine) -> None:
    def put(invitation: Invitation) -> None:
        if invitation.number == 2:
            machine.model.put(machine.model.fetch())

    machine.before_round = put
    state = machine.start(rounds=3, clients=CLIENTS)
    assert (state.status, state.completed, state.version) == ("paused", 2, 4)
    assert state.cause is not None
    assert "round 't-00002' was to make version 3 of model 'model' and made 4" in state.cause


DP = {"clip": 64.0, "noise_multiplier": 2.0, "delta": 1e-5}
DELTAS = {"optimizer": "fedavg", "updates": "deltas"}


def complete_by_others(machine: Machine, name: str, **terms: Any) -> None:
    """Run a round that no training has asked for."""
    spec = {"clients": ["x", "y"], **terms}
    opened = open_round(machine.store, name, spec, started=machine.now.isoformat(), token="t")
    assert opened["status"] == "opened"
    body = reference.encode({n: np.ones_like(t) for n, t in MODEL.items()}, {"num_samples": "1"})
    for client in ("x", "y"):
        machine.store.put_bytes(RoundKeys(name).update(client), body)
    machine._aggregate(name)


@pytest.mark.parametrize("is_evaluation", [False, True])
@pytest.mark.parametrize("private", [{}, {"dp": DP}], ids=["plain", "private"])
@pytest.mark.parametrize(
    ("terms", "pauses"),
    [({}, False), ({"server_optimizer": DELTAS}, True)],
    ids=["no model", "its model"],
)
def test_a_round_by_others_of_the_next_name_is_none_of_the_training(
    machine: Machine,
    terms: dict[str, Any],
    pauses: bool,
    private: dict[str, Any],
    is_evaluation: bool,
) -> None:
    """Else a private training would have one private round less than it says."""
    taken = "t-00002-eval" if is_evaluation else "t-00002"

    def open_next(invitation: Invitation) -> None:
        if invitation.round_id == ("t-00002" if is_evaluation else "t-00001"):
            complete_by_others(machine, taken, **terms)

    def train(client: str, model: Mapping[str, Any], invitation: Invitation) -> Any:
        return training_of(client, model, invitation)[:2]

    machine.train, machine.before_round = train, open_next
    of_round = {"server_optimizer": DELTAS, **private}
    state = machine.start(rounds=3, clients=CLIENTS, evaluate_every=2, round=of_round, repeats=0)
    if pauses:
        assert "others" in (state.cause or ""), state.cause
        state = machine.resume()
    assert (state.status, state.completed) == ("ended", 3), state.cause
    records = machine.training.records()
    assert {*records[0]["contributors"]} == {*CLIENTS}
    assert all({*record["contributors"]} == {*CLIENTS} for record in records if not record["error"])
    assert taken not in {record["round_id"] for record in records}
    assert sum(record["version"] is not None for record in records) == 3


def test_a_round_by_others_that_comes_first_counts_as_no_round(machine: Machine) -> None:
    """It is opened after the training has looked whether its name is taken."""

    def open_it(invitation: Invitation) -> None:
        if invitation.round_id == "t-00002":
            complete_by_others(machine, invitation.round_id)

    machine.before_round = open_it
    state = machine.start(rounds=3, clients=CLIENTS)
    assert (state.status, state.completed) == ("paused", 1)
    assert "'t-00002' made no version of model 'model': others opened a" in (state.cause or "")
    state = machine.resume()
    assert (state.status, state.completed, state.version) == ("ended", 3, 4)


def test_a_round_by_others_that_comes_before_a_repetition_has_no_name_used_twice(
    machine: Machine,
) -> None:
    """A round that was given up before it was opened has a manifest, and no spec."""

    names = list[str]()

    def disturb(invitation: Invitation) -> None:
        names.append(invitation.round_id)
        if invitation.round_id == "t-00002":
            abort_round(machine.store, invitation.round_id, error="Cancelled", cause="by hand")
            raise TaskError("States.TaskFailed", "by hand")
        if invitation.round_id == "t-00002-again1":
            complete_by_others(machine, invitation.round_id)

    machine.before_round = disturb
    assert machine.start(rounds=2, clients=CLIENTS, repeats=1).status == "paused"
    state = machine.resume()
    assert (state.status, state.completed) == ("ended", 2), state.cause
    assert names == ["t-00001", "t-00002", "t-00002-again1", "t-00002-again2"]


def test_the_name_of_a_round_that_was_given_up_before_it_was_opened_is_taken(
    machine: Machine,
) -> None:
    abort_round(machine.store, "t-00002", error="Cancelled", cause="by hand")
    state = machine.start(rounds=2, clients=CLIENTS, repeats=0)
    assert (state.status, state.completed) == ("ended", 2), state.cause
    names = [record["round_id"] for record in machine.training.records()]
    assert names == ["t-00001", "t-00002-again1"]


def test_a_training_of_the_name_of_a_removed_one_takes_none_of_its_rounds(
    machine: Machine,
) -> None:
    """Step Functions takes a name again after 90 days, and the local engine when it is new."""
    machine.start(rounds=2, clients=CLIENTS)
    machine.training.remove()
    machine.ended.clear()
    machine.model.roll_back(1)
    state = machine.start(rounds=3, clients=CLIENTS[:2])
    assert (state.status, state.completed, state.version) == ("ended", 3, 7), state.cause
    records = machine.training.records()
    assert [record["round_id"] for record in records] == [
        *("t-00001-again1", "t-00002-again1", "t-00003")
    ]
    assert all(record["contributors"] == CLIENTS[:2] for record in records)


def test_a_round_that_was_cancelled_is_repeated(machine: Machine) -> None:
    def cancel(invitation: Invitation) -> None:
        if invitation.round_id == "t-00002":
            abort_round(machine.store, invitation.round_id, error="Cancelled", cause="by hand")
            raise TaskError("States.TaskFailed", "by hand")

    machine.before_round = cancel
    state = machine.start(rounds=2, clients=CLIENTS)
    assert (state.status, state.completed) == ("ended", 2)
    assert [r["round_id"] for r in machine.training.records()] == [
        *("t-00001", "t-00002", "t-00002-again1")
    ]


def test_what_a_function_fails_of_pauses_the_training_with_that_cause(machine: Machine) -> None:
    def spoil(invitation: Invitation) -> None:
        if invitation.number == 2:
            machine.store.delete(machine.keys.spec)
            machine.skipped = set(CLIENTS)

    machine.before_round = spoil
    state = machine.start(rounds=3, clients=CLIENTS)
    assert state.status == "paused"
    assert state.cause is not None
    assert state.cause.startswith("TrainingNotFoundError: there is no training 't'")


ASSIGNMENTS = {"batch_size": 8, "epochs": 2, "learning_rate": 0.1}


def expire_rounds(machine: Machine) -> None:
    """Do what the bucket does after its RetentionDays, while a training is paused."""
    machine.store.delete_versions("rounds/")


def test_a_training_goes_on_after_the_objects_of_its_rounds_have_expired(machine: Machine) -> None:
    machine.train = lambda client, model, invitation: (
        None if invitation.number == 2 else training_of(client, model, invitation)
    )
    of_round = {"server_optimizer": "fedavg", "assignments": ASSIGNMENTS}
    state = machine.start(rounds=3, clients=CLIENTS, repeats=0, round=of_round)
    assert state.status == "paused"
    expire_rounds(machine)
    machine.train = training_of
    state = machine.resume()
    assert (state.status, state.completed) == ("ended", 3)
    assert state.version == 4


def test_a_round_whose_outcome_has_expired_is_told_and_its_version_of_the_model_is_kept(
    machine: Machine,
) -> None:
    """The training paused after the second round had completed, and before it was recorded."""
    machine.kill = {"AdvanceTrainingFunction": [set(), set(), *[{0}] * 4]}
    state = machine.start(rounds=3, clients=CLIENTS)
    assert (state.status, state.completed) == ("paused", 1)
    made = bits(machine)
    expire_rounds(machine)
    state = machine.resume()
    assert state.status == "paused"
    assert "version 3 of model 'model' was made by others" in (state.cause or "")
    assert bits(machine) == made
    state = machine.resume()
    assert (state.status, state.completed, state.version) == ("ended", 3, 5)


# ------------------------------------------------------------------------------------ the end


def test_a_target_that_is_reached_ends_the_training_and_names_the_best_version(
    machine: Machine,
) -> None:
    stop = {"metric": "accuracy", "at_least": 0.025}
    state = machine.start(rounds=9, clients=CLIENTS, evaluate_every=1, stop=stop)
    assert (state.status, state.completed) == ("ended", 3)
    assert state.cause == "accuracy is 0.03 after round 3"
    assert state.best is not None
    assert (state.best.version, state.best.metric) == (4, "accuracy")


def test_patience_ends_the_training_and_the_best_version_is_the_first_best(
    machine: Machine,
) -> None:
    values = {1: 0.2, 2: 0.5, 3: 0.5, 4: 0.4, 5: 0.9}
    machine.evaluate = lambda _c, _m, invitation: ({"accuracy": values[invitation.number]}, 1)
    stop = {"metric": "accuracy", "maximize": True, "patience": 2}
    state = machine.start(rounds=5, clients=CLIENTS, evaluate_every=1, stop=stop)
    assert (state.status, state.completed) == ("ended", 4)
    assert state.best is not None
    assert (state.best.version, state.best.value) == (3, 0.5)


def test_a_metric_of_training_may_decide(machine: Machine) -> None:
    stop = {"metric": "loss", "at_most": 0.25}
    state = machine.start(rounds=9, clients=CLIENTS, stop=stop)
    assert (state.completed, state.cause) == (4, "loss is 0.25 after round 4")


def test_a_stop_rule_on_a_metric_that_nobody_sends_pauses_after_the_first_round(
    machine: Machine,
) -> None:
    stop = {"metric": "acuracy", "at_least": 0.9}
    state = machine.start(rounds=9, clients=CLIENTS, evaluate_every=1, stop=stop)
    assert (state.status, state.completed) == ("paused", 1)
    assert state.cause is not None
    assert "no client sent the metric 'acuracy'" in state.cause
    assert "they sent: accuracy" in state.cause


def test_a_budget_of_dollars_is_never_exceeded(machine: Machine) -> None:
    free = machine.start(rounds=1, clients=CLIENTS)
    assert free.dollars > 0
    other = Machine(machine.patch)
    state = other.start(rounds=50, clients=CLIENTS, budget={"dollars": 5.5 * free.dollars})
    assert state.status == "ended"
    assert state.completed == 5
    assert state.dollars <= 5.5 * free.dollars
    assert state.cause is not None
    assert "of a budget of" in state.cause


def test_a_budget_too_small_for_the_first_round_opens_none(machine: Machine) -> None:
    state = machine.start(rounds=50, clients=CLIENTS, budget={"dollars": 1e-6})
    assert (state.status, state.completed, state.dollars) == ("ended", 0, 0)


def test_a_budget_of_seconds_ends_the_training(machine: Machine) -> None:
    def pass_time(_: Invitation) -> None:
        machine.now = machine.now.replace(minute=machine.now.minute + 10)

    machine.before_round = pass_time
    state = machine.start(rounds=50, clients=CLIENTS, budget={"seconds": 1500})
    assert (state.completed, state.cause) == (3, "1800 s have passed, of a budget of 1500 s")


def test_an_operator_pauses_resumes_and_stops(machine: Machine) -> None:
    def ask(invitation: Invitation) -> None:
        if invitation.number == 2:
            machine.training.pause("maintenance")
        if invitation.number == 4:
            machine.training.stop("good enough")

    machine.before_round = ask
    state = machine.start(rounds=9, clients=CLIENTS)
    assert (state.status, state.completed, state.cause) == ("paused", 2, "paused: maintenance")
    state = machine.resume()
    assert (state.status, state.completed, state.cause) == ("ended", 4, "stopped: good enough")


def go_on(machine: Machine) -> None:
    """Run the execution that an operator's request has started."""
    [*_, payload] = machine.stack.trainings.started
    machine.execute(machine.keys.execution(machine.state.run), json.loads(payload))


@pytest.mark.parametrize(
    ("request_", "status", "cause"),
    [("stop", "ended", "stopped: nobody comes"), ("pause", "paused", "paused: nobody comes")],
)
def test_an_operator_need_not_wait_for_a_training_that_waits_for_members(
    machine: Machine, request_: str, status: str, cause: str
) -> None:
    fields = {"rounds": 3, "round": {"server_optimizer": "fedavg"}}
    start_training(machine.store, NAME, fields, started=machine.now.isoformat())
    waits = advance_training(machine.store, NAME, run=1, step=0, aggregator=AGGREGATOR)
    assert waits["status"] == "wait"
    getattr(machine.training, request_)("nobody comes")
    go_on(machine)
    assert (machine.state.status, machine.state.cause) == (status, cause)
    # The execution that has waited changes nothing, and the one that it may start is there.
    ended = machine.state
    late = advance_training(machine.store, NAME, run=1, step=waits["step"], aggregator=AGGREGATOR)
    assert late["status"] == "superseded" or late["execution"] in machine.ended
    assert machine.state == ended


class StoppedByHandError(Exception):
    """Somebody has stopped the execution."""


@pytest.mark.parametrize(
    ("request_", "status", "cause"),
    [("stop", "ended", "stopped: enough"), ("pause", "paused", "paused: enough")],
)
def test_a_request_to_a_training_whose_execution_was_stopped_takes_effect(
    machine: Machine, request_: str, status: str, cause: str
) -> None:
    def stop_execution(_: Invitation) -> None:
        raise StoppedByHandError

    machine.before_round = stop_execution
    with pytest.raises(StoppedByHandError):
        machine.start(rounds=9, clients=CLIENTS)
    assert machine.state.invitation is not None
    machine.stack.trainings.executions[NAME] = Execution("ABORTED", {}, "", "by hand")
    getattr(machine.training, request_)("enough")
    go_on(machine)
    assert (machine.state.status, machine.state.completed) == (status, 0)
    assert machine.state.cause == cause
    assert machine.executions == [NAME, f"{NAME}-run2"]


def test_a_request_to_a_training_with_a_round_under_way_starts_no_execution(
    machine: Machine,
) -> None:
    def ask(_: Invitation) -> None:
        machine.training.pause("later")
        machine.training.stop("enough")

    machine.stack.trainings.executions[NAME] = Execution("RUNNING", {}, "", "")
    machine.before_round = ask
    assert machine.start(rounds=9, clients=CLIENTS).cause == "stopped: enough"
    assert machine.stack.trainings.started == []
    assert machine.executions == [NAME]


def test_a_resumed_training_does_not_pause_though_it_was_to(machine: Machine) -> None:
    def ask(invitation: Invitation) -> None:
        if invitation.number == 1:
            machine.training.pause("later")
            machine.training.resume()
        else:
            machine.training.stop("enough")
            machine.training.resume()  # takes back no stop

    machine.stack.trainings.executions[NAME] = Execution("RUNNING", {}, "", "")
    machine.before_round = ask
    state = machine.start(rounds=9, clients=CLIENTS)
    assert (state.status, state.completed, state.cause) == ("ended", 2, "stopped: enough")


def test_a_training_that_is_asked_to_stop_cannot_be_paused_instead(machine: Machine) -> None:
    """It would go on when it is resumed, and the stop would be forgotten."""

    def ask(_: Invitation) -> None:
        machine.training.stop("enough")
        with pytest.raises(
            TrainingStateError, match="'t' ends when its round has ended, as it was"
        ):
            machine.training.pause("later")

    machine.stack.trainings.executions[NAME] = Execution("RUNNING", {}, "", "")
    machine.before_round = ask
    state = machine.start(rounds=9, clients=CLIENTS)
    assert (state.status, state.completed, state.cause) == ("ended", 1, "stopped: enough")


def test_a_stop_is_kept_though_the_execution_is_stopped_by_hand_and_resumed(
    machine: Machine,
) -> None:
    def stop_execution(_: Invitation) -> None:
        machine.training.stop("enough")
        raise StoppedByHandError

    machine.stack.trainings.executions[NAME] = Execution("RUNNING", {}, "", "")
    machine.before_round = stop_execution
    with pytest.raises(StoppedByHandError):
        machine.start(rounds=9, clients=CLIENTS)
    machine.stack.trainings.executions[NAME] = Execution("ABORTED", {}, "", "by hand")
    machine.before_round = lambda _: None
    state = machine.resume()
    assert (state.status, state.completed, state.cause) == ("ended", 0, "stopped: enough")


def test_a_request_to_a_training_takes_effect_though_its_execution_may_not_be_looked_at(
    machine: Machine,
) -> None:
    def denied(_: str) -> None:
        raise ClientError({"Error": {"Code": "AccessDeniedException"}}, "DescribeExecution")

    def ask(_: Invitation) -> None:
        machine.training.stop("enough")
        assert machine.training.lost_execution(machine.state) is None

    machine.patch.setattr(machine.stack.trainings, "execution", denied)
    machine.before_round = ask
    assert machine.start(rounds=9, clients=CLIENTS).cause == "stopped: enough"


def test_a_training_that_is_asked_to_stop_ends_though_its_round_fails_once_too_often(
    machine: Machine,
) -> None:
    """``stop --now`` cancels the round, and so makes it fail."""

    def cancel(invitation: Invitation) -> None:
        if invitation.number == 2:
            machine.training.stop("good enough")
            abort_round(machine.store, invitation.round_id, error="Cancelled", cause="by hand")
            raise TaskError("States.TaskFailed", "by hand")

    machine.before_round = cancel
    state = machine.start(rounds=5, clients=CLIENTS, repeats=0)
    assert (state.status, state.completed, state.cause) == ("ended", 1, "stopped: good enough")
    assert [record["error"] for record in machine.training.records()] == [None, "Cancelled"]


def test_a_training_that_is_asked_to_stop_ends_though_its_function_fails_for_good(
    machine: Machine,
) -> None:
    """Else it would pause, and go on when it is resumed."""

    def fail(invitation: Invitation) -> None:
        if invitation.number == 2:
            machine.training.stop("good enough")
            machine.kill = {"AdvanceTrainingFunction": [{0}] * 4}

    told: list[str] = []
    machine.patch.setattr(aws_requests, "publish", lambda event, _: told.append(event))
    machine.before_round = fail
    state = machine.start(rounds=5, clients=CLIENTS)
    assert (state.status, state.completed, state.cause) == ("ended", 1, "stopped: good enough")
    assert state.invitation is None
    assert machine.ended == {"t": "Succeed"}
    assert told[-1] == "TrainingEnded"


def test_a_successor_takes_over_before_the_history_is_full(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advancing, "STEPS_PER_RUN", 4)
    state = machine.start(rounds=10, clients=CLIENTS)
    assert (state.status, state.completed) == ("ended", 10)
    assert machine.executions == ["t", "t-run2", "t-run3"]
    other = Machine(machine.patch)
    monkeypatch.setattr(advancing, "STEPS_PER_RUN", 100)
    other.start(rounds=10, clients=CLIENTS)
    assert bits(other) == bits(machine)


# ------------------------------------------------------------------------------------ clients


def test_everybody_who_joined_is_invited_and_whoever_left_is_not(machine: Machine) -> None:
    machine.store.put_bytes(machine.keys.member("ann"), b"{}")
    machine.store.put_bytes(machine.keys.member("bo"), b"{}")
    machine.store.put_bytes(f"{machine.keys.members}no client!.joined", b"{}")

    def come_and_go(invitation: Invitation) -> None:
        if invitation.number == 1:
            machine.training.join("cy")
            machine.training.join("cy")
        if invitation.number == 2:
            machine.training.leave("ann")

    machine.before_round = come_and_go
    machine.start(rounds=3)
    invited = [record["clients"] for record in machine.training.records()]
    assert invited == [["ann", "bo"], ["ann", "bo", "cy"], ["bo", "cy"]]


@pytest.mark.parametrize(
    "mode", [{}, {"mode": "buffered", "updates_per_version": 2, "evaluate_every": 1}]
)
def test_ids_of_thousands_of_members_fit_into_what_the_state_machine_carries(
    machine: Machine, mode: dict[str, Any]
) -> None:
    """Anybody who may join can have an id of 64 characters."""
    layers = [f"layer{n:03}" for n in range(1000)] if not mode else None
    put_model(machine.store, "m", {name: np.ones(1, "f4") for name in layers or ["w"]})
    optimizer = {"optimizer": "fedavg", "model": "m"}
    of_round = {"server_optimizer": optimizer, "rule": layers and "fill", "layers": layers}
    fields = {"rounds": 3, "round": {n: v for n, v in of_round.items() if v is not None}, **mode}
    start_training(machine.store, NAME, fields, started=machine.now.isoformat())
    for number in range(4096):
        machine.store.put_bytes(machine.keys.member(f"{number:064}"), b"")
    if mode:  # a version is to be evaluated
        change_state(machine.store, machine.keys, lambda state: replace(state, completed=1))
    answer = advance_training(machine.store, NAME, run=1, step=0, aggregator=AGGREGATOR)
    assert answer["status"] == "round"
    assert answer["spec"]["clients"]["length"] == 4096
    round_keys = RoundKeys(answer["round"])
    opened = parse_new_spec(answer["spec"], piece_reader(machine.store, round_keys.expected))
    assert isinstance(opened.clients, StoredList)
    assert list(opened.clients) == [f"{number:064}" for number in range(4096)]
    again = advance_training(machine.store, NAME, run=1, step=0, aggregator=AGGREGATOR)
    assert again == answer
    assert len(json.dumps(answer)) < aws_limits.MAX_PAYLOAD_BYTES - PAYLOAD_ROOM_BYTES


def test_a_training_waits_for_as_many_as_it_samples_and_then_pauses(machine: Machine) -> None:
    machine.store.put_bytes(machine.keys.member("ann"), b"{}")
    state = machine.start(rounds=3, sample=2, round={"server_optimizer": "fedavg", "timeout": 600})
    assert state.status == "paused"
    assert state.cause is not None
    assert state.cause.startswith("too few clients have joined: 1, and a round needs 2;")
    machine.training.join("bo")
    assert machine.resume().completed == 3


def test_sampling_is_recorded_and_depends_on_seed_and_round(
    new_machine: Callable[[], Machine],
) -> None:
    clients = [f"c{number}" for number in range(10)]

    def invited(**options: Any) -> list[Any]:
        machine = new_machine()
        machine.start(rounds=6, clients=clients, sample=3, **options)
        return [record["clients"] for record in machine.training.records()]

    assert invited() == invited()
    assert invited() != invited(seed=1)
    assert len({tuple(drawn) for drawn in invited()}) > 1
    assert all(len(drawn) == 3 for drawn in invited())


def test_over_selection_invites_more_and_goes_on_at_the_number(machine: Machine) -> None:
    clients = [f"c{number}" for number in range(10)]
    machine.start(rounds=1, clients=clients, sample=4, over_selection=0.5)
    [record] = machine.training.records()
    assert (len(record["clients"]), record["awaited"]) == (6, 4)
    spec = machine.store.get_json(RoundKeys("t-00001").spec)["spec"]
    assert (spec["enough_clients"], spec["min_clients"]) == (4, 3)


def test_settings_follow_their_schedules(machine: Machine) -> None:
    seen = []

    def train(client: str, model: Mapping[str, Any], invitation: Invitation) -> Any:
        seen.append(dict(invitation.settings))
        return training_of(client, model, invitation)

    machine.train = train
    settings = {
        "epochs": 2,
        "learning_rate": {"start": 1.0, "decay": 0.5},
        "mode": {"1": "warm", "3": "hot"},
    }
    machine.start(rounds=3, clients=["ann"], settings=settings)
    assert seen == [
        {"epochs": 2, "learning_rate": 1.0, "mode": "warm"},
        {"epochs": 2, "learning_rate": 0.5, "mode": "warm"},
        {"epochs": 2, "learning_rate": 0.25, "mode": "hot"},
    ]


def test_assignments_are_settings_of_each_client_and_follow_its_speed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AMBLE: the fast client, 8 times as fast, gets work for as long as the slow one takes."""
    clock, seen = [0.0], dict[tuple[str, int], Any]()
    monkeypatch.setattr(training_loop, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def train(client: str, model: Mapping[str, Any], invitation: Invitation) -> Any:
        seen[client, invitation.number] = invitation.settings
        clock[0] += invitation.settings["epochs"] * {"fast": 1.0, "slow": 8.0}[client]
        return dict(model), 100

    machine.train = train
    base = {"batch_size": 8, "epochs": 1, "learning_rate": 0.125}
    # Updates without steps would be rejected; they follow from the other two.
    of_round = {"server_optimizer": "fedavg", "assignments": base, "weights": "steps"}
    settings = {"epochs": 99, "lr": 0.5}
    options = {"clients": ["fast", "slow"], "settings": settings, "round": of_round}
    assert machine.start(rounds=3, **options).completed == 3
    for client, steps in {"fast": 8 * 7, "slow": 13}.items():
        update = machine.store.objects[RoundKeys("t-00002").update(client)]
        assert f'"steps":"{steps}"'.encode() in update
    assert seen["fast", 1] == seen["slow", 1] == seen["slow", 3] == {"lr": 0.5, **base}
    more = {"batch_size": 16, "epochs": 8, "learning_rate": 0.25}
    assert seen["fast", 2] == seen["fast", 3] == {"lr": 0.5, **more}


def test_two_trainings_of_one_model_are_told_of_each_other(machine: Machine) -> None:
    machine.train = lambda *_: None
    machine.start(rounds=2, clients=CLIENTS, repeats=0)
    spec = {"rounds": 1, "clients": ["a"], "round": {"server_optimizer": "fedavg"}}
    event = {"training": "u", "spec": spec, "started": "2026-01-01T00:00:00+00:00"}
    with pytest.raises(TrainingStateError, match="is that of training 't', which is paused"):
        machine._call("StartTrainingFunction", event)
    machine.training.stop("make room")
    assert machine._call("StartTrainingFunction", event)["run"] == 1


def test_a_training_that_is_starting_again_keeps_its_model_as_a_new_one(
    machine: Machine,
) -> None:
    """The model's record is that of the training of this name that was removed."""
    machine.start(rounds=1, clients=CLIENTS)
    machine.training.remove()
    fields = {"rounds": 1, "clients": ["a"], "round": {"server_optimizer": "fedavg"}}
    put = machine.store.put_json

    def die_before_state(key: str, *given: Any, **others: Any) -> Any:
        if key == machine.keys.state:
            raise Killed
        return put(key, *given, **others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine.store, "put_json", die_before_state)
        with pytest.raises(Killed):
            start_training(machine.store, NAME, fields, started="2026-06-01T00:00:00Z")
    with pytest.raises(TrainingStateError, match="is that of training 't', which is starting"):
        start_training(machine.store, "u", fields, started="2026-06-01T00:00:01Z")
    assert start_training(machine.store, NAME, fields, started="2026-06-01T00:00:00Z")["run"] == 1


def test_a_training_that_is_starting_keeps_its_model_for_a_quarter_of_an_hour(
    machine: Machine,
) -> None:
    spec = {"rounds": 1, "clients": ["a"], "round": {"server_optimizer": "fedavg"}}
    # The function of the other one has died, or has not written its state yet.
    taken = {"training": "other", "started_at": "2026-01-01T00:00:00.5Z"}
    machine.store.put_json(ModelKeys("model").training, taken)
    event = {"training": "u", "spec": spec, "started": "2026-01-01T00:15:00Z"}
    with pytest.raises(TrainingStateError, match="is that of training 'other', which is starting"):
        machine._call("StartTrainingFunction", event)
    event |= {"training": "v", "started": "2026-01-01T00:15:00.5Z"}
    assert machine._call("StartTrainingFunction", event)["run"] == 1


@pytest.mark.parametrize(
    ("metrics", "why"),
    [
        ("NaN", "no JSON object"),
        ('{"loss": NaN}', "'loss' is 'nan', not a finite number"),
        ('{"loss": "low"}', "'loss' is 'low', not a finite number"),
        ('{"loss": true}', "'loss' is 'True', not a finite number"),
        (json.dumps({f"m{n}": n for n in range(33)}), "33 metrics, over 32"),
        (json.dumps({f"m{n}": n for n in range(1000)}), "characters, over 8192"),
        ('{"' + "x" * 65 + '": 1}', "is not 1 to 64 letters"),
        ('{"a//b": 1}', "no empty part"),
        ('{"a/../../b": 1}', "no empty part"),
        ('{"<script>": 1}', "is not 1 to 64 letters"),
        ('{"x\\u001b[31m": 1}', "is not 1 to 64 letters"),
        ("[" * 5000, "no JSON"),
    ],
)
def test_bad_metrics_cost_their_sender_the_metrics_alone(
    machine: Machine, metrics: str, why: str
) -> None:
    """Sent past the library, which sends none of these."""

    def send(invitation: Invitation) -> None:
        keys = RoundKeys(invitation.round_id)
        update = {"w": np.ones(6, "f4"), "b": np.ones(2, "f4")}
        body = reference.encode(update, {"num_samples": "1", "metrics": metrics})
        machine.store.put_bytes(keys.update("ann"), body)

    machine.before_round = send
    machine.skipped = {"ann"}
    state = machine.start(rounds=1, clients=CLIENTS)
    assert state.status == "ended"
    [record] = machine.training.records()
    assert record["contributors"] == CLIENTS
    assert record["metrics"] == {"loss": 1.0}
    [note] = record["notes"]
    assert note.startswith("metrics of ann do not count: ")
    assert why in note


def test_clients_may_measure_different_metrics_in_an_evaluation(machine: Machine) -> None:
    sent = {"ann": {"accuracy": 0.5}, "bo": {"accuracy": 1.0, "f1": 0.25}, "cy": {"f1": 0.75}}
    machine.evaluate = lambda client, _model, _invitation: (sent[client], len(client))
    assert machine.start(rounds=1, clients=CLIENTS, evaluate_every=1).status == "ended"
    record = machine.training.records()[-1]
    assert record["metrics"] == {"accuracy": (3 * 0.5 + 2 * 1.0) / 5, "f1": 0.5}


def test_one_of_two_clients_cannot_stop_a_training_by_the_layout_of_its_metrics(
    machine: Machine,
) -> None:
    """The layout of an evaluation is stated, so nobody decides on it."""

    def send(invitation: Invitation) -> None:
        machine.skipped = {"ann"} if invitation.is_evaluation else set()
        if invitation.is_evaluation:
            body = reference.encode({"accuracy": np.ones(1)}, {"num_samples": "1000"})
            machine.store.put_bytes(RoundKeys(invitation.round_id).update("ann"), body)

    machine.before_round = send
    of_round = {"server_optimizer": "fedavg", "min_clients": 1}
    options = {"clients": ["ann", "bo"], "evaluate_every": 1, "round": of_round}
    assert machine.start(rounds=1, **options).status == "ended"
    record = machine.training.records()[-1]
    assert (record["contributors"], record["rejected"]) == (["bo"], ["ann"])
    assert record["metrics"] == {"accuracy": 0.01}


def test_names_of_metrics_are_kept_by_how_many_sent_them(machine: Machine) -> None:
    """Each client sends 31 of its own; the one that decides is sent by one client alone."""
    own = {c: {f"{c}{n:02}": 1.0 for n in range(31)} for c in CLIENTS}
    shared = {"ann": {"loss": 1.0}, "bo": {"loss": 3.0}, "cy": {"zz": 0.5}}

    def train(client: str, model: Mapping[str, Any], _invitation: Invitation) -> Any:
        return dict(model), 5, own[client] | shared[client]

    machine.train = train
    stop = {"metric": "zz", "at_least": 0.5}
    assert machine.start(rounds=2, clients=CLIENTS, stop=stop).cause == "zz is 0.5 after round 1"
    [record] = machine.training.records()
    assert record["metrics"]["loss"] == 2.0
    assert record["metrics"]["zz"] == 0.5
    assert len(record["metrics"]) == MAX_KEPT + 1
    assert record["notes"] == ["30 more metrics, which fewer clients sent, are not kept"]


def test_long_headers_are_parsed_one_at_a_time(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hostile update has a header that takes 150 MB when it is parsed, of a function's 256."""
    machine.model.put({f"{'layer' * 30}-{n}": np.zeros(1, "f4") for n in range(200)})
    going = most = 0

    def parse(*given: Any) -> Any:
        nonlocal going, most
        going += 1
        most = max(most, going)
        time.sleep(0.01)
        found = parse_header(*given)
        going -= 1
        return found

    monkeypatch.setattr(round_outcome, "parse_header", parse)
    state = machine.start(rounds=1, clients=[f"c{n}" for n in range(6)])
    assert (state.status, most) == ("ended", 1)
    [record] = machine.training.records()
    assert record["metrics"] == {"loss": 1.0}


@pytest.mark.parametrize(
    "rule",
    [
        *("median", "trimmed_mean", "norm_clip", "centered_clip", "geometric_median"),
        *({"name": "krum", "f": 2}, {"name": "multi_krum", "f": 2}),
    ],
    ids=str,
)
def test_a_training_with_a_robust_rule_withstands_a_client(machine: Machine, rule: Any) -> None:
    def train(client: str, model: Mapping[str, Any], invitation: Invitation) -> Any:
        trained, samples, metrics = training_of(client, model, invitation)
        if client == "c0":
            trained = {name: tensor - np.float32(1e30) for name, tensor in trained.items()}
        return trained, samples, metrics

    machine.train = train
    state = machine.start(
        rounds=2,
        clients=[f"c{number}" for number in range(7)],
        round={"server_optimizer": "fedavg", "rule": rule},
    )
    assert (state.status, state.completed) == ("ended", 2), state.cause
    assert all(np.abs(tensor).max() < 20 for tensor in machine.model.fetch().values())


def test_a_small_sample_is_as_many_clients_as_the_quorum(machine: Machine) -> None:
    of_round = {"server_optimizer": "fedavg", "min_clients": 3}
    clients = [f"c{number}" for number in range(10)]
    state = machine.start(rounds=2, clients=clients, sample=0.1, round=of_round)
    assert (state.status, state.completed) == ("ended", 2), state.cause
    assert [len(record["clients"]) for record in machine.training.records()] == [3, 3]
