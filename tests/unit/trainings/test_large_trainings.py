"""Trainings that invite more clients than one list, header reading or notice writing takes.

Sizes at which something is divided are lowered. What follows must be the same as with the sizes
that are deployed, which divide nothing here.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from math import nan
from typing import Any

import numpy as np
import pytest

from gradshard.client.training_participant import Member
from gradshard_core.formats.long_lists import is_in_pieces
from gradshard_core.formats.object_keys import RoundKeys, parse_renewal_key
from gradshard_core.limits import aws_limits
from gradshard_core.records.stored_spec import PAYLOAD_ROOM_BYTES
from gradshard_core.records.training_notice import Notice
from gradshard_core.records.training_state import Invitation, change_state
from gradshard_core.trainings.advance_training import advance_training
from gradshard_core.trainings.start_training import start_training
from gradshard_core.trainings.write_notices import write_notices
from tests import reference
from tests.unit.trainings.machine import AGGREGATOR, MODEL, Machine, training_of
from tests.unit.trainings.test_write_notices import Signer

PIECE, READ_AT_ONCE = 8, 16
CLIENTS = [f"client-{number:02}" for number in range(45)]
START = "2026-01-01T00:00:00+00:00"
FIELDS = {"rounds": 3, "round": {"server_optimizer": "fedavg"}}
OPTIONS: dict[str, Any] = {"rounds": 3, "sample": 40, "evaluate_every": 2, "repeats": 1}


def lower_sizes(patch: pytest.MonkeyPatch) -> None:
    for module in ("planning.plan_json", "rounds.first_plan", "costs.large_round_limits"):
        patch.setattr(f"gradshard_core.{module}.PIECE", PIECE)
    for module in ("rounds.first_plan", "trainings.round_outcome", "costs.large_round_limits"):
        patch.setattr(f"gradshard_core.{module}.READ_AT_ONCE", READ_AT_ONCE)
    patch.setattr("gradshard_core.formats.long_lists.PIECE", PIECE)


def train(client: str, model: Any, invitation: Invitation) -> Any:
    """Some are silent, and the names of metrics differ."""
    number = int(client.removeprefix("client-"))
    if number % 5 in (0, invitation.number):
        return None
    trained, samples, metrics = training_of(client, model, invitation)
    return trained, samples + number, metrics | {f"of-{number % 3}": number / 7}


def evaluate(client: str, _model: Any, _invitation: Invitation) -> Any:
    number = int(client.removeprefix("client-"))
    return ({"accuracy": number / 45}, 2) if number % 5 else None


def run(machine: Machine, **options: Any) -> Any:
    """Run a training; return all that its operator can read of it."""

    def send_by_hand(invitation: Invitation) -> None:
        """One sends NaN, and another one metrics that are none."""
        keys = RoundKeys(invitation.round_id)
        for client, metrics, value in (("client-07", '{"loss": 1e9}', nan), ("client-08", "?", 1)):
            if client in invitation.clients and not invitation.is_evaluation:
                update = {name: np.full_like(tensor, value) for name, tensor in MODEL.items()}
                body = reference.encode(update, {"num_samples": "5", "metrics": metrics})
                machine.store.put_bytes(keys.update(client), body)

    machine.before_round, machine.skipped = send_by_hand, {"client-07", "client-08"}
    machine.train, machine.evaluate = train, evaluate
    for client in CLIENTS:
        machine.store.put_bytes(machine.keys.member(client), b"")
    machine.start(**OPTIONS | options)
    return json.loads(json.dumps(machine.training.status(), default=list))


def without_times_and_costs(status: Any) -> Any:
    """Leave out what measures the run, and passes of tasks more have a price."""
    left_out = {"closed_at", "changed_at", "started_at", "dollars", "last_dollars"}
    if isinstance(status, dict):
        return {n: without_times_and_costs(v) for n, v in status.items() if n not in left_out}
    return list(map(without_times_and_costs, status)) if isinstance(status, list) else status


@pytest.mark.slow
def test_a_large_training_is_that_of_small_sizes(
    new_machine: Callable[[], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(new_machine())
    assert expected["completed"] == 3
    assert len(expected["silent"]) > PIECE
    assert [len(record["metrics"]) for record in expected["rounds"]] == [4, 4, 1, 4, 1]
    assert all(record["rejected"] == ["client-07"] for record in expected["rounds"][:2])
    lower_sizes(monkeypatch)
    machine = new_machine()
    found = run(machine)
    assert without_times_and_costs(found) == without_times_and_costs(expected)
    [record, *_] = machine.store.list_objects(machine.keys.records)
    stored = machine.store.get_json(record.key)
    assert is_in_pieces(stored["clients"])
    assert is_in_pieces(stored["contributors"])
    assert is_in_pieces(machine.store.get_json(machine.keys.state)["silent"])
    surveyed = Counter(k.split("/")[1] for k in machine.store.objects if "/metrics/" in k)
    for record in found["rounds"]:
        updates = len(record["contributors"]) + len(record["rejected"])
        assert updates > READ_AT_ONCE
        assert surveyed[record["round_id"]] == -(-updates // PIECE)


def counted_gets(patch: pytest.MonkeyPatch, machine: Machine) -> list[str]:
    """Return the keys of objects that are read whole, which fills."""
    read: list[str] = []
    get = machine.store.get_bytes

    def reading(key: str) -> bytes | None:
        read.append(key)
        return get(key)

    patch.setattr(machine.store, "get_bytes", reading)
    return read


def test_a_look_of_a_client_is_a_small_state_and_once_a_round_a_piece(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 30,000 members with the longest ids, all invited, and many of whom never answer."""
    members = [f"{number:064}" for number in range(30_000)]
    start_training(machine.store, "t", FIELDS, started=machine.now.isoformat())
    listed = "gradshard_core.trainings.next_round.list_members"
    monkeypatch.setattr(listed, lambda *_: tuple(members))
    change_state(
        machine.store,
        machine.keys,
        lambda state: replace(state, silent=dict.fromkeys(members[::2], 3)),
    )
    advance_training(machine.store, "t", run=1, step=0, aggregator=AGGREGATOR)
    assert len(machine.store.objects[machine.keys.state]) < 1500 + (59 + 30) * 104
    read = counted_gets(monkeypatch, machine)
    for client, is_invited in ((members[0], True), (members[17_777], True), ("other", False)):
        member = Member(machine.stack, machine.training, client)
        for look in range(3):
            read.clear()
            invitation = member.state().invitation
            assert invitation is not None
            assert member.is_invited(invitation) == is_invited
            assert [key == machine.keys.state for key in read] == [True, *([False] * (not look))]
            assert sum(len(machine.store.objects[key]) for key in read) < 46 * 1024


