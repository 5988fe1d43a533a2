"""Buffered trainings from their start to their end: the bits of FedBuff, whatever happens."""

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import timedelta
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest

from gradshard.client.model import Model
from gradshard.client.round_status import StatusPoller
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.records.training_state import Invitation, TrainingState
from gradshard_core.rounds import aws_requests
from gradshard_core.trainings import advance_training as advancing
from gradshard_core.trainings import training_cost
from gradshard_core.trainings.next_round import training_round
from tests import reference
from tests.unit.trainings.buffered import BufferedMachine, LostError
from tests.unit.trainings.deaths import watch_deaths
from tests.unit.trainings.machine import MODEL, Killed, training_of

PACES = {"ann": 3.0, "bo": 5.0, "cy": 11.0, "dan": 29.0, "eve": 47.0}
"""Seconds that clients train. They have no common multiples soon, so that no two arrive at once."""

NewMachine = Callable[..., BufferedMachine]


@pytest.fixture
def new_machine(monkeypatch: pytest.MonkeyPatch) -> NewMachine:
    """Make a federation on a bucket of its own."""
    return lambda paces=PACES, **options: BufferedMachine(monkeypatch, paces=dict(paces), **options)


def options(**more: Any) -> dict[str, Any]:
    return {"mode": "buffered", "updates_per_version": 2, "rounds": 8, "clients": [*PACES], **more}


def bits(machine: BufferedMachine) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in machine.model.fetch().items()}


# ------------------------------------------------------------------------------------ the oracle


@cache
def discount(staleness: int, exponent: Fraction) -> float:
    """(1 + τ)^-a for a = p / q, correctly rounded: the q-th root of an integer, by bisection."""
    scale = 1 << 200
    low, high = 0, scale
    power = Fraction(1 + staleness) ** -exponent.numerator
    while high - low > 1:
        middle = (low + high) // 2
        is_below = Fraction(middle, scale) ** exponent.denominator <= power
        low, high = (middle, high) if is_below else (low, middle)
    return float(Fraction(low if low < scale - 1 else scale, scale))


def fedbuff(
    arrivals: list[tuple[str, int]],
    updates_per_version: int,
    exponent: Fraction = Fraction(1, 2),
    each: int = 1,
) -> tuple[list[dict[str, Any]], list[dict[tuple[str, int], int]]]:
    """FedBuff, algorithm 1 of Nguyen et al. 2022, in plain numpy, from who arrived in which order.

    ``each`` updates per client in a version, weights n / Σn, additions in the order of the clients'
    ids and versions. The second result has the staleness of each update of a version.
    """
    models, taken = [{n: t.copy() for n, t in MODEL.items()}], list[dict[tuple[str, int], int]]()
    waiting: list[tuple[str, int]] = []
    for arrival in arrivals:
        waiting.append(arrival)
        first = [
            (client, version)
            for number, (client, version) in enumerate(waiting)
            if [c for c, _ in waiting[:number]].count(client) < each
        ]
        if len(first) < updates_per_version:
            continue
        chosen = first[:updates_per_version]
        waiting = [w for w in waiting if w not in chosen]
        newest = len(models)
        taken.append({(c, v): newest - v for c, v in chosen})
        model = models[-1]
        total = sum(3 + len(c) for c, _ in chosen)
        after: dict[str, Any] = {}
        for name, tensor in model.items():
            mean: Any = None
            for client, version in sorted(chosen):
                weight = (3 + len(client)) / total
                weight *= discount(newest - version, exponent)
                base = models[version - 1]
                delta = trained(client, base, version)[name] - base[name]
                term = np.float32(weight) * delta
                mean = term if mean is None else mean + term
            after[name] = tensor + np.float32(1) * mean
        models.append(after)
    return models, taken


def by_client(taken: list[dict[tuple[str, int], int]]) -> list[dict[str, int]]:
    """The staleness by client, of buffers with one update of each."""
    return [{client: staleness for (client, _), staleness in of.items()} for of in taken]


def trained(client: str, model: Mapping[str, Any], version: int) -> Mapping[str, Any]:
    """What the machine's clients train: it depends on model, client and version alone."""
    invitation = Invitation("", version, 0, False, (), 1, version, {})
    found: Mapping[str, Any] = training_of(client, model, invitation)[0]
    return found


def test_versions_have_the_bits_of_fedbuff_in_numpy(new_machine: NewMachine) -> None:
    machine = new_machine()
    state = machine.start(**options())
    assert (state.status, state.cause) == ("ended", "all 8 rounds have completed")
    models, taken = fedbuff(machine.arrived, 2)
    assert len(models) == 9
    for number, expected in enumerate(models, start=1):
        found = machine.model.fetch(version=number)
        assert {n: t.tobytes() for n, t in found.items()} == {
            n: t.tobytes() for n, t in expected.items()
        }, number
    assert [record["staleness"] for record in machine.training.records()] == by_client(taken)
    assert max(max(found.values()) for found in taken) >= 3
    assert math.isclose(discount(3, Fraction(1, 2)), 0.5)


@pytest.mark.parametrize("each", [1, 2])
def test_a_buffer_counts_at_most_updates_per_client_of_a_client(
    new_machine: NewMachine, each: int
) -> None:
    """While a version is made others arrive, so that a client has several that wait."""
    machine = new_machine({"ann": 6.0, "bo": 2.0, "cy": 3.0, "dan": 4.0})
    rng = random.Random(1)  # noqa: S311 - not a secret

    def meanwhile(invitation: Invitation) -> None:
        if machine.queue:
            machine._next_arrival(invitation)
        machine.paces = {client: rng.uniform(1, 9) for client in machine.paces}

    machine.after_plan = meanwhile
    state = machine.start(
        **options(
            clients=[*machine.paces], updates_per_client=each, updates_per_version=3, rounds=8
        )
    )
    assert state.completed == 8
    models, taken = fedbuff(machine.arrived, 3, each=each)
    found = [record["staleness"] for record in machine.training.records()]
    assert found == [
        {
            client if each == 1 else f"{client}@{v:08}": staleness
            for (client, v), staleness in of.items()
        }
        for of in taken[:8]
    ]
    most = max(Counter(client for client, _ in of).most_common(1)[0][1] for of in taken[:8])
    assert most == each
    assert bits(machine) == {name: tensor.tobytes() for name, tensor in models[8].items()}
    assert {verdict(machine, *sent)[:7] for sent in machine.arrived} >= {"counted"}


