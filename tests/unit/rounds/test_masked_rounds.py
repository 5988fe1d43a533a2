"""Masked rounds: the result is the plain fixed-point sum, and nobody sees a single update."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests import masked, reference
from tests.unit.in_memory import Machine
from tests.unit.keeping import Keeper, MaskedRound

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")

Updates = dict[str, dict[str, reference.Array]]


@pytest.fixture
def keeper(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Keeper:
    monkeypatch.setenv("GRADSHARD_KEEPER_BUCKET", "keeper")
    monkeypatch.setenv("GRADSHARD_KEEPER_BUCKET_HOST", "keeper.localhost")
    monkeypatch.setenv("GRADSHARD_AGGREGATOR_BUCKET", "aggregator")
    monkeypatch.setenv("GRADSHARD_AGGREGATOR_BUCKET_HOST", "aggregator.localhost")
    monkeypatch.setenv("GRADSHARD_LEAST_CLIENTS", "2")
    keeper = Keeper(machine.store)
    machine.keeper = keeper.store
    return keeper


def updates_of(clients: int, seed: int = 0) -> Updates:
    rng = np.random.default_rng(seed)
    return {
        f"c{number:04}": {
            "w": rng.normal(0, 1.5, (7, 11)).astype("f4"),
            "b": rng.normal(0, 1.5, 5).astype(ml_dtypes.bfloat16),
            "wide": rng.normal(0, 1.5, 3),
        }
        for number in range(clients)
    }


def samples_of(updates: Updates, seed: int = 0) -> dict[str, int]:
    rng = np.random.default_rng(seed)
    return {client: int(rng.integers(1, 1000)) for client in updates}


def check(round_: MaskedRound, updates: Updates, samples: dict[str, int], lost: Any = ()) -> None:
    present = [client for client in updates if client not in lost]
    expected = masked.average(
        round_.terms, [updates[c] for c in present], [samples[c] for c in present]
    )
    found = round_.result()
    assert {n: t.tobytes() for n, t in found.items()} == {
        n: t.tobytes() for n, t in expected.items()
    }


@pytest.mark.parametrize("ring_bits", [32, 64])
def test_two_clients(machine: Machine, keeper: Keeper, ring_bits: int) -> None:
    round_ = MaskedRound(machine, keeper, ring_bits=ring_bits)
    updates = updates_of(2)
    samples = samples_of(updates)
    manifest = round_.run(updates, samples)
    check(round_, updates, samples)
    assert manifest["samples"] == sum(samples.values())
