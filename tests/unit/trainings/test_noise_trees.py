"""Private trainings whose noise cancels in a tree, from start to end, on a bucket in memory."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from gradshard.client.executions import Execution
from gradshard.client.privacy_accounting import privacy_in_words
from gradshard_core.errors import PlanError
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.privacy.noise import NoiseSource
from gradshard_core.privacy.privacy_mechanism import parse_privacy
from gradshard_core.records.privacy_ledger import PrivacyBudget, change_ledger, read_ledger
from gradshard_core.records.training_state import Invitation
from gradshard_core.rounds import finalize_round as finalizing
from gradshard_core.rounds import open_round as opening
from gradshard_core.rounds.abort_round import abort_round
from gradshard_core.rounds.finalize_round import finalize_round
from gradshard_core.specs.training_spec_checks import parse_training_spec
from gradshard_core.trainings.pause_training import pause_training
from tests import reference
from tests.unit.privacy.test_noise_tree import dyadic
from tests.unit.trainings.machine import MODEL, KeptState, Machine, training_of

CLIENTS = [f"c{number:02}" for number in range(24)]
DP = {"clip": 64.0, "noise_multiplier": 2.0, "delta": 1e-5}
DELTAS = {"optimizer": "fedavg", "updates": "deltas"}
ROUND = {"dp": DP, "server_optimizer": DELTAS}
SIZE = 8
"""Elements of the model."""


def options(**changed: Any) -> dict[str, Any]:
    of_tree = {"rounds": 6, "clients": CLIENTS, "sample": 3, "noise_tree": 6, "round": ROUND}
    return of_tree | changed


def keys_there(machine: Machine) -> list[str]:
    return [key.split("/")[1] for key in sorted(machine.store.objects) if "/secrets/" in key]


def noise_of(key: bytes) -> np.ndarray:
    found = np.empty(SIZE, np.int64)
    terms = parse_privacy(DP).grid(SIZE).terms
    NoiseSource(key, terms, 0).read_into(memoryview(found).cast("B"))
    return found


def released(machine: Machine, round_id: str) -> np.ndarray:
    """Return the elements of a round's result."""
    result = reference.decode(machine.store.objects[RoundKeys(round_id).result])
    return np.concatenate([result[name].ravel() for name in MODEL])


def sent(machine: Machine, round_id: str) -> np.ndarray:
    """Return the sum of a round's updates in whole numbers, by its definition."""
    step, total = parse_privacy(DP).grid(SIZE).step, np.zeros(SIZE)
    prefix = RoundKeys(round_id).updates
    for key in sorted(machine.store.objects):
        if key.startswith(prefix):
            update = reference.decode(machine.store.objects[key])
            flat = np.concatenate([update[name].ravel() for name in MODEL])
            total += np.trunc(flat.astype("f8") * (1 / step))
    return total


def check_noise(machine: Machine, round_id: str, noise: np.ndarray, divisor: int = 3) -> None:
    step = parse_privacy(DP).grid(SIZE).step
    expected = (sent(machine, round_id) + noise) * step / divisor
    np.testing.assert_array_equal(released(machine, round_id), expected.astype("f4"))


def test_results_are_the_definition_and_the_model_has_the_noise_of_the_nodes(
    machine: Machine,
) -> None:
    drawn = machine.keep_keys()
    state = machine.start(**options())
    assert (state.status, state.cause) == ("ended", "all 6 rounds have completed")
    before, total = np.zeros(SIZE, np.int64), np.zeros(SIZE)
    for leaf in range(1, 7):
        name = f"t-{leaf:05d}"
        nodes = [noise_of(drawn[f"t-{last:05d}"]) for _, last in dyadic(1, leaf, 8)]
        after = np.sum(nodes, axis=0)
        check_noise(machine, name, after - before)
        before, total = after, total + released(machine, name)
    model = machine.model.fetch()
    start, end = (np.concatenate([t[name].ravel() for name in MODEL]) for t in (MODEL, model))
    np.testing.assert_allclose(end, start + total, rtol=1e-5)
    assert len({*drawn.values()}) == 6
    assert keys_there(machine) == []


