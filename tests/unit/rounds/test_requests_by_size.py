"""Every request of rounds of 100, 1,000 and 5,000 clients, with the sizes of what is deployed."""

import numpy as np
import pytest

from tests import reference
from tests.unit.in_memory import OPENED, Machine
from tests.unit.request_counts import Counting, Requests, of_functions

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")

SIZES = (100, 1_000, 5_000)
WATCHED = 20
"""The last arrivals, each with its event. Those before cost the same, and are counted as these."""

FIXED = 30
"""Requests of a kind that a round may have whatever its size: a level more, or a pass more."""

MOST_PER_CLIENT = {
    # The callback with the terms, the header, and the marks, of which one is added.
    ("collect_update", "get"): 3,
    ("collect_update", "put"): 1,
    ("collect_update", "list"): 1,
    ("collect_update", "invocations"): 1,
    # Those that came before the round was open are marked then.
    ("open_round", "get"): 0.2,
    ("open_round", "put"): 0.2,
    # The headers, each by a planning or by a task.
    ("plan_round", "get"): 1.1,
    ("aggregate_shard", "get"): 2.2,
    ("finalize_round", "get"): 1 / 40,
    ("aggregate_shard", "put"): 0.1,
    ("aggregate_shard", "invocations"): 0.1,
}
"""The requests for each client; of kinds that are not named, one for fifty clients."""


def requests_of(machine: Machine, monkeypatch: pytest.MonkeyPatch, clients: int) -> Requests:
    """Return the requests of a whole round, whose last updates arrive after it has been opened."""
    machine.begin(f"n{clients}")
    body = reference.encode({"w": np.ones(5, "f4")}, {"num_samples": "1"})
    names = [f"c{number:06}" for number in range(clients)]
    for name in names[:-WATCHED]:
        machine.store.put_bytes(machine.keys.update(name), body)
    with monkeypatch.context() as patched:
        counting = Counting(machine, patched)
        machine.open(clients=clients)
        for name in names[-WATCHED:]:
            etag = machine.submit(name, {"w": np.ones(5, "f4")})
            resumed = machine.collect(name, etag)["resumed"]
            assert resumed == (name == names[-1])
            if name == names[-2]:
                before = counting.counts.copy()
        outcome = OPENED
        while outcome.get("status") != "completed":
            outcome = machine.turn(outcome)
    counts = counting.counts
    for key, count in before.items():
        if key[0] == "collect_update":  # the last one also makes the round go on
            counts[key] += count * (clients - WATCHED) // (WATCHED - 1)
    return of_functions(counts)


@pytest.mark.slow
def test_no_kind_of_request_of_a_deployed_round_grows_faster_than_its_clients(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {clients: requests_of(machine, monkeypatch, clients) for clients in SIZES}
    for clients, counts in found.items():
        # Nothing is overlooked: a planning or a task reads each header, and a task each update.
        assert counts["plan_round", "get"] + counts["aggregate_shard", "get"] >= 2 * clients
        assert counts["collect_update", "get"] >= 2 * clients
        for kind, count in counts.items():
            most = MOST_PER_CLIENT.get(kind, 1 / 50) * clients + FIXED
            assert count <= most, (clients, kind, count, most)
