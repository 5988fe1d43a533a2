"""Trainings whose rounds have a robust rule, or are private."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gradshard_core.errors import PlanError, PrivacyBudgetError, SpecError
from gradshard_core.formats.object_keys import RoundKeys, TrainingKeys
from gradshard_core.planning.plan_parts import Task
from gradshard_core.records.privacy_ledger import PrivacyBudget, change_ledger, read_ledger
from gradshard_core.rounds.aggregate_shard import aggregate_shard
from gradshard_core.s3.task_client import TaskS3Client
from gradshard_core.specs.training_spec_checks import parse_training_spec
from gradshard_core.trainings.start_training import start_training
from tests.integration.by_hand import put_model
from tests.unit.trainings.machine import Machine

CLIENTS = [f"c{number}" for number in range(8)]
DP = {"clip": 1.0, "noise_multiplier": 2.0, "delta": 1e-5}
DELTAS = {"optimizer": "fedavg", "updates": "deltas"}


@pytest.mark.parametrize(
    "of_round",
    [
        {"rule": "median"},
        {"rule": {"name": "krum", "f": 2}},
        {"rule": {"name": "bulyan", "f": 1}},
        {"rule": "norm_clip"},
        {"max_samples": 3},
        {"dp": DP},
    ],
)
def test_rounds_of_a_training(machine: Machine, of_round: dict[str, Any]) -> None:
    of_round = of_round | {"server_optimizer": DELTAS}
    state = machine.start(rounds=3, clients=CLIENTS, round=of_round)
    assert (state.status, state.cause) == ("ended", "all 3 rounds have completed")
    manifest = machine.store.get_json(RoundKeys("t-00003").manifest)
    assert manifest["model"]["version"] == 4
    assert (manifest["privacy"] is not None) == ("dp" in of_round)


def test_a_client_that_the_rule_left_out_has_missed_nothing(machine: Machine) -> None:
    of_round = {"rule": {"name": "krum", "f": 2}, "server_optimizer": DELTAS}
    state = machine.start(rounds=2, clients=CLIENTS, round=of_round)
    assert state.completed == 2
    assert state.silent == {}
    manifest = machine.store.get_json(RoundKeys("t-00002").manifest)
    assert len(manifest["left_out"]) == len(CLIENTS) - 1


def test_a_client_that_the_rule_left_out_of_a_round_that_fails_has_answered(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(s3: TaskS3Client, name: str, *, attempt: int, task: Task) -> dict[str, Any]:
        if attempt == 1:
            raise PlanError("the second pass fails")
        return aggregate_shard(s3, name, attempt=attempt, task=task)

    monkeypatch.setattr("tests.unit.trainings.machine.aggregate_shard", fail)
    of_round = {"rule": {"name": "krum", "f": 2}, "server_optimizer": DELTAS}
    state = machine.start(rounds=1, clients=CLIENTS, round=of_round, repeats=0)
    assert state.status == "paused"
    assert "the second pass fails" in (state.cause or "")
    assert state.silent == {}


def test_training_pauses_at_once_when_its_privacy_budget_is_spent(machine: Machine) -> None:
    model = machine.model.name
    budget = PrivacyBudget(8.0, 1e-5, 0.6)
    change_ledger(machine.store, model, lambda ledger: replace(ledger, budget=budget))
    of_round = {"dp": DP, "server_optimizer": DELTAS}
    state = machine.start(rounds=5, clients=CLIENTS, round=of_round, repeats=3)
    assert state.status == "paused"
    assert state.completed == 2
    assert state.cause is not None
    assert "PrivacyBudgetError" in state.cause
    assert "2 rounds have spent 0.5" in state.cause
    assert len(read_ledger(machine.store, model).entries) == 2
    assert state.silent == {}, "nobody was asked for an update of the third round"


@pytest.mark.parametrize(
    ("dp", "told"),
    [
        (None, "allows no round without noise"),
        (DP, "noise_multiplier 2 costs 0.25 more: one more round fits with a noise_multiplier"),
    ],
)
def test_a_training_whose_first_round_would_exceed_the_privacy_budget_is_refused(
    machine: Machine, dp: dict[str, Any] | None, told: str
) -> None:
    model = machine.model.name
    budget = PrivacyBudget(1.0, 1e-5, 0.2)
    change_ledger(machine.store, model, lambda ledger: replace(ledger, budget=budget))
    fields = {"rounds": 3, "clients": CLIENTS, "round": {"dp": dp, "server_optimizer": DELTAS}}
    with pytest.raises(PrivacyBudgetError, match=told):
        start_training(machine.store, "refused", fields, started="2026-01-01T00:00:00+00:00")
    assert machine.store.head(TrainingKeys("refused").spec) is None


def test_adaptive_clip_goes_on_from_round_to_round(machine: Machine) -> None:
    adaptive = DP | {"quantile": 0.5}
    of_round = {"dp": adaptive, "server_optimizer": DELTAS}
    state = machine.start(rounds=3, clients=CLIENTS, round=of_round)
    assert state.completed == 3
    clips = [1.0]
    for number in range(1, 4):
        privacy = machine.store.get_json(RoundKeys(f"t-{number:05d}").manifest)["privacy"]
        assert privacy["clip"] == clips[-1]
        clips.append(privacy["next_clip"])
    assert len(set(clips)) == 4
    assert state.clip == clips[-1]
    entries = read_ledger(machine.store, machine.model.name).entries
    assert [entry.mechanism and entry.mechanism["clip"] for entry in entries] == clips[:3]
    assert [entry.cost for entry in entries] == [pytest.approx(1 / 4 + 1 / 100)] * 3


@pytest.mark.parametrize(
    ("of_round", "needed"),
    [({}, 1), ({"rule": "median"}, 3), ({"rule": {"name": "krum", "f": 2}}, 7), ({"dp": DP}, 2)],
)
def test_round_is_opened_with_as_many_clients_as_its_rule_needs(
    of_round: dict[str, Any], needed: int
) -> None:
    options = {"rounds": 1, "round": {"server_optimizer": DELTAS, **of_round}}
    assert parse_training_spec(options).needed() == needed
    few = CLIENTS[: needed - 1]
    if few:
        with pytest.raises(SpecError, match=f"{needed} clients are needed for a round"):
            parse_training_spec(options | {"clients": few})


def test_a_training_whose_rounds_would_be_refused_is_refused_at_its_start(
    machine: Machine,
) -> None:
    tensors = {f"l{i}.w": np.ones(2, "f4") for i in range(80)}
    put_model(machine.store, "deep", tensors)
    put_model(machine.store, "counting", {**tensors, "n": np.array(1, "i8")})
    rule = {"name": "krum", "f": 2, "layer_quorum": 7}
    many = [f"c{number}" for number in range(60)]
    for model, options, told in (
        ("counting", {"sample": 8}, "layer 'n'"),
        ("deep", {"sample": 64}, "64 clients in each"),
        ("deep", {"sample": 40, "over_selection": 0.5}, "60 clients in each"),
        ("deep", {"clients": many}, "60 clients in each"),
        # As many may join.
        ("deep", {}, r"64 clients in each .* expect at most 57 clients \(in a training, sample\)"),
    ):
        of_round = {"rule": rule, "server_optimizer": {**DELTAS, "model": model}}
        fields = {"rounds": 3, "round": of_round, **options}
        with pytest.raises(SpecError, match=told):
            start_training(machine.store, "refused", fields, started="2026-01-01T00:00:00+00:00")
