"""Rules that compare pairs, with partial updates: in each layer among those that have sent it."""

import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from gradshard.cli import show
from gradshard.client.robust_decision_text import verdict_on
from gradshard.report.parts.decision import decision_part
from gradshard.report.row_limits import Detail
from gradshard_core.formats.codecs.registry import CODECS
from tests import reference
from tests.integration.by_hand import layout_of, put_model
from tests.unit.in_memory import OPENED, Machine
from tests.unit.report.html_page import Page
from tests.unit.robust.test_whole_update_rules import ORACLES, nearest_sums
from tests.unit.rounds.test_compressed_rounds import compress, compressed_in_any_order, decoded
from tests.unit.rounds.test_compressed_rounds import run as run_bodies
from tests.unit.rounds.test_partial_robust_rounds import (
    DTYPES,
    LAYERS,
    SAMPLES,
    SHAPES,
    Update,
    part,
    updates,
    whole,
)

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")

RULES: list[dict[str, Any]] = [
    {"name": "krum", "f": 1, "layer_quorum": 5},
    {"name": "multi_krum", "f": 1, "layer_quorum": 5},
    {"name": "multi_krum", "f": 1, "m": 2, "layer_quorum": 6},
    {"name": "bulyan", "f": 1, "layer_quorum": 7},
    {"name": "geometric_median", "layer_quorum": 4},
    {"name": "cosine_filter", "layer_quorum": 4},
    {"name": "centered_clip", "layer_quorum": 5},
    {"name": "centered_clip", "bound": 30.0, "layer_quorum": 3},
]

EQUAL = dict.fromkeys(SAMPLES, 7)


def flat(update: Mapping[str, reference.Array], layer: str, unmeasured: str = "") -> Any:
    names = [name for name in SHAPES if name[0] == layer and name != unmeasured]
    return np.concatenate([update[name].astype(float).ravel() for name in names])


def by_definition(
    sent: Mapping[str, Update], rule: Mapping[str, Any], samples: Mapping[str, int]
) -> Update:
    """Apply the rule to each layer as if it were the whole update of those that have sent it."""
    result: Update = {name: np.zeros(shape, DTYPES[name]) for name, shape in SHAPES.items()}
    for layer in LAYERS:
        there = [c for c in sorted(sent) if any(name[0] == layer for name in sent[c])]
        if len(there) < rule["layer_quorum"]:
            continue
        rows = np.stack([flat(sent[client], layer) for client in there])
        names = [name for name in SHAPES if name[0] == layer]
        if rule["name"] == "bulyan":
            best = np.argsort(nearest_sums(rows, rule["f"]), kind="stable")
            selected = sorted(best[: len(there) - 2 * rule["f"]])
            parts = [{n: sent[there[i]][n] for n in names} for i in selected]
            result |= reference.columns(parts, "bulyan", f=rule["f"])
            continue
        counts = np.array([samples[client] for client in there])
        found = ORACLES[rule["name"]](rows, counts / counts.sum(), rule)
        for name in names:
            size = int(np.prod(SHAPES[name]))
            result[name], found = found[:size].reshape(SHAPES[name]), found[size:]
    return result


def encoded(sent: Mapping[str, Update], samples: Mapping[str, int]) -> dict[str, bytes]:
    return {c: reference.encode(u, {"num_samples": str(samples[c])}) for c, u in sent.items()}


def run(
    machine: Machine, sent: Mapping[str, Update], samples: Mapping[str, int] = EQUAL, **terms: Any
) -> tuple[dict[str, Any], Update]:
    """Run a round to its end; return its manifest and result."""
    quorum = terms["rule"].get("layer_quorum", 1)
    terms = {"min_clients": max(quorum, len(sent) - 1), **terms}
    if "server_optimizer" not in terms:
        terms = {"layout": layout_of(whole(np.random.default_rng(0))), **terms}
    manifest = run_bodies(machine, encoded(sent, samples), **terms)
    return manifest, reference.decode(machine.store.objects[machine.keys.result])


