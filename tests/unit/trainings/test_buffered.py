"""Buffered trainings from their start to their end: the bits of FedBuff, whatever happens."""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from gradshard_core.records.training_state import Invitation
from tests.unit.trainings.buffered import BufferedMachine
from tests.unit.trainings.machine import MODEL, training_of

PACES = {"ann": 3.0, "bo": 5.0, "cy": 11.0, "dan": 29.0, "eve": 47.0}
"""Seconds that clients train. They have no common multiples soon, so that no two arrive at once."""

NewMachine = Callable[..., BufferedMachine]


@pytest.fixture
def new_machine(monkeypatch: pytest.MonkeyPatch) -> NewMachine:
    """Make a federation on a bucket of its own."""
    return lambda paces=PACES, **options: BufferedMachine(monkeypatch, paces=dict(paces), **options)


def options(**more: Any) -> dict[str, Any]:
    return {"mode": "buffered", "buffer": 2, "rounds": 8, "clients": [*PACES], **more}


def bits(machine: BufferedMachine) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in machine.model.fetch().items()}


# ------------------------------------------------------------------------------------ the oracle


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
    arrivals: list[tuple[str, int]], buffer: int, exponent: Fraction = Fraction(1, 2)
) -> tuple[list[dict[str, Any]], list[dict[str, int]]]:
    """FedBuff, algorithm 1 of Nguyen et al. 2022, in plain numpy, from who arrived in which order.

    One update per client in a buffer, weights n / Σn, additions in the order of the clients' ids.
    """
    models, taken = [{n: t.copy() for n, t in MODEL.items()}], list[dict[str, int]]()
    waiting: list[tuple[str, int]] = []
    for arrival in arrivals:
        waiting.append(arrival)
        first: dict[str, int] = {}
        for client, version in waiting:
            first.setdefault(client, version)
        if len(first) < buffer:
            continue
        chosen = dict(list(first.items())[:buffer])
        waiting = [w for w in waiting if w not in chosen.items()]
        newest = len(models)
        taken.append({c: newest - v for c, v in chosen.items()})
        model = models[-1]
        total = sum(3 + len(c) for c in chosen)
        after: dict[str, Any] = {}
        for name, tensor in model.items():
            mean: Any = None
            for client in sorted(chosen):
                weight = (3 + len(client)) / total
                weight *= discount(newest - chosen[client], exponent)
                base = models[chosen[client] - 1]
                delta = trained(client, base, chosen[client])[name] - base[name]
                term = np.float32(weight) * delta
                mean = term if mean is None else mean + term
            after[name] = tensor + np.float32(1) * mean
        models.append(after)
    return models, taken


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
    assert [record["staleness"] for record in machine.training.records()] == taken
    assert max(max(found.values()) for found in taken) >= 3
    assert math.isclose(discount(3, Fraction(1, 2)), 0.5)
