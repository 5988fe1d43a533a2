"""Rounds of every kind, run by LocalStack's state machine with the real functions and faults."""

from typing import Any

import numpy as np

from gradshard import Federation
from tests import reference
from tests.integration.by_hand import assert_average, small

SECONDS = 90
UPDATES = [small(seed) for seed in range(4)]
CLIENTS = ["a", "b", "c", "d"]
SAMPLES = [5, 1, 900, 17]


def send(round_: Any, clients: Any = CLIENTS) -> None:
    for client in clients:
        at = CLIENTS.index(client)
        round_.submit(client, UPDATES[at], samples=SAMPLES[at])


def fetched(round_: Any) -> bytes:
    return reference.encode({k: np.asarray(v) for k, v in round_.fetch().items()}, {})


def test_a_plain_round(federation: Federation) -> None:
    round_ = federation.open_round("plain", clients=CLIENTS, timeout=600)
    send(round_)
    manifest = round_.wait(SECONDS)
    assert [c["client"] for c in manifest["contributors"]] == CLIENTS
    assert_average(fetched(round_), UPDATES, SAMPLES)
