"""The loop closed: get the model, train, submit; rounds make its versions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner

from gradshard import Federation, RoundFailed
from gradshard.cli import main
from gradshard.client.round_by_ticket import TicketRound
from gradshard.tickets.round_ticket import Ticket
from gradshard_core.errors import ModelNotFoundError, ModelStateError, RoundStateError, UpdateError
from tests import reference
from tests.e2e.deployed import Deployed

pytestmark = pytest.mark.e2e

SECONDS = 120
CLIENTS = ["a", "b", "c"]
SAMPLES = {"a": 5, "b": 1, "c": 900}


def tensors(seed: int) -> dict[str, reference.Array]:
    rng = np.random.default_rng(seed)
    return {
        "fc.weight": reference.random_tensor(rng, "F32", (64, 33)),
        "fc.bias": reference.random_tensor(rng, "BF16", (33,)),
        "bn.count": np.array(seed, "i8"),
    }


def bits(model: dict[str, reference.Array]) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in model.items()}


def train(weights: dict[str, reference.Array], client: str) -> dict[str, reference.Array]:
    """Stand for a training that depends on where it began."""
    seed = int.from_bytes(client.encode()) + int(abs(float(weights["fc.weight"][0, 0])) * 1e6)
    return tensors(seed % 1000)


def test_a_federation_trains_its_model_round_by_round(federation: Federation) -> None:
    model = federation.model("loop")
    with pytest.raises(ModelNotFoundError, match="put one there first"):
        model.fetch()
    assert model.put(tensors(0)).number == 1
    expected = tensors(0)
    state: dict[str, dict[str, reference.Array]] = {}
    for number in range(1, 4):
        round_ = federation.open_round(
            f"loop-{number}", CLIENTS, server_optimizer={"optimizer": "fedyogi", "model": "loop"}
        )
        sent = []
        for client in CLIENTS:
            weights = round_.fetch_model()
            assert bits(weights) == bits(expected)
            sent.append(train(weights, client))
            round_.submit(client, sent[-1], SAMPLES[client])
        manifest = round_.wait(SECONDS)
        average = reference.average(sent, list(SAMPLES.values()))
        settings = manifest["model"]["optimizer"]
        expected, state = reference.step("fedyogi", settings, number, expected, average, state)
        assert bits(model.fetch()) == bits(expected)
        assert model.current().round_id == round_.id
        assert model.current().number == 1 + number == manifest["model"]["version"]
    # Back to the second version: the next round is the third one again, to the bit.
    third = bits(model.fetch(version=3))
    assert model.roll_back(2).number == 5
    round_ = federation.open_round(
        "loop-again", CLIENTS, server_optimizer={"optimizer": "fedyogi", "model": "loop"}
    )
    for client in CLIENTS:
        round_.submit(client, train(round_.fetch_model(), client), SAMPLES[client])
    round_.wait(SECONDS)
    assert bits(model.fetch()) == third
    assert model.current().steps == 2
    assert [v.restores for v in model.history()] == [None, None, None, None, 2, None]
    with pytest.raises(ModelStateError, match="version 6 of model 'loop' is the current one"):
        model.roll_back(6)
    with pytest.raises(ModelNotFoundError, match="no version 9; the newest is 6"):
        model.fetch(version=9)
    assert [version.number for version in model.prune(2)] == [1, 2, 3, 4]
    # Version 5 is made of what version 2 was.
    assert bits(model.fetch(version=5)) != third
    with pytest.raises(ModelNotFoundError, match="no version 3"):
        model.fetch(version=3)


def test_an_update_of_another_model_is_not_sent(federation: Federation) -> None:
    federation.model("shape").put(tensors(0))
    round_ = federation.open_round("shape-1", ["a"], server_optimizer={"model": "shape"})
    other = {**tensors(1), "fc.bias": np.zeros(33, "f4")}
    with pytest.raises(UpdateError, match=r"tensor 'fc\.bias' is F32"):
        round_.submit("a", other, 1)
    missing = {name: tensor for name, tensor in tensors(1).items() if name != "bn.count"}
    with pytest.raises(UpdateError, match=r"tensor 'bn\.count' is missing"):
        round_.submit("a", missing, 1)
    round_.submit("a", tensors(1), 1)
    round_.wait(SECONDS)
    # The size of a ticket's update goes by the model, too.
    again = federation.open_round("shape-2", ["a"], server_optimizer={"model": "shape"})
    ticket = TicketRound(Ticket.loads(again.ticket("a").dumps()))
    assert bits(ticket.fetch_model()) == bits(again.fetch_model())
    with pytest.raises(UpdateError, match=r"tensor 'fc\.bias' is F32"):
        ticket.submit(other, 1)
    ticket.submit(tensors(2), 1)
    again.wait(SECONDS)
    unapplied = federation.open_round("shape-3", ["a"])
    with pytest.raises(RoundStateError, match="makes no version of a model"):
        TicketRound(unapplied.ticket("a", max_bytes=1000)).fetch_model()
    assert federation.model("shape").current().number == 3


def test_a_round_whose_model_moved_on_fails_and_says_so(
    federation: Federation, deployed: Deployed
) -> None:
    model = federation.model("moved")
    model.put(tensors(0))
    round_ = federation.open_round("moved-1", ["a"], server_optimizer={"model": "moved"})
    model.put(tensors(1))
    round_.submit("a", tensors(2), 1)
    with pytest.raises(RoundFailed, match=r"from version 1 of model 'moved', but version 2 is"):
        round_.wait(SECONDS)
    assert deployed.open_uploads("moved-1") == []
    with pytest.raises(RoundFailed, match="there is no model 'none'"):
        federation.open_round("moved-2", ["a"], server_optimizer={"model": "none"}).wait(SECONDS)
    with pytest.raises(RoundStateError, match="'moved-3' makes no version of a model"):
        federation.open_round("moved-3", ["a"]).fetch_model()


def test_by_command(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def gradshard(*arguments: str) -> Any:
        outcome = CliRunner().invoke(main, [*arguments, "--stack", federation.stack.name])
        assert outcome.exit_code == 0, outcome.output
        return outcome.stdout

    safetensors.numpy.save_file({"w": np.zeros(10, "f4")}, "m.safetensors", {"format": "pt"})
    named = ("--name", "command")
    assert "version 1 of model command is current" in gradshard(
        "model", "put", "m.safetensors", *named
    )
    apply = json.dumps({"optimizer": "fedavgm", "learning_rate": 0.5, "model": "command"})
    gradshard("open", "command-1", "--client", "a", "--server-optimizer", apply)
    safetensors.numpy.save_file({"w": np.arange(10, dtype="f4")}, "u.safetensors")
    gradshard("submit", "command-1", "a", "u.safetensors", "--samples", "3")
    federation.round("command-1").wait(SECONDS)
    gradshard("model", "fetch", "-o", "next.safetensors", *named)
    made = safetensors.numpy.load_file("next.safetensors")
    assert made["w"].tolist() == [i / 2 for i in range(10)]
    assert "round command-1" in gradshard("model", "show", *named)
    versions = json.loads(gradshard("model", "show", "--json", *named))
    assert [version["round"] for version in versions] == [None, "command-1"]
    shown = gradshard("show", "command-1")
    assert "version 2 of command" in shown
    assert "1 tensor stepped by fedavgm" in shown
    back = json.loads(gradshard("model", "rollback", "1", "--json", *named))
    assert (back["version"], back["restores"]) == (3, 1)
    gradshard("model", "fetch", "-o", "back.safetensors", "--version", "3", *named)
    assert not safetensors.numpy.load_file("back.safetensors")["w"].any()
    assert "deleted 2 versions" in gradshard("model", "prune", "--keep", "1", *named)
    outcome = CliRunner().invoke(
        main, ["model", "fetch", "-o", "x", "--version", "2", *named, "--stack", "gradshard"]
    )
    assert outcome.exit_code == 1
    assert outcome.output == "gradshard: model 'command' has no version 2; the newest is 3\n"
