"""Partial updates and assignments on the deployed application."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gradshard import Federation
from gradshard.local_engine.lifecycle import Engine
from gradshard_core.errors import RoundStateError, UpdateError
from tests import reference
from tests.e2e.command import gradshard
from tests.e2e.deployed import Deployed

pytestmark = pytest.mark.e2e

SECONDS = 120

TERMS = {"batch_size": 16, "epochs": 1, "learning_rate": 0.1}


def model(seed: int) -> dict[str, reference.Array]:
    rng = np.random.default_rng(seed)
    return {
        f"{layer}.{kind}": rng.standard_normal(9, np.float32)
        for layer in ("first", "middle", "last")
        for kind in ("weight", "bias")
    }


def of(update: dict[str, reference.Array], *layers: str) -> dict[str, reference.Array]:
    return {name: tensor for name, tensor in update.items() if name.split(".")[0] in layers}


def test_each_layer_is_averaged_over_the_clients_that_reached_it(
    engine: Engine, federation: Federation
) -> None:
    round_ = federation.open_round(
        "cut-off",
        ["a", "b", "c", "d"],
        rule={"name": "salf", "p": {"model": "uniform"}},
        timeout=600,
        layout=model(0),
    )
    a, b, c = (model(seed) for seed in range(3))
    round_.submit("a", a, 5)
    round_.submit("b", of(b, "last"), 1, partial=True)
    growing = round_.layer_upload("c", 2)
    growing.add(of(c, "last"))
    growing.add(of(c, "middle"))
    with pytest.raises(UpdateError, match="open it with a rule for partial ones"):
        federation.open_round("strict", 2).layer_upload("c", 2)
    # d sends nothing, and c is cut off before it reaches the first layer.
    round_.close()
    manifest = round_.wait(SECONDS)
    assert manifest["missing"] == ["d"]
    layers = {layer["name"]: layer for layer in manifest["layers"]}
    assert {name: sorted(layer["weights"]) for name, layer in layers.items()} == {
        "first": ["a"],
        "middle": ["a", "c"],
        "last": ["a", "b", "c"],
    }
    p = [(1 - number / 3) ** 4 for number in (1, 2, 3)]
    assert [layer["p"] for layer in layers.values()] == pytest.approx(p)
    found = round_.fetch()
    weight = np.float32(1 / 2 / (1 - layers["middle"]["p"]))
    middle = a["middle.weight"] * weight + c["middle.weight"] * weight
    assert found["middle.weight"].tobytes() == middle.tobytes()
    shown = gradshard("show", "cut-off").stdout
    assert "by layer" in shown
    assert "middle" in shown


def test_an_update_that_grew_to_its_end_is_awaited_no_longer(
    engine: Engine, federation: Federation
) -> None:
    round_ = federation.open_round("grown", ["a"], rule="fedavg", timeout=600, layout=model(0))
    growing = round_.layer_upload("a", 3)
    for layer in ("last", "middle", "first"):
        growing.add(of(model(0), layer))
    growing.finish()
    manifest = round_.wait(SECONDS)
    reached = [(layer["name"], len(layer["weights"])) for layer in manifest["layers"]]
    assert reached == [("first", 1), ("middle", 1), ("last", 1)]
    assert round_.fetch()["first.bias"].tobytes() == model(0)["first.bias"].tobytes()


def test_assignments_from_round_to_round(
    engine: Engine, federation: Federation, deployed: Deployed
) -> None:
    first = federation.open_round("week-1", ["quick", "slow"], assignments=TERMS)
    assert federation.round("week-1").assignment("quick").epochs == 1
    second = federation.open_round(
        "week-2", ["quick", "slow", "new"], assignments={**TERMS, "after": "week-1"}
    )
    with pytest.raises(RoundStateError, match="'week-1', the one before 'week-2', has not ended"):
        second.assignment("quick")
    for client, seconds in (("quick", 3.0), ("slow", 12.0)):
        training = {"train_seconds": seconds, "batch_size": 16, "epochs": 1, "steps": 10}
        first.submit(client, model(0), 160, training=training)
    first.wait(SECONDS)
    assert federation.round("week-2").assignment("quick").epochs == 4
    assert federation.round("week-2").assignment("slow").epochs == 1
    assert federation.round("week-2").assignment("new").epochs == 1
    done = gradshard("assignment", "week-2", "quick", "--json")
    assert json.loads(done.stdout) == {
        "round": "week-2",
        "client": "quick",
        "batch_size": 32,
        "epochs": 4,
        "learning_rate": 0.2,
        "seconds": 12.0,
    }
    assert "quick for round week-2: batch size 32, epochs 4" in (
        gradshard("assignment", "week-2", "quick").stdout
    )
    for client in ("quick", "slow", "new"):
        second.submit(client, model(1), 160)
    manifest = second.wait(SECONDS)
    # The functions of the round before are still warm.
    assert manifest["totals"]["cold_starts"] == 0
    assert manifest["totals"]["seconds"] < manifest["waited_seconds"] + manifest["seconds"]


def test_slips_are_one_line(engine: Engine, federation: Federation, tmp_path: Path) -> None:
    federation.open_round("plain", ["a"], timeout=600)
    file = tmp_path / "a.safetensors"
    save_file(model(0), file)
    cases: list[tuple[tuple[Any, ...], str]] = [
        (("submit", "plain", "a", file, "--samples", 1, "--partial"), "whole updates only"),
        (("assignment", "plain", "a"), "'plain' was opened without assignments"),
        (("open", "x", "--clients", 2, "--rule", "salf"), "rule salf needs p"),
        (("open", "x", "--clients", 2, "--rule", "mean"), "rule is 'mean', not one of"),
        (("open", "x", "--clients", 2, "--rule", '{"name": "salf", "p": 1}'), "p is 1"),
        (("open", "x", "--clients", 2, "--rule", '{"name": '), "is not JSON"),
        (("open", "x", "--clients", 2, "--rule", "fill"), "with it (layout, or --layout FILE"),
        (("open", "x", "--clients", 2, "--layers", '["fc"]'), "give a rule, too"),
        (("open", "x", "--clients", 2, "--assignments", '{"epochs": 2}'), "is missing"),
        (
            ("open", "x", "--clients", 2, "--rule", "fill", "--weights", "steps"),
            "leave out weights",
        ),
    ]
    for arguments, message in cases:
        done = gradshard(*arguments)
        [line] = done.stderr.splitlines()
        of_usage = line.endswith(("--help`.", "--help."))
        assert done.returncode == (2 if of_usage else 1), (arguments, done)
        assert message in line, line