def test_a_bad_update_of_a_client_costs_its_others_nothing(new_machine: NewMachine) -> None:
    """Its rejection is told under the version from which it began, and by its client's name."""
    machine = new_machine({"ann": 3.0, "bo": 5.0})
    bad = reference.encode(
        {"w": np.full(6, np.nan, "f4"), "b": np.ones(2, "f4")}, {"num_samples": "1"}
    )

    def spoil(invitation: Invitation) -> None:
        if invitation.number == 2:
            for version, body in ((1, bad), (2, GOOD)):
                upload(machine, "cy", version, body)

    machine.before_round = spoil
    state = machine.start(
        **options(
            clients=["ann", "bo", "cy"],
            updates_per_client=2,
            rounds=3,
            round={"server_optimizer": "fedavg", "min_clients": 1},
        )
    )
    assert state.completed == 3
    record = machine.training.records()[1]
    assert (record["contributors"], record["rejected"]) == (["cy@00000002"], ["cy@00000001"])
    assert "tensor 'w' holds a NaN" in (machine.inbox(1).rejection("cy") or "")
    assert machine.inbox(2).rejection("cy") is None
    assert machine.state.counted["2"]["cy"]


@pytest.mark.parametrize(
    ("exponent", "power"), [(0.0, Fraction(0)), (0.75, Fraction(3, 4)), (1.0, Fraction(1))]
)
def test_other_exponents_weigh_by_their_definition(
    new_machine: NewMachine, exponent: float, power: Fraction
) -> None:
    machine = new_machine()
    machine.start(**options(updates_per_version=3, rounds=5, staleness_exponent=exponent))
    models, _ = fedbuff(machine.arrived, 3, power)
    assert bits(machine) == {name: tensor.tobytes() for name, tensor in models[5].items()}


def test_the_optimizer_steps_from_version_to_version(new_machine: NewMachine) -> None:
    """Momentum over buffers: the state goes on as in rounds."""
    machine = new_machine()
    optimizer = {"optimizer": "fedavgm", "momentum": 0.5}
    machine.start(**options(rounds=3, round={"server_optimizer": optimizer}))
    plain = new_machine()
    plain.start(**options(rounds=1))
    first = machine.model.fetch(version=2)
    assert {n: t.tobytes() for n, t in first.items()} == bits(plain)
    found = [machine.model.version(number).steps for number in (2, 3, 4)]
    assert found == [1, 2, 3]


def test_compressed_updates_count_with_their_discount(new_machine: NewMachine) -> None:
    """The versions are near those of the same updates as they are."""
    machine, plain = new_machine(codec="int8"), new_machine()
    round_options = {"server_optimizer": "fedavg", "codecs": ["int8"]}
    machine.start(**options(rounds=6, round=round_options))
    plain.start(**options(rounds=6))
    manifest = machine.store.get_json(RoundKeys("t-00006").manifest)
    assert {entry["codec"] for entry in manifest["contributors"]} == {"int8"}
    assert {answer["codec"] for answer in machine.answers} == {"int8"}
    for name, tensor in plain.model.fetch().items():
        assert np.abs(machine.model.fetch()[name] - tensor).max() < 0.1


# ----------------------------------------------------------------------------- whatever happens


def outcome(machine: BufferedMachine) -> list[Any]:
    names = ("round_id", "contributors", "staleness", "metrics", "version", "is_completed")
    return [[record[name] for name in names] for record in machine.training.records()]


FUNCTIONS = (
    "StartTrainingFunction",
    "AdvanceTrainingFunction",
    "OpenRoundFunction",
    "CollectUpdateFunction",
    "PlanRoundFunction",
    "FinalizeRoundFunction",
    "AbortRoundFunction",
)