def test_a_client_is_invited_once_in_a_tree_and_keys_go_when_no_round_needs_them(
    machine: Machine,
) -> None:
    there, invited = [], []

    def look(invitation: Invitation) -> None:
        there.append(keys_there(machine))
        invited.append(invitation.clients)

    machine.before_round = look
    state = machine.start(**options(rounds=15, noise_tree=8))
    assert state.completed == 15
    ids = [f"t-{number:05d}" for number in range(1, 16)]
    # Those of the nodes that a later round of the tree will take out.
    needed = [[], [0], [1], [1, 2], [3], [3, 4], [3, 5], [3, 5, 6]]
    expected = [*needed, *([8 + n for n in numbers] for numbers in needed[:7])]
    assert there == [[ids[number] for number in numbers] for numbers in expected]
    for tree in (invited[:8], invited[8:]):
        times = Counter(client for clients in tree for client in clients)
        assert {*times.values()} == {1}
    assert keys_there(machine) == []


@pytest.mark.parametrize(("rounds", "tree", "levels"), [(6, 6, 3), (8, 8, 4), (15, 8, 4 + 3)])
def test_the_ledger_is_charged_for_each_level_of_each_tree(
    machine: Machine, rounds: int, tree: int, levels: int
) -> None:
    machine.start(**options(rounds=rounds, noise_tree=tree))
    ledger = read_ledger(machine.store, machine.model.name)
    assert len(ledger.entries) == rounds
    assert ledger.spent == levels / DP["noise_multiplier"] ** 2
    privacy = machine.store.get_json(RoundKeys("t-00006").manifest)["privacy"]
    assert (privacy["cost"], privacy["spent"]) == (0.0, 3 / 4)
    assert privacy["deviation"] == pytest.approx(2**0.5 * 2.0 * 64.0 / 3)
    assert privacy["tree"]["cancels"] == ["t-00005"]
    words = "of 3; round 6 of a tree, which takes out the noise of t-00005; "
    assert words in privacy_in_words(privacy)


def fail_at(machine: Machine, number: int, *, is_planned: bool) -> None:
    """Let the first try of a round fail, before it is planned or after its tasks are done."""
    aggregate = machine._aggregate
    failed: list[str] = []

    def failing(name: str) -> None:
        if name.startswith(f"t-{number:05d}") and not failed:
            failed.append(name)
            if is_planned:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr("tests.unit.trainings.machine.finalize_round", give_up)
                    aggregate(name)
            raise PlanError("it is to fail")
        aggregate(name)

    def give_up(store: Any, name: str) -> dict[str, Any]:
        plan = store.get_json(RoundKeys(name).plan)
        if plan["measures"]:
            return finalize_round(store, name)
        raise PlanError("it is to fail")

    machine.patch.setattr(machine, "_aggregate", failing)


def test_a_round_that_fails_after_it_is_planned_uses_up_its_place_and_its_clients(
    machine: Machine,
) -> None:
    drawn, invited, after_abort = machine.keep_keys(), [], []
    machine.before_round = lambda invitation: invited.append(invitation.clients)
    fail_at(machine, 4, is_planned=True)

    def abort(*arguments: Any, **others: Any) -> dict[str, Any]:
        done = abort_round(*arguments, **others)
        after_abort.append(keys_there(machine))
        return done

    machine.patch.setattr("tests.unit.trainings.machine.abort_round", abort)
    state = machine.start(**options(rounds=8, noise_tree=8))
    assert state.completed == 8
    assert after_abort == [["t-00002", "t-00003"]]
    in_tree = Counter(client for clients in invited[:8] for client in clients)
    assert {*in_tree.values()} == {1}
    noise = {name: noise_of(key) for name, key in drawn.items()}
    assert len(noise) == 9
    places = {
        name: machine.store.get_json(RoundKeys(name).manifest)["privacy"]["tree"]
        for name in noise
        if name != "t-00004"
    }
    [again] = places.keys() - {f"t-{number:05d}" for number in range(1, 9)}
    # What the failed round was to take out stays until leaf 8 takes out all that is there.
    assert (places[again]["leaf"], places[again]["cancels"]) == (5, [])
    assert places["t-00005"]["cancels"] == [again]
    assert places["t-00007"]["leaf"] == 8
    assert places["t-00007"]["cancels"] == ["t-00002", "t-00003", "t-00005", "t-00006"]
    for name, place in places.items():
        check_noise(machine, name, noise[name] - sum(noise[n] for n in place["cancels"]))
    assert not any("t-00004" in place["cancels"] for place in places.values())
    assert (places["t-00008"]["leaf"], places["t-00008"]["cancels"]) == (1, [])
    assert read_ledger(machine.store, machine.model.name).spent == (4 + 1) / 4
    assert keys_there(machine) == []


