"""Private trainings that draw their clients in secret, from start to end, on a bucket in memory."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gradshard.client.operator_actions import close_round
from gradshard.client.privacy_accounting import privacy_in_words
from gradshard.client.round_status import StatusPoller
from gradshard.report.round_facts import facts_of
from gradshard.report.summary_sentence import outcome
from gradshard_core.errors import PlanError, RoundStateError, SpecError
from gradshard_core.formats.long_lists import is_in_pieces
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.planning.plan_parts import NOBODY
from gradshard_core.privacy.noise import NoiseSource
from gradshard_core.privacy.privacy_mechanism import parse_privacy
from gradshard_core.records.privacy_ledger import Parts, read_ledger
from gradshard_core.records.stored_spec import read_spec
from gradshard_core.records.training_state import Invitation, TrainingState
from gradshard_core.rounds import arrivals, first_plan, layout_check, plan_assembly, resume_round
from gradshard_core.rounds.finalize_round import finalize_round
from gradshard_core.rounds.open_round import open_round
from gradshard_core.specs.training_spec_checks import parse_training_spec
from gradshard_core.trainings.client_sampling import draw_in_secret
from gradshard_core.trainings.state_for_tickets import seen_by
from tests import reference
from tests.unit.trainings.machine import MODEL, Machine
from tests.unit.trainings.test_large_trainings import lower_sizes

CLIENTS = [f"c{number:02}" for number in range(24)]
DP = {"clip": 64.0, "noise_multiplier": 2.0, "delta": 1e-5}
ROUND = {"dp": DP, "server_optimizer": {"optimizer": "fedavg", "updates": "deltas"}}
SAMPLE = {"probability": 0.8, "divisor": 19}
SIZE = 8
"""Elements of the model."""


def options(**changed: Any) -> dict[str, Any]:
    return {"rounds": 4, "clients": CLIENTS, "secret_sample": SAMPLE, "round": ROUND} | changed


@pytest.fixture
def keys(machine: Machine) -> dict[str, bytes]:
    return machine.keep_keys()


@pytest.fixture
def invited(machine: Machine) -> dict[str, tuple[str, ...]]:
    """The clients of each round, which fills with the rounds."""
    found: dict[str, tuple[str, ...]] = {}

    def note(invitation: Invitation) -> None:
        clients = tuple(invitation.clients)
        assert found.setdefault(invitation.round_id, clients) == clients

    machine.before_round = note
    return found


def manifest(machine: Machine, round_id: str) -> dict[str, Any]:
    found: dict[str, Any] = machine.store.get_json(RoundKeys(round_id).manifest)
    return found


def flat(tensors: Any) -> np.ndarray:
    return np.concatenate([tensors[name].ravel() for name in MODEL])


def send_bad(machine: Machine, invitation: Invitation, clients: list[str]) -> None:
    """Have some of the invited clients send a NaN."""
    bad = {name: np.full_like(tensor, np.nan) for name, tensor in MODEL.items()}
    for client in {*clients} & {*invitation.clients}:
        key = RoundKeys(invitation.round_id).update(client)
        machine.store.put_bytes(key, reference.encode(bad, {"num_samples": "3"}))


def check_release(machine: Machine, round_id: str, key: bytes, senders: list[str]) -> None:
    """Check a result: the sum of some updates in whole numbers and the noise, over the divisor."""
    grid, total = parse_privacy(DP).grid(SIZE), np.zeros(SIZE)
    for client in senders:
        update = reference.decode(machine.store.objects[RoundKeys(round_id).update(client)])
        total += np.trunc(flat(update).astype("f8") * (1 / grid.step))
    noise = np.empty(SIZE, np.int64)
    NoiseSource(key, grid.terms, 0).read_into(memoryview(noise).cast("B"))
    result = flat(reference.decode(machine.store.objects[RoundKeys(round_id).result]))
    np.testing.assert_array_equal(result, ((total + noise) * grid.step / 19).astype("f4"))


def test_draws_are_of_the_stated_probability_and_independent() -> None:
    rounds, probability = 10_000, 0.3
    members = [f"c{number}" for number in range(40)]
    drawn = [draw_in_secret(reversed(members), probability) for _ in range(rounds)]
    there = np.array([[m in clients for m in members] for clients in map(set, drawn)], "f8")
    z = (there - probability) / math.sqrt(probability * (1 - probability))
    scale = math.sqrt(rounds)
    # Six and a half standard deviations: one in 10⁷ runs is off by chance.
    assert np.abs(z.sum(axis=0) / scale).max() < 6.5
    pairs = z.T @ z / scale
    assert np.abs(pairs[np.triu_indices(40, 1)]).max() < 6.5  # of two clients
    assert np.abs(z[1:].T @ z[:-1] / scale).max() < 6.5  # of two rounds
    counts = there.sum(axis=1)
    spread = (counts - 12) ** 2 - 8.4  # 40 · 0.3, 40 · 0.3 · 0.7
    assert abs(spread.sum() / spread.std() / scale) < 6.5
    assert all(list(clients) == sorted(clients) for clients in drawn[:100])


def test_no_seed_and_no_training_decides_on_a_draw(
    new_machine: Callable[[], Machine],
) -> None:
    found = set()
    for _ in range(2):
        machine = new_machine()
        machine.skipped = {*CLIENTS}
        state = machine.start(**options())
        assert (state.status, state.completed, state.drawn) == ("ended", 4, ())
        for number in range(1, 5):
            opened = read_spec(machine.store, RoundKeys(f"t-{number:05d}"))
            assert opened is not None
            found.add(opened[0].clients)
    # Of 24 clients, two draws are the same once in 12 million times.
    assert len(found) == 8


def test_results_are_the_definition_whoever_answers(
    machine: Machine, keys: dict[str, bytes], invited: dict[str, tuple[str, ...]]
) -> None:
    machine.skipped = {*CLIENTS[::2]}
    assert machine.start(**options()).completed == 4
    for name, clients in invited.items():
        came = [client for client in clients if client not in machine.skipped]
        check_release(machine, name, keys[name], came)
        privacy = manifest(machine, name)["privacy"]
        assert privacy["clients"] == len(came)
        assert privacy["deviation"] == 2.0 * 64.0 / 19
        assert "drawn in secret with the probability 0.8" in privacy_in_words(privacy)


@pytest.mark.parametrize("how", ["silent", "bad"])
def test_a_round_to_which_nobody_sends_a_good_update_releases_noise_alone(
    machine: Machine, keys: dict[str, bytes], how: str
) -> None:
    machine.train = lambda *_: None
    if how == "bad":
        machine.skipped = {*CLIENTS}
        machine.before_round = lambda invitation: send_bad(machine, invitation, CLIENTS)
    state = machine.start(**options(rounds=2))
    assert (state.status, state.completed) == ("ended", 2)
    for name in ("t-00001", "t-00002"):
        check_release(machine, name, keys[name], [])
        found = manifest(machine, name)
        assert (found["status"], found["contributors"]) == ("completed", [])
        assert found["privacy"]["clients"] == 0
        assert (len(found["rejected"]) > 0) == (how == "bad")
        assert all("NaN" in rejection["reason"] for rejection in found["rejected"])
        record = machine.store.get_json(machine.keys.record(name))
        assert (record["contributors"], record["metrics"]) == ([], {})
        poller = StatusPoller(machine.stack, RoundKeys(name))
        status, plan, tasks = poller.poll(), poller.plan(), poller.tasks()
        facts = facts_of(status, plan=plan, tasks=tasks, partial_updates=[], architecture="arm64")
        assert f"averaged the updates of 0 of {len(found['missing'] + found['rejected'])}" in (
            str(outcome(facts))
        )
        assert NOBODY not in str(facts)


def test_good_updates_among_bad_ones_are_released(
    machine: Machine, keys: dict[str, bytes], invited: dict[str, tuple[str, ...]]
) -> None:
    note = machine.before_round
    machine.skipped = {*CLIENTS[5:]}

    def send(invitation: Invitation) -> None:
        note(invitation)
        send_bad(machine, invitation, CLIENTS[5:])

    machine.before_round = send
    assert machine.start(**options(rounds=1)).completed == 1
    good = [client for client in invited["t-00001"] if client in CLIENTS[:5]]
    check_release(machine, "t-00001", keys["t-00001"], good)


def test_a_round_never_ends_before_its_deadline(machine: Machine) -> None:
    aggregate, looks = machine._aggregate, []

    def look(name: str) -> None:
        found = read_spec(machine.store, RoundKeys(name))
        assert found is not None
        arrived = arrivals.arrived(machine.store, RoundKeys(name))
        assert tuple(arrived) == found[0].clients
        looks.append(resume_round.resume_if_due(machine.store, RoundKeys(name), found[0]))
        looks.append(
            resume_round.resume_if_due(machine.store, RoundKeys(name), found[0], arrived[-1])
        )
        with pytest.raises(RoundStateError, match="lasts for its timeout, whoever has answered"):
            close_round(machine.stack, RoundKeys(name))
        aggregate(name)

    machine.patch.setattr(machine, "_aggregate", look)
    machine.start(**options())
    assert looks == [False] * 8


@pytest.mark.parametrize("many", [False, True])
def test_nobody_is_left_out_because_of_who_else_came(
    machine: Machine,
    keys: dict[str, bytes],
    invited: dict[str, tuple[str, ...]],
    many: bool,
) -> None:
    # Two updates with their tensors in another order are more than tasks have memory for.
    machine.patch.setattr(layout_check, "MAX_RUNS", 1)
    note, others = machine.before_round, CLIENTS[:12] if many else CLIENTS[:1]
    machine.skipped = {*CLIENTS[:12]}

    def send(invitation: Invitation) -> None:
        note(invitation)
        for client in {*others} & {*invitation.clients}:
            body = reference.encode(MODEL, {"num_samples": "3"}, order=[*MODEL][::-1])
            machine.store.put_bytes(RoundKeys(invitation.round_id).update(client), body)

    machine.before_round = send
    state = machine.start(**options(rounds=1))
    if many:
        assert (state.status, state.completed) == ("paused", 0)
        assert "tensors stand in other orders than the round's, in" in str(state.cause)
        assert not keys
        assert len({*invited.values()}) == 1
    else:
        came = {*invited["t-00001"]} - machine.skipped | {*invited["t-00001"]} & {*others}
        check_release(machine, "t-00001", keys["t-00001"], sorted(came))


def test_no_update_is_left_out_of_a_drawn_round_because_tasks_lack_memory_for_its_order(
    machine: Machine, keys: dict[str, bytes]
) -> None:
    """Whether they do depends on who else was drawn."""
    note, plan = machine.before_round, plan_assembly.assemble

    def send(invitation: Invitation) -> None:
        note(invitation)
        body = reference.encode(MODEL, {"num_samples": "3"}, order=[*MODEL][::-1])
        for client in invitation.clients[:1]:
            machine.skipped.add(client)
            machine.store.put_bytes(RoundKeys(invitation.round_id).update(client), body)

    def lacking(context: Any, contributors: Any, *others: Any) -> Any:
        if not all(contributor.runs.are_in_order for contributor in contributors):
            raise PlanError("an aggregator needs 200 MB and has 192")
        return plan(context, contributors, *others)

    machine.before_round = send
    machine.patch.setattr(first_plan, "assemble", lacking)
    state = machine.start(**options(rounds=1))
    assert (state.status, state.completed) == ("paused", 0)
    assert "an aggregator needs 200 MB" in str(state.cause)
    assert not keys


def fail_at(
    machine: Machine,
    failing: set[str],
    *,
    is_planned: bool,
    passes: tuple[str, ...] = ("measures",),
) -> None:
    """Have rounds fail, before they are planned or after the tasks of some passes are done."""
    aggregate = machine._aggregate

    def dying(name: str) -> None:
        if name in failing and is_planned:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("tests.unit.trainings.machine.finalize_round", give_up)
                aggregate(name)
        if name in failing:
            raise PlanError("on purpose")
        aggregate(name)

    def give_up(store: Any, name: str) -> dict[str, Any]:
        plan = store.get_json(RoundKeys(name).plan)
        if any(plan[done] for done in passes):
            return finalize_round(store, name)
        raise PlanError("on purpose")

    machine.patch.setattr(machine, "_aggregate", dying)


@pytest.mark.parametrize("is_planned", [True, False])
def test_a_failed_round_is_repeated_with_the_same_clients_and_counts_as_the_same_draw(
    machine: Machine, invited: dict[str, tuple[str, ...]], is_planned: bool
) -> None:
    fail_at(machine, {"t-00002", "t-00002-again1"}, is_planned=is_planned)
    state = machine.start(**options(rounds=3))
    assert (state.status, state.completed) == ("ended", 3)
    tries = [clients for name, clients in invited.items() if name.startswith("t-00002")]
    assert len(tries) == 3
    assert len({*tries}) == 1
    assert len({*invited.values()}) == 3
    ledger = read_ledger(machine.store, machine.model.name)
    assert len(ledger.entries) == 5
    tried = 3 / 4 if is_planned else 1 / 4
    assert ledger.parts == Parts(0.0, ((0.8, 1 / 4), (0.8, tried), (0.8, 1 / 4)))
    assert ledger.spent == 2 / 4 + tried


def test_a_resumed_training_does_not_draw_again(
    machine: Machine, invited: dict[str, tuple[str, ...]]
) -> None:
    fail_at(machine, {"t-00001"}, is_planned=False)
    state = machine.start(**options(repeats=0, rounds=2))
    assert (state.status, state.drawn) == ("paused", invited["t-00001"])
    assert machine.resume().completed == 2
    assert len(invited) == 3
    assert len({*invited.values()}) == 2


@pytest.mark.slow
@pytest.mark.parametrize("passes", [None, (), ("surveys", "measures")])
@pytest.mark.parametrize("bad", [3, 24])
def test_a_draw_that_is_stored_in_pieces_is_repeated_and_released_like_a_short_one(
    machine: Machine,
    keys: dict[str, bytes],
    invited: dict[str, tuple[str, ...]],
    passes: tuple[str, ...] | None,
    bad: int,
) -> None:
    lower_sizes(machine.patch)
    note = machine.before_round
    machine.skipped = {*CLIENTS[:bad]}

    def send(invitation: Invitation) -> None:
        note(invitation)
        send_bad(machine, invitation, CLIENTS[:bad])

    machine.before_round = send
    is_planned = passes is not None
    fail_at(machine, {"t-00001", "t-00002"}, is_planned=is_planned, passes=passes or ())
    sample = SAMPLE | {"probability": 0.95}
    assert machine.start(**options(repeats=0, rounds=2, secret_sample=sample)).status == "paused"
    assert is_in_pieces(machine.store.get_json(machine.keys.state)["drawn"])
    assert machine.resume().status == "paused"
    assert machine.resume().completed == 2
    for name in ("t-00001", "t-00002"):
        assert invited[name] == invited[f"{name}-again1"]
        good = [client for client in invited[name] if client in CLIENTS[bad:]]
        check_release(machine, f"{name}-again1", keys[f"{name}-again1"], good)
    tried = (2 if passes else 1) / 4  # with noise
    assert read_ledger(machine.store, machine.model.name).parts == Parts(0.0, ((0.95, tried),) * 2)


@pytest.mark.slow
@pytest.mark.parametrize("death", [0, 3, 6, 8, -2, -5, -8, -9])
def test_functions_that_die_draw_once_for_a_round(
    machine: Machine, invited: dict[str, tuple[str, ...]], death: int
) -> None:
    machine.kill = {"AdvanceTrainingFunction": [{death}, {death}, {death}]}
    assert machine.start(**options(rounds=2)).completed == 2
    assert list(invited) == ["t-00001", "t-00002"]


def test_the_holder_of_a_ticket_does_not_see_who_was_drawn() -> None:
    now = "2026-01-01T00:00:00+00:00"
    state = TrainingState("running", 1, 0, 1, now, now, drawn=("a", "b"))
    assert seen_by("a", state).drawn == ()


@pytest.mark.parametrize("changed", [{}, {"probability": 0.1}, {"divisor": 5}, {"draw": "x"}])
def test_nobody_but_its_training_opens_a_round_of_drawn_clients(
    machine: Machine, changed: dict[str, Any]
) -> None:
    started = "2026-01-01T00:00:00+00:00"
    answers = []

    def steal(invitation: Invitation) -> None:
        draw = {"training": "t", "draw": f"{started} 1", **SAMPLE} | changed
        stolen = {"clients": CLIENTS[:2], **ROUND, "dp": DP | {"draw": draw}, "min_clients": 1}
        for name in (invitation.round_id, "mine"):
            opened = open_round(machine.store, name, stolen, started=started, token="t")
            answers.append(opened["reason"])

    machine.before_round = steal
    assert machine.start(**options(rounds=1)).completed == 1
    assert len(answers) == 2
    for answer in answers:
        assert "does not ask for round" in answer
        assert "leave out draw, which is for rounds of a training with secret_sample" in answer
    assert len(read_ledger(machine.store, machine.model.name).entries) == 1


def test_a_training_waits_for_members_and_pauses_when_they_are_too_many(machine: Machine) -> None:
    shards = ROUND | {"topology": "shards", "timeout": 60}
    state = machine.start(**options(clients=None, round=shards))
    assert state.status == "paused"
    assert "too few clients have joined: 0, and a round needs 20" in str(state.cause)
    for number in range(65):
        machine.training.join(f"c{number}")
    state = machine.resume()
    assert state.status == "paused"
    assert "65 clients have joined, and all may be drawn for a round, which has 64 at most" in str(
        state.cause
    )
    machine.training.leave("c0")
    machine.skipped = {f"c{number}" for number in range(65)}
    assert machine.resume().completed == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mode": "buffered", "updates_per_version": 3}, "a buffered training invites nobody"),
        ({"round": ROUND | {"dp": None}}, "is for private rounds: give dp"),
        ({"round": ROUND | {"dp": DP | {"quantile": 0.5}}}, "leave out quantile"),
        ({"round": ROUND | {"min_clients": 5}}, "leave out min_clients"),
        ({"round": ROUND | {"time_budget": 60}}, "leave out time_budget"),
        ({"noise_tree": 2}, "noise_tree"),
        ({"sample": 0.5}, "leave out sample"),
        ({"sample": 5}, "leave out sample"),
        ({"seed": 1}, "leave out seed: whoever knows a seed"),
        ({"evaluate_every": 2}, "leave out evaluate_every"),
        ({"stop": {"metric": "loss", "at_most": 1}}, "leave out stop"),
        ({"budget": {"dollars": 1}}, "leave out budget"),
        ({"clients": CLIENTS[:19]}, "20 clients are needed .* raise probability"),
        ({"round": ROUND | {"topology": "shards"}, "clients": None}, "divisor"),
        ({"clients": None, "secret_sample": {"probability": 2e-3, "divisor": 2}}, "larger"),
        ({"clients": None, "secret_sample": {"probability": 1e-310, "divisor": 2}}, "between 0"),
    ],
)
def test_what_secret_draws_do_not_go_with_is_refused(changed: Any, message: str) -> None:
    if message == "divisor":  # goes
        assert parse_training_spec(options(**changed)).most_drawn == 64
        return
    with pytest.raises(SpecError, match=message):
        parse_training_spec(options(**changed))


def test_the_draw_is_stated_by_the_training_alone() -> None:
    draw = {"training": "t", "draw": "1", **SAMPLE}
    with pytest.raises(SpecError, match="give secret_sample instead"):
        parse_training_spec(options(round=ROUND | {"dp": DP | {"draw": draw}}))


def test_a_training_states_its_secret_sample() -> None:
    spec = parse_training_spec(options())
    assert parse_training_spec(spec.to_json()) == spec
    assert spec.to_json()["secret_sample"] == SAMPLE


def test_a_draw_too_long_for_the_machines_payload_is_opened(
    machine: Machine, keys: dict[str, bytes]
) -> None:
    members = [f"{number:064}" for number in range(4096)]
    sample = {"probability": 0.99, "divisor": 19}
    once = {"clients": None, "rounds": 1, "round": ROUND | {"timeout": 1}}
    machine.start(**options(secret_sample=sample, **once))
    for member in members:
        machine.store.put_json(machine.keys.member(member), {})
    machine.skipped = {*members}
    state = machine.resume()
    assert (state.status, state.completed) == ("ended", 1)
    assert "pieces" in machine.store.get_json(RoundKeys("t-00001").spec)["spec"]["clients"]
    check_release(machine, "t-00001", keys["t-00001"], [])