@pytest.mark.slow
def test_a_function_that_dies_at_any_request_changes_no_bit(
    new_machine: NewMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call dies once at each of its requests in turn, before and after it took effect.

    Where it leaves the bucket that it would have left, nothing later can differ. After the other
    deaths, whole trainings have the same bits.
    """
    given = options(rounds=4, evaluate_every=2, max_staleness=2)

    def new() -> BufferedMachine:
        """Make a machine that loses the execution of its third round after the plan, once."""
        machine, lost = new_machine(), list[str]()

        def lose(invitation: Invitation) -> None:
            if invitation.number == 3 and not lost:
                lost.append(invitation.round_id)
                raise LostError("States.TaskFailed", "stopped by hand")

        machine.after_plan = lose
        return machine

    undisturbed = new()
    with monkeypatch.context() as patch:
        others = watch_deaths(undisturbed, patch)
        assert undisturbed.start(**given).completed == 4
    assert {name for name, _ in undisturbed.calls} == {*FUNCTIONS}
    # A planning that dies may leave uploads, which finalizing the round ends.
    assert others.keys() == {"PlanRoundFunction"}
    for death in others["PlanRoundFunction"]:
        machine = new()
        machine.kill = {"PlanRoundFunction": [d for _ in range(60) for d in ({death}, set[int]())]}
        after = machine.start(**given)
        assert (after.status, after.completed) == ("ended", 4), death
        assert bits(machine) == bits(undisturbed), death
        assert outcome(machine) == outcome(undisturbed), death
        assert machine.arrived == undisturbed.arrived, death
        assert after.counted == undisturbed.state.counted, death


@pytest.mark.slow
def test_a_hundred_versions_have_the_same_bits_though_functions_die_at_random(
    new_machine: NewMachine,
) -> None:
    """And events come twice, and executions of rounds are lost. The bits are those of FedBuff."""
    machine, rng, lost = new_machine(), random.Random(0), set[str]()  # noqa: S311 - no secret

    def lose(invitation: Invitation) -> None:
        if invitation.round_id not in lost and rng.random() < 0.1:
            lost.add(invitation.round_id)
            raise LostError("States.TaskFailed", "stopped by hand")

    # No function dies more often in a row than it is tried.
    machine.kill = {
        name: [{rng.randrange(-16, 16)} if n % 2 else set() for n in range(2000)]
        for name in FUNCTIONS
    }
    machine.after_plan, machine.deliver = lose, lambda event: [event] * rng.randint(1, 2)
    state = machine.start(
        **options(
            rounds=100, updates_per_version=3, max_staleness=100, evaluate_every=20, repeats=20
        )
    )
    assert (state.status, state.completed) == ("ended", 100)
    assert lost
    models, taken = fedbuff(machine.arrived, 3)
    assert bits(machine) == {name: tensor.tobytes() for name, tensor in models[100].items()}
    completed = [r["staleness"] for r in machine.training.records() if r["staleness"]]
    assert completed == by_client(taken[:100])


@pytest.mark.parametrize("times", [0, 2, 3])
def test_doubled_and_lost_events_count_no_update_twice_and_lose_none(
    new_machine: NewMachine, times: int
) -> None:
    """Every third event comes so many times, and all earlier ones once more with it."""
    machine, sent = new_machine(), list[dict[str, Any]]()

    def deliver(event: dict[str, Any]) -> list[dict[str, Any]]:
        sent.append(event)
        if len(sent) % 3:
            return [event]
        return [*sent[:-1], *[event] * times]

    machine.deliver = deliver
    assert machine.start(**options(rounds=6)).completed == 6
    models, taken = fedbuff(machine.arrived, 2)
    assert bits(machine) == {name: tensor.tobytes() for name, tensor in models[6].items()}
    assert [record["staleness"] for record in machine.training.records()] == by_client(taken[:6])
    counted = [(v, client) for v, clients in machine.state.counted.items() for client in clients]
    assert len(set(counted)) == len(counted) == 12
    told = [answer for answer in machine.answers if answer["status"] == "rejected"]
    assert told == []


def test_a_round_that_is_lost_after_its_plan_is_repeated_with_the_same_updates(
    new_machine: NewMachine,
) -> None:
    """Another update arrives in between, and one that was planned is replaced."""
    undisturbed = new_machine()
    undisturbed.start(**options(rounds=3))
    machine, lost = new_machine(), list[str]()

    def lose(invitation: Invitation) -> None:
        if invitation.number == 2 and not lost:
            lost.append(invitation.round_id)
            plan = machine.store.get_json(f"rounds/{invitation.round_id}/plan.json")
            [first, *_] = plan["contributors"]
            again = Invitation("", 9, 0, False, (), 1, 2, {})
            etag = machine.send(first["client"], again)
            late = machine.collect(first["client"], 2, etag)
            assert late["late"]
            raise LostError("States.TaskFailed", "stopped by hand")

    machine.after_plan = lose
    state = machine.start(**options(rounds=3))
    assert (state.status, state.completed) == ("ended", 3)
    assert bits(machine) == bits(undisturbed)
    ids = [record["round_id"] for record in machine.training.records()]
    assert ids == ["t-00001", "t-00002", "t-00002-again1", "t-00003"]


def test_an_upload_while_a_round_is_to_be_repeated_is_too_late_for_it(
    new_machine: NewMachine,
) -> None:
    """The version that was planned counts, and the later one is rejected, whoever comes first."""
    machine, lost = new_machine(), list[str]()

    def lose(invitation: Invitation) -> None:
        if invitation.number == 2 and not lost:
            lost.append(invitation.round_id)
            raise LostError("States.TaskFailed", "stopped by hand")

    def send(invitation: Invitation) -> None:
        if invitation.repetition == 1:
            etag = machine.send("ann", Invitation("", 9, 0, False, (), 1, 2, {}))
            for _ in range(2):
                assert machine.collect("ann", 2, etag)["late"]

    machine.after_plan, machine.before_round = lose, send
    assert machine.start(**options(rounds=3)).completed == 3
    [rejection] = [machine.inbox(2).rejection("ann")]
    assert "an earlier update of this client from the same version counts" in (rejection or "")


def test_two_closings_at_once_freeze_one_buffer(new_machine: NewMachine) -> None:
    """While a plan is written, another planning sees one more update, and writes its own first."""
    machine = new_machine()
    put, raced = machine.store.put_bytes, list[str]()

    def race(key: str, body: bytes, **more: Any) -> bool:
        if key.endswith("/plan.json") and key not in raced:
            raced.append(key)
            name = key.split("/")[1]
            event = {"round": name, "entered_at": "2026-01-01T00:00:00Z", "attempt": 0}
            machine._call("PlanRoundFunction", event)
        return put(key, body, **more)

    machine.store.put_bytes = race  # type: ignore[method-assign]
    assert machine.start(**options(rounds=4)).completed == 4
    assert len(raced) == 4
    models, _ = fedbuff(machine.arrived, 2)
    assert bits(machine) == {name: tensor.tobytes() for name, tensor in models[4].items()}
    assert not machine.store.uploads


def test_a_late_step_and_late_events_of_a_training_that_has_ended_change_nothing(
    new_machine: NewMachine,
) -> None:
    machine = new_machine()
    machine.start(**options(rounds=4))
    before = dict(machine.store.objects)
    for step in range(3):
        event = {"training": "t", "run": 1, "step": step}
        assert machine._call("AdvanceTrainingFunction", event)["status"] in {"superseded", "ended"}
    for record in machine.training.records():
        for client, staleness in record["staleness"].items():
            version = record["base_version"] - staleness
            key = machine.keys.inbox(version).update(client)
            answer = machine.collect(client, version, machine.store.etags[key].strip('"'))
            assert answer["reason"] == "counted already"
    assert machine.store.objects == before


def test_a_late_call_that_would_end_the_training_rejects_no_update(
    new_machine: NewMachine,
) -> None:
    """Updates wait in each round, of which the next one takes two."""
    clients = [f"c{number}" for number in range(6)]
    machine, kept = new_machine({}), []

    def send(invitation: Invitation) -> None:
        if invitation.number == 1:
            for client in clients:
                etag = machine.send(client, invitation)
                assert machine.collect(client, 1, etag)["status"] == "accepted"
        if invitation.number == 2:
            kept.append(machine.keep_state())
        if invitation.number == 3:
            before = {*machine.store.objects}
            assert machine.call_late(kept[0], later=timedelta(days=2))["round"] == "t-00003"
            assert {*machine.store.objects} == before

    machine.before_round = send
    budget = {"seconds": 86400}
    state = machine.start(**options(clients=clients, rounds=3, max_staleness=5, budget=budget))
    assert (state.completed, state.cause) == (3, "all 3 rounds have completed")
    assert {verdict(machine, client, 1) for client in clients} == {"counted"}


def robust(rule: dict[str, Any], **more: Any) -> dict[str, Any]:
    optimizer = {"optimizer": "fedavg", "updates": "deltas"}
    return (
        options(
            updates_per_version=5,
            rounds=6,
            max_staleness=20,
            round={"rule": rule, "server_optimizer": optimizer},
        )
        | more
    )


def deltas_of(machine: BufferedMachine, buffer: Mapping[tuple[str, int], int]) -> list[Any]:
    """The updates of a version in the order of their clients, each as one array of float64."""
    found = []
    for client, version in sorted(buffer):
        base = machine.model.fetch(version=version)
        after = trained(client, base, version)
        found.append(np.concatenate([(after[n] - base[n]).ravel() for n in MODEL]).astype(float))
    return found


def step_of(machine: BufferedMachine, version: int) -> Any:
    before, after = (machine.model.fetch(version=v) for v in (version, version + 1))
    return np.concatenate([(after[n] - before[n]).ravel() for n in MODEL]).astype(float)


def test_clipped_updates_of_a_buffer_are_discounted(new_machine: NewMachine) -> None:
    """w = n / Σn · min(1, C / ‖x‖) · (1 + τ)^-a, with C the median length of its updates."""
    machine = new_machine({**PACES, "flo": 7.0})
    rule = {"name": "norm_clip"}
    state = machine.start(**robust(rule, clients=[*machine.paces]))
    assert (state.status, state.completed) == ("ended", 6)
    _, taken = fedbuff(machine.arrived, 5)
    assert [record["staleness"] for record in machine.training.records()] == by_client(taken[:6])
    assert max(max(found.values()) for found in taken) >= 1
    for number, buffer in enumerate(taken[:6], start=1):
        updates = deltas_of(machine, buffer)
        lengths = [float(np.linalg.norm(update)) for update in updates]
        bound, samples = sorted(lengths)[2], [3 + len(client) for client, _ in sorted(buffer)]
        expected = sum(
            n / sum(samples) * min(1, bound / length) * (1 + buffer[sent]) ** -0.5 * update
            for n, length, sent, update in zip(
                samples, lengths, sorted(buffer), updates, strict=True
            )
        )
        assert np.allclose(step_of(machine, number), expected, rtol=1e-5, atol=1e-6)


def test_medians_of_a_buffer_are_those_of_numpy(new_machine: NewMachine) -> None:
    machine = new_machine({**PACES, "flo": 7.0})
    rule = {"name": "median"}
    machine.start(**robust(rule, clients=[*machine.paces], staleness_exponent=0))
    _, taken = fedbuff(machine.arrived, 5)
    for number, buffer in enumerate(taken[:6], start=1):
        expected = np.median(deltas_of(machine, buffer), axis=0)
        assert np.allclose(step_of(machine, number), expected, rtol=1e-5, atol=1e-6)


def test_an_update_that_a_rule_leaves_out_is_used_up_and_its_client_reads_why(
    new_machine: NewMachine,
) -> None:
    """Also if the round is lost after its second plan, and repeated with the same updates."""
    found = []
    for is_lost in (False, True):
        machine, lost = new_machine({**PACES, "flo": 7.0}), list[str]()

        def lose(
            invitation: Invitation, lost: list[str] = lost, machine: BufferedMachine = machine
        ) -> None:
            plan = machine.store.get_json(f"rounds/{invitation.round_id}/plan.json")
            if invitation.number == 2 and not lost and plan["left_out"]:
                lost.append(invitation.round_id)
                raise LostError("States.TaskFailed", "stopped by hand")

        if is_lost:
            machine.after_plan = lose
        state = machine.start(**robust({"name": "krum", "f": 1}, clients=[*machine.paces]))
        assert (state.status, state.completed) == ("ended", 6)
        assert bool(lost) == is_lost
        verdicts = {sent: verdict(machine, *sent) for sent in machine.arrived}
        left_out = [text for text in verdicts.values() if "rule krum left this update out" in text]
        assert len(left_out) == 6 * 4
        assert [*verdicts.values()].count("counted") == 6
        found.append(bits(machine))
    assert found[0] == found[1]


def test_krum_takes_one_update_of_each_buffer_though_functions_die_at_random(
    new_machine: NewMachine,
) -> None:
    """And events come twice, and executions of rounds are lost."""
    machine, rng, lost = new_machine({**PACES, "flo": 7.0}), random.Random(0), set[str]()  # noqa: S311

    def lose(invitation: Invitation) -> None:
        if invitation.round_id not in lost and rng.random() < 0.2:
            lost.add(invitation.round_id)
            raise LostError("States.TaskFailed", "stopped by hand")

    machine.kill = {
        name: [{rng.randrange(-16, 16)} if n % 2 else set() for n in range(500)]
        for name in FUNCTIONS
    }
    machine.after_plan, machine.deliver = lose, lambda event: [event] * rng.randint(1, 2)
    state = machine.start(**robust({"name": "krum", "f": 1}, clients=[*machine.paces], repeats=20))
    assert (state.status, state.completed) == ("ended", 6)
    assert lost
    verdicts = [verdict(machine, *sent) for sent in machine.arrived]
    assert verdicts.count("counted") == 6
    assert sum("rule krum left this update out" in text for text in verdicts) == 6 * 4
    _, taken = fedbuff(machine.arrived, 5)
    for number, buffer in enumerate(taken[:6], start=1):
        updates = np.array(deltas_of(machine, buffer))
        squares = ((updates[:, None] - updates[None]) ** 2).sum(axis=2)
        scores = np.sort(squares, axis=1)[:, 1:3].sum(axis=1)  # N - f - 2 = 2 neighbours
        best = int(scores.argmin())
        discounted = (1 + buffer[sorted(buffer)[best]]) ** -0.5 * updates[best]
        assert np.allclose(step_of(machine, number), discounted, rtol=1e-5, atol=1e-6)


def test_every_update_has_counted_or_has_a_reason(new_machine: NewMachine) -> None:
    """With so low a bound most of the slow clients' updates are too old when their turn comes."""
    machine = new_machine({**PACES, "eve": 17.0, "flo": 23.0})
    for client in machine.paces:
        machine.store.put_bytes(machine.keys.member(client), b"")
    machine.start(**options(clients=None, rounds=10, max_staleness=1))
    verdicts = {sent: verdict(machine, *sent) for sent in machine.arrived}
    assert set(verdicts.values()) >= {"counted"}
    assert any("over max_staleness 1" in text for text in verdicts.values())
    rejected = Counter(client for (client, _), text in verdicts.items() if text != "counted")
    assert machine.training.status()["rejected"] == rejected


def verdict(machine: BufferedMachine, client: str, version: int) -> str:
    """What became of an update, as its sender can read it."""
    key, counted = machine.keys.inbox(version).update(client), 0
    for record in machine.training.records():
        manifest = machine.store.get_json(RoundKeys(record["round_id"]).manifest)
        counted += [entry["key"] for entry in manifest.get("contributors", ())].count(key)
    reason = machine.inbox(version).rejection(client)
    assert counted + (reason is not None) == 1, (client, version, counted, reason)
    return reason or "counted"


def test_updates_that_wait_until_they_are_too_old_or_the_end_are_told_so(
    new_machine: NewMachine,
) -> None:
    clients = [f"c{number}" for number in range(6)]
    machine = new_machine({})

    def send(invitation: Invitation) -> None:
        for client in clients:
            etag = machine.send(client, invitation)
            assert machine.collect(client, invitation.version, etag)["status"] == "accepted"

    machine.before_round = send
    state = machine.start(**options(clients=clients, rounds=3, max_staleness=0))
    assert state.completed == 3
    verdicts = {(c, v): verdict(machine, c, v) for c in clients for v in (1, 2, 3)}
    counted = [sent for sent, text in verdicts.items() if text == "counted"]
    assert counted == [(client, version) for client in ("c0", "c1") for version in (1, 2, 3)]
    assert verdicts["c5", 1].endswith("training 't' takes updates from version 2 on by now")
    assert verdicts["c5", 3].endswith("has ended: all 3 rounds have completed")


# ------------------------------------------------------------------------- clients that misbehave


@pytest.fixture
def open_training(new_machine: NewMachine) -> BufferedMachine:
    """A training whose round waits: it was started, and its machine stands still."""
    machine = new_machine({})
    for client in ("ann", "bo"):
        machine.store.put_bytes(machine.keys.member(client), b"")
    spec = {"mode": "buffered", "updates_per_version": 2, "rounds": 9, "max_staleness": 2}
    event = {"training": "t", "spec": {**spec, "round": {"server_optimizer": "fedavg"}}}
    machine._call("StartTrainingFunction", {**event, "started": "2026-01-01T00:00:00+00:00"})
    machine._call("AdvanceTrainingFunction", {"training": "t", "run": 1, "step": 0})
    return machine


def upload(machine: BufferedMachine, client: str, version: int, body: bytes) -> dict[str, Any]:
    """Send an object past the library, and deliver its event."""
    key = machine.keys.inbox(version).update(client)
    machine.store.put_bytes(key, body)
    return machine.collect(client, version, machine.store.etags[key].strip('"'))


GOOD = reference.encode(
    {"w": np.ones(6, "f4"), "b": np.ones(2, "f4")}, {"num_samples": "1", "metrics": "{}"}
)
OTHER = reference.encode({"w": np.ones(7, "f4"), "b": np.ones(2, "f4")}, {"num_samples": "1"})


@pytest.mark.parametrize(
    ("client", "version", "body", "why"),
    [
        ("ann", 9, GOOD, "version 9 of the model does not exist; the newest is 1"),
        ("ann", 0, GOOD, "it began from version 0, and others have changed the model since"),
        ("ann", 1, b"junk", "not a safetensors object: 4 bytes"),
        ("ann", 1, OTHER, "tensor 'w' is F32 [7], not F32 [6]"),
        ("eve", 1, GOOD, "client 'eve' has not joined training 't': join it first"),
    ],
)
def test_a_bad_update_is_rejected_on_arrival_with_a_reason_its_sender_can_read(
    open_training: BufferedMachine, client: str, version: int, body: bytes, why: str
) -> None:
    answer = upload(open_training, client, version, body)
    assert answer["status"] == "rejected"
    told = open_training.keys.inbox(version).rejection(client)
    assert why in open_training.store.get_json(told)["reason"]
    assert open_training.training.waiting() == []


def test_a_good_upload_takes_the_place_of_a_rejected_one(open_training: BufferedMachine) -> None:
    machine = open_training
    upload(machine, "ann", 1, b"junk")
    machine.now += timedelta(seconds=1)
    assert upload(machine, "ann", 1, GOOD)["status"] == "accepted"
    assert machine.inbox(1).rejection("ann") is None
    assert [arrival.client for arrival in machine.training.waiting()] == ["ann"]


def test_no_rejection_is_left_of_an_upload_that_was_replaced_by_one_that_counts(
    new_machine: NewMachine,
) -> None:
    """The event of the better one comes after its version was made."""
    machine = new_machine({})
    key = machine.keys.inbox(1).update("ann")

    def send(invitation: Invitation) -> None:
        assert upload(machine, "ann", 1, OTHER)["status"] == "rejected"
        machine.now += timedelta(seconds=1)
        machine.store.put_bytes(key, GOOD)
        upload(machine, "bo", 1, GOOD)

    machine.before_round = send
    assert machine.start(**options(rounds=1)).completed == 1
    late = machine.collect("ann", 1, machine.store.etags[key].strip('"'))
    assert (late["status"], late["reason"]) == ("ignored", "counted already")
    assert verdict(machine, "ann", 1) == "counted"


def test_no_rejection_is_left_of_an_upload_that_was_replaced_while_it_was_checked(
    open_training: BufferedMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, get_head = open_training, open_training.store.get_head

    def get_then_replace(key: str, nbytes: int) -> Any:
        found = get_head(key, nbytes)
        monkeypatch.setattr(machine.store, "get_head", get_head)
        machine.now += timedelta(seconds=1)
        assert upload(machine, "ann", 1, GOOD)["status"] == "accepted"
        return found

    monkeypatch.setattr(machine.store, "get_head", get_then_replace)
    upload(machine, "ann", 1, b"junk")
    assert machine.inbox(1).rejection("ann") is None


def test_a_client_that_floods_the_buffer_has_one_update_in_it(
    open_training: BufferedMachine,
) -> None:
    machine = open_training
    invitation = machine.state.invitation
    assert invitation is not None
    spec = training_round(machine.keys, machine.training.spec(), machine.state)
    name = invitation.round_id
    event = {"round": name, "spec": spec.to_json(), "started": machine.now.isoformat()}
    assert not machine._call("OpenRoundFunction", event)["resumed"]
    for _ in range(50):
        assert not upload(machine, "ann", 1, GOOD)["resumed"]
        machine.training.join("ann")
    assert machine.training.members() == ["ann", "bo"]
    assert len(machine.training.waiting()) == 1
    assert upload(machine, "bo", 1, GOOD)["resumed"]


@pytest.mark.parametrize(
    "key",
    [
        "rounds/t-from-00000001-from-00000001/updates/bo.safetensors",
        "rounds/t-from-1/updates/bo.safetensors",
        "rounds/t-from-00000001/updates/bo",
        "rounds/t-from-00000001/updates/bo/bo.safetensors",
        "rounds/t-from-00000001/updates/update.safetensors",
        "rounds/t-from-00000001/partial-updates/bo.safetensors",
        "rounds/t-from-00000009/updates/bo.safetensors",
    ],
)
def test_objects_that_are_no_updates_of_the_training_do_not_wait(
    open_training: BufferedMachine, key: str
) -> None:
    open_training.store.put_bytes(key, GOOD)
    assert open_training.training.waiting() == []
    open_training.store.put_bytes("rounds/t-from-00000001/updates/bo.safetensors", GOOD)
    assert len(open_training.training.waiting()) == 1


def test_updates_with_nan_are_rejected_while_they_are_added_and_the_rest_counts(
    new_machine: NewMachine,
) -> None:
    machine = new_machine()

    def spoil(invitation: Invitation) -> None:
        if invitation.number == 2:
            body = reference.encode(
                {"w": np.full(6, np.nan, "f4"), "b": np.ones(2, "f4")}, {"num_samples": "1"}
            )
            upload(machine, "eve", 2, body)

    machine.before_round = spoil
    state = machine.start(**options(rounds=3, round={"server_optimizer": "fedavg", **LENIENT}))
    assert state.completed == 3
    record = machine.training.records()[1]
    assert (record["contributors"], record["rejected"]) == (["ann"], ["eve"])
    assert "tensor 'w' holds a NaN" in (machine.inbox(2).rejection("eve") or "")


LENIENT = {"min_clients": 1}


def test_a_client_that_sends_nan_again_and_again_stops_no_training(
    new_machine: NewMachine,
) -> None:
    """Two updates make a version, and one of them is always bad, until both good ones are there."""
    machine, repetitions = new_machine({"ann": 100.0, "bo": 150.0}), list[int]()
    tensors = {"w": np.full(6, np.nan, "f4"), "b": np.ones(2, "f4")}
    bad = reference.encode(tensors, {"num_samples": "1"})

    def spoil(invitation: Invitation) -> None:
        repetitions.append(invitation.repetition)
        machine.now += timedelta(seconds=1)
        if invitation.repetition < 6:
            upload(machine, "eve", invitation.version, bad)

    machine.before_round = spoil
    state = machine.start(**options(rounds=1))
    assert (state.status, state.completed) == ("ended", 1)
    [*failed, last] = machine.training.records()
    assert last["contributors"] == ["ann", "bo"]
    assert {(record["error"], *record["bad"]) for record in failed} == {("QuorumError", "eve")}


def test_rounds_that_bad_updates_make_fail_are_paid_for_from_the_budget(
    new_machine: NewMachine,
) -> None:
    """Else one client could have nobody's training open rounds for ever."""
    machine = new_machine({"ann": 1e6, "bo": 1e6})
    tensors = {"w": np.full(6, np.nan, "f4"), "b": np.ones(2, "f4")}
    bad = reference.encode(tensors, {"num_samples": "1"})

    def spoil(invitation: Invitation) -> None:
        machine.now += timedelta(seconds=1)
        for client in ("dan", "eve"):
            upload(machine, client, invitation.version, bad)

    machine.before_round = spoil
    state = machine.start(**options(rounds=1, budget={"dollars": 0.005}))
    assert (state.status, state.completed) == ("ended", 0)
    assert "of a budget of $0.005 are spent" in (state.cause or "")
    records = machine.training.records()
    assert {record["error"] for record in records} == {"QuorumError"}
    assert 5 < len(records) < 20
    assert state.dollars == pytest.approx(sum(record["dollars"] for record in records))


def test_a_good_upload_counts_after_the_round_of_a_bad_one_has_failed(
    new_machine: NewMachine,
) -> None:
    """It takes the place of the bad one, and of its rejection, before the round is repeated."""
    machine = new_machine({})
    tensors = {"w": np.full(6, np.nan, "f4"), "b": np.ones(2, "f4")}
    bad = reference.encode(tensors, {"num_samples": "1"})

    def send(invitation: Invitation) -> None:
        machine.now += timedelta(seconds=1)
        upload(machine, "ann", 1, GOOD if invitation.repetition else bad)

    machine.before_round = send
    state = machine.start(**options(rounds=1, updates_per_version=1))
    assert state.completed == 1
    ids = [record["round_id"] for record in machine.training.records()]
    assert ids == ["t-00001", "t-00001-again1"]
    assert verdict(machine, "ann", 1) == "counted"


@pytest.mark.parametrize(
    ("metrics", "why"),
    [('{"loss": NaN}', "'loss' is 'nan', not a finite number"), ('{"loss": "low"}', "'low'")],
)
def test_bad_metrics_cost_their_sender_the_metrics_alone(
    new_machine: NewMachine, metrics: str, why: str
) -> None:
    machine = new_machine()
    update = {"w": np.ones(6, "f4"), "b": np.ones(2, "f4")}
    body = reference.encode(update, {"num_samples": "1", "metrics": metrics})
    machine.before_round = lambda _: upload(machine, "eve", 1, body)["status"]
    machine.start(**options(rounds=1))
    [record] = machine.training.records()
    assert record["contributors"] == ["ann", "eve"]
    assert why in record["notes"][0]
    assert record["metrics"] == {"loss": 1.0}


# ------------------------------------------------------------ the training as its operator sees it


def test_a_model_that_was_put_by_hand_pauses_the_training_and_earlier_updates_are_rejected(
    new_machine: NewMachine,
) -> None:
    machine = new_machine()

    def put(invitation: Invitation) -> None:
        if invitation.number == 2 and machine.state.run == 1:
            machine.model.put(machine.model.fetch())

    machine.before_round = put
    state = machine.start(**options(rounds=9))
    assert (state.status, state.completed, state.version) == ("paused", 2, 4)
    assert "was to make version 3 of model 'model' and made 4" in (state.cause or "")
    state = machine.resume()
    assert (state.status, state.completed) == ("ended", 9)
    assert state.first_version == 4
    assert "others have changed the model since" in verdict(machine, "dan", 1)


def test_too_few_updates_by_the_deadline_are_waited_for_again_and_then_it_pauses(
    new_machine: NewMachine,
) -> None:
    machine = new_machine({"ann": 3.0})
    of_round = {"server_optimizer": "fedavg", "timeout": 60, "min_clients": 2}
    state = machine.start(**options(rounds=3, repeats=1, round=of_round))
    assert (state.status, state.completed) == ("paused", 0)
    assert "1 good update, but min_clients is 2" in (state.cause or "")
    assert "It was tried 2 times." in (state.cause or "")
    machine.paces["bo"] = 1.0
    machine.idle["bo"] = 0
    state = machine.resume()
    assert state.completed == 3
    assert machine.training.records()[2]["contributors"] == ["ann", "bo"]


def test_the_deadline_closes_a_buffer_that_has_enough(new_machine: NewMachine) -> None:
    machine = new_machine({"ann": 3.0, "bo": 100.0})
    of_round = {"server_optimizer": "fedavg", "timeout": 60, "min_clients": 1}
    machine.start(**options(rounds=2, updates_per_version=2, round=of_round))
    assert [record["contributors"] for record in machine.training.records()] == [
        ["ann"],
        ["ann", "bo"],
    ]


def test_evaluations_targets_and_settings_work_as_in_rounds(new_machine: NewMachine) -> None:
    machine, seen = new_machine(), list[Any]()

    def train(client: str, model: Mapping[str, Any], invitation: Invitation) -> Any:
        seen.append((invitation.number, dict(invitation.settings)))
        return training_of(client, model, invitation)

    machine.train = train
    stop = {"metric": "accuracy", "at_least": 0.055}
    state = machine.start(
        **options(rounds=9, evaluate_every=2, stop=stop, settings={"rate": {"1": 1.0, "3": 0.5}})
    )
    assert state.cause == "accuracy is 0.06 after round 6"
    assert state.best is not None
    assert state.best.version == 7
    assert (1, {"rate": 1.0}) in seen
    assert (3, {"rate": 0.5}) in seen
    record = machine.training.records()[2]
    assert (record["round_id"], record["staleness"]) == ("t-00002-eval", {})
    assert len(record["clients"]) == 5
    assert record["awaited"] == 2


def test_an_operator_pauses_resumes_and_stops(new_machine: NewMachine) -> None:
    undisturbed = new_machine()
    undisturbed.start(**options(rounds=4))
    machine = new_machine()

    def ask(invitation: Invitation) -> None:
        if invitation.number == 2:
            machine.training.pause("maintenance")
        if invitation.number == 4:
            machine.training.stop("good enough")

    machine.before_round = ask
    state = machine.start(**options(rounds=9))
    assert (state.status, state.completed, state.cause) == ("paused", 2, "paused: maintenance")
    state = machine.resume()
    assert (state.status, state.completed, state.cause) == ("ended", 4, "stopped: good enough")
    assert bits(machine) == bits(undisturbed)


def go_on(machine: BufferedMachine) -> TrainingState:
    """Run the execution that an operator's request has started."""
    [*_, payload] = machine.stack.trainings.started
    machine.execute(machine.keys.execution(machine.state.run), json.loads(payload))
    return machine.state


def send_four(machine: BufferedMachine, invitation: Invitation) -> None:
    """Send two updates more than a version takes."""
    for client in ("ann", "bo", "cy", "dan"):
        machine.collect(client, invitation.version, machine.send(client, invitation))


@pytest.mark.parametrize("is_resumed", [False, True])
def test_updates_that_wait_in_a_paused_training_are_told_when_it_is_stopped(
    new_machine: NewMachine, *, is_resumed: bool
) -> None:
    machine, told = new_machine({}), list[str]()

    def ask(invitation: Invitation) -> None:
        send_four(machine, invitation)
        if invitation.number == 2:
            machine.training.pause("maintenance")

    machine.patch.setattr(aws_requests, "publish", lambda event, _: told.append(event))
    machine.before_round = ask
    assert machine.start(**options()).status == "paused"
    # First come those of version 1 that had to wait.
    assert [update.version for update in machine.training.waiting()] == [2, 2, 2, 2]
    if is_resumed:
        machine.training.resume()  # from the version that it is to find there
    machine.training.stop("good enough")
    state = go_on(machine)
    assert (state.status, state.completed, state.cause) == ("ended", 2, "stopped: good enough")
    for client in ("ann", "bo", "cy", "dan"):
        assert verdict(machine, client, 1) == "counted"
        assert verdict(machine, client, 2).endswith("'t' has ended: stopped: good enough")
    assert told[-2:] == ["TrainingPaused", "TrainingEnded"]


@pytest.mark.parametrize("request_", ["stop", "resume"])
def test_a_training_whose_function_fails_for_good_ends_and_tells_when_it_goes_on(
    new_machine: NewMachine, request_: str
) -> None:
    """Its round has completed, which nobody has recorded: two of its updates have counted."""
    machine = new_machine({})

    def ask(invitation: Invitation) -> None:
        send_four(machine, invitation)
        machine.training.stop("good enough")
        machine.kill = {"AdvanceTrainingFunction": [{0}] * 4}

    machine.before_round = ask
    state = machine.start(**options())
    assert (state.status, state.request) == ("paused", "stop")
    machine.kill = {}
    if request_ == "stop":
        machine.training.stop("good enough")
    else:
        machine.training.resume()
    state = go_on(machine)
    assert (state.status, state.completed, state.cause) == ("ended", 1, "stopped: good enough")
    assert [verdict(machine, client, 1) for client in ("ann", "bo")] == ["counted"] * 2
    for client in ("cy", "dan"):
        assert verdict(machine, client, 1).endswith("'t' has ended: stopped: good enough")


def test_those_who_wait_are_told_though_the_function_that_ends_the_training_dies_for_good(
    new_machine: NewMachine,
) -> None:
    machine = new_machine({})

    def die(*_: Any) -> None:
        raise Killed

    machine.patch.setattr(advancing, "reject_waiting_updates", die)
    machine.before_round = lambda invitation: send_four(machine, invitation)
    state = machine.start(**options(rounds=1))
    assert (state.status, state.cause) == ("ended", "all 1 rounds have completed")
    assert machine.ended == {"t": "Succeed"}
    for client in ("cy", "dan"):
        assert verdict(machine, client, 1).endswith("'t' has ended: all 1 rounds have completed")


def test_a_training_whose_options_are_of_another_version_pauses_and_keeps_its_stop(
    new_machine: NewMachine,
) -> None:
    """As after a deployment was taken back, until that version is deployed again."""
    machine = new_machine({})
    kept: dict[str, bytes] = {}

    def ask(invitation: Invitation) -> None:
        send_four(machine, invitation)
        machine.training.stop("good enough")

    def take_back(_: Invitation) -> None:
        kept["spec"] = machine.store.objects[machine.keys.spec]
        record = machine.store.get_json(machine.keys.spec)
        record["spec"]["unheard_of"] = 1
        machine.store.put_json(machine.keys.spec, record)

    machine.before_round, machine.after_plan = ask, take_back
    state = machine.start(**options())
    assert (state.status, state.request) == ("paused", "stop")
    assert "trainings/t/spec.json: JSON of another form" in (state.cause or "")
    assert "Was another version of gradshard deployed?" in (state.cause or "")
    machine.store.put_bytes(machine.keys.spec, kept["spec"])
    machine.training.resume()
    state = go_on(machine)
    assert (state.status, state.completed, state.cause) == ("ended", 1, "stopped: good enough")


def test_a_training_of_the_name_of_a_removed_one_takes_none_of_its_updates(
    new_machine: NewMachine,
) -> None:
    """The local engine takes a name again when it is new, and keeps what is in the bucket."""
    of_round = {"server_optimizer": {"optimizer": "fedavg", "model": "other"}}
    undisturbed, machine = new_machine(), new_machine()
    machine.train = lambda _, model, __: ({n: t + 1 for n, t in model.items()}, 1, {})
    machine.start(**options(rounds=4))
    machine.train = training_of
    others = [RoundKeys(name).manifest for name in ("t-00001", "t-from-a-list", "t-from-1")]
    for key in others[1:]:  # of rounds that somebody named so
        machine.store.put_json(key, {})
    machine.training.remove()
    assert all(machine.store.head(key) is not None for key in others)
    machine.ended.clear()
    for each in (undisturbed, machine):
        each.model = Model(each.stack, "other")
        each.model.put(MODEL)
        each.queue, each.idle = [], dict.fromkeys(PACES, 0)
        each.start(**options(rounds=4, round=of_round))
    assert bits(machine) == bits(undisturbed)


def test_a_successor_takes_over_and_a_budget_ends_the_training(
    new_machine: NewMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advancing, "STEPS_PER_RUN", 4)
    machine = new_machine()
    state = machine.start(**options(rounds=10))
    assert (state.status, state.completed) == ("ended", 10)
    assert machine.executions == ["t", "t-run2", "t-run3"]
    frugal = new_machine()
    spent = state.dollars / 10
    state = frugal.start(**options(rounds=50, budget={"dollars": 5.5 * spent}))
    assert "of a budget of" in (state.cause or "")
    assert state.dollars <= 5.5 * spent


def test_an_arrival_takes_so_many_requests_as_the_cost_model_says(new_machine: NewMachine) -> None:
    machine = new_machine()
    machine.start(**options())
    most = max(requests for name, requests in machine.calls if name == "CollectUpdateFunction")
    in_a_round = 4  # spec, plan, manifest, update
    assert in_a_round + training_cost.ARRIVAL_GETS - 3 <= most
    assert most <= in_a_round + training_cost.ARRIVAL_GETS + 1


def test_the_status_of_a_round_lists_the_updates_that_wait_and_then_those_that_count(
    new_machine: NewMachine,
) -> None:
    machine, seen = new_machine(), list[Any]()

    def look(invitation: Invitation) -> None:
        status = StatusPoller(machine.stack, RoundKeys(invitation.round_id)).poll(
            check_execution=False
        )
        seen.append((status["state"], sorted(update["client"] for update in status["arrived"])))

    deliver = machine.deliver

    def after(event: dict[str, Any]) -> Any:
        if event["client"] == "cy":
            assert machine.state.invitation is not None
            look(machine.state.invitation)
        return deliver(event)

    machine.deliver, machine.after_plan = after, look
    machine.start(**options(rounds=3))
    # cy's update is the first one after the second version.
    assert seen == [
        ("aggregating", ["ann", "bo"]),
        ("aggregating", ["ann", "bo"]),
        ("awaiting", ["cy"]),
        ("aggregating", ["ann", "cy"]),
    ]


def test_a_round_that_is_named_as_an_inbox_is_a_round(new_machine: NewMachine) -> None:
    machine = new_machine({})
    event = {"round": "week-from-00000001", "spec": {"clients": ["ann"]}}
    machine._call("OpenRoundFunction", {**event, "started": "2026-01-01T00:00:00+00:00"})
    key = RoundKeys("week-from-00000001").update("ann")
    machine.store.put_bytes(key, GOOD)
    answer = machine._call("CollectUpdateFunction", {"key": key, "etag": machine.store.etags[key]})
    assert (answer["status"], answer["resumed"]) == ("accepted", True)