@pytest.mark.parametrize("number", [1, 3, 4])
def test_a_round_that_fails_before_it_is_planned_keeps_its_place_and_pays_once(
    machine: Machine, number: int
) -> None:
    fail_at(machine, number, is_planned=False)
    state = machine.start(**options())
    assert state.completed == 6
    leaves = []
    for key in sorted(machine.store.objects):
        if key.endswith("manifest.json"):
            manifest = machine.store.get_json(key)
            if manifest["status"] == "completed":
                leaves.append(manifest["privacy"]["tree"]["leaf"])
    assert sorted(leaves) == [1, 2, 3, 4, 5, 6]
    assert read_ledger(machine.store, machine.model.name).spent == 3 / 4


def test_a_round_that_ended_well_and_was_given_up_keeps_its_key(machine: Machine) -> None:
    aggregate = machine._aggregate

    def dying(name: str) -> None:
        aggregate(name)
        if name == "t-00003":
            raise PlanError("the answer was lost")

    machine.patch.setattr(machine, "_aggregate", dying)
    state = machine.start(**options(repeats=0))
    assert (state.status, state.completed) == ("ended", 6)
    place = machine.store.get_json(RoundKeys("t-00004").manifest)["privacy"]["tree"]
    assert place["cancels"] == ["t-00002", "t-00003"]


def test_sums_of_fewer_clients_are_divided_by_the_same_number(machine: Machine) -> None:
    drawn = machine.keep_keys()
    machine.skipped = {*CLIENTS[::4]}
    state = machine.start(**options())
    assert state.completed == 6
    counts, before = set(), np.zeros(SIZE, np.int64)
    for leaf in range(1, 7):
        name = f"t-{leaf:05d}"
        counts.add(machine.store.get_json(RoundKeys(name).manifest)["privacy"]["clients"])
        nodes = [noise_of(drawn[f"t-{last:05d}"]) for _, last in dyadic(1, leaf, 8)]
        check_noise(machine, name, np.sum(nodes, axis=0) - before)
        before = np.sum(nodes, axis=0)
    assert counts == {2, 3}


def test_a_training_that_cannot_go_on_deletes_its_keys(machine: Machine) -> None:
    machine.before_round = lambda invitation: (
        machine.store.delete(machine.keys.spec) if invitation.number == 4 else None
    )
    machine.start(**options())
    assert machine.state.status == "paused"
    assert len(list(machine.store.list_objects(RoundKeys("t-00003").updates))) == 3
    assert keys_there(machine) == []


def test_a_pause_deletes_all_keys_and_the_noise_so_far_stays(machine: Machine) -> None:
    drawn = machine.keep_keys()

    def look(invitation: Invitation) -> None:
        if invitation.number == 3:
            machine.training.pause("lunch")

    machine.before_round = look
    state = machine.start(**options(rounds=8, noise_tree=8))
    assert (state.status, state.completed) == ("paused", 3)
    assert keys_there(machine) == []
    machine.before_round = lambda _: None
    state = machine.resume()
    assert (state.status, state.completed) == ("ended", 8)
    cancels = [
        machine.store.get_json(RoundKeys(f"t-{number:05d}").manifest)["privacy"]["tree"]["cancels"]
        for number in range(4, 9)
    ]
    assert cancels == [[], [], ["t-00005"], [], ["t-00004", "t-00006", "t-00007"]]
    noise = [noise_of(drawn[f"t-{number:05d}"]) for number in range(1, 9)]
    check_noise(machine, "t-00008", noise[7] - noise[3] - noise[5] - noise[6])
    assert keys_there(machine) == []