def decision_of(machine: Machine) -> dict[str, Any]:
    attempt = machine.store.get_json(machine.keys.plan)["attempt"]
    decision: dict[str, Any] = machine.store.get_json(machine.keys.decision(attempt))
    return decision


def check(result: Mapping[str, reference.Array], expected: Mapping[str, reference.Array]) -> None:
    for name, tensor in result.items():
        tolerance = 3e-3 if tensor.dtype == np.float16 else 1e-4
        assert np.allclose(tensor, expected[name], rtol=tolerance, atol=tolerance), name


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_each_layer_is_a_round_of_those_that_sent_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, rule: dict[str, Any]
) -> None:
    monkeypatch.setattr("gradshard_core.limits.aws_limits.MIN_PART_BYTES", 1000)
    sent = updates()
    sent["c6"] = {name: -3 * tensor for name, tensor in sent["c6"].items()}
    samples = SAMPLES if rule["name"] == "centered_clip" else EQUAL
    found = []
    for shards, order in ((1, sorted(sent)), (3, sorted(sent, reverse=True))):
        ordered = {client: sent[client] for client in order}
        manifest, result = run(machine, ordered, samples, rule=rule, shards=shards)
        assert manifest["shards"] == shards
        check(result, by_definition(sent, rule, samples))
        body = machine.store.objects[machine.keys.result]
        found.append((body, decision_of(machine), manifest["layers"], manifest["left_out"]))
    assert found[0] == found[1]
    if rule["name"] in ("krum", "bulyan"):  # these have the bits of the definition
        for name, tensor in by_definition(sent, rule, samples).items():
            assert result[name].tobytes() == tensor.astype(DTYPES[name]).tobytes(), name


