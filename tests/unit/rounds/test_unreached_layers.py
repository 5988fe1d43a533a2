"""A layer that a client never reaches, as the round's terms say, costs its sender the round."""

from typing import Any

import numpy as np
import pytest

from gradshard_core.rounds.quorum import QuorumError
from tests import reference
from tests.integration.by_hand import layout_of
from tests.unit.in_memory import OPENED, Machine

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")

LAST = {"last": np.full(2, 3, "f4")}
WHOLE = {"first": np.ones(2, "f4"), **LAST}

MODELS = {
    "by client": {"model": "clients", "reach": {"a": 0.5, "b": 0.5, "c": 0.0}},
    "by layer": {"model": "clients", "reach": {"a": 1, "b": 1, "c": {"first": 0, "last": 1}}},
    "almost never": {"model": "clients", "reach": {"a": 1, "b": 1, "c": 1e-200}},
    "by depth": {"model": "poisson", "mean": {"a": 3, "b": 3, "c": 0}},
}


def open_round(machine: Machine, participation: Any, **terms: Any) -> None:
    rule = {"name": "salf", "p": participation, "balanced": True, "by_samples": True}
    machine.open(clients=["a", "b", "c"], layout=layout_of(WHOLE), rule=rule, **terms)


@pytest.mark.parametrize("model", list(MODELS.values()), ids=list(MODELS))
def test_its_sender_is_rejected_and_the_round_goes_on(machine: Machine, model: Any) -> None:
    open_round(machine, model)
    for client, update in {"a": LAST, "b": WHOLE, "c": WHOLE}.items():
        machine.submit(client, update)
    assert machine.turn(OPENED) == {"status": "completed"}
    manifest = machine.store.get_json(machine.keys.manifest)
    [rejection] = manifest["rejected"]
    assert rejection["client"] == "c"
    for part in (machine.keys.update("c"), "layer 'first'", "probability"):
        assert part in rejection["reason"]
    assert machine.store.get_json(machine.keys.rejection("c"))["reason"] == rejection["reason"]
    assert [c["client"] for c in manifest["contributors"]] == ["a", "b"]


def test_the_layers_that_it_does_reach_count(machine: Machine) -> None:
    open_round(machine, MODELS["by layer"])
    for client in ("a", "b", "c"):
        machine.submit(client, LAST)
    assert machine.turn(OPENED) == {"status": "completed"}
    result = reference.decode(machine.store.objects[machine.keys.result])
    np.testing.assert_allclose(result["last"], LAST["last"])


def test_without_it_the_round_may_have_too_few_clients(machine: Machine) -> None:
    open_round(machine, MODELS["by client"], min_clients=3)
    for client in ("a", "b", "c"):
        machine.submit(client, WHOLE)
    with pytest.raises(QuorumError, match="2 good updates, but min_clients is 3; rejected: c: "):
        machine.plan(OPENED)