@pytest.mark.parametrize("ends", ["completes", "is found completed"])
def test_a_round_that_ends_after_its_training_has_paused_leaves_no_key(
    machine: Machine, ends: str
) -> None:
    def lose(invitation: Invitation) -> None:
        if invitation.number == 3:
            pause_training(machine.store, "t", run=1, error="States.Runtime", cause="lost")

    machine.before_round = lose
    if ends == "is found completed":  # by abort_round, after finalize_round has died
        machine.patch.setattr(finalizing, "_delete_intermediate", raise_plan_error)
    state = machine.start(**options())
    assert (state.status, state.completed) == ("paused", 2)
    assert machine.store.get_json(RoundKeys("t-00003").manifest)["status"] == "completed"
    assert keys_there(machine) == []
    # Nobody calls a function for a training that is stopped while it pauses.
    assert machine.training.stop("enough").status == "ended"


def raise_plan_error(*_: Any) -> None:
    raise PlanError("finalize_round dies here")


def test_a_training_whose_execution_was_lost_takes_no_noise_out_of_another_model(
    machine: Machine,
) -> None:
    fail_at(machine, 2, is_planned=False)

    alive: list[set[int]] = [set()] * 3  # the first invitation, round 1, and the wait after round 2
    machine.kill = {
        "AdvanceTrainingFunction": [*alive, *[{0}] * 4],
        "PauseTrainingFunction": [{0}] * 4,
    }
    state = machine.start(**options())
    assert (state.status, state.invitation, state.completed) == ("running", None, 1)
    [kept] = keys_there(machine)
    execution = Execution("FAILED", {}, "Runtime.ExitError", "died too often")
    machine.stack.trainings.executions["t"] = execution
    machine.model.put({"other": np.zeros(9, "f4")})
    state = machine.resume()
    assert kept == "t-00001"
    assert (state.status, state.completed) == ("paused", 1)
    assert "was made by others" in (state.cause or "")
    assert keys_there(machine) == []
    assert machine.resume().completed == 6
    again = machine.store.get_json(RoundKeys("t-00002-again1").manifest)
    assert again["privacy"]["tree"]["cancels"] == []


def test_a_version_by_others_pauses_and_noise_is_not_taken_out_of_their_model(
    machine: Machine,
) -> None:
    def meddle(invitation: Invitation) -> None:
        if invitation.number == 2:
            machine.model.roll_back(1)

    machine.before_round = meddle
    state = machine.start(**options())
    assert state.status == "paused"
    assert keys_there(machine) == []
    machine.before_round = lambda _: None
    assert machine.resume().completed == 6
    assert keys_there(machine) == []


def test_a_version_with_another_layout_gets_no_noise_of_the_same_keys(machine: Machine) -> None:
    def meddle(invitation: Invitation) -> None:
        if invitation.number == 2:
            machine.model.put({"other": np.zeros(9, "f4")})

    machine.before_round = meddle
    state = machine.start(**options(repeats=0))
    assert (state.status, state.completed) == ("paused", 1)
    assert "does not ask for round 't-00002' of version 3" in (state.cause or "")
    assert keys_there(machine) == []
    assert len(read_ledger(machine.store, machine.model.name).entries) == 1


def test_a_missing_key_pauses_the_training_which_can_then_go_on(machine: Machine) -> None:
    machine.before_round = lambda invitation: (
        machine.store.delete(RoundKeys("t-00001").noise_key) if invitation.number == 2 else None
    )
    state = machine.start(**options(repeats=0))
    assert state.status == "paused"
    assert "rounds/t-00001/secrets/noise.json is missing" in (state.cause or "")
    machine.before_round = lambda _: None
    assert machine.resume().completed == 6


@pytest.mark.slow
def test_a_function_that_dies_at_any_request_deletes_keys_and_counts_a_round_once(
    new_machine: Callable[[], Machine],
) -> None:
    whole = new_machine()
    expected = whole.start(**options(rounds=4, noise_tree=4, sample=2))
    most = max(n for name, n in whole.calls if name == "AdvanceTrainingFunction")
    for number in range(most):
        machine = new_machine()
        deaths = [{number}, {-number - 1}]
        machine.kill = {"AdvanceTrainingFunction": [*deaths, *([set()] * 2), *deaths, set()]}
        state = machine.start(**options(rounds=4, noise_tree=4, sample=2))
        assert (state.completed, state.tree) == (4, expected.tree)
        assert keys_there(machine) == []
        assert read_ledger(machine.store, machine.model.name).spent == 3 / 4