def test_large_layers_have_the_same_decision_for_every_cut(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradshard_core.limits.aws_limits.MIN_PART_BYTES", 1000)
    rng = np.random.default_rng(3)
    shapes = {"a.w": 40_001, "a.b": 5, "b.w": 50_003, "c.w": 7}
    sent = {}
    for number in range(7):
        layers = ("ab", "abc", "bc")[number % 3]
        sent[f"c{number}"] = {
            name: rng.standard_normal(size).astype("f8" if name == "c.w" else "f4")
            for name, size in shapes.items()
            if name[0] in layers
        }
    layout = layout_of({name: sent["c1"][name] for name in shapes})
    rule = {"name": "geometric_median", "layer_quorum": 3}
    found = []
    for shards in (1, 2, 5):
        run(machine, sent, dict.fromkeys(sent, 3), rule=rule, layout=layout, shards=shards)
        found.append((decision_of(machine), machine.store.objects[machine.keys.result]))
    assert found[0] == found[1] == found[2]


def test_one_layer_has_the_bits_of_a_round_of_whole_updates(machine: Machine) -> None:
    rng = np.random.default_rng(5)
    sent = {f"c{i}": whole(rng) for i in range(8)}
    for rule in RULES:
        run(machine, sent, SAMPLES, rule=rule, layers={"all": ["a", "b", "c"]})
        one = machine.store.objects[machine.keys.result]
        plain = {name: value for name, value in rule.items() if name != "layer_quorum"}
        run(machine, sent, SAMPLES, rule=plain)
        assert machine.store.objects[machine.keys.result] == one, rule


@pytest.mark.parametrize("rule", RULES[:2] + RULES[4:6], ids=str)
def test_bad_clients_that_send_few_layers_gain_nothing(
    machine: Machine, rule: dict[str, Any]
) -> None:
    """Wherever two bad clients hide, honest ones decide in every layer that changes."""
    quorum = {**rule, "layer_quorum": 7, **({"f": 2} if "f" in rule else {})}
    rng = np.random.default_rng(9)
    truth = {name: tensor.astype("f8") for name, tensor in whole(rng).items()}
    honest = {
        f"h{i}": {
            name: (tensor + 0.1 * rng.standard_normal(tensor.shape)).astype(DTYPES[name])
            for name, tensor in truth.items()
            if i < 5 or name[0] in "bc"
        }
        for i in range(7)
    }
    for layers in ("a", "b", "c", "bc"):
        bad = part({n: (-20 * t).astype(DTYPES[n]) for n, t in truth.items()}, layers)
        sent = {**honest, "A": bad, "z": bad}
        _, result = run(machine, sent, dict.fromkeys(sent, 1), rule=quorum, min_clients=7)
        for layer in LAYERS:
            found, true = flat(result, layer), flat(truth, layer)
            if layer == "a" and layers != "a":  # five honest clients are no quorum
                assert not found.any()
            else:
                assert np.linalg.norm(found - true) < 0.2 * np.linalg.norm(true), (layers, layer)


def test_a_layer_without_its_quorum_is_zero_and_leaves_nobody_out(machine: Machine) -> None:
    sent = updates()
    sent["c0"] = part(sent["c0"], "a")  # now three have "a" alone, or with others
    rule = {"name": "krum", "f": 1, "layer_quorum": 5}
    manifest, result = run(machine, sent, rule=rule)
    assert not result["a.weight"].any()
    assert result["c.weight"].any()
    assert "c0" not in manifest["left_out"]
    assert manifest["left_out"]
    [layer] = [layer for layer in manifest["layers"] if layer["name"] == "a"]
    assert set(layer["weights"].values()) == {0.0}
    [entry] = [e for e in decision_of(machine)["clients"] if e["client"] == "c0"]
    assert entry["layers"] == {}
    assert entry["norm"] == pytest.approx(np.linalg.norm(flat(sent["c0"], "a")), rel=1e-6)


@pytest.mark.parametrize("codec", [None, "int8", "topk"])
def test_an_update_that_is_gone_after_it_was_measured_changes_no_other_layer(
    machine: Machine, codec: str | None
) -> None:
    """The rule decides anew, also on those whom it had left out of every layer."""
    sent, rng = updates(), np.random.default_rng(6)
    bodies = encoded(sent, EQUAL)
    if codec is not None:
        bodies = {client: compress(rng, codec, update) for client, update in sent.items()}
        sent = {client: reference.decode(decoded(body, 1)) for client, body in bodies.items()}
    rule = {"name": "multi_krum", "f": 1, "m": 2, "layer_quorum": 5}
    machine.begin("gone")
    layout = layout_of(whole(np.random.default_rng(0)))
    terms = {"rule": rule, "layout": layout, "min_clients": 5, "codecs": [*CODECS]}
    assert machine.open(clients=sorted(sent), **terms)["status"] == "opened"
    for client, body in bodies.items():
        machine.store.put_bytes(machine.keys.update(client), body)
    outcome = machine.turn(OPENED)
    planned = machine.plan(outcome)
    decision = decision_of(machine)
    weights = {
        entry["client"]: [figures["weight"] for figures in entry["layers"].values()]
        for entry in decision["clients"]
    }
    kept = next(client for client, of_client in weights.items() if any(of_client))
    assert sum(not any(of_client) for of_client in weights.values()) >= 3
    machine.store.delete(machine.keys.update(kept))
    machine.aggregate(planned)
    outcome = machine.step("finalize_round")
    while outcome["status"] == "replan":
        outcome = machine.turn(outcome)
    manifest = machine.store.get_json(machine.keys.manifest)
    assert [r["client"] for r in manifest["rejected"]] == [kept]
    del sent[kept]
    check(
        reference.decode(machine.store.objects[machine.keys.result]),
        by_definition(sent, rule, EQUAL),
    )


@pytest.mark.parametrize("rule", [RULES[1], RULES[3], RULES[6]], ids=str)
def test_layers_step_a_model_and_average_its_buffers(
    machine: Machine, rule: dict[str, Any]
) -> None:
    sent, before = updates(), whole(np.random.default_rng(1))
    put_model(machine.store, "compared", before)
    terms = {"optimizer": "fedavg", "learning_rate": 0.5, "model": "compared"}
    terms["buffers"] = ["a.bias"]
    manifest, average = run(machine, sent, EQUAL, rule=rule, server_optimizer=terms)
    model = reference.decode(machine.store.objects[manifest["model"]["tensors"]["key"]])
    # What is no buffer is stepped; "a" has its quorum under no rule here.
    for name in ("b.weight", "c.weight"):
        stepped = before[name] + 0.5 * average[name]
        assert np.allclose(model[name], stepped, rtol=1e-5, atol=1e-6), name
    assert np.array_equal(model["a.weight"], before["a.weight"])
    assert np.array_equal(model["a.bias"], before["a.bias"])


def test_buffers_of_a_layer_have_its_weights_normalised(machine: Machine) -> None:
    sent = updates()
    before = whole(np.random.default_rng(1))
    put_model(machine.store, "buffered", before)
    terms = {"optimizer": "fedavg", "model": "buffered", "buffers": ["a.bias"]}
    rule = {"name": "centered_clip", "bound": 5.0, "layer_quorum": 4}
    manifest, _ = run(machine, sent, SAMPLES, rule=rule, server_optimizer=terms)
    model = reference.decode(machine.store.objects[manifest["model"]["tensors"]["key"]])
    there = {
        e["client"]: e["layers"]["a"] for e in decision_of(machine)["clients"] if "a" in e["layers"]
    }
    total = sum(figures["weight"] for figures in there.values())
    assert total < 0.9
    mean = sum(
        figures["weight"] / total * sent[client]["a.bias"].astype(float)
        for client, figures in there.items()
    )
    assert np.allclose(model["a.bias"], before["a.bias"].astype(float) + mean, rtol=3e-3, atol=3e-3)
    for client, figures in there.items():  # buffers are not measured
        assert figures["norm"] == pytest.approx(
            np.linalg.norm(flat(sent[client], "a", "a.bias")), rel=1e-6
        )


def test_compressed_parts_in_any_order_of_tensors_count_as_what_they_decode_to(
    machine: Machine,
) -> None:
    rng = np.random.default_rng(2)
    bodies, sent = compressed_in_any_order(rng, updates())
    rule = {"name": "bulyan", "f": 1, "layer_quorum": 7}
    run_bodies(machine, bodies, rule=rule, layout=layout_of(whole(rng)), min_clients=7)
    result = reference.decode(machine.store.objects[machine.keys.result])
    for name, tensor in by_definition(sent, rule, EQUAL).items():
        assert result[name].tobytes() == tensor.tobytes(), name


def test_a_bad_update_is_rejected_while_it_is_measured(machine: Machine) -> None:
    sent = updates()
    sent["c4"]["a.weight"][0, 3] = np.inf
    rule = {"name": "geometric_median", "layer_quorum": 3}
    manifest, result = run(machine, sent, rule=rule, min_clients=6)
    assert [r["client"] for r in manifest["rejected"]] == ["c4"]
    del sent["c4"]
    check(result, by_definition(sent, rule, EQUAL))


def test_what_was_decided_is_told_to_those_whom_it_concerns(machine: Machine) -> None:
    sent = updates()
    sent["c6"] = {name: -30 * tensor for name, tensor in sent["c6"].items()}
    sent["c1"] = part({n: 9 * t for n, t in sent["c1"].items()}, "c")
    rule = {"name": "multi_krum", "f": 2, "layer_quorum": 7}
    manifest, _ = run(machine, sent, rule=rule, min_clients=7)
    assert manifest["left_out"] == ["c1", "c6"]
    assert manifest["measuring"]["left_out_by_layer"] == {"c": ["c1", "c6"]}
    reason = machine.store.get_json(machine.keys.rejection("c1"))["reason"]
    assert "left this update out of each layer that it has: in layer 'c' its Krum score" in reason
    text = json.dumps(manifest)
    for entry in decision_of(machine)["clients"]:
        for value in (
            entry["norm"],
            *itertools.chain(*(f.values() for f in entry["layers"].values())),
        ):
            assert not isinstance(value, float) or value in (0.0, 1.0) or repr(value) not in text
    verdicts = {e["client"]: verdict_on(e) for e in decision_of(machine)["clients"]}
    assert verdicts["c6"] == "left out"
    assert verdicts["c0"] == "kept"
    table = show._decision(decision_of(machine))
    assert [str(column.header) for column in table.columns] == ["multi_krum", "norm", "update"]
    assert "2 left out" in show._measured(manifest["measuring"], manifest["left_out"])
    table = show._layers(manifest["layers"], manifest["measuring"])
    covered, left_out = ([*map(str, column.cells)] for column in table.columns[1:])
    assert (covered, left_out) == (["4", "5", "8"], ["0", "0", "2"])
    [last] = [layer["weights"] for layer in manifest["layers"] if layer["name"] == "c"]
    assert last == {client: 0.0 if client in ("c1", "c6") else 1 / 8 for client in sorted(sent)}
    reported = decision_part({"decision": decision_of(machine)}, Detail.for_rounds(1))
    assert reported is not None
    assert "8 updates measured · 2 left out" in reported.summary
    assert "layer updates left out clipped Krum score, least" in Page(reported.content).words


def test_clients_that_are_left_out_of_some_layers_are_named_by_layer(machine: Machine) -> None:
    rng = np.random.default_rng(4)
    truth = whole(rng)
    sent = {
        f"c{i}": {
            n: (t + 0.1 * rng.standard_normal(t.shape)).astype(t.dtype) for n, t in truth.items()
        }
        for i in range(7)
    }
    sent["c3"]["b.weight"] = -50 * sent["c3"]["b.weight"]
    manifest, _ = run(
        machine, sent, rule={"name": "cosine_filter", "least": -0.5, "layer_quorum": 3}
    )
    assert manifest["measuring"]["left_out_by_layer"] == {"b": ["c3"]}
    assert manifest["left_out"] == []
    [entry] = [e for e in decision_of(machine)["clients"] if e["client"] == "c3"]
    assert verdict_on(entry) == "left out of 1 of 3 layers"
    assert "1 left out of some layers" in show._measured(manifest["measuring"], [])
    rule = {"name": "centered_clip", "bound": 60.0, "layer_quorum": 3}
    manifest, _ = run(machine, sent, rule=rule)
    assert manifest["measuring"]["clipped"] == ["c3"]
    [entry] = [e for e in decision_of(machine)["clients"] if e["client"] == "c3"]
    assert verdict_on(entry) == "clipped in 1 of 3 layers"


def test_a_layer_that_is_not_measured_is_refused_with_what_would_do(machine: Machine) -> None:
    layout = {"a.w": {"dtype": "F32", "shape": [3]}, "n": {"dtype": "I64", "shape": [2]}}
    rule = {"name": "krum", "f": 1, "layer_quorum": 5}
    answer = machine.open(clients=9, rule=rule, layout=layout)
    assert "layer 'n' has integers and buffers alone, which are not measured" in answer["reason"]
    machine.begin("named")
    layers = {"a": ["a", "n"]}
    assert machine.open(clients=9, rule=rule, layout=layout, layers=layers)["status"] == "opened"
    put_model(machine.store, "statistics", whole(np.random.default_rng(1)))
    optimizer = {"optimizer": "fedavg", "model": "statistics", "buffers": ["b.weight"]}
    machine.begin("applied")
    answer = machine.open(clients=9, rule=rule, server_optimizer=optimizer)
    assert "layer 'b' has integers and buffers alone" in answer["reason"]


def test_more_products_than_the_functions_hold_are_refused_with_the_numbers(
    machine: Machine,
) -> None:
    layout = {f"l{i}.w": {"dtype": "F32", "shape": [3]} for i in range(65)}
    rule = {"name": "krum", "f": 1, "layer_quorum": 5}
    answer = machine.open(clients=64, rule=rule, layout=layout)
    assert "64 clients in each of 65 layers" in answer["reason"]
    assert "make at most 64 layers" in answer["reason"]
    assert "expect at most 63 clients" in answer["reason"]
    machine.begin("fewer")
    assert machine.open(clients=63, rule=rule, layout=layout)["status"] == "opened"
    wide = {name: {"dtype": "F64", "shape": [3]} for name in layout}
    machine.begin("wide")
    assert "expect at most 31 clients" in machine.open(clients=32, rule=rule, layout=wide)["reason"]