@pytest.mark.parametrize("holders", [5, 8, 9, 45])
def test_many_holders_of_tickets_get_what_few_get(
    new_machine: Callable[[], Machine], monkeypatch: pytest.MonkeyPatch, holders: int
) -> None:
    """In as many calls as needed, each of which writes a bounded number of notices."""

    def notices(machine: Machine, at_once: int) -> dict[str, Any]:
        machine.train = lambda *_: None
        for client in CLIENTS:
            machine.store.put_bytes(machine.keys.member(client), b"")
        start_training(machine.store, "t", FIELDS | {"sample": 30}, started=START)
        advance_training(machine.store, "t", run=1, step=0, aggregator=AGGREGATOR)
        for client in CLIENTS[:holders]:
            machine.store.put_json(machine.keys.notice(client), Notice(client).to_json())
        told, calls = [machine.keys.state], []
        put = machine.store.put_bytes

        def putting(key: str, body: bytes, **others: Any) -> bool:
            told.extend([key] if key.endswith(".renewal") else [])
            return put(key, body, **others)

        monkeypatch.setattr(machine.store, "put_bytes", putting)
        while told:
            calls.append(write_notices(machine.store, Signer(), told.pop()))
        assert all(call["written"] <= at_once for call in calls)
        assert not [key for key in machine.store.objects if "/holders/" in key]
        invited = machine.state.invitation
        assert invited is not None
        expected = len({*invited.clients}.intersection(CLIENTS[:holders]))
        assert sum(call["written"] for call in calls) == expected
        assert len(calls) == 1 + (expected > at_once) * -(-expected // at_once)
        found = [machine.store.get_json(machine.keys.notice(c)) for c in CLIENTS[:holders]]
        return {n["client"]: (n["state"], set((n["ticket"] or {}).keys())) for n in found}

    whole = notices(new_machine(), 256)
    lower_sizes(monkeypatch)
    monkeypatch.setattr("gradshard_core.trainings.write_notices.AT_ONCE", 8)
    assert notices(new_machine(), 8) == whole


def test_a_renewal_for_many_holders_names_clients_of_a_training() -> None:
    assert parse_renewal_key("trainings/t/holders/a@b.renewal") == ("t", "a", "b")
    for name in ("holders/a.renewal", "holders/a@b@c.renewal", "holders/a@plan.renewal"):
        assert parse_renewal_key(f"trainings/t/{name}") is None


def test_thousands_of_short_ids_go_through_the_state_machine(machine: Machine) -> None:
    """There is a space after each of them in what the function answers."""
    for number in range(24_000):
        machine.store.put_bytes(machine.keys.member(f"c{number:05}"), b"")
    start_training(machine.store, "t", FIELDS, started=START)
    answer = advance_training(machine.store, "t", run=1, step=0, aggregator=AGGREGATOR)
    assert len(json.dumps(answer)) < aws_limits.MAX_PAYLOAD_BYTES - PAYLOAD_ROOM_BYTES
