"""Hostile clients in rounds whose rules measure: nobody else pays for what they send."""

import contextlib
from typing import Any

import numpy as np
import pytest

from gradshard_core.formats.object_keys import ObjectVersion, RoundKeys
from gradshard_core.formats.tensor_layout import Runs
from gradshard_core.planning.grouping import layer_ranges
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_parts import (
    Computation,
    Contributor,
    Level,
    Participants,
    PlannedLayout,
)
from gradshard_core.robust.rules import parse_robust_rule
from gradshard_core.rounds import finalize_round
from gradshard_core.specs.option_parsers import parse_layout
from gradshard_core.specs.round_spec_checks import parse_spec
from tests import reference
from tests.integration.by_hand import layout_of
from tests.unit.fakes import MemoryStore
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


@pytest.mark.parametrize(("layers", "at_a_time"), [(64, 1), (8, 2), (1, 16)])
def test_reports_of_many_layers_are_read_one_after_another(
    monkeypatch: pytest.MonkeyPatch, layers: int, at_a_time: int
) -> None:
    """Where layers are scattered, each task's report has the products of all: up to 28 MB."""
    names = [f"l{i % layers}.{i}" for i in range(20 * layers)]
    layout = parse_layout({name: {"dtype": "F32", "shape": [16384]} for name in names})
    rule = parse_robust_rule({"name": "krum", "f": 1, "layer_quorum": 5})
    ranges = layer_ranges(parse_spec({"clients": 64, "rule": rule.to_json()}), layout)
    clients = [
        Contributor(f"c{i}", ObjectVersion("", "", "", 1), 1, 0.0, Runs(())) for i in range(64)
    ]
    plan = Plan(
        "r",
        Participants(clients),
        Computation((Level.of_sizes([64]),), shards=20, robust=rule, measures=True),
        PlannedLayout.of(layout, layers=ranges),
    )
    read: list[str] = []

    class Store(MemoryStore):
        def get_json(self, key: str, *_: Any) -> Any:
            read.append(key)
            return {"attempt": 0}

    class Pool(contextlib.AbstractContextManager[Any]):
        """Does at once what threads would have done before the first report is taken."""

        def __init__(self, _threads: int) -> None:
            self.map = lambda function, tasks: [function(task) for task in tasks]

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(finalize_round, "ThreadPoolExecutor", Pool)
    reports = finalize_round._read_reports(Store(), RoundKeys("r"), plan)
    next(reports)
    assert len(read) == at_a_time
    assert len([*reports]) == 19


def test_more_layers_than_there_is_time_to_decide_on_are_refused(machine: Machine) -> None:
    layout = {f"l{i}": {"dtype": "F32", "shape": [1]} for i in range(4097)}
    rule = {"name": "geometric_median", "layer_quorum": 3}
    answer = machine.open(clients=4, rule=rule, layout=layout)
    assert "4097 layers, over the 4096 of a round: make fewer layers" in answer["reason"]
    machine.begin("fewer")
    layers = {"joined": ["l0", "l1"], **{name: [name] for name in [*layout][2:]}}
    answer = machine.open(clients=4, rule=rule, layout=layout, layers=layers)
    assert answer["status"] == "opened"


def test_more_clients_than_expected_do_not_make_a_round_too_large(machine: Machine) -> None:
    update = {f"l{i}": np.ones(1, "f4") for i in range(100)}
    rule = {"name": "krum", "f": 1, "layer_quorum": 5}
    answer = machine.open(clients=7, rule=rule, layout=layout_of(update))
    assert answer["status"] == "opened"
    for client in [*CLIENTS, *(f"more-{i}" for i in range(57))]:
        machine.submit(client, update)
    assert machine.finish() == {"status": "completed"}
    manifest = machine.store.get_json(machine.keys.manifest)
    contributors = [contributor["client"] for contributor in manifest["contributors"]]
    assert [*contributors, *manifest["left_out"]] == CLIENTS
    assert len(manifest["rejected"]) == 57
    assert "the round takes 7 clients" in manifest["rejected"][-1]["reason"]


def test_who_is_left_out_was_expected_all_the_same(machine: Machine) -> None:
    """A later round estimates from this one how often clients reach a layer."""
    sent = honest()
    sent["c6"]["b.w"] *= -9
    rule = {"name": "multi_krum", "f": 1, "layer_quorum": 5}
    manifest = run(machine, sent, rule=rule, layout=layout_of(sent["c0"]))
    assert manifest["left_out"] == ["c6"]
    assert manifest["expected"] == CLIENTS
