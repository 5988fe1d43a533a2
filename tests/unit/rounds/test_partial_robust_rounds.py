"""Rules over columns with partial updates: each layer by those that have sent it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from gradshard.client.round import Round
from gradshard.client.verification import VerificationError
from gradshard_core.formats.codecs.registry import CODECS
from tests import reference
from tests.integration.by_hand import layout_of
from tests.unit.fakes import MemoryStack
from tests.unit.in_memory import Machine
from tests.unit.rounds.test_compressed_rounds import compress, decoded
from tests.unit.rounds.test_compressed_rounds import run as run_bodies

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")

Update = dict[str, reference.Array]

SHAPES = {"a.weight": (40, 50), "a.bias": (7,), "b.weight": (3001,), "c.weight": (90, 13)}
LAYERS = ("a", "b", "c")
DTYPES = {"a.weight": "f4", "a.bias": "f2", "b.weight": "f8", "c.weight": "f4"}


def whole(rng: np.random.Generator) -> Update:
    values = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    # Ties and zeros, with both signs.
    return {n: (np.rint(v) if n == "c.weight" else v).astype(DTYPES[n]) for n, v in values.items()}


def part(update: Mapping[str, reference.Array], layers: str) -> Update:
    return {name: tensor for name, tensor in update.items() if name[0] in layers}


SENT = ("abc", "c", "bc", "abc", "ac", "bc", "abc", "c")
"""The layers that each client has: "a" is there four times, "b" five times, "c" eight times."""


def updates(seed: int = 0) -> dict[str, Update]:
    rng = np.random.default_rng(seed)
    return {f"c{i}": part(whole(rng), layers) for i, layers in enumerate(SENT)}


def by_definition(sent: Mapping[str, Update], rule: Mapping[str, Any]) -> Update:
    """Combine each layer among those that have it, and make zeros of it if they are too few."""
    settings = {key: value for key, value in rule.items() if key == "beta"}
    result = {}
    for name, shape in SHAPES.items():
        there = [{name: update[name]} for update in sent.values() if name in update]
        result[name] = np.zeros(shape, DTYPES[name])
        if len(there) >= rule["layer_quorum"]:
            result |= reference.columns(there, rule["name"], **settings)
    return result


def run(machine: Machine, sent: Mapping[str, Update], rule: Mapping[str, Any], **terms: Any) -> Any:
    """Run a round to its end; return its manifest and result."""
    layout = layout_of(whole(np.random.default_rng(0)))
    answer = machine.open(clients=sorted(sent), rule=rule, layout=layout, **terms)
    assert answer["status"] == "opened", answer
    for client, update in sent.items():
        machine.collect(client, machine.submit(client, update))
    assert machine.finish() == {"status": "completed"}
    body = machine.store.get_bytes(machine.keys.result)
    assert body is not None
    return machine.store.get_json(machine.keys.manifest), reference.decode(body)


RULES = [
    {"name": "median", "layer_quorum": 4},
    {"name": "median", "layer_quorum": 5},
    {"name": "trimmed_mean", "beta": 0.25, "layer_quorum": 4},
    {"name": "sign", "layer_quorum": 5},
    {"name": "sign", "layer_quorum": 8},
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_each_layer_has_the_bits_of_the_rule_among_those_that_sent_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, rule: dict[str, Any]
) -> None:
    monkeypatch.setattr("gradshard_core.planning.limits.MIN_PART_BYTES", 1000)
    sent, found = updates(), []
    expected = by_definition(sent, rule)
    for shards in (1, 3):
        machine.begin(f"r{shards}")
        manifest, result = run(machine, sent, rule, shards=shards)
        assert manifest["shards"] == shards
        for name, tensor in expected.items():
            assert result[name].tobytes() == tensor.tobytes(), name
        found.append(manifest["layers"])
    assert found[0] == found[1]
    for layer, count in zip(found[0], (4, 5, 8), strict=True):
        assert len(layer["weights"]) == count
        weight = 1 / count if count >= rule["layer_quorum"] else 0.0
        assert set(layer["weights"].values()) == {weight}


def test_a_minority_of_those_that_sent_a_layer_cannot_move_it_far(machine: Machine) -> None:
    sent = updates()
    honest = [update["a.weight"] for update in sent.values() if "a.weight" in update][:3]
    sent["c6"] = {name: np.full_like(t, -6e4) for name, t in sent["c6"].items()}
    _, result = run(machine, sent, {"name": "median", "layer_quorum": 4})
    assert (result["a.weight"] >= np.min(honest, axis=0)).all()
    assert (result["a.weight"] <= np.max(honest, axis=0)).all()


def test_a_layer_that_loses_its_quorum_to_a_bad_update_stays_as_it_is(machine: Machine) -> None:
    sent = updates()
    sent["c3"]["a.bias"][2] = np.nan
    rule = {"name": "trimmed_mean", "beta": 0.25, "layer_quorum": 4}
    manifest, result = run(machine, sent, rule, min_clients=4)
    assert [r["client"] for r in manifest["rejected"]] == ["c3"]
    del sent["c3"]
    assert not result["a.weight"].any()
    assert result["b.weight"].any()
    for name, tensor in by_definition(sent, rule).items():
        assert result[name].tobytes() == tensor.tobytes(), name


def test_a_layer_that_nobody_sent_is_zero(machine: Machine) -> None:
    sent = {client: part(update, "c") for client, update in updates().items()}
    for name in ("median", "sign"):
        machine.begin(name)
        _, result = run(machine, sent, {"name": name, "layer_quorum": 3})
        assert not result["a.weight"].any()
        assert not result["b.weight"].any()
        assert result["c.weight"].any()


def test_a_nan_in_a_layer_that_does_not_count_costs_its_sender_the_round(machine: Machine) -> None:
    for name in ("median", "sign"):
        sent = updates()
        sent["c4"]["a.weight"][0, 3] = np.inf
        machine.begin(name)
        manifest, _ = run(machine, sent, {"name": name, "layer_quorum": 5}, min_clients=5)
        assert [r["client"] for r in manifest["rejected"]] == ["c4"]


@pytest.mark.parametrize("rule", [RULES[0], RULES[3]], ids=str)
def test_compressed_parts_in_any_order_of_tensors_have_the_bits_of_what_they_decode_to(
    machine: Machine, rule: dict[str, Any]
) -> None:
    rng = np.random.default_rng(2)
    bodies, sent = {}, {}
    for number, (client, update) in enumerate(updates().items()):
        codec = list(CODECS)[number % len(CODECS)]
        order = sorted(update, reverse=number % 2 == 0)
        bodies[client] = compress(rng, codec, update, order=order)
        sent[client] = reference.decode(decoded(bodies[client], 1))
    layout = layout_of(whole(rng))
    run_bodies(machine, bodies, rule=rule, layout=layout, min_clients=rule["layer_quorum"])
    result = reference.decode(machine.store.get_bytes(machine.keys.result) or b"")
    for name, tensor in by_definition(sent, rule).items():
        assert result[name].tobytes() == tensor.tobytes(), name


def test_such_a_round_is_verified_from_its_updates(machine: Machine) -> None:
    run(machine, updates(), {"name": "median", "layer_quorum": 5})
    stack = Round(MemoryStack(machine.store), machine.name)
    found = stack.verify(sample=1.0, seed="s")
    assert (found.is_correct, found.contradictions, found.contributors) == (True, (), 8)
    assert found.sampled_nbytes == found.nbytes
    body = bytearray(machine.store.objects[machine.keys.result])
    body[-9] ^= 0x10
    machine.store.objects[machine.keys.result] = bytes(body)
    with pytest.raises(VerificationError):
        stack.verify(sample=1.0, seed="s")


def test_whole_updates_have_the_bits_of_a_round_of_whole_updates(machine: Machine) -> None:
    rng = np.random.default_rng(5)
    sent = {f"c{i}": whole(rng) for i in range(6)}
    found: list[bytes | None] = []
    for rule in ({"name": "median"}, {"name": "median", "layer_quorum": 3}):
        machine.begin(f"r{len(found)}")
        run(machine, sent, rule)
        found.append(machine.store.get_bytes(machine.keys.result))
    assert found[0] == found[1]


def test_half_a_layer_is_rejected_and_a_round_without_a_layer_quorum_takes_whole_updates(
    machine: Machine,
) -> None:
    sent = updates()
    del sent["c0"]["a.bias"]
    manifest, _ = run(machine, sent, {"name": "median", "layer_quorum": 3})
    [rejection] = manifest["rejected"]
    assert "layer 'a' is there in part" in rejection["reason"]
    machine.begin("whole")
    manifest, _ = run(machine, updates(), {"name": "median"}, min_clients=3)
    assert [r["client"] for r in manifest["rejected"]] == ["c1", "c2", "c4", "c5", "c7"]


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        ({"name": "krum", "f": 1}, "rule krum takes whole updates only: it goes by distances"),
        ({"name": "multi_krum", "f": 1}, "rule multi_krum takes whole updates only"),
        ({"name": "bulyan", "f": 1}, "rule bulyan takes whole updates only"),
        ({"name": "norm_clip"}, "it bounds the length of an update and not of a layer"),
        ({"name": "centered_clip"}, "it moves all layers toward one center"),
        ({"name": "geometric_median"}, "it moves all layers toward one center"),
        ({"name": "cosine_filter"}, "an update points elsewhere if it lacks a layer"),
        ({"name": "median", "layer_quorum": 2}, "layer_quorum is not from 3"),
        ({"name": "sign", "layer_quorum": 2}, "layer_quorum is not from 3"),
        ({"name": "median", "layer_quorum": 10}, "to the 9 that are expected"),
        ({"name": "trimmed_mean", "beta": 0.2, "layer_quorum": 4}, "layer_quorum is not from 5"),
    ],
    ids=str,
)
def test_what_has_no_sound_meaning_for_partial_updates_is_refused(
    machine: Machine, terms: dict[str, Any], reason: str
) -> None:
    layout = layout_of(whole(np.random.default_rng(0)))
    rule = {"layer_quorum": 3, **terms}
    answer = machine.open(clients=9, rule=rule, layout=layout)
    assert answer["status"] == "rejected"
    assert reason in answer["reason"]


def test_what_rounds_of_partial_updates_need_is_said(machine: Machine) -> None:
    rule = {"name": "median", "layer_quorum": 3}
    answer = machine.open(clients=9, rule=rule)
    assert (
        "rule median takes partial updates, of which few may have all tensors" in answer["reason"]
    )
    answer = machine.open(clients=9, rule="median", layers=["a"])
    assert "rule median takes whole ones unless it has a layer_quorum" in answer["reason"]
    answer = machine.open(clients=9, rule={"name": "krum", "f": 1}, layers=["a"])
    assert "rule krum takes whole ones, since it goes by distances" in answer["reason"]
    optimizer = {"optimizer": "fedavg", "updates": "models"}
    answer = machine.open(clients=9, rule=rule, server_optimizer=optimizer)
    assert "send deltas, or leave out layer_quorum" in answer["reason"]
