"""What robust and private rounds refuse at opening, with the numbers and what would work."""

from typing import Any

import numpy as np
import pytest

from tests import reference
from tests.integration.by_hand import put_model
from tests.unit.in_memory import Machine

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")

DP = {"clip": 1.0, "noise_multiplier": 1.1, "delta": 1e-5}


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        (
            {"rule": {"name": "krum", "f": 4}},
            "rule krum (f=4) needs at least 11 updates, and 9 are expected; give f of at most 3",
        ),
        (
            {"rule": {"name": "bulyan", "f": 2}},
            "rule bulyan (f=2) needs at least 11 updates, and 9 are expected; give f of at most 1",
        ),
        (
            {"rule": {"name": "multi_krum", "f": 1, "m": 9}},
            "needs at least 10 updates, and 9 are expected; give m of at most 8",
        ),
        (
            {"rule": {"name": "multi_krum", "f": 4, "m": 2}},
            "needs at least 11 updates, and 9 are expected; give f of at most 3",
        ),
        (
            {"rule": {"name": "multi_krum", "f": 4, "m": 9}},
            "13 updates, and 9 are expected; give f of at most 3, and m of at most 6",
        ),
        (
            {"rule": {"name": "krum", "f": 2}, "clients": 5, "min_clients": 3},
            "needs at least 7 updates, and 5 are expected; give f of at most 1",
        ),
        (
            {"rule": {"name": "krum", "f": 2}, "clients": 5, "enough_clients": 4},
            "needs at least 7 updates, and 5 are expected; give f of at most 1",
        ),
        (
            {"rule": {"name": "sign", "layer_quorum": 3}, "clients": 2},
            "needs at least 3 updates, of fewer of which it tolerates no bad one, and 2 are exp",
        ),
        ({"dp": DP, "clients": 1, "min_clients": 1}, "hides a client among at least 2, and 1 is"),
        (
            {"rule": {"name": "trimmed_mean", "beta": 0.5}},
            "beta is 0.5, not a number above 0 and under 0.5",
        ),
        ({"rule": "median", "clients": 1}, "median needs at least 3 updates, and 1 are expected"),
        (
            {"rule": {"name": "krum", "f": 1}, "clients": 70},
            "take topology shards, with at most 64",
        ),
        ({"rule": "median", "topology": "grid", "fan_in": 3}, "topology grid adds those of 9"),
        ({"rule": {"name": "norm_clip", "bound": 0}}, "bound is 0, not a number above 0"),
        (
            {"rule": {"name": "norm_clip", "bound": 1, "quantile": 0.5}},
            "give bound or quantile, not both",
        ),
        ({"dp": DP | {"clip": 0}}, "clip is 0, not a number from 9.09495e-13 to 1.09951e+12"),
        ({"dp": DP | {"noise_multiplier": 0}}, "noise_multiplier is 0, not a number from 0.01 to"),
        ({"dp": DP | {"delta": 1}}, "delta is 1, not a number from 1e-15 to 0.1"),
        ({"dp": DP, "clients": 1}, "dp hides a client among at least 2, and 1 is expected"),
        ({"dp": DP, "weights": "counts"}, "dp counts every client alike"),
        ({"dp": DP, "rule": "krum"}, "rule krum needs f, a whole number from 1"),
        ({"dp": DP, "rule": "median"}, "leave out rule"),
        ({"dp": DP, "measure_one_in": 4}, "leave out measure_one_in"),
    ],
)
def test_terms_that_cannot_hold_are_refused_before_anything_is_written(
    machine: Machine, terms: dict[str, Any], reason: str
) -> None:
    answer = machine.open(**{"clients": 9, **terms})
    assert answer["status"] == "rejected"
    assert reason in answer["reason"]
    assert machine.store.objects == {}


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        ({"rule": "sign"}, "rule sign makes 1, 0 or -1 of every element, and 'mean' is an integer"),
        ({"dp": DP}, "dp clips and adds noise to floating-point tensors that are trained, and 'me"),
    ],
)
def test_a_model_whose_buffers_a_round_cannot_average_is_refused_before_clients_train(
    machine: Machine, terms: dict[str, Any], reason: str
) -> None:
    put_model(machine.store, "m", {"w": np.ones(3, "f4"), "mean": np.ones(2, "f4")})
    optimizer = {"optimizer": "fedavg", "model": "m", "buffers": ["mean"]}
    answer = machine.open(clients=9, server_optimizer=optimizer, **terms)
    assert answer["status"] == "rejected"
    assert reason in answer["reason"]


@pytest.mark.parametrize(
    "rule",
    ["drop", {"name": "median", "layer_quorum": 3}, {"name": "krum", "f": 1, "layer_quorum": 5}],
    ids=str,
)
def test_layers_that_lack_a_tensor_of_the_model_are_refused_before_clients_train(
    machine: Machine, rule: Any
) -> None:
    put_model(machine.store, "m", {"w": np.ones(3, "f4"), "v": np.ones(2, "f4")})
    optimizer = {"optimizer": "fedavg", "model": "m", "updates": "deltas"}
    answer = machine.open(clients=9, rule=rule, layers=["w"], server_optimizer=optimizer)
    assert answer["status"] == "rejected"
    assert "tensor 'v' is in none of the 1 layers" in answer["reason"]


def average(machine: Machine, name: str, sent: dict[str, Any], **terms: Any) -> reference.Array:
    machine.begin(name)
    assert machine.open(clients=sorted(sent), **terms)["status"] == "opened"
    for client, update in sent.items():
        machine.collect(client, machine.submit(client, {"w": update}))
    machine.finish()
    body = machine.store.get_bytes(machine.keys.result)
    assert body is not None
    return reference.decode(body)["w"]


def test_two_rounds_that_differ_by_a_client_reveal_it_only_without_noise(machine: Machine) -> None:
    """The update of "c" is the difference of two sums; here 2,000 elements show the noise in it."""
    rng = np.random.default_rng(4)
    sent = {client: (rng.standard_normal(2000) / 50).astype("f4") for client in "abc"}
    others = {client: sent[client] for client in "ab"}
    found = {}
    for name, terms in (("plain", {}), ("dp", {"dp": DP | {"clip": 2.0}})):
        with_it, without = (
            len(members) * average(machine, f"{name}-{len(members)}", members, **terms)
            for members in (sent, others)
        )
        found[name] = with_it - without - sent["c"]
    assert np.abs(found["plain"]).max() < 1e-6
    # Two draws of σ = 1.1 · 2 in every element, beside elements of 0.02.
    assert found["dp"].std() == pytest.approx(np.sqrt(2) * 2.2, rel=0.1)