def test_a_late_call_that_would_end_the_training_deletes_no_key_that_is_needed(
    machine: Machine,
) -> None:
    """Lambda may repeat a call whose first try has written the state long ago."""
    kept: list[KeptState] = []

    def call_late(invitation: Invitation) -> None:
        if invitation.number == 3:
            kept.append(machine.keep_state())
        if invitation.number == 4:
            there = keys_there(machine)
            assert machine.call_late(kept[0], later=timedelta(days=2))["round"] == "t-00004"
            assert keys_there(machine) == there == ["t-00002", "t-00003"]

    machine.before_round = call_late
    state = machine.start(**options(budget={"seconds": 86400}))
    assert (state.status, state.completed) == ("ended", 6)
    assert keys_there(machine) == []


def test_the_budget_stops_a_tree_before_it_becomes_deeper(machine: Machine) -> None:
    budget = PrivacyBudget(8.0, 1e-5, 0.6)
    change_ledger(machine.store, machine.model.name, lambda found: replace(found, budget=budget))
    state = machine.start(**options())
    assert (state.status, state.completed) == ("paused", 3)
    assert "3 rounds have spent 0.5, and noise_multiplier 2 costs 0.25 more" in (state.cause or "")
    assert keys_there(machine) == []


def test_a_tree_waits_for_clients_that_were_not_in_it(machine: Machine) -> None:
    state = machine.start(**options(clients=None, rounds=6, noise_tree=6, sample=3))
    assert state.status == "paused"
    for client in CLIENTS[:7]:
        machine.training.join(client)
    state = machine.resume()
    assert (state.status, state.completed) == ("paused", 2)
    assert "besides the 6 that were invited in this tree of noise: 1, and" in (state.cause or "")
    for client in CLIENTS[7:]:
        machine.training.join(client)
    assert machine.resume().completed == 6


def test_evaluations_are_no_rounds_of_a_tree(machine: Machine) -> None:
    machine.train = lambda client, model, invitation: training_of(client, model, invitation)[:2]
    state = machine.start(**options(evaluate_every=1))
    assert (state.status, state.completed) == ("ended", 6)
    assert state.evaluated == 6
    assert keys_there(machine) == []


@pytest.mark.parametrize("changed", ["none", "clients", "clip", "leaf", "cancels", "name"])
def test_a_round_of_a_tree_opens_only_as_its_training_asks_for_it(
    machine: Machine, changed: str
) -> None:
    given: dict[str, Any] = {}
    real = opening.open_round

    def look(store: Any, name: str, spec: dict[str, Any], **others: Any) -> dict[str, Any]:
        if name == "t-00003" and not given:
            given.update(spec)
            forged = dict(spec)
            place = spec["dp"]["tree"]
            match changed:
                case "clients":
                    forged["clients"] = [*spec["clients"][1:], CLIENTS[0]]
                    forged["clients"] = sorted({*forged["clients"], CLIENTS[1]})
                case "clip":
                    forged["dp"] = {**spec["dp"], "noise_multiplier": 0.1}
                case "leaf":
                    forged["dp"] = {**spec["dp"], "tree": {**place, "leaf": 5}}
                case "cancels":
                    forged["dp"] = {**spec["dp"], "tree": {**place, "cancels": []}}
                case "name":
                    name = "other"
            return real(store, name, forged, **others)
        return real(store, name, spec, **others)

    machine.patch.setattr("tests.unit.trainings.machine.open_round", look)
    state = machine.start(**options(repeats=0, noise_tree=4, rounds=4))
    if changed == "cancels":  # leaf 3 takes nothing out
        changed = "none"
    if changed == "none":
        assert state.completed == 4
        return
    assert state.status == "paused"
    assert "does not ask for round" in (state.cause or "")
    assert len(read_ledger(machine.store, machine.model.name).entries) == 2


def test_a_training_reads_its_options_as_it_wrote_them() -> None:
    spec = parse_training_spec(options())
    assert parse_training_spec(spec.to_json()) == spec
