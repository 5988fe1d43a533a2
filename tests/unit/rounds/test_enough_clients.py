"""A round that goes on as soon as enough of its clients have sent updates."""

from typing import Any

import numpy as np
import pytest

from gradshard_core.errors import SpecError
from gradshard_core.specs.round_spec_checks import parse_spec
from tests.unit.in_memory import OPENED, Machine

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")


def send(machine: Machine, client: str) -> bool:
    """Submit an update and deliver its event; return whether the round goes on."""
    etag = machine.submit(client, {"w": np.ones(3, "f4")})
    return bool(machine.collect(client, etag)["resumed"])


@pytest.mark.parametrize("clients", [["a", "b", "c", "d"], 4])
def test_the_round_goes_on_with_the_last_of_them(machine: Machine, clients: Any) -> None:
    machine.open(clients=clients, min_clients=1, enough_clients=2)
    assert not send(machine, "c")
    assert send(machine, "a")
    assert machine.turn(OPENED) == {"status": "completed"}
    manifest = machine.store.get_json(machine.keys.manifest)
    assert [c["client"] for c in manifest["contributors"]] == ["a", "c"]


def test_who_is_not_expected_is_not_one_of_them(machine: Machine) -> None:
    machine.open(clients=["a", "b", "c"], min_clients=1, enough_clients=2)
    assert not send(machine, "a")
    assert not send(machine, "x")
    assert send(machine, "b")


@pytest.mark.parametrize(
    ("expected", "is_named"), [(4, True), (30, True), (4, False), (30, False), (2, False)]
)
def test_an_update_that_arrives_while_the_round_is_planned_is_rejected(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, expected: int, is_named: bool
) -> None:
    """After the planning has listed the updates, and before its plan can be seen.

    A round of two that are not named is complete without it.
    """
    clients = ["a", "b", "c", "d", *(f"e{number}" for number in range(expected - 4))][:expected]
    machine.open(clients=clients if is_named else len(clients), min_clients=1, enough_clients=2)
    send(machine, "a")
    send(machine, "b")
    arrived, list_objects = list[str](), machine.store.list_objects

    def list_then_arrive(prefix: str, *, after: str = "") -> Any:
        found = list(list_objects(prefix, after=after))
        if prefix == machine.keys.updates and not arrived:
            arrived.append("d")
            etag = machine.submit("d", {"w": np.ones(3, "f4")})
            assert machine.collect("d", etag)["status"] == "accepted"
        return iter(found)

    monkeypatch.setattr(machine.store, "list_objects", list_then_arrive)
    assert machine.turn(OPENED) == {"status": "completed"}
    manifest = machine.store.get_json(machine.keys.manifest)
    assert [c["client"] for c in manifest["contributors"]] == ["a", "b"]
    rejection = machine.store.get_json(machine.keys.rejection("d"))
    assert (
        "updates/d.safetensors: uploaded while the round was being planned" in rejection["reason"]
    )
    assert rejection["late"]
    assert machine.store.get_json(machine.keys.rejection("c")) is None


@pytest.mark.parametrize("others", [0, 30])
def test_an_update_that_replaces_a_bad_one_while_the_round_is_planned_is_rejected(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    """After the planning has rejected the bad one, and before its plan can be seen."""
    bad = ["c", *(f"d{number}" for number in range(others))]
    machine.open(clients=["a", "b", *bad], min_clients=1, enough_clients=len(bad) + 1)
    for client in bad:
        machine.store.put_bytes(machine.keys.update(client), b"junk")
        sent = machine.store.head(machine.keys.update(client))
        assert sent is not None
        machine.collect(client, sent.etag.strip('"'))
    send(machine, "a")
    put_json = machine.store.put_json

    def arrive_then_put(key: str, value: Any, **options: Any) -> Any:
        if key == machine.keys.plan:
            etag = machine.submit("c", {"w": np.ones(3, "f4")})
            assert machine.collect("c", etag)["status"] == "accepted"
            assert machine.store.get_json(machine.keys.rejection("c")) is None
        return put_json(key, value, **options)

    monkeypatch.setattr(machine.store, "put_json", arrive_then_put)
    assert machine.turn(OPENED) == {"status": "completed"}
    newest = machine.store.head(machine.keys.update("c"))
    assert newest is not None
    rejection = machine.store.get_json(machine.keys.rejection("c"))
    assert "uploaded while the round was being planned" in rejection["reason"]
    assert (rejection["etag"], rejection["late"]) == (newest.etag, True)
    for client in bad[1:]:
        rejection = machine.store.get_json(machine.keys.rejection(client))
        assert "not a safetensors object" in rejection["reason"]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"enough_clients": 5}, r"enough_clients is 5, not from min_clients \(3\) to the expected"),
        ({"enough_clients": 2}, r"not from min_clients \(3\) to the expected clients \(4\)"),
        (
            {
                "enough_clients": 3,
                "clients": list("abcd"),
                "eager": True,
                "topology": "lifl",
                "weights": "counts",
            },
            "eager waits for whole groups of clients",
        ),
    ],
)
def test_a_number_that_makes_no_sense_is_rejected(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(SpecError, match=why):
        parse_spec({"clients": 4, **fields})
