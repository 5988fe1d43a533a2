"""The example's two ways to average."""

import sys
from pathlib import Path

import numpy as np
import pytest

from gradshard import Federation
from gradshard.local_engine.lifecycle import Engine
from gradshard_core.stragglers.layer_reach import UniformDepth
from gradshard_core.stragglers.salf import PartialRule

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from stragglers import backends, network


def test_rounds_and_memory_give_the_same_bits(engine: Engine) -> None:
    rng = np.random.default_rng(0)
    model = network.initialise((64, 32, 16, 10), seed=0)
    updates = {
        client: {n: rng.standard_normal(a.shape).astype(np.float32) for n, a in model.items()}
        for client in ("b", "a", "c")
    }
    samples = {"a": 10, "b": 3, "c": 7}

    rounds = backends.Engine(Federation(local=True, port=engine.port))
    found = [backend.average(updates, samples) for backend in (rounds, backends.InMemory())]

    assert found[0].keys() == found[1].keys() == model.keys()
    assert all(found[0][name].tobytes() == found[1][name].tobytes() for name in model)


@pytest.mark.parametrize(
    "rule",
    [
        PartialRule("salf", UniformDepth()),
        PartialRule("salf", UniformDepth(), balanced=True),
        PartialRule("fedavg"),
        PartialRule("fill"),
        PartialRule("drop"),
    ],
    ids=lambda rule: f"{rule.name}{' balanced' * rule.balanced}",
)
def test_partial_updates_in_rounds_and_memory_give_the_same_bits(
    engine: Engine, rule: PartialRule
) -> None:
    rng = np.random.default_rng(1)
    model = network.initialise((64, 32, 16, 10), seed=0)
    names = list(model)
    updates = {
        client: {
            name: rng.standard_normal(model[name].shape).astype(np.float32)
            for name in names[len(names) - 2 * depth :]
        }
        for client, depth in (("a", 3), ("b", 1), ("c", 2))
    }
    samples = dict.fromkeys(updates, 1)
    rounds = backends.Engine(Federation(local=True, port=engine.port))
    found = [
        backend.average_partial(updates, samples, rule, list(updates), model)
        for backend in (rounds, backends.InMemory())
    ]
    assert found[0].keys() == found[1].keys() == model.keys()
    assert all(found[0][name].tobytes() == found[1][name].tobytes() for name in model)
