"""Robust rules with partial updates: each layer by those that have sent it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from gradshard.client.round import Round
from gradshard.verification.round_verification import VerificationError
from tests import reference
from tests.integration.by_hand import layout_of, put_model
from tests.unit.fakes import MemoryStack
from tests.unit.in_memory import Machine
from tests.unit.rounds.test_compressed_rounds import compressed_in_any_order
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
    monkeypatch.setattr("gradshard_core.limits.aws_limits.MIN_PART_BYTES", 1000)
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
    bodies, sent = compressed_in_any_order(rng, updates())
    layout = layout_of(whole(rng))
    run_bodies(machine, bodies, rule=rule, layout=layout, min_clients=rule["layer_quorum"])
    result = reference.decode(machine.store.get_bytes(machine.keys.result) or b"")
    for name, tensor in by_definition(sent, rule).items():
        assert result[name].tobytes() == tensor.tobytes(), name


def test_a_partial_robust_round_is_verified_from_its_updates(machine: Machine) -> None:
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


SAMPLES = {f"c{i}": n for i, n in enumerate((5, 1, 900, 17, 3, 40, 8, 2))}


def factors_of(
    sent: Mapping[str, Update], rule: Mapping[str, Any], buffers: str = ""
) -> dict[str, float]:
    """Return how much of each update is left, by the length of what its client has sent."""
    lengths = {
        client: np.sqrt(sum((t.astype(float) ** 2).sum() for n, t in u.items() if n != buffers))
        for client, u in sent.items()
    }
    bound = rule.get("bound") or sorted(lengths.values())[int(np.ceil(0.5 * len(lengths))) - 1]
    return {client: min(1.0, bound / length) for client, length in lengths.items()}


def clip(
    sent: Mapping[str, Update], rule: Mapping[str, Any], most: int = 10**9, buffers: str = ""
) -> Update:
    """Clip by the lengths of what clients have sent, then average each layer by samples."""
    clients, factors = sorted(sent), factors_of(sent, rule, buffers)
    result = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for name in SHAPES:
        there = [client for client in clients if name in sent[client]]
        if len(there) >= rule["layer_quorum"]:
            total = sum(min(SAMPLES[client], most) for client in there)
            for client in there:
                share = min(SAMPLES[client], most) / total
                result[name] += share * factors[client] * sent[client][name].astype(float)
    return result


def run_clipped(machine: Machine, sent: Mapping[str, Update], **terms: Any) -> Any:
    """Run a round of clients with different samples; return its manifest and result."""
    bodies = {c: reference.encode(u, {"num_samples": str(SAMPLES[c])}) for c, u in sent.items()}
    if "server_optimizer" not in terms:
        terms["layout"] = layout_of(whole(np.random.default_rng(0)))
    manifest = run_bodies(machine, bodies, min_clients=6, **terms)
    return manifest, machine.store.objects[machine.keys.result]


def check_clipped(result: bytes, expected: Update) -> None:
    for name, tensor in reference.decode(result).items():
        tolerance = 2e-3 if tensor.dtype == np.float16 else 1e-6
        assert np.allclose(tensor.astype(float), expected[name], rtol=tolerance, atol=1e-6), name


@pytest.mark.parametrize("terms", [{}, {"topology": "grid", "fan_in": 3}], ids=str)
@pytest.mark.parametrize(
    "rule",
    [
        {"name": "norm_clip", "layer_quorum": 4},
        {"name": "norm_clip", "layer_quorum": 5, "bound": 60.0},
    ],
    ids=str,
)
def test_clipping_goes_by_the_length_of_what_each_client_has_sent(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, rule: dict[str, Any], terms: dict[str, Any]
) -> None:
    monkeypatch.setattr("gradshard_core.limits.aws_limits.MIN_PART_BYTES", 1000)
    sent, found = updates(), []
    sent["c6"] = {name: 100 * tensor for name, tensor in sent["c6"].items()}
    for shards in (1, 3):
        manifest, result = run_clipped(machine, sent, rule=rule, shards=shards, **terms)
        check_clipped(result, clip(sent, rule))
        assert "c6" in manifest["measuring"]["clipped"]
        found.append((result, manifest["layers"], manifest["measuring"]["clipped"]))
    assert found[0] == found[1]
    for layer in found[0][1]:
        # Shares, which say nothing of the lengths of others.
        counts = {client: SAMPLES[client] for client in layer["weights"]}
        is_counted = len(counts) >= rule["layer_quorum"]
        shares = {c: n / sum(counts.values()) * is_counted for c, n in counts.items()}
        assert layer["weights"] == shares


def test_clipped_parts_with_a_bad_update_a_cap_of_samples_and_no_clipping(machine: Machine) -> None:
    sent = updates()
    sent["c3"]["b.weight"][7] = np.nan
    rule = {"name": "norm_clip", "layer_quorum": 3}
    manifest, result = run_clipped(machine, sent, rule=rule, max_samples=20)
    assert [r["client"] for r in manifest["rejected"]] == ["c3"]
    del sent["c3"]
    check_clipped(result, clip(sent, rule, 20))
    # A bound that clips nothing leaves the bits of the plain rule for partial updates.
    loose = {"name": "norm_clip", "layer_quorum": 3, "bound": 1e9}
    found = [run_clipped(machine, sent, rule=rule)[1] for rule in (loose, "fedavg")]
    assert found[0] == found[1]


def test_a_client_alone_moves_no_layer_and_among_others_by_its_share_of_the_bound(
    machine: Machine,
) -> None:
    sent = {client: part(update, "c") for client, update in updates().items()}
    zeros = {name: np.zeros(shape, DTYPES[name]) for name, shape in SHAPES.items()}
    sent |= {"c1": part(zeros, "bc"), "c4": part(zeros, "bc")}
    sent["c6"] = {name: np.full_like(tensor, 1e4) for name, tensor in zeros.items()}
    rule = {"name": "norm_clip", "layer_quorum": 3, "bound": 2.0}
    _, body = run_clipped(machine, sent, rule=rule)
    result = reference.decode(body)
    assert not result["a.weight"].any()
    share = SAMPLES["c6"] / sum(SAMPLES[client] for client in ("c1", "c4", "c6"))
    assert 0 < np.linalg.norm(result["b.weight"]) <= 2.0 * share


@pytest.mark.parametrize("quorum", [5, 6])
def test_clipped_parts_step_a_model_and_average_its_buffers(machine: Machine, quorum: int) -> None:
    sent, before = updates(), whole(np.random.default_rng(1))
    put_model(machine.store, "parts", before)
    terms = {"optimizer": "fedavg", "learning_rate": 0.5, "model": "parts", "buffers": ["b.weight"]}
    rule = {"name": "norm_clip", "layer_quorum": quorum, "bound": 60.0}
    manifest, _ = run_clipped(machine, sent, rule=rule, server_optimizer=terms)
    model = reference.decode(machine.store.objects[manifest["model"]["tensors"]["key"]])
    expected = before["b.weight"]
    if quorum == 5:  # that many clients have sent it
        factors = factors_of(sent, rule, "b.weight")
        there = {c: SAMPLES[c] * factors[c] for c in sorted(sent) if "b.weight" in sent[c]}
        parts = [n / sum(there.values()) * sent[c]["b.weight"] for c, n in there.items()]
        expected = expected + sum(parts)
    assert np.allclose(model["b.weight"], expected, rtol=1e-6)
    assert np.array_equal(model["a.weight"], before["a.weight"])
    stepped = before["c.weight"] + 0.5 * clip(sent, rule, buffers="b.weight")["c.weight"]
    assert np.allclose(model["c.weight"], stepped, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        ({"name": "krum", "f": 1, "layer_quorum": 4}, "layer_quorum is not from 5"),
        ({"name": "multi_krum", "f": 1, "m": 5, "layer_quorum": 5}, "layer_quorum is not from 6"),
        ({"name": "bulyan", "f": 1, "layer_quorum": 6}, "layer_quorum is not from 7"),
        ({"name": "centered_clip", "layer_quorum": 2}, "layer_quorum is not from 3"),
        ({"name": "geometric_median", "layer_quorum": 2}, "layer_quorum is not from 3"),
        ({"name": "cosine_filter", "layer_quorum": 2}, "layer_quorum is not from 3"),
        ({"name": "median", "layer_quorum": 2}, "layer_quorum is not from 3"),
        ({"name": "sign", "layer_quorum": 2}, "layer_quorum is not from 3"),
        ({"name": "norm_clip", "layer_quorum": 2}, "layer_quorum is not from 3"),
        ({"name": "median", "layer_quorum": 10}, "layer_quorum is not from 3 to 9"),
        ({"name": "trimmed_mean", "beta": 0.2, "layer_quorum": 4}, "layer_quorum is not from 5"),
    ],
    ids=str,
)
def test_a_layer_quorum_that_tolerates_no_bad_client_is_refused(
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
    layout = layout_of(whole(np.random.default_rng(0)))
    terms = {"rule": {"name": "norm_clip", "layer_quorum": 3}, "layout": layout}
    answer = machine.open(clients=9, measure_one_in=2, **terms)
    assert "might measure nothing of an update with few layers" in answer["reason"]
    answer = machine.open(clients=9, rule="median", layers=["a"])
    assert "rule median takes whole ones unless it has a layer_quorum" in answer["reason"]
    answer = machine.open(clients=9, rule={"name": "krum", "f": 1}, layers=["a"])
    assert "rule krum takes whole ones unless it has a layer_quorum" in answer["reason"]
    optimizer = {"optimizer": "fedavg", "updates": "models"}
    answer = machine.open(clients=9, rule=rule, server_optimizer=optimizer)
    assert "send deltas, or leave out layer_quorum" in answer["reason"]
