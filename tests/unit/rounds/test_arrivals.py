"""Which of the objects that clients send are looked at."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.planning.plan_parts import Rejection
from gradshard_core.rounds import arrivals, aws_requests
from gradshard_core.rounds.arrivals import Update
from gradshard_core.rounds.buffered_round import Address
from gradshard_core.rounds.collect_update import collect_update
from gradshard_core.specs.round_spec_checks import parse_spec
from tests import reference
from tests.unit.fakes import MemoryStore
from tests.unit.in_memory import Machine

KEYS = RoundKeys("r")


def growing(body: bytes) -> MemoryStore:
    """Return a bucket where a client has begun an update and not ended it."""
    store = MemoryStore()
    store.put_bytes(KEYS.partial_update("a"), body)
    return store


WHOLE = parse_spec({"clients": ["a"]})
PARTIAL = parse_spec({"clients": ["a"], "rule": "fill"})
GOOD = reference.encode({"w": np.ones(1, "f4")}, {"num_samples": "1"})


@pytest.mark.parametrize("body", [GOOD, b"junk"])
def test_an_unfinished_update_does_not_count_in_a_round_of_whole_updates(body: bytes) -> None:
    assert arrivals.check_update(growing(body), KEYS, "a", WHOLE) is None
    with ThreadPoolExecutor(1) as thread:
        assert arrivals.check_updates(
            growing(body),
            lambda _: Address(KEYS),
            ["a"],
            WHOLE,
            look=lambda _: 1,
            large_headers=thread,
        ) == [None]


def test_a_large_header_is_checked_when_the_round_is_planned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(arrivals, "ARRIVAL_HEADER_BYTES", 100)
    store, bad = MemoryStore(), (200).to_bytes(8, "little") + b"x" * 200
    for body, found in ((bad, None), (bad[:-1], Rejection), (GOOD, Update)):
        store.put_bytes(KEYS.update("a"), body)
        with ThreadPoolExecutor(1) as thread:
            [planned] = arrivals.check_updates(
                store, lambda _: Address(KEYS), ["a"], WHOLE, look=lambda u: u, large_headers=thread
            )
        arrived = arrivals.check_update(store, KEYS, "a", WHOLE)
        assert type(arrived) is (found or type(None))
        assert isinstance(planned, Update if found is Update else Rejection)


def test_an_unfinished_update_counts_in_a_round_of_partial_updates() -> None:
    found = arrivals.check_update(growing(GOOD), KEYS, "a", PARTIAL)
    assert isinstance(found, Update)
    assert found.source.key == KEYS.partial_update("a")


def test_a_deleted_update_is_not_rejected_for_an_earlier_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(aws_requests, "resume", lambda *_: True)
    store = growing(b"junk")
    terms: dict[str, Any] = {"clients": ["a", "b"]}
    store.put_json(KEYS.spec, {"spec": terms})
    assert collect_update(store, KEYS.update("a"), "gone")["status"] == "accepted"
    assert store.get_json(KEYS.rejection("a")) is None


def test_a_late_event_of_a_deleted_update_does_not_complete_the_round(machine: Machine) -> None:
    machine.open(clients=["a", "b"])
    machine.collect("a", machine.submit("a", {"w": np.ones(1, "f4")}))
    etag = machine.submit("b", {"w": np.ones(1, "f4")})
    # As an operator does for a client that shall send another update with its ticket.
    machine.store.delete(machine.keys.update("b"))
    assert not machine.collect("b", etag)["resumed"]
    assert machine.collect("b", machine.submit("b", {"w": np.zeros(1, "f4")}))["resumed"]


def test_an_update_to_a_round_that_failed_before_it_was_planned_is_late() -> None:
    store = MemoryStore()
    store.put_json(KEYS.spec, {"spec": {"clients": ["a", "b"]}})
    store.put_json(KEYS.manifest, {"status": "failed", "error": "QuorumError", "cause": "no one"})
    store.put_bytes(KEYS.update("a"), GOOD)
    outcome = collect_update(store, KEYS.update("a"), "e")
    assert (outcome["status"], outcome["late"]) == ("ignored", True)
    assert "the round has ended (failed)" in store.get_json(KEYS.rejection("a"))["reason"]
