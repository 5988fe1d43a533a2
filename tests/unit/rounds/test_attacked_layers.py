"""Hostile clients in rounds whose rules measure: nobody else pays for what they send."""

from typing import Any

import numpy as np
import pytest

from tests import reference
from tests.integration.by_hand import layout_of
from tests.unit.in_memory import Machine

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")

HUGE = np.float32(2.0**121)
CLIENTS = [f"c{i}" for i in range(7)]
MEASURING: list[dict[str, Any]] = [
    {"name": "krum", "f": 1, "layer_quorum": 5},
    {"name": "norm_clip", "bound": 1.0, "layer_quorum": 5},
]


def run(machine: Machine, sent: dict[str, dict[str, reference.Array]], **terms: Any) -> Any:
    """Run a round to its end; return its manifest."""
    assert machine.open(clients=sorted(sent), **terms)["status"] == "opened"
    for client, update in sent.items():
        machine.submit(client, update)
    outcome = machine.finish()
    assert outcome == {"status": "completed"}, outcome
    return machine.store.get_json(machine.keys.manifest)


def honest() -> dict[str, dict[str, reference.Array]]:
    rng = np.random.default_rng(0)
    return {c: {"b.w": rng.standard_normal(9).astype("f4")} for c in CLIENTS}


@pytest.mark.parametrize("rule", MEASURING, ids=str)
def test_a_number_that_is_too_large_in_a_layer_without_its_quorum_costs_its_sender_alone(
    machine: Machine, rule: dict[str, Any]
) -> None:
    sent = honest()
    for client in ("c0", "c1", "c6"):
        sent[client]["a.w"] = np.ones(3, "f4")
    sent["c6"]["a.w"][1] = HUGE
    layout = layout_of({"a.w": np.ones(3, "f4"), "b.w": np.ones(9, "f4")})
    manifest = run(machine, sent, rule=rule, layout=layout, min_clients=5)
    assert [rejected["client"] for rejected in manifest["rejected"]] == ["c6"]


@pytest.mark.parametrize(
    ("rule", "value", "attempts"),
    [
        ({"name": "krum", "f": 1}, HUGE, 3),
        ({"name": "krum", "f": 1}, np.nan, 3),
        ({"name": "krum", "f": 1, "layer_quorum": 5}, -HUGE, 3),
        ({"name": "norm_clip"}, HUGE, 3),
        ({"name": "median"}, np.inf, 2),
    ],
    ids=str,
)
def test_all_that_send_bad_numbers_are_rejected_at_once(
    machine: Machine, rule: dict[str, Any], value: float, attempts: int
) -> None:
    """Wherever the numbers are: otherwise each of many bad clients costs the round an attempt."""
    sent = honest()
    for number, client in enumerate(("c2", "c4")):
        sent[client]["b.w"][3 - number] = value
    manifest = run(machine, sent, rule=rule, layout=layout_of(sent["c0"]), min_clients=5)
    assert [rejected["client"] for rejected in manifest["rejected"]] == ["c2", "c4"]
    assert manifest["attempts"] == attempts
    reason = manifest["rejected"][0]["reason"]
    assert "tensor 'b.w' holds a NaN or an infinity at element 3" in reason
    assert ("too large there to be measured" in reason) == (rule["name"] != "median")


@pytest.mark.parametrize("name", ["krum", "median", "norm_clip"])
def test_an_order_of_tensors_for_which_there_is_no_memory_costs_its_sender_alone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Rules that hold all inputs need a buffer for each as soon as one is in another order."""
    monkeypatch.setenv("GRADSHARD_AGGREGATOR_MEMORY", "128")
    rng = np.random.default_rng(0)
    shapes = {"a.w": 5, "b.w": 70}
    sent = {
        f"c{i:02}": {n: rng.standard_normal(size).astype("f4") for n, size in shapes.items()}
        for i in range(20)
    }
    layout = layout_of(sent["c00"])
    sent["c07"] = dict(reversed(sent["c07"].items()))
    rule = {"name": name, **({"f": 2} if name == "krum" else {})}
    body = reference.encode(sent["c07"], {"num_samples": "1"}, order=["b.w", "a.w"])
    answer = machine.open(clients=sorted(sent), rule=rule, layout=layout)
    assert answer["status"] == "opened"
    for client, update in sent.items():
        machine.submit(client, update)
    machine.store.put_bytes(machine.keys.update("c07"), body)
    assert machine.finish() == {"status": "completed"}
    [rejected] = machine.store.get_json(machine.keys.manifest)["rejected"]
    assert rejected["client"] == "c07"
    assert "its tensors stand in another order than the round's" in rejected["reason"]
    assert "an aggregator needs 1" in rejected["reason"]
    assert machine.store.get_json(machine.keys.rejection("c07"))["reason"] == rejected["reason"]
